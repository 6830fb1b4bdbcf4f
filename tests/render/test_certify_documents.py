from __future__ import annotations

import pytest

from llmmod.data.dataset.load import certify_documents
from llmmod.render.encode import TextEncoder
from llmmod.render.segments import own_beginning


def made(tokenizer, change=lambda ids, labels: (ids, labels), encode=None):
    """A function: texts -> examples as in training, with a change."""

    def examples(texts):
        found = (encode or TextEncoder(tokenizer).encode)(texts)
        bos = own_beginning(tokenizer)
        whole = [[*([] if bos is None else [bos]), *ids, tokenizer.eos_token_id] for ids in found]
        return [change(list(ids), list(ids)) for ids in whole]

    return examples


def test_documents_as_the_tokenizer_writes_them_are_certified(tokenizer):
    assert certify_documents(tokenizer, made(tokenizer), {"x.json, row 1": "A text. 一段话。"}) == []


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda ids, labels: (ids[:-1], labels[:-1]), "end"),
        (lambda ids, labels: (ids[1:], labels[1:]), "beginning"),
        (lambda ids, labels: (ids, [-100, *labels[1:]]), "labels"),
        (lambda ids, labels: (ids, [*labels[:-1], -100]), "labels"),
        (lambda ids, labels: (ids[:1] + ids[:1] + ids[1:], labels[:1] + labels), "injection"),
        (lambda ids, labels: (ids[:2] + ids[3:], labels[:2] + labels[3:]), "text"),
    ],
    ids=["no-end", "no-beginning", "masked-beginning", "masked-end", "two-beginnings", "a-token-lost"],
)
def test_known_mistakes_of_other_tools_are_found(byte_level, change, check):
    assert check in [finding.check for finding in certify_documents(byte_level, made(byte_level, change), {})]


def test_a_text_that_becomes_a_special_token_is_found(byte_level):
    def careless(texts):
        return [byte_level(text, add_special_tokens=False)["input_ids"] for text in texts]

    (finding,) = certify_documents(byte_level, made(byte_level, encode=careless), {})
    assert (finding.check, finding.conversation) == ("injection", "special tokens in the text")
