"""Tables from the hub, or a short message where it can't be reached.

`datasets` asks again for 23 seconds where there is no network (5.2, huggingface_hub 2.4), and then says nothing about what to do.
So the hub is asked once, with a time limit, before `load_dataset`; where it doesn't answer, what the cache holds is used, and said so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
from datasets import Dataset, DownloadConfig, IterableDatasetDict
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from llmmod.data.row import first_line
from llmmod.data.sources.source import read_split
from llmmod.errors import ConfigError, DataError, Problem
from llmmod.models.hub import set_proxies
from llmmod.schema.model import HubConf

log = logging.getLogger(__name__)

BUILDERS = ("json", "csv", "parquet", "arrow", "text")  # read addresses, and are no repositories
TIMEOUT_S = 5.0
_LOCAL = "Give a file or directory of this machine: dataset.path=/path/to/data.jsonl"


def load_table(path: str, *, subset: str | None, data_files: Any, split: str, hub: HubConf) -> Dataset:
    """A split of a dataset on the hub, downloaded.

    Args:
        path: the hub id, or the name of a builder for addresses.
        subset: the dataset's configuration name.
        data_files: files of that repository, or addresses.
        split: which rows.
        hub: how downloads are made.

    Raises:
        ConfigError: no such dataset, no such split, or no network and nothing in the cache; within seconds.
        DataError: its files can't be read.
    """
    read_split(split)
    return _load(path, subset, hub, data_files=data_files, split=split)


def load_streams(path: str, *, subset: str | None, data_files: Any, hub: HubConf) -> IterableDatasetDict:
    """The splits of a dataset on the hub, whose rows are downloaded while they are read; arguments and errors as of `load_table`."""
    return _load(path, subset, hub, data_files=data_files, streaming=True)


def _load(path: str, subset: str | None, hub: HubConf, **asked: Any) -> Any:
    set_proxies(hub.proxies)
    unreachable = None if hub.offline or path in BUILDERS else _asked(path, hub)
    asked |= {"cache_dir": hub.cache_dir, "token": hub.token, "download_config": _download_config(hub)}
    with _offline(hub.offline or unreachable is not None):
        try:
            found = datasets.load_dataset(path, subset, **asked)
        except (ConnectionError, FileNotFoundError, DatasetNotFoundError) as error:
            raise _not_found(path, unreachable, error, hub) from error
        except (ValueError, ImportError, HfHubHTTPError) as error:  # an unknown subset or split, a package that an address needs
            raise ConfigError(Problem(_key_of(error), f"'{path}' can't be loaded: {first_line(error)}")) from error
        except DatasetGenerationError as error:
            raise DataError(Problem(path, f"its files can't be read: {first_line(error.__cause__ or error)}")) from error
    if unreachable is not None:
        log.warning("%s: the hub can't be reached (%s); reading the copy in the cache", path, unreachable)
    return found


def _key_of(error: Exception) -> str:
    """The key that `datasets` (5.2) complains of in its own words."""
    text = str(error)
    return "dataset.split" if text.startswith("Unknown split") else "dataset.subset" if text.startswith("BuilderConfig") else "dataset.path"


def _download_config(hub: HubConf) -> DownloadConfig:
    config = DownloadConfig(token=hub.token, proxies=hub.proxies, local_files_only=hub.offline, max_retries=1)
    if hub.cache_dir is not None:
        config.cache_dir = f"{hub.cache_dir}/downloads"
    return config


def _asked(repository: str, hub: HubConf) -> str | None:
    """Why the hub doesn't answer for a repository, None where it does."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        HfApi(token=hub.token).dataset_info(repository, timeout=TIMEOUT_S)
    except RepositoryNotFoundError as error:
        do = f"Is it spelt right? A private one needs hub.token. {_LOCAL}"
        raise ConfigError(Problem("dataset.path", f"the hub has no dataset '{repository}', nor is it a path here", do=do)) from error
    except Exception as error:  # HTTP errors, and the transport's own, which differ with the version of huggingface_hub
        return first_line(error)
    return None


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Make `datasets` and huggingface_hub, which read the environment when they are imported, ask nobody for a while."""
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if wanted:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _not_found(path: str, unreachable: str | None, error: Exception, hub: HubConf) -> ConfigError:
    if hub.offline:
        found = f"'{path}' is no path here, and hub.offline=true allows no other look; the cache doesn't hold it"
    elif unreachable is not None:
        found = f"'{path}' is no path here, and the hub can't be asked for it ({unreachable}); the cache doesn't hold it"
    else:
        found = f"'{path}' can't be loaded: {first_line(error)}"
    return ConfigError(Problem("dataset.path", found, do=_LOCAL))
