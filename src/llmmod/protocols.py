"""The roles of a run's parts as protocols, and the small values that steps pass on.

`ModelLineage` says what a training step started from. Two models with the same lineage have the same weights under their adapters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol


@dataclass
class LoadedModel:
    """A model in memory, and its kind.

    Args:
        model: a PreTrainedModel or PeftModel.
        kind: `base` (as loaded), `adapter` (base and separate adapters) or `full` (its own weights).
        head: `language` (generates text) or `reward` (gives scores).
        trained: whether this run changed it.
        path: the directory it was saved to, or None.
        identity: of the trained weights, for later runs; None if it can't be identified.
    """

    model: Any
    kind: str
    head: str = "language"
    trained: bool = False
    path: Path | None = None
    identity: str | None = None


@dataclass
class StepReport:
    """The result of a step for the run's record.

    Args:
        metrics: flat names as in metrics.json, e.g. `eval_loss`.
        artifacts: name -> path, relative to the run's directory.
        summary: lines that the end of the run prints.
        conversed: whether the step wrote answers to stdout, which then has nothing else.
        reused_from: the directory of the earlier run whose result was reused, or None.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    summary: list[str] = field(default_factory=list)
    conversed: bool = False
    reused_from: str | None = None


class Step(Protocol):
    """One step of a pipeline."""

    def run(self, session: Any) -> StepReport:
        """Run the step with the shared objects of the session."""


class Metric(Protocol):
    """A measure of answers, updated with one at a time; with `needs_label = False` also with answers without a label (then "")."""

    def update(self, predict: str, label: str) -> None:
        """Count one answer against the data's answer, the label."""

    def compute(self) -> dict[str, float]:
        """Name -> value over all counted answers."""


class ModelLineage(NamedTuple):
    """What a training step started from.

    Args:
        base: a checkpoint, as typed; or a directory of the same run's step, relative.
        merged: adapters that were merged into it before, or stayed active on quantized weights, in order: directories relative to the
            step's own, or as typed.
        gguf_file: the file in it that was read; None: its weights aren't GGUF.
        quantization: the settings that affect its quantized weights, from `config.schema.model.decides_weights`; None: not quantized.
    """

    base: str | None
    merged: list[str]
    gguf_file: str | None = None
    quantization: Mapping[str, Any] | None = None

    def resolve(self, directory: Path) -> tuple[str, ...]:
        """The lineage in a form to compare with another training's: paths on this disk are absolute."""
        quantization = "" if self.quantization is None else json.dumps(self.quantization, sort_keys=True)
        return (*(resolve_from(name, directory) for name in (self.base or "", *self.merged)), self.gguf_file or "", quantization)


def resolve_from(name: str, directory: Path) -> str:
    """A name relative to a directory as an absolute path if it is on this disk, else unchanged."""
    place = Path(os.path.normpath(directory / Path(name).expanduser()))
    return str(place.absolute()) if place.exists() else name
