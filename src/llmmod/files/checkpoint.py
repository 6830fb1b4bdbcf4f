"""Finds a checkpoint and checks its files before torch is imported, with better messages than a library's.

Pure Python. The files of a local directory are checked; a hub id is used as it is. `hub.*` become arguments of every from_pretrained. If
the hub can't be reached, that is found within seconds, and its errors become ours.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmmod.config.schema.model import HubConf
from llmmod.errors import ConfigError, Problem, did_you_mean, nearest, one_line
from llmmod.files.paths import PACKAGE, is_hub_id, resolve_path

PATH_KEY = "model.pretrained_model_name_or_path"
SIZE_KEY = "model.size"
_TIMEOUT_S = 8.0  # of the hub

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json", "model*.bin")
_TOKENIZERS = ("tokenizer*", "vocab*", "*.tiktoken", "spiece.model", "sentencepiece*", "merges.txt", "tekken.json", "ice_text.model")


@dataclass(frozen=True)
class Checkpoint:
    """The arguments of from_pretrained.

    Args:
        path: a local directory, or a hub id.
        gguf_file: the GGUF file in it to read the weights or the tokenizer from, or None.
        local: whether it is a directory on this machine.
    """

    path: str
    gguf_file: str | None
    local: bool


def find_checkpoint(path: str, *, gguf_file: str | None = None, install: str | None = None, key: str = PATH_KEY) -> Checkpoint:
    """The directory or hub id that `path` names.

    Args:
        path: a directory, a GGUF file, `pkg://package/folder`, or a hub id.
        gguf_file: file in that directory to read. It is ignored if a local directory has weights but not this file: a model option
            names its file, and a user may use the option with a directory that an earlier run saved.
        install: the command that installs the package of a `pkg://` path.
        key: the configuration key that `path` was typed for.

    Raises:
        ConfigError: the package isn't installed, or the directory or its GGUF file doesn't exist.
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
            raise ConfigError(Problem("model.gguf_file", f"'{located}' doesn't have '{gguf_file}'", did_you_mean(gguf_file, there)))
        gguf_file = None
    return Checkpoint(str(located), gguf_file, local=True)


def check_model_directory(checkpoint: Checkpoint, *, weights: bool = True, key: str = PATH_KEY) -> None:
    """Check that a local directory can be a model's.

    Args:
        checkpoint: as found; one on the hub passes.
        weights: whether it must have weights as well as a configuration.

    Raises:
        ConfigError: it isn't a model's; the message says what it has instead.
    """
    if not checkpoint.local or checkpoint.gguf_file is not None:
        return
    directory = Path(checkpoint.path)
    if not (directory / "config.json").is_file():
        raise ConfigError(_no_model(directory, key))
    if weights and not has_weights(directory):
        needs = "A model directory has *.safetensors or pytorch_model*.bin next to its config.json"
        raise ConfigError(Problem(key, f"'{directory}' doesn't have weights", needs, _gguf_hint(directory)))


def stated_dtype(path: str, gguf_file: str | None = None) -> str | None:
    """The dtype of weights in a local model's config.json, such as `bfloat16`; None if it is missing or not on this disk."""
    try:
        checkpoint = find_checkpoint(path, gguf_file=gguf_file)
        raw = json.loads((Path(checkpoint.path) / "config.json").read_text(encoding="utf-8"))
        stated = raw.get("dtype") or raw.get("torch_dtype")
    except (ConfigError, OSError, ValueError, AttributeError):
        return None  # another check reports it
    return None if stated is None or not checkpoint.local or checkpoint.gguf_file is not None else str(stated)


