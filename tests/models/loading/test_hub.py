"""The hub's arguments, and our messages for its errors, which come without a delay."""

from __future__ import annotations

import os
import time

import httpx2
import pytest
from huggingface_hub import errors

from llmmod.config.schema.model import HubConf
from llmmod.errors import ConfigError
from llmmod.files.checkpoint import check_reachable, hub_arguments, hub_problem, set_proxies


def test_only_what_is_set_is_passed_on():
    assert hub_arguments(HubConf()) == {}
    conf = HubConf(proxies={"https": "http://proxy:3128"}, cache_dir="/cache", token="hf_x", offline=True)
    assert hub_arguments(conf) == {
        "proxies": {"https": "http://proxy:3128"}, "cache_dir": "/cache", "token": "hf_x", "local_files_only": True,
    }  # fmt: skip


@pytest.mark.parametrize("scheme", ["https", "https://"])
def test_proxies_are_set_where_the_hub_library_reads_them(monkeypatch, scheme):
    monkeypatch.setenv("HTTPS_PROXY", "")
    set_proxies({scheme: "http://proxy:3128"})
    assert os.environ["HTTPS_PROXY"] == "http://proxy:3128"


def test_without_a_network_the_answer_comes_at_once_and_says_what_to_do(no_network):
    started = time.monotonic()
    with pytest.raises(ConfigError) as error:
        check_reachable("zai-org/chatglm2-6b")
    assert time.monotonic() - started < 2
    assert str(error.value) == (
        "model.pretrained_model_name_or_path: 'zai-org/chatglm2-6b' is not a local directory, and the hub can't be reached "
        "(ConnectionError: Name or service not known). "
        "To use files that you have: model.pretrained_model_name_or_path=/path/to/directory."
    )
    assert len(no_network) == 1  # without retries


def test_offline_asks_nobody(no_network):
    with pytest.raises(ConfigError, match=r"the cache doesn't have it \(hub.offline=true\)"):
        check_reachable("a/b", local_files_only=True)
    assert no_network == []


def refusal(kind):
    response = httpx2.Response(404, request=httpx2.Request("HEAD", "https://hub/x"))
    return kind("no", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(refusal(errors.RepositoryNotFoundError), "the hub doesn't have a model of that name", id="no repository"),
        pytest.param(refusal(errors.GatedRepoError), "needs permission. Ask for access", id="gated"),
        pytest.param(refusal(errors.RevisionNotFoundError), "model.revision: 'v2' is not a revision of 'a/b'", id="revision"),
    ],
)
def test_what_the_hub_refuses(error, message):
    assert message in str(hub_problem(error, "a/b", revision="v2"))


def test_a_repository_without_that_one_file_is_no_problem():
    assert hub_problem(refusal(errors.RemoteEntryNotFoundError), "a/b") is None
