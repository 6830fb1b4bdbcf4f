"""The roles of a run's parts as protocols, and the small values that travel between steps.

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
    """A model in memory, and what it is.

    Args:
        model: a PreTrainedModel or PeftModel.
        kind: `base` (as loaded), `adapter` (base and adapters apart) or `full` (weights of its own).
        head: `language` (it writes) or `reward` (it scores).
        trained: whether this run changed it.
        path: the directory it was saved to, None where it wasn't.
        identity: by which a later run knows again what was trained; None where nothing tells.
    """

    model: Any
    kind: str
    head: str = "language"
    trained: bool = False
    path: Path | None = None
    identity: str | None = None


@dataclass
class StepReport:
    """What a step says of itself.

    Args:
        metrics: flat names as in metrics.json, e.g. `eval_loss`.
        artifacts: name -> path, relative to the run's directory.
        summary: lines that the end of the run prints.
        conversed: whether the step wrote answers to stdout, which is then theirs alone.
        reused_from: the directory of an earlier run whose result was taken; None where the work was done.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    summary: list[str] = field(default_factory=list)
    conversed: bool = False
    reused_from: str | None = None


class Step(Protocol):
    """One step of a pipeline."""

    def run(self, session: Any) -> StepReport:
        """Do the step's work with what the session shares."""


class Metric(Protocol):
    """A measure of answers, fed one at a time; one with `needs_label = False` also of those that the data has none for (label "")."""

    def update(self, predict: str, label: str) -> None:
        """Take one answer and what the data says it should be."""

    def compute(self) -> dict[str, float]:
        """Name -> value over all that was taken."""


class ModelLineage(NamedTuple):
    """What a training step started from.

    Args:
        base: a checkpoint, as it was typed; a directory that a step of the same run left, relative.
        merged: adapters that were merged into it first, or stayed active beside quantized weights, in order: directories relative to the
            step's own, or as they were typed.
        gguf_file: the file in it that was read; None: its weights aren't GGUF.
        quantization: what decides its quantized weights, as from `schema.quantization.decides_weights`; None: they weren't quantized.
    """

    base: str | None
    merged: list[str]
    gguf_file: str | None = None
    quantization: Mapping[str, Any] | None = None

    def resolve(self, directory: Path) -> tuple[str, ...]:
        """Comparable with the lineage of another training: each absolute where it is on this disk."""
        quantization = "" if self.quantization is None else json.dumps(self.quantization, sort_keys=True)
        return (*(resolve_from(name, directory) for name in (self.base or "", *self.merged)), self.gguf_file or "", quantization)


def resolve_from(name: str, directory: Path) -> str:
    """What a name that is relative to a directory means: absolute where it is on this disk, else as it is."""
    place = Path(os.path.normpath(directory / Path(name).expanduser()))
    return str(place.absolute()) if place.exists() else name
