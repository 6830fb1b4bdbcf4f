"""The certificate of a run's data, checked on synthetic conversations or documents and on the first rows of each dataset.

For conversations it is the render's certificate. For documents it checks on examples that pre-training uses a text as the tokenizer
encodes it, with its end token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, islice, pairwise
from typing import Any, NamedTuple

from llmmod.data.dataset.builder import DatasetBuilder
from llmmod.data.rows.records import RowLocation, conversations_of
from llmmod.render.certificate import certify
from llmmod.render.encode import IGNORED
from llmmod.render.findings import Finding, refuse, seam, spelling, synthetic_texts
from llmmod.render.segments import own_beginning

log = logging.getLogger(__name__)

CERTIFIED = 8  # rows of each dataset that are checked
LONGEST = 10_000  # characters of a document that are checked


class DataCertificate(NamedTuple):
    """The findings of the certificate, and the number of checked rows."""

    findings: list[Finding]
    rows: int


def require_certificate(builders: Sequence[DatasetBuilder], name: str) -> list[Finding]:
    """The findings that are not fatal, which are logged; a fatal one is an error.

    Args:
        builders: of the datasets of a run, at least one.
        name: the render's.

    Raises:
        ConfigError: the training would use wrong tokens.
    """
    key = "tokenizer" if builders[0].opened.kind == "document" else f"render={name}"
    findings = certify_data(builders).findings
    refuse(findings, key)
    for finding in findings:
        log.info("%s: %s", key, finding)
    return findings


def certify_data(builders: Sequence[DatasetBuilder]) -> DataCertificate:
    """The certificate of the data of a run.

    Args:
        builders: of its datasets, all with the same render and tokenizer.
    """
    tokenizer = builders[0].example_tokenizer
    records = {str(place): record for builder in builders for place, record in islice(builder.opened.training, CERTIFIED)}
    if builders[0].opened.kind == "document":

        def examples(texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
            made = tokenizer.tokenize([(RowLocation("", number), text) for number, text in enumerate(texts)])
            return [(one.examples[0].encoded.input_ids, one.examples[0].encoded.labels) for one in made]

        return DataCertificate(certify_documents(tokenizer.tokenizer, examples, records), len(records))
    conversations = {}
    for place, record in records.items():
        for number, conversation in enumerate(conversations_of(record), start=1):
            conversations[f"{place}, answer {number}" if number > 1 else place] = conversation
    return DataCertificate(certify(tokenizer.render, tokenizer.tokenizer, conversations), len(records))


def certify_documents(
    tokenizer: Any, examples: Callable[[Sequence[str]], list[tuple[list[int], list[int]]]], documents: Mapping[str, str]
) -> list[Finding]:
    """The first finding of each check of documents; empty without findings.

    Args:
        tokenizer: encodes them.
        examples: texts -> ids and labels of each, as in training.
        documents: the first of the data, by name, checked in addition to synthetic ones.
    """
    texts = {**synthetic_texts(tokenizer.all_special_tokens), **{name: text[:LONGEST] for name, text in documents.items()}}
    found: dict[str, Finding] = {}
    for (name, text), (ids, labels) in zip(texts.items(), examples(list(texts.values())), strict=True):
        for finding in _findings(tokenizer, text, ids, labels):
            found.setdefault(finding.check, replace(finding, conversation=name))
    return list(found.values())


def _findings(tokenizer: Any, text: str, ids: list[int], labels: list[int]) -> Iterator[Finding]:
    bos, eos = own_beginning(tokenizer), tokenizer.eos_token_id
    start = [] if bos is None else [bos]
    if ids[-1:] != [eos]:
        yield Finding("end", f"a document ends with {spelling(tokenizer, ids[-1])} instead of {spelling(tokenizer, eos)}")
    if ids[: len(start)] != start:
        yield Finding("beginning", f"a document doesn't begin with {spelling(tokenizer, start[0])}, as this tokenizer's texts do")
    if labels != ids:
        yield Finding("labels", "a document's labels are not its ids", seam=seam(tokenizer, ids=ids, labels=labels))
    inner = ids[len(start) : -1]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if injected := [token for token in inner if token in special]:
        yield Finding("injection", f"a text became a special token: {spelling(tokenizer, injected[0])}")
    if not any(name in text for name in tokenizer.get_added_vocab()):
        plain = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if list(plain) != inner:
            where = seam(tokenizer, found=inner, whole=plain)
            yield Finding("text", "a document isn't encoded as the tokenizer encodes a text", seam=where)


class LabelledSequence(NamedTuple):
    """A sequence of ids as a model sees it.

    Args:
        part: of the row: `chosen`, `rejected`, `wanted`, `unwanted`, `prompt`; empty for the whole row.
        input_ids: the model's input.
        labels: the trained tokens, -100 elsewhere; for compared or judged answers, their tokens.
    """

    part: str
    input_ids: list[int]
    labels: list[int]


def labelled_sequences(row: Mapping[str, Any]) -> list[LabelledSequence]:
    """The sequences of a row of any kind: one for an example, two for a pair, one for each example in a packed row."""
    if "prompt_ids" not in row:
        ends = pairwise([0, *accumulate(row.get("seq_lengths") or [len(row["input_ids"])])])
        return [LabelledSequence("", row["input_ids"][start:end], row["labels"][start:end]) for start, end in ends]
    prompt = row["prompt_ids"]
    masked = [IGNORED] * len(prompt)
    if "chosen_ids" in row:
        answers = {name: row[f"{name}_ids"] for name in ("chosen", "rejected")}
    elif "completion_ids" in row:
        answers = {"wanted" if row["label"] else "unwanted": row["completion_ids"]}
    else:
        return [LabelledSequence("prompt", prompt, masked)]
    return [LabelledSequence(part, [*prompt, *answer], masked + list(answer)) for part, answer in answers.items()]
