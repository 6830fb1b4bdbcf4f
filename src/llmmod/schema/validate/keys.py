"""Keys that no schema has: they came by `+` or `++`, or from a file that doesn't start from its schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from llmmod.errors import Problem
from llmmod.schema.names import no_such_field
from llmmod.schema.validate.context import Context
from llmmod.schema.wording import hints, shown

_SPECIAL = frozenset({"_args_", "_convert_", "_partial_", "_recursive_"})
_SCHEMA_LINES = {"finetune": "/schema/finetune/lora@_here_", "training": "/schema/training/sft@_here_"}


def check_keys(context: Context) -> Iterator[Problem]:
    """A problem for each key that its node's dataclass doesn't have, and for each part that no dataclass stands behind."""
    yield from _untyped(context)
    for key, schema in context.nodes.items():
        node = context.get(key)
        if not isinstance(node, dict) or _is_the_users_own(node, schema):
            continue
        for name in node:
            if name not in hints(schema) and name not in _SPECIAL:
                yield no_such_field(f"{key}.{name}" if key else str(name), context.config, context.choices)


def _untyped(context: Context) -> Iterator[Problem]:
    for part, line in _SCHEMA_LINES.items():
        if part not in context.nodes and isinstance(context.get(part), dict):
            option = context.choices.get({"training": "stage"}.get(part, part))
            yield Problem(part, f"the option {option} doesn't start from a schema", do=f"Begin its defaults with '- {line}'")
    steps = context.get("steps")
    for name, step in steps.items() if isinstance(steps, dict) else []:
        if f"steps.{name}" not in context.nodes:
            found = "doesn't start from a schema" if isinstance(step, dict) else f"found {shown(step)}"
            do = f"Start from a step's: +step@steps.{name}=train steps.{name}._target_=…"
            yield Problem(f"steps.{name}", found, do=do)


def _is_the_users_own(node: dict[str, object], schema: type) -> bool:
    """Whether the node is for a class of the user's own, which may read keys that ours doesn't."""
    default = next((field.default for field in fields(schema) if field.name == "_target_"), None)
    return node.get("_target_") not in (None, default) and not str(node["_target_"]).startswith("llmmod.")
