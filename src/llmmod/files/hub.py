"""The hub: `hub.*` as arguments of every from_pretrained, a quick answer where it can't be reached, and its errors in our words."""

from __future__ import annotations

import os
from typing import Any

from llmmod.config.schema.model import HubConf
from llmmod.errors import ConfigError, Problem, one_line
from llmmod.files.checkpoint import PATH_KEY

_TIMEOUT_S = 8.0


def hub_arguments(hub: HubConf) -> dict[str, Any]:
    """What of `hub.*` is set, under the names that from_pretrained takes."""
    given = {"proxies": hub.proxies, "cache_dir": hub.cache_dir, "token": hub.token, "local_files_only": hub.offline or None}
    return {name: value for name, value in given.items() if value}


def set_proxies(proxies: dict[str, str] | None) -> None:
    """Route this process's requests through `proxies` (scheme -> address), by the environment.

    huggingface_hub reads nothing else: since 1.0 it ignores the `proxies` that from_pretrained passes on.
    """
    if not proxies:
        return
    from huggingface_hub import close_session

    for scheme, address in proxies.items():
        os.environ[f"{scheme.partition(':')[0].upper()}_PROXY"] = address
    close_session()  # the next request makes a session that reads them


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
    """Nothing, where the cache holds a file of a repository or the hub answers for it.

    One request without retries, so that the answer comes within seconds; from_pretrained alone tries for 23 s.

    Raises:
        ConfigError: not there, not allowed, or no hub reachable, and how to give a local directory.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repo, filename, cache_dir=cache_dir, revision=revision), str):
        return
    if local_files_only or constants.is_offline_mode():
        offline = "hub.offline=true" if local_files_only else "HF_HUB_OFFLINE=1"
        found = f"'{repo}' is not a local directory, and the cache hasn't got it ({offline})"
        raise ConfigError(Problem(key, found, do=_local_advice(key)))
    try:
        get_hf_file_metadata(hf_hub_url(repo, filename, revision=revision), token=token, timeout=_TIMEOUT_S)
    except Exception as error:
        problem = hub_problem(error, repo, revision=revision, key=key)
        if problem is not None:
            raise ConfigError(problem) from error


def hub_problem(error: BaseException, repo: str, *, revision: str | None = None, key: str = PATH_KEY) -> Problem | None:
    """What the hub's refusal means, None where only that one file is missing.

    Args:
        error: what huggingface_hub raised.
    """
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        do = f"Ask for access at https://huggingface.co/{repo}, then set hub.token or HF_TOKEN"
        return Problem(key, f"'{repo}' is on the hub, but needs permission", do=do)
    if isinstance(error, errors.RepositoryNotFoundError):
        do = "If it is private, set hub.token or HF_TOKEN. " + _local_advice(key)
        return Problem(key, f"'{repo}' is not a local directory, and the hub has no model of that name", do=do)
    if isinstance(error, errors.RevisionNotFoundError):
        return Problem("model.revision", f"'{repo}' has no revision '{revision}'")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return None
    reason = f"{type(error).__name__}: {one_line(error)}"[:200]
    return Problem(key, f"'{repo}' is not a local directory, and the hub can't be reached ({reason})", do=_local_advice(key))


def _local_advice(key: str) -> str:
    return f"To use files that you have: {key}=/path/to/directory"
