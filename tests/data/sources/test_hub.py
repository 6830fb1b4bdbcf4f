"""The hub without a network: the calls to `datasets`, and the messages if the hub doesn't answer."""

from __future__ import annotations

import os
import time

import datasets
import huggingface_hub
import pytest
from datasets import Dataset
from huggingface_hub import constants

from llmmod.config.schema.model import HubConf
from llmmod.data.sources import open as module
from llmmod.data.sources.open import open_source
from llmmod.errors import ConfigError


@pytest.fixture
def asked(monkeypatch):
    """The calls that reach stand-ins for the hub, which answer."""
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs, constants.HF_HUB_OFFLINE))
        return Dataset.from_list([{"n": 1}, {"n": 2}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(module, "_why_unreachable", lambda repository, hub: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_every_setting_of_the_hub_reaches_load_dataset(asked, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(huggingface_hub, "close_session", lambda: closed.append(True))
    monkeypatch.setenv("HTTPS_PROXY", "before")
    hub = HubConf(proxies={"https": "http://proxy:3128"}, cache_dir=str(tmp_path), token="hf_secret", offline=True)
    source = open_source("someone/data", hub=hub, subset="en", split="train[:2]", data_files="a/*.json")
    assert [row["n"] for _, row in source] == [1, 2]
    assert str(next(iter(source))[0]) == "someone/data [train[:2]], row 1"
    ((args, kwargs, offline),) = asked
    config = kwargs.pop("download_config")
    assert args == ("someone/data", "en")
    assert kwargs == {"data_files": "a/*.json", "split": "train[:2]", "cache_dir": str(tmp_path), "token": "hf_secret"}
    assert (config.token, config.local_files_only, config.cache_dir) == ("hf_secret", True, f"{tmp_path}/downloads")
    assert offline
    assert constants.HF_HUB_OFFLINE is False, "the rest of the process doesn't change"
    assert os.environ["HTTPS_PROXY"] == "http://proxy:3128"
    assert closed, "an earlier client doesn't use the proxy"


def test_without_the_hub_the_cache_is_read_with_a_message(asked, monkeypatch, caplog):
    monkeypatch.setattr(module, "_why_unreachable", lambda repository, hub: "no network")
    assert len(list(open_source("someone/data", hub=HubConf()))) == 2
    assert [offline for _, _, offline in asked] == [True]
    assert "someone/data: the hub can't be reached (no network); reading the copy in the cache" in caplog.text


def test_addresses_go_to_the_builder_of_their_suffix(asked):
    open_source(None, hub=HubConf(), data_files="https://example.org/rows.csv")
    open_source("parquet", hub=HubConf(), data_files={"train": ["hf://datasets/a/b/x.parquet"]})
    assert [args[0] for args, _, _ in asked] == ["csv", "parquet"]


@pytest.mark.parametrize("name", ["someone/data", "squad"])
def test_an_unreachable_hub_is_reported_within_seconds(name, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "HfApi", lambda token: huggingface_hub.HfApi(endpoint="http://127.0.0.1:9", token=token))
    began = time.monotonic()
    with pytest.raises(ConfigError) as error:
        open_source(name, hub=HubConf(cache_dir=str(tmp_path)))
    assert time.monotonic() - began < 5
    text = str(error.value)
    assert text.startswith(f"dataset.path: '{name}' is not a path on this machine and not in the cache, and the hub can't be reached (")
    assert text.endswith("). Give a file or directory on this machine: dataset.path=/path/to/data.jsonl.")
    assert error.value.exit_code == 2


def test_offline_means_that_no_request_is_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HfApi", None)
    with pytest.raises(ConfigError) as error:
        open_source("someone/data", hub=HubConf(cache_dir=str(tmp_path), offline=True))
    assert "'someone/data' is not a path on this machine and not in the cache, and hub.offline=true prevents a download" in str(error.value)


def test_a_dataset_that_the_hub_does_not_have(monkeypatch):
    import httpx2
    from huggingface_hub.errors import RepositoryNotFoundError

    class Api:
        def __init__(self, token):
            assert token == "hf_secret"

        def dataset_info(self, repository, timeout):
            response = httpx2.Response(404, request=httpx2.Request("GET", "https://example.org"))
            raise RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "HfApi", Api)
    with pytest.raises(ConfigError) as error:
        open_source("someone/dta", hub=HubConf(token="hf_secret"))
    assert str(error.value).startswith("dataset.path: 'someone/dta' is neither a dataset on the hub nor a path on")
