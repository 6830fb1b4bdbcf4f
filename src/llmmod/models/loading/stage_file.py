"""stage.json: a training step writes it next to the weights, and says there what the directory holds.

Code that gets such a directory reads this file before it loads the weights. A directory from another program doesn't have one; then the
configuration of the adapter or the model often says enough.
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
_DOES = {"language": "generates text and doesn't give scores", "reward": "gives scores and doesn't generate text"}
_MAKE = {"language": "Give one trained by stage=sft or another stage for language models", "reward": "Give one trained by stage=rm"}


@dataclass(frozen=True)
class StageFile:
    """The contents of stage.json.

    Args:
        stage: `sft`, `rm`, ….
        kind: `adapter` or `full`.
        head: `language` (it writes) or `reward` (it scores).
        base, merged, gguf_file, quantization: the model that training started from; see `ModelLineage`.
        render: the name of the render that it was trained with.
        llmmod: the version that wrote the file.
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


def write_stage_file(directory: Path, contents: StageFile) -> None:
    """Write stage.json next to the weights."""
    written = asdict(contents) | {"llmmod": installed("llmmod") or ""}
    (directory / NAME).write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_stage_file(directory: Path) -> StageFile | None:
    """The stage.json of a directory; None if it doesn't have one."""
    read = _json(directory / NAME)
    names = StageFile.__dataclass_fields__
    with suppress(TypeError):
        return StageFile(**{name: value for name, value in read.items() if name in names})
    return None


def head_of(directory: Path) -> str | None:
    """The head of the adapter or model in a directory, `language` or `reward`; None if no file says."""
    if (stage_file := read_stage_file(directory)) is not None:
        return stage_file.head
    if task := _json(directory / _KINDS["adapter"]).get("task_type"):
        return {"CAUSAL_LM": "language", "SEQ_CLS": "reward"}.get(str(task))
    architectures = [str(name) for name in _json(directory / _KINDS["full"]).get("architectures") or ()]
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        return "reward"
    return "language" if architectures else None


def wrong_head(path: str, directory: Path, *, wanted: str, key: str) -> Problem | None:
    """The problem of a directory with another head than `wanted`; None if it has that head, or no file says."""
    found = head_of(directory)
    if found is None or found == wanted:
        return None
    stage_file = read_stage_file(directory)
    by = f", made by stage={stage_file.stage}" if stage_file is not None else ""
    what = "an adapter" if (directory / _KINDS["adapter"]).is_file() else "a model"
    return Problem(key, f"'{path}' is {what} with a {found} head{by}: it {_DOES[found]}", do=_MAKE[wanted])


def wrong_chain(path: str, directory: Path, *, before: Sequence[str], key: str) -> Problem | None:
    """The problem of an adapter whose base had adapters merged that `before` doesn't name; None if all are named."""
    stage_file = read_stage_file(directory)
    if stage_file is None or stage_file.kind != "adapter":
        return None
    wanted = [resolve_from(name, directory) for name in stage_file.merged]
    if wanted == [resolve_from(name, Path()) for name in before][-len(wanted) :] or not wanted:
        return None
    chain = [_shown(name) for name in wanted]
    found = f"'{path}' was trained on a base with {' and '.join(chain)} merged into it, and doesn't fit without"
    return Problem(key, found, do=f"Name them before it: [{','.join([*chain, path])}]")


def _shown(path: str) -> str:
    """A path as a user types it in the current directory."""
    return os.path.relpath(path) if os.path.isabs(path) and Path(path).is_relative_to(Path.cwd()) else path


def _json(path: Path) -> Mapping[str, Any]:
    with suppress(OSError, ValueError):
        read = json.loads(path.read_text(encoding="utf-8"))
        return read if isinstance(read, dict) else {}
    return {}
