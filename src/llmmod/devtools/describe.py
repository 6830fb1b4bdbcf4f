"""A line on what a field means, taken from the class that has it: its `help`, or the class's docstring."""

from __future__ import annotations

import re
import unicodedata

ENOUGH_WORDS = 4  # a text or sentence shorter than this ("Lora alpha", "Deprecated.") says no more than the name
_ABBREVIATIONS = ("e.g.", "i.e.", "etc.", "vs.", "cf.", "approx.", "Eq.")
_ASCII = str.maketrans("‘’“”–—×≈\xa0", "''\"\"--x~ ") | str.maketrans({"→": "->", "←": "<-", "≥": ">=", "≤": "<=", "…": "..."})
_VAGUE = ("It ", "This setting ")  # how a sentence begins that says something of the field, but not what it is


def describe(name: str, *, help_text: str, docstring: str) -> str:
    """The first sentence on the field `name`, in ASCII, without its full stop; empty where nobody says."""
    text = help_text if len(help_text.split()) >= ENOUGH_WORDS else _from_docstring(name, docstring) or help_text
    return to_ascii(first_sentence(plain(text)))


def plain(text: str) -> str:
    """The text without links, references, HTML tags and line breaks; argparse's `%%` is a per cent sign."""
    text = re.sub(r"\[`?~?([^\]`]+)`?\]\([^)]*\)", r"\1", text)  # [text](address)
    text = re.sub(r"\[`~?([^`\]]+)`\]", r"`\1`", text)  # [`~transformers.Trainer`]
    text = re.sub(r"</?(?:a|b|i|em|code|br)\b[^>]*>", "", text)  # but not `torch.<device>`
    return " ".join(text.replace("%%", "%").split())


def to_ascii(text: str) -> str:
    """The text in ASCII: Greek letters by name, typographic marks by their plain relatives.

    Raises:
        ValueError: for a character that has neither.
    """
    return "".join(c if c.isascii() else _ascii_letter(c) for c in text.translate(_ASCII))


def _ascii_letter(char: str) -> str:
    name = unicodedata.name(char, "")
    if name.startswith("GREEK"):
        return name.split()[-1].lower()
    plainer = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
    if not plainer:
        raise ValueError(f"no ASCII for {char!r} ({name}): add it to the table above")
    return plainer


def first_sentence(text: str) -> str:
    """The text up to its first full stop, without it; a sentence that doesn't say what the field is takes the next along."""
    for stop in re.finditer(r"\.(?=\s+[^a-z\s]|$)", text):
        sentence = text[: stop.start()]
        says_nothing = len(sentence.split()) < ENOUGH_WORDS or (sentence.startswith(_VAGUE) and ". " not in sentence)
        if not says_nothing and not text[: stop.end()].endswith(_ABBREVIATIONS):
            return sentence
    return text.rstrip(".")


def _from_docstring(name: str, docstring: str) -> str:
    """What the `Args` part of a docstring says of `name`, which is indented below a line `name (type):`."""
    entry = re.search(rf"^(?P<indent>[ ]+){re.escape(name)} \(.*\):\n(?P<text>(?:(?P=indent)[ ]+.*\n|\s*\n)+)", docstring, re.MULTILINE)
    return entry["text"].strip() if entry else ""
