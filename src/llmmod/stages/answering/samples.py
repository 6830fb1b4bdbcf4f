"""`samples.jsonl`: some answers of each rollout with their scores, so that a reader sees what was rewarded, and when."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

FILE = "samples.jsonl"


class Samples:
    """The file of a training that lets the model answer.

    Args:
        directory: of the step.
        wanted: answers of each rollout; 0: there is no file.
    """

    def __init__(self, directory: Path, wanted: int) -> None:
        self._path, self._wanted = directory / FILE, wanted

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
