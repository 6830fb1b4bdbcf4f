"""Texts of a configuration that are no text: bytes of a command line that are no UTF-8, and halves of characters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmmod.errors import Problem
from llmmod.schema.validate.context import Context


def check_text(context: Context) -> Iterator[Problem]:
    """A problem for each value, or name of a key, that can't be written as UTF-8: no tokenizer and no file of a run takes it."""
    for key, text in _texts("", context.plain):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            what = f"the byte 0x{code - 0xDC00:02x}, which is no UTF-8" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:x}, half of a character"
            yield Problem(_shown(key), f"found {what}, in '{_shown(text)}'", do="Write it in UTF-8")


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Key and text of everything in a configuration that is one."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            place = f"{key}.{name}" if key else str(name)
            yield place, str(name)
            yield from _texts(place, item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(f"{key}[{number}]", item)


def _shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
