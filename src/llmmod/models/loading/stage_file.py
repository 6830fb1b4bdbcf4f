"""stage.json: what a training step left in a directory, beside the weights. Whoever is given such a directory asks first, and loads then.

Directories of others have none; what an adapter or a model is can often be told by its own configuration.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmmod.errors import Problem
from llmmod.protocols import ModelLineage, resolve_from
from llmmod.upstream import installed

NAME = "stage.json"
_KINDS = {"adapter": "adapter_config.json", "full": "config.json"}
_DOES = {"language": "writes and doesn't score", "reward": "scores and doesn't write"}
_MAKE = {"language": "Give one that stage=sft or its like trained", "reward": "Give one that stage=rm trained"}


@dataclass(frozen=True)
class StageFile:
    """What a training step left.

    Args:
        stage: `sft`, `rm`, ….
        kind: `adapter` or `full`.
        head: `language` (it writes) or `reward` (it scores).
        base: see `ModelLineage`, as `merged`, `gguf_file` and `quantization`.
        render: the name of the render it was trained with.
        merged: adapters under what was trained.
        gguf_file: the base's.
        quantization: the base's.
        llmmod: version.
    """

    stage: str
    kind: str
    head: str
    base: str | None
    render: str
    merged: list[str] = field(default_factory=list)
    gguf_file: str | None = None
    quantization: Mapping[str, Any] | None = None
    llmmod: str = ""

    @property
    def lineage(self) -> ModelLineage:
        """What training started from."""
        return ModelLineage(self.base, self.merged, self.gguf_file, self.quantization)


def write_stage_file(directory: Path, left: StageFile) -> None:
    """Write it beside the weights."""
    written = asdict(left) | {"llmmod": installed("llmmod") or ""}
    (directory / NAME).write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_stage_file(directory: Path) -> StageFile | None:
    """What a training step left in a directory; None where no step of ours wrote there."""
    read = _json(directory / NAME)
    names = StageFile.__dataclass_fields__
    with suppress(TypeError):
        return StageFile(**{name: value for name, value in read.items() if name in names})
    return None


def head_of(directory: Path) -> str | None:
    """The head of the adapter or model in a directory, `language` or `reward`; None where nothing says."""
    if (left := read_stage_file(directory)) is not None:
        return left.head
    if task := _json(directory / _KINDS["adapter"]).get("task_type"):
        return {"CAUSAL_LM": "language", "SEQ_CLS": "reward"}.get(str(task))
    architectures = [str(name) for name in _json(directory / _KINDS["full"]).get("architectures") or ()]
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        return "reward"
    return "language" if architectures else None


def wrong_head(path: str, directory: Path, *, wanted: str, key: str) -> Problem | None:
    """The problem of a directory whose head is another than the one that is wanted; None where it isn't, or nothing says."""
    found = head_of(directory)
    if found is None or found == wanted:
        return None
    left = read_stage_file(directory)
    by = f", made by stage={left.stage}" if left is not None else ""
    what = "an adapter" if (directory / _KINDS["adapter"]).is_file() else "a model"
    return Problem(key, f"'{path}' is {what} with a {found} head{by}: it {_DOES[found]}", do=_MAKE[wanted])


def wrong_chain(path: str, directory: Path, *, before: Sequence[str], key: str) -> Problem | None:
    """The problem of an adapter that was trained on a base with other adapters than those named before it."""
    left = read_stage_file(directory)
    if left is None or left.kind != "adapter":
        return None
    wanted = [resolve_from(name, directory) for name in left.merged]
    if wanted == [resolve_from(name, Path()) for name in before][-len(wanted) :] or not wanted:
        return None
    chain = [_shown(name) for name in wanted]
    found = f"'{path}' was trained on a base with {' and '.join(chain)} merged into it, and would not fit without"
    return Problem(key, found, do=f"Name them before it: [{','.join([*chain, path])}]")


def _shown(path: str) -> str:
    """A path as it is typed where one stands."""
    return os.path.relpath(path) if os.path.isabs(path) and Path(path).is_relative_to(Path.cwd()) else path


def _json(path: Path) -> Mapping[str, Any]:
    with suppress(OSError, ValueError):
        read = json.loads(path.read_text(encoding="utf-8"))
        return read if isinstance(read, dict) else {}
    return {}
