"""Values that a training step's arguments take over from the root's `model` or `finetune` while the step has one of its own.

`learning_rate: ${finetune.learning_rate}` in a stage's file means the root's wherever the stage stands, so that a step which trains all
weights would do so at an adapter's rate; and so does what is worked out from it, `${product:0.1,${finetune.learning_rate}}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from llmmod.errors import Problem
from llmmod.schema.validate.context import Context
from llmmod.schema.wording import shown

_FROM_ROOT = re.compile(r"\$\{((model|finetune)\.[\w.]+)\}")


def check_taken_over(context: Context) -> Iterator[Problem]:
    """A problem for each value of a training step that is the root's where the step's own part says another."""
    for step in context.steps:
        if not context.trains(step):
            continue
        for part in ("training", "finetune"):
            key = context.part(step, part)
            for name, (source, referred) in _taken_over(context, key).items():
                own = context.part(step, referred) + source.removeprefix(referred)
                if own != source and context.get(own) != context.get(source):
                    found = f"comes from {source}={shown(context.get(source))} of the root, and {own} is {shown(context.get(own))}"
                    yield Problem(f"{key}.{name}", found, do="Set it")


def _taken_over(context: Context, key: str) -> dict[str, tuple[str, str]]:
    """Field -> the key at the root that it refers to, and that key's part."""
    node: Any = OmegaConf.select(context.config, key)
    raw = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_dict(node) else {}
    found = {str(name): _FROM_ROOT.search(value) for name, value in dict(raw).items() if isinstance(value, str)}  # type: ignore[arg-type]
    return {name: (match[1], match[2]) for name, match in found.items() if match}
