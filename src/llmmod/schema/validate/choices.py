"""Values outside their choices, where the choices are no enum: the tables beside the schemas, and our own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from llmmod.errors import Problem
from llmmod.schema.validate.context import Context
from llmmod.schema.validate.types import tables
from llmmod.schema.wording import allowed, shown

# (what the node is called, field) -> the values it allows besides null.
CHOICES: Mapping[tuple[str, str], tuple[str | int, ...]] = {
    ("model.quantization", "bits"): (4, 8),
    ("model.rope_scaling", "type"): ("linear", "dynamic", "yarn"),
    ("model", "attn_implementation"): ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"),
    ("step", "layout"): ("native", "original"),
    ("training", "kl_estimator"): ("k1", "k3"),
}
_SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]i?B", re.IGNORECASE)


def check_choices(context: Context) -> Iterator[Problem]:
    """A problem for each value that isn't one of its field's choices."""
    for key, label, schema in context.labelled_nodes():
        node = context.get(key)
        if not isinstance(node, dict):
            continue
        for name, choices in tables(schema, "CHOICES").items():
            yield from _check_text(f"{key}.{name}", node.get(name), choices)
        for (place, name), own in CHOICES.items():
            if place == label and node.get(name) is not None and node[name] not in own:
                yield Problem(f"{key}.{name}", f"found {shown(node[name])}", allowed(node[name], [str(choice) for choice in own]))
        if label == "dataset" and isinstance(node.get("format"), str):
            yield from _check_text(f"{key}.format", node["format"], formats())
        if label == "step" and isinstance(node.get("max_shard_size"), str):
            yield from _check_size(f"{key}.max_shard_size", node["max_shard_size"])


def _check_text(key: str, value: Any, choices: tuple[str, ...]) -> Iterator[Problem]:
    """A problem for a text, or each of a list, that is none of the choices; a part in [brackets] stands for any text."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and not any(_matches(item, choice) for choice in choices):
            yield Problem(key, f"found {shown(item)}", allowed(item, choices))


def _matches(text: str, choice: str) -> bool:
    if "[" not in choice:
        return text == choice
    pattern = "".join(".+" if part.startswith("[") else re.escape(part) for part in re.split(r"(\[[^]]*\])", choice))
    return re.fullmatch(pattern, text) is not None


@cache
def formats() -> tuple[str, ...]:
    """The data formats there are: `auto`, and each module of `llmmod.data.formats`."""
    directory = Path(__file__).parents[2] / "data" / "formats"
    return ("auto", *sorted(file.stem for file in directory.glob("*.py") if not file.stem.startswith("_")))


def _check_size(key: str, value: str) -> Iterator[Problem]:
    """A problem for a size without its unit: 5 would be five bytes."""
    if not _SIZE.fullmatch(value):
        number = re.fullmatch(r"\d+(\.\d+)?", value.strip())
        found = f"{value} has no unit" if number else f"found {shown(value)}"
        yield Problem(key, found, "Allowed: a number with KB, MB, GB or TB", f"Write {value}GB" if number else "")
