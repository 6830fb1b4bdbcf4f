"""What tells the weights that a training begins with, or is judged by, apart from others: the content of their files.

As with data, no date is trusted and files are read to the end; loading a model reads them anyway. A repository of the hub is its commit.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmmod.data.cache.identity import NoIdentityError, file_digest
from llmmod.models.build import model_checkpoint, model_path
from llmmod.models.hub import hub_arguments, set_proxies
from llmmod.models.stage_file import read_stage_file
from llmmod.paths import resolve_path
from llmmod.schema.model import HubConf, ModelConf

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 8.0


def checkpoint_identity(conf: ModelConf, hub: HubConf) -> Any:
    """The checkpoint that a `model.*` names.

    Raises:
        NoIdentityError: the hub doesn't say which commit of it there is.
        ConfigError: there is none.
    """
    checkpoint = model_checkpoint(conf)
    if not checkpoint.local:
        content: Any = _commit(checkpoint.path, conf.revision, hub)
    elif checkpoint.gguf_file is not None:
        content = file_digest(Path(checkpoint.path) / checkpoint.gguf_file)
    else:
        content = _files(Path(checkpoint.path))
    return {"path": model_path(conf), "content": content}  # what was typed is written into what is trained


def directory_identity(path: str, hub: HubConf) -> Any:
    """An adapter or a model, with what it stands on.

    Args:
        path: a directory, or a hub id.
        hub: how the hub is asked.

    Raises:
        NoIdentityError: the hub doesn't say which commit of it there is.
    """
    place = resolve_path(path)
    if not isinstance(place, Path):
        return {"path": path, "content": _commit(path, None, hub)}
    left = read_stage_file(place)
    below = [left.base, *left.merged] if left is not None else [_adapted(place)]
    found = [resolved for name in below if name and (resolved := _seen_from(place, name)) is not None]
    return {"path": str(place.absolute()), "content": _files(place), "on": [directory_identity(str(each), hub) for each in found]}


def _seen_from(place: Path, name: str) -> Path | None:
    """The directory that a name means where it stands, None where it means none on this disk."""
    beside = place / name
    located = beside if name.startswith("..") else resolve_path(name)
    return located.resolve() if isinstance(located, Path) and located.is_dir() and located.resolve() != place.resolve() else None


def _adapted(place: Path) -> str | None:
    with suppress(OSError, ValueError, AttributeError):
        named = json.loads((place / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
        return None if named is None else str(named)
    return None


def _files(directory: Path) -> Any:
    """The files right in a directory, of which it is read."""
    if not directory.is_dir():
        return file_digest(directory)
    return {path.name: file_digest(path) for path in sorted(directory.iterdir()) if path.is_file() and not path.name.startswith(".")}


def _commit(repo: str, revision: str | None, hub: HubConf) -> str:
    """The commit that a revision is now; offline, or where the hub doesn't answer, the one that the cache has."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    if not hub.offline and not constants.is_offline_mode():
        set_proxies(hub.proxies)
        with suppress(Exception):  # any that the network has; from_pretrained then takes the cache as well
            found = HfApi(token=hub.token).model_info(repo, revision=revision, timeout=_TIMEOUT_S).sha
            if found:
                return str(found)
    cached = try_to_load_from_cache(repo, "config.json", cache_dir=hub_arguments(hub).get("cache_dir"), revision=revision)
    if isinstance(cached, str) and (commits := [part for part in Path(cached).parts if _COMMIT.fullmatch(part)]):
        return commits[-1]
    raise NoIdentityError(f"which commit of {repo} there is, nobody says")
