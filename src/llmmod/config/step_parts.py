"""Which `model`, `finetune`, `training`, `dataset` and `render` a step uses: its own, those of the step it follows, or the root's.

`StepParts` has the rules. The checks see a composed configuration as plain containers, with what the user set (`Context`); the run has it
as objects (`StepConfigs`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from llmmod.config.schema.steps import ANYTHING, DATA, SPEAKS, EvaluateConf, PredictConf, Root, TrainConf
from llmmod.config.schema.training import ANSWERS, CONTINUES
from llmmod.config.wording import PARTS


class StepParts(ABC):
    """The parts of a configuration for each step; a subclass provides the values and the steps."""

    @property
    @abstractmethod
    def steps(self) -> Sequence[str]:
        """The names in the pipeline that are steps, in order."""

    @abstractmethod
    def get(self, key: str) -> Any:
        """The value at a key, None where there is none."""

    @abstractmethod
    def trains(self, step: str) -> bool:
        """Whether a step trains."""

    def part(self, step: str, part: str) -> str:
        """The key of the `model`, `dataset`, … that a step uses: its own, that of the step whose model it uses, or the root's.

        With `model.from_step` the part `model` is that of the step it names.
        """
        if part == "model" and self.get(f"steps.{step}.model.from_step") is not None:
            earlier = self.from_step(step)
            return part if earlier is None else self.part(earlier, part)
        own = f"steps.{step}.{part}"
        if self.get(own) is not None and part in PARTS:
            return own
        followed = None if self.trains(step) else self.followed(step)
        return part if followed is None or part not in PARTS else self.part(followed, part)

    def from_step(self, step: str) -> str | None:
        """The earlier training step that `model.from_step` names, or None."""
        named = self.get(f"steps.{step}.model.from_step")
        return named if named in self.training_steps_before(step) else None

    def followed(self, step: str) -> str | None:
        """The training step whose model a step that doesn't train uses; None if it uses the model of its configuration.

        It is `model.from_step`, else the last training step before it with a language model, else the last training step before it.
        """
        if self.get(f"steps.{step}.model") is not None:
            return self.from_step(step)
        trained = self.training_steps_before(step)
        writing = [name for name in trained if self.head(name) == "language"]
        return next(reversed(writing or trained), None)

    def head(self, step: str) -> str:
        """The head of the model that a step trains or uses: `language` or `reward`."""
        return str(self.get(f"{self.part(step, 'training')}.head") or "language")

    def training_steps_before(self, step: str) -> list[str]:
        """The training steps before a step, in order; empty if it isn't in the pipeline."""
        before = self.steps[: self.steps.index(step)] if step in self.steps else []
        return [name for name in before if self.trains(name)]


@dataclass(frozen=True)
class Context(StepParts):
    """One composed configuration, as the checks see it.

    Args:
        config: as composed.
        plain: the same as dicts and lists, interpolations resolved; None for one that fails.
        nodes: key -> dataclass.
        user_keys: what the user set.
        choices: group -> option.
        hydra: Hydra's own node as plain containers, interpolations as they are, or None.
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
        """The dataclass of a step, or `object`."""
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
        if schema is TrainConf and self.get(f"{self.part(step, 'training')}.predict_steps") is not None:
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
        """Each typed node: its key, its name regardless of its place (`training`, `model.quantization`, `step`), its dataclass."""
        for key, schema in self.nodes.items():
            yield key, label(key), schema


def label(key: str) -> str:
    """The name of a node regardless of its place: `training` for `steps.dpo.training` too, `step` for a step."""
    parts = key.split(".")
    if parts[0] != "steps" or len(parts) == 1:
        return key
    if len(parts) > 2 and parts[2] in PARTS:
        return ".".join(parts[2:])
    return ".".join(["step", *parts[2:]])


class StepConfigs(StepParts):
    """The parts of each step in a validated configuration.

    Args:
        root: the configuration.
    """

    def __init__(self, root: Root) -> None:
        self._root = root

    @property
    def steps(self) -> Sequence[str]:
        """The pipeline."""
        return self._root.pipeline

    def get(self, key: str) -> Any:
        """The value at a key, None where there is none."""
        found: Any = self._root
        for name in key.split("."):
            found = found.get(name) if isinstance(found, dict) else getattr(found, name, None)
        return found

    def trains(self, step: str) -> bool:
        """Whether a step trains."""
        return isinstance(self._root.steps[step], TrainConf)

    def of(self, step: str, part: str) -> Any:
        """The part that a step uses."""
        return self.get(self.part(step, part))
