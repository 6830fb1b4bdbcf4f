"""The certificate of a run's data: on made-up conversations or texts, and on the first rows of each of its datasets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from llmmod.data.examples import Making
from llmmod.data.records import conversations_of
from llmmod.data.row import Place
from llmmod.render.certificate import certify
from llmmod.render.document_proof import certify_documents
from llmmod.render.finding import Finding, refuse

log = logging.getLogger(__name__)

PROVED = 8  # rows of each dataset that the certificate looks at


class Proof(NamedTuple):
    """What the certificate found, and how many rows of the data it looked at."""

    findings: list[Finding]
    rows: int


def prove(makings: Sequence[Making], name: str) -> None:
    """Refuse a render or a tokenizer that can't be vouched for; what is only worth knowing is told.

    Args:
        makings: of the datasets of a run, at least one.
        name: the render's.

    Raises:
        ConfigError: something would be trained wrong.
    """
    key = "tokenizer" if makings[0].opened.kind == "document" else f"render={name}"
    findings = proof(makings).findings
    refuse(findings, key)
    for finding in findings:
        log.info("%s: %s", key, finding)


def proof(makings: Sequence[Making]) -> Proof:
    """What can't be vouched for of the data of a run.

    Args:
        makings: of its datasets, all with the same render and tokenizer.
    """
    tokenizing = makings[0].tokenizing
    records = {str(place): record for making in makings for place, record in islice(making.opened.training, PROVED)}
    if makings[0].opened.kind == "document":

        def examples(texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
            made = tokenizing.batch([(Place("", number), text) for number, text in enumerate(texts)])
            return [(one.examples[0].encoded.input_ids, one.examples[0].encoded.labels) for one in made]

        return Proof(certify_documents(tokenizing.tokenizer, examples, records), len(records))
    conversations = {}
    for place, record in records.items():
        for number, conversation in enumerate(conversations_of(record), start=1):
            conversations[f"{place}, answer {number}" if number > 1 else place] = conversation
    return Proof(certify(tokenizing.render, tokenizing.tokenizer, conversations), len(records))
