"""The answer in generated text: without what a render writes around one."""

from __future__ import annotations


def inner_text(text: str, *, before: str = "", after: str = "", ended: bool = True) -> str:
    """The answer in `text`, without `before`, `after` and white space at either end.

    What a model writes of its own in such a place (thoughts, where the template has none) is part of its answer.

    Args:
        text: generated so far.
        before: what the render writes before an answer's own text, e.g. Qwen3's `<think>\\n\\n</think>\\n\\n`.
        after: what it writes between that and the terminator.
        ended: false: more may follow, and what is returned is the beginning of what will be, whatever follows.
    """
    # A tokenizer may leave out a space that a text begins with, so white space isn't compared.
    before, after, text = before.strip(), after.strip(), text.lstrip()
    if not ended and before.startswith(text):
        return ""
    text = text.removeprefix(before).strip()
    if ended:
        return text.removesuffix(after).rstrip()
    begun = next((size for size in range(min(len(after), len(text)), 0, -1) if text.endswith(after[:size])), 0)
    return text[: len(text) - begun].rstrip()