def has_weights(directory: Path) -> bool:
    """Whether a directory has files of a model's weights; an adapter's don't count."""
    return any(not found.name.startswith("adapter_") for pattern in _WEIGHTS for found in directory.glob(pattern))


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory has files of a tokenizer."""
    return bool(tokenizer_files(directory))


def tokenizer_files(directory: Path) -> list[Path]:
    """The files of a tokenizer in a directory."""
    return [file for pattern in _TOKENIZERS for file in directory.glob(pattern) if file.suffix != ".py"]


def path_of_size(path: str | None, size: str | None, sizes: dict[str, str]) -> str | None:
    """The checkpoint of a model option: `path`, or the one of the chosen size.

    Raises:
        ConfigError: the option doesn't have this size, or the path was changed too, so that two checkpoints are named.
    """
    if size is None:
        return path
    if size not in sizes:
        allowed = did_you_mean(size, sizes) if sizes else "This model has one size; for another one, set its path"
        raise ConfigError(Problem(SIZE_KEY, f"'{size}' is not a size of this model", allowed))
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
        raise ConfigError(Problem(key, f"'{path}': the package '{package}' isn't installed", do=f"Install it: {install}")) from error


def _no_such_directory(path: str, key: str) -> Problem:
    parent = Path(path).expanduser().parent
    siblings = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    close = nearest(Path(path).name, siblings)
    return Problem(key, f"'{path}' does not exist", f"Did you mean '{parent / close[0]}'?" if close else "")


def _no_model(directory: Path, key: str) -> Problem:
    if (directory / "adapter_config.json").is_file():
        do = f"Leave the base model in {key}, and give finetune.adapters=[{directory}]"
        return Problem(key, f"'{directory}' is an adapter, not a model", do=do)
    return Problem(key, f"'{directory}' is not a model directory: it doesn't have config.json", do=_gguf_hint(directory))


def _gguf_hint(directory: Path) -> str:
    file = next(iter(sorted(directory.glob("*.gguf"))), None)
    return f"To read its GGUF file: model.gguf_file={file.name}" if file else ""


def hub_arguments(hub: HubConf) -> dict[str, Any]:
    """The values of `hub.*` that are set, as arguments of from_pretrained."""
    given = {"proxies": hub.proxies, "cache_dir": hub.cache_dir, "token": hub.token, "local_files_only": hub.offline or None}
    return {name: value for name, value in given.items() if value}


def set_proxies(proxies: dict[str, str] | None) -> None:
    """Route this process's requests through `proxies` (scheme -> address), with environment variables.

    huggingface_hub reads only these: since 1.0 it ignores the `proxies` that from_pretrained passes on.
    """
    if not proxies:
        return
    from huggingface_hub import close_session

    for scheme, address in proxies.items():
        os.environ[f"{scheme.partition(':')[0].upper()}_PROXY"] = address
    close_session()  # the next request creates a session, which reads them


def check_reachable(
    repo: str,
    *,
    filename: str = "config.json",
    revision: str | None = None,
    cache_dir: str | None = None,
    token: Any = None,
    local_files_only: bool = False,
    key: str = PATH_KEY,
    **ignored: Any,
) -> None:
    """Check that the cache has a file of a repository, or that the hub has it.

    One request without retries, so that the answer comes within seconds; from_pretrained would try for 23 s.

    Raises:
        ConfigError: it doesn't exist, isn't allowed, or the hub can't be reached; the message says how to use a local directory.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repo, filename, cache_dir=cache_dir, revision=revision), str):
        return
    if local_files_only or constants.is_offline_mode():
        offline = "hub.offline=true" if local_files_only else "HF_HUB_OFFLINE=1"
        found = f"'{repo}' is not a local directory, and the cache doesn't have it ({offline})"
        raise ConfigError(Problem(key, found, do=_local_advice(key)))
    try:
        get_hf_file_metadata(hf_hub_url(repo, filename, revision=revision), token=token, timeout=_TIMEOUT_S)
    except Exception as error:
        problem = hub_problem(error, repo, revision=revision, key=key)
        if problem is not None:
            raise ConfigError(problem) from error


def hub_problem(error: BaseException, repo: str, *, revision: str | None = None, key: str = PATH_KEY) -> Problem | None:
    """The problem that the hub reports; None if only this file is missing.

    Args:
        error: raised by huggingface_hub.
    """
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        do = f"Ask for access at https://huggingface.co/{repo}, then set hub.token or HF_TOKEN"
        return Problem(key, f"'{repo}' is on the hub, but needs permission", do=do)
    if isinstance(error, errors.RepositoryNotFoundError):
        do = "If it is private, set hub.token or HF_TOKEN. " + _local_advice(key)
        return Problem(key, f"'{repo}' is not a local directory, and the hub doesn't have a model of that name", do=do)
    if isinstance(error, errors.RevisionNotFoundError):
        return Problem("model.revision", f"'{revision}' is not a revision of '{repo}'")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return None
    reason = f"{type(error).__name__}: {one_line(error)}"[:200]
    return Problem(key, f"'{repo}' is not a local directory, and the hub can't be reached ({reason})", do=_local_advice(key))


def _local_advice(key: str) -> str:
    return f"To use files that you have: {key}=/path/to/directory"
