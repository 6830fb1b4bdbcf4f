"""What a check is given: the configuration as plain containers, the dataclass behind each node, and what the user set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from llmmod.config.schema.steps import ANYTHING, DATA, SPEAKS, EvaluateConf, PredictConf, TrainConf
from llmmod.config.schema.training import ANSWERS, CONTINUES
from llmmod.config.step_parts import StepParts
from llmmod.config.wording import PARTS


@dataclass(frozen=True)
class Context(StepParts):
    """One composed configuration, as the checks see it.

    Args:
        config: as composed.
        plain: the same as dicts and lists, interpolations resolved; None where one fails.
        nodes: key -> dataclass.
        user_keys: what the user set.
        choices: group -> option.
        hydra: Hydra's own node as plain containers, interpolations as they are; None where there is none.
        in_sweep: whether this is a job of a sweep, whose directory Hydra chooses.
    """

    config: DictConfig
    plain: dict[str, Any]
    nodes: dict[str, type]
    user_keys: frozenset[str]
    choices: Mapping[str, Any] = field(default_factory=dict)
    hydra: dict[str, Any] | None = None
    in_sweep: bool = False

    def get(self, key: str) -> Any:
        """The value at a key, None where there is none."""
        found: Any = self.plain
        for name in key.split(".") if key else []:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    def user_set(self, key: str) -> bool:
        """Whether the user set a key, or one below it."""
        return any(k == key or k.startswith(f"{key}.") for k in self.user_keys)

    @property
    def smoke(self) -> bool:
        """Whether this is a rehearsal."""
        return bool(self.get("smoke"))

    @property
    def steps(self) -> list[str]:
        """The names in the pipeline that are steps, in order."""
        known = self.get("steps") or {}
        return [name for name in self.get("pipeline") or [] if isinstance(known.get(str(name)), dict)]

    def step_type(self, step: str) -> type:
        """The dataclass of a step; `object` where it has none."""
        return self.nodes.get(f"steps.{step}", object)

    def needs_model(self, step: str) -> bool:
        """Whether a step loads a model's weights."""
        return bool(getattr(self.step_type(step), "needs_model", False))

    def reads(self, step: str) -> tuple[str, ...]:
        """What a step reads."""
        schema = self.step_type(step)
        found: tuple[str, ...] = getattr(schema, "reads", ANYTHING)
        if schema is PredictConf and self.get(f"{self.part(step, 'training')}.predict._target_") not in (ANSWERS, CONTINUES):
            return (*DATA, "finetune.adapters", "training")  # what a stage does instead of answering may go by any of its arguments
        if schema is EvaluateConf and self.get(f"{self.part(step, 'training')}.predict_with_generate"):
            return (*found, *SPEAKS, "steps.predict")
        return found

    def trains(self, step: str) -> bool:
        """Whether a step trains."""
        return self.step_type(step) is TrainConf

    def places(self, part: str) -> list[str]:
        """The keys of all nodes of a part that the pipeline's steps read, each once."""
        used = [self.part(step, part) for step in self.steps if any(name.split(".")[0] == part for name in self.reads(step))]
        return list(dict.fromkeys(used))

    def labelled_nodes(self) -> Iterator[tuple[str, str, type]]:
        """Each typed node: its key, what it is called wherever it stands (`training`, `model.quantization`, `step`), its dataclass."""
        for key, schema in self.nodes.items():
            yield key, label(key), schema


def label(key: str) -> str:
    """What a node is called wherever it stands: `training` for `steps.dpo.training` too, `step` for a step."""
    parts = key.split(".")
    if parts[0] != "steps" or len(parts) == 1:
        return key
    if len(parts) > 2 and parts[2] in PARTS:
        return ".".join(parts[2:])
    return ".".join(["step", *parts[2:]])
