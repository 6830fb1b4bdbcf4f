"""The certificate of documents: a proof by example that pre-training sees a text as the tokenizer writes it, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmmod.render.finding import Finding
from llmmod.render.seam import seam, spelling
from llmmod.render.synthetic import synthetic_texts
from llmmod.render.tokens import own_beginning

LONGEST = 10_000  # characters of a row that are looked at


def certify_documents(
    tokenizer: Any, examples: Callable[[Sequence[str]], list[tuple[list[int], list[int]]]], documents: Mapping[str, str]
) -> list[Finding]:
    """What can't be vouched for, the first finding of each check; empty where all holds.

    Args:
        tokenizer: what encodes them.
        examples: texts -> ids and labels of each, as training makes them.
        documents: the first of the data, by name, checked besides synthetic ones.
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
        yield Finding("end", f"a document ends with {spelling(tokenizer, ids[-1])} and not with {spelling(tokenizer, eos)}")
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
            yield Finding(
                "text", "a document isn't encoded as the tokenizer encodes a text", seam=seam(tokenizer, found=inner, whole=plain)
            )
