"""What a training tells of itself: averages between two lines of the log, and a table of answers with their scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SAMPLES = "samples.jsonl"


class Averages:
    """The mean of each number since it was last asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def add(self, numbers: Mapping[str, float], *, count: float = 1) -> None:
        """Take each number, which is the sum of `count`."""
        for name, number in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + number
            self._counts[name] = self._counts.get(name, 0) + count

    def take(self) -> dict[str, float]:
        """The means, which are then forgotten."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])


class Samples:
    """`samples.jsonl`: some answers of each rollout with their scores, so that a reader sees what was rewarded, and when.

    Args:
        directory: of the step.
        wanted: answers of each rollout; 0: there is no file.
    """

    def __init__(self, directory: Path, wanted: int) -> None:
        self._path, self._wanted = directory / SAMPLES, wanted

    def forget_after(self, step: int) -> None:
        """Take out what was written after an optimizer step: a resumed run makes those answers anew."""
        if self._path.is_file():
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
            self._path.write_text("".join(kept), encoding="utf-8")

    def write(self, step: int, *, prompts: Sequence[str], answers: Sequence[str], **numbers: Sequence[float]) -> None:
        """Add the first answers of a rollout.

        Args:
            step: optimizer steps before it.
            prompts: texts.
            answers: texts.
            numbers: name -> one for each answer, NaN where there is none.
        """
        if not self._wanted:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            for place in range(min(self._wanted, len(prompts))):
                told = {"step": step, "prompt": prompts[place], "answer": answers[place]}
                told |= {name: None if math.isnan(values[place]) else round(values[place], 6) for name, values in numbers.items()}
                file.write(json.dumps(told, ensure_ascii=False) + "\n")
