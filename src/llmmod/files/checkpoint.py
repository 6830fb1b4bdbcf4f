"""Where a checkpoint is, and whether it can be one: told before torch or a library that would say it worse is asked.

Pure Python. A local directory is looked at; a hub id is taken as it is, and `hub` asks for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from llmmod.errors import ConfigError, Problem, did_you_mean, nearest
from llmmod.files.paths import PACKAGE, is_hub_id, resolve_path

PATH_KEY = "model.pretrained_model_name_or_path"
SIZE_KEY = "model.size"

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json", "model*.bin")
_TOKENIZERS = ("tokenizer*", "vocab*", "*.tiktoken", "spiece.model", "sentencepiece*", "merges.txt", "tekken.json", "ice_text.model")


@dataclass(frozen=True)
class Checkpoint:
    """What from_pretrained is given.

    Args:
        path: a local directory, or a hub id.
        gguf_file: a file in it, where the weights or tokenizer are to be read from GGUF.
        local: whether it is a directory of this machine.
    """

    path: str
    gguf_file: str | None
    local: bool


def find_checkpoint(path: str, *, gguf_file: str | None = None, install: str | None = None, key: str = PATH_KEY) -> Checkpoint:
    """The directory or hub id that `path` names.

    Args:
        path: a directory, a GGUF file, `pkg://package/folder`, or a hub id.
        gguf_file: file in that directory to read. It is left out where a local directory has no such file but weights of its own:
            a model option names its file, and a user may point the option at a directory that an earlier run saved.
        install: the command that installs the package of a `pkg://` path.
        key: the configuration key that `path` was typed for.

    Raises:
        ConfigError: the package isn't installed, no such directory, or no such GGUF file in it.
    """
    located = _located(path, install, key)
    if isinstance(located, str):
        if not is_hub_id(located):
            raise ConfigError(_no_such_directory(located, key))
        return Checkpoint(located, gguf_file, local=False)
    if located.is_file():
        if located.suffix != ".gguf":
            raise ConfigError(Problem(key, f"'{path}' is a file", do="Give the directory of the model"))
        return Checkpoint(str(located.parent), located.name, local=True)
    if gguf_file is not None and not (located / gguf_file).is_file():
        if not has_weights(located):
            there = sorted(p.name for p in located.glob("*.gguf"))
            raise ConfigError(Problem("model.gguf_file", f"'{located}' has no '{gguf_file}'", did_you_mean(gguf_file, there)))
        gguf_file = None
    return Checkpoint(str(located), gguf_file, local=True)


def check_model_directory(checkpoint: Checkpoint, *, weights: bool = True, key: str = PATH_KEY) -> None:
    """Nothing, where a local directory can hold a model.

    Args:
        checkpoint: as found; one on the hub passes.
        weights: whether it must hold weights too, not a configuration alone.

    Raises:
        ConfigError: saying what it holds instead.
    """
    if not checkpoint.local or checkpoint.gguf_file is not None:
        return
    directory = Path(checkpoint.path)
    if not (directory / "config.json").is_file():
        raise ConfigError(_no_model(directory, key))
    if weights and not has_weights(directory):
        needs = "A model directory has *.safetensors or pytorch_model*.bin beside its config.json"
        raise ConfigError(Problem(key, f"'{directory}' holds no weights", needs, _gguf_hint(directory)))


def stated_dtype(path: str, gguf_file: str | None = None) -> str | None:
    """The type of weights that a local model's config.json names, `bfloat16`; None where it says none, or isn't on this disk."""
    try:
        checkpoint = find_checkpoint(path, gguf_file=gguf_file)
        raw = json.loads((Path(checkpoint.path) / "config.json").read_text(encoding="utf-8"))
        stated = raw.get("dtype") or raw.get("torch_dtype")
    except (ConfigError, OSError, ValueError, AttributeError):
        return None  # another check says what is wrong with it
    return None if stated is None or not checkpoint.local or checkpoint.gguf_file is not None else str(stated)


def has_weights(directory: Path) -> bool:
    """Whether a directory has files that can be a model's weights; an adapter's don't count."""
    return any(not found.name.startswith("adapter_") for pattern in _WEIGHTS for found in directory.glob(pattern))


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory has files that can be a tokenizer's."""
    return bool(tokenizer_files(directory))


def tokenizer_files(directory: Path) -> list[Path]:
    """The files of a directory that can be a tokenizer's."""
    return [file for pattern in _TOKENIZERS for file in directory.glob(pattern) if file.suffix != ".py"]


def path_of_size(path: str | None, size: str | None, sizes: dict[str, str]) -> str | None:
    """The checkpoint of a model option: `path`, or that of the size asked for.

    Raises:
        ConfigError: the option has no such size, or the path was changed as well, so that two checkpoints are asked for.
    """
    if size is None:
        return path
    if size not in sizes:
        allowed = did_you_mean(size, sizes) if sizes else "This model has one size; another one is given by its path"
        raise ConfigError(Problem(SIZE_KEY, f"no size '{size}'", allowed))
    if path is not None and path not in sizes.values():
        raise ConfigError(Problem(SIZE_KEY, f"'{size}' and {PATH_KEY}='{path}' name two checkpoints", do="Give one of the two"))
    return sizes[size]


def _located(path: str, install: str | None, key: str) -> Path | str:
    try:
        return resolve_path(path, key=key)
    except ConfigError as error:
        package = path.removeprefix(PACKAGE).partition("/")[0]
        if install is None or package.replace("_", "-") not in install:  # the option's command, the user's package
            raise
        raise ConfigError(Problem(key, f"'{path}': no package '{package}' is installed", do=f"Install it: {install}")) from error


def _no_such_directory(path: str, key: str) -> Problem:
    parent = Path(path).expanduser().parent
    beside = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    close = nearest(Path(path).name, beside)
    return Problem(key, f"no such directory: '{path}'", f"Did you mean '{parent / close[0]}'?" if close else "")


def _no_model(directory: Path, key: str) -> Problem:
    if (directory / "adapter_config.json").is_file():
        do = f"Leave the base model in {key}, and give finetune.adapters=[{directory}]"
        return Problem(key, f"'{directory}' is an adapter, not a model", do=do)
    return Problem(key, f"'{directory}' is not a model directory: it has no config.json", do=_gguf_hint(directory))


def _gguf_hint(directory: Path) -> str:
    file = next(iter(sorted(directory.glob("*.gguf"))), None)
    return f"To read its GGUF file: model.gguf_file={file.name}" if file else ""
