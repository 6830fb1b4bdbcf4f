"""What a model makes of the held-out examples; what that is, its stage says: answers to prompts, scores of pairs, ….

Lines that are written as they come and end up in order.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from llmmod.config.schema.steps import PredictConf
from llmmod.errors import ConfigError, Problem
from llmmod.files.paths import atomic_write
from llmmod.instantiate import locate
from llmmod.protocols import Step, StepReport


class Predict:
    """The step `predict`.

    Args:
        conf: `steps.<name>`.
        name: the step's name, and that of the directory in the run's.
    """

    def __init__(self, conf: PredictConf, name: str) -> None:
        self.conf, self.name = conf, name

    def run(self, session: Any) -> StepReport:
        """Do what `training.predict` names.

        Raises:
            ConfigError: there are no held-out examples.
        """
        node = dict(session.conf(self.name, "training").predict)
        step: Step = locate(node.pop("_target_"))(self.conf, self.name, **node)
        return step.run(session)


def held_out(session: Any, step: str, *, of: str = "eval") -> Any:
    """A step's held-out examples, or `of="eval_conversations"`, what they were before they became tokens.

    Raises:
        ConfigError: there are none.
    """
    found = getattr(session.splits(step), of)
    if found is None or (hasattr(found, "__len__") and not len(found)):  # streamed ones have no length
        do = "Set dataset.val_size (0.1: a tenth of them), dataset.val_split or dataset.val_files"
        raise ConfigError(Problem("dataset.val_size", "no examples are held out, so there is nothing to measure", do=do))
    return found


class OrderedLines:
    """A file of numbered lines, each on the disk as soon as it is written; sorted by number when the block ends without an error.

    Only the lines' places are held in memory, not the lines. After an error the file has what was written, in the order of writing.

    Args:
        path: replaced where it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[int, tuple[int, int]] = {}  # number -> offset and length, in bytes

    def __enter__(self) -> OrderedLines:
        self._file = self._path.open("wb")
        return self

    def write(self, number: int, line: str) -> None:
        """Write a line, without its line break."""
        content = line.encode() + b"\n"
        self._places[number] = (self._file.tell(), len(content))
        self._file.write(content)
        self._file.flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            self._sort()

    def _sort(self) -> None:
        with atomic_write(self._path) as partial, self._path.open("rb") as written, partial.open("wb") as ordered:
            for number in sorted(self._places):
                offset, length = self._places[number]
                written.seek(offset)
                ordered.write(written.read(length))
