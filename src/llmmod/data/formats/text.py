"""Documents for pre-training: one text per row. A txt file has a row for each line."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from llmmod.data.rows.records import Row, RowError, required_text

KIND = "document"
ROLES = ("text",)
REQUIRED = ("text",)
USUAL = {"text": ("text", "content")}


def find_columns(available: Collection[str], given: Mapping[str, str]) -> dict[str, str] | None:
    """Role -> column; None if none of the columns has a usual name for a text."""
    names = (given["text"],) if "text" in given else tuple(name for name in USUAL["text"] if name in available)
    return {"text": names[0]} if names else None


def recognises(head: Sequence[Row], columns: Mapping[str, str]) -> bool:
    """Whether the first rows have this format, by the name of the column."""
    return True


def read(row: Row, columns: Mapping[str, str]) -> str:
    """The document of a row.

    Raises:
        RowError: the text is missing, empty, or something else.
    """
    document = required_text(row, columns["text"])
    if not document.strip():
        raise RowError("empty", column=columns["text"])
    return document
