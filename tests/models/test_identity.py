"""The content of a training's initial model, with its base and merged adapters, identifies it."""

from __future__ import annotations

import json

import pytest

from llmmod.cache.content import NoIdentityError
from llmmod.config.schema.model import HubConf, ModelConf
from llmmod.reuse.fingerprint import checkpoint_identity, directory_identity

HUB = HubConf(offline=True)
COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def model(tmp_path):
    """A model directory with weights and a GGUF file."""
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("config.json", "model.safetensors", "model.Q4.gguf"):
        (directory / name).write_text(name)
    return directory


def of(path, **more):
    return checkpoint_identity(ModelConf(name="mine", pretrained_model_name_or_path=str(path), **more), HUB)


def test_of_a_gguf_model_that_file_alone_counts(model):
    whole, gguf = of(model), of(model, gguf_file="model.Q4.gguf")
    (model / "model.safetensors").write_text("other")
    assert of(model, gguf_file="model.Q4.gguf") == gguf
    assert of(model) != whole
    (model / "model.Q4.gguf").write_text("other")
    assert of(model, gguf_file="model.Q4.gguf") != gguf


def test_the_path_as_typed_is_in_it(model, monkeypatch):
    """The trained adapter stores this path."""
    monkeypatch.chdir(model.parent)
    assert of("model") != of(model)
    assert of("model")["content"] == of(model)["content"]


def test_an_adapters_identity_includes_its_base_and_merged_adapters(model, tmp_path):
    run = tmp_path / "run"
    for step, merged in (("sft", []), ("ppo", ["../sft"])):
        (run / step).mkdir(parents=True)
        (run / step / "adapter_model.safetensors").write_text(step)
        said = {"stage": step, "kind": "adapter", "head": "language", "base": str(model), "render": "chatml", "merged": merged}
        (run / step / "stage.json").write_text(json.dumps(said))
    before = directory_identity(str(run / "ppo"), HUB)
    assert before == directory_identity(str(run / "ppo"), HUB)
    for changed in (run / "ppo" / "adapter_model.safetensors", run / "sft" / "adapter_model.safetensors", model / "config.json"):
        kept = changed.read_text()
        changed.write_text("other")
        assert directory_identity(str(run / "ppo"), HUB) != before
        changed.write_text(kept)
    assert directory_identity(str(run / "ppo"), HUB) == before


def test_an_adapter_without_a_stage_file_includes_the_base_that_it_names(model, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    before = directory_identity(str(tmp_path / "adapter"), HUB)
    (model / "model.safetensors").write_text("other")
    assert directory_identity(str(tmp_path / "adapter"), HUB) != before


def test_a_commit_of_the_hub_is_itself():
    assert of("org/model", revision=COMMIT)["content"] == COMMIT


def test_a_branch_is_the_commit_that_the_cache_has(tmp_path):
    """Offline, with huggingface_hub's layout of the cache."""
    repo = tmp_path / "models--org--model"
    for commit in (COMMIT, OTHER):
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "snapshots" / commit / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    conf = ModelConf(name="mine", pretrained_model_name_or_path="org/model")
    for commit in (COMMIT, OTHER):
        (repo / "refs" / "main").write_text(commit)
        assert checkpoint_identity(conf, HubConf(offline=True, cache_dir=str(tmp_path)))["content"] == commit


def test_a_branch_is_the_commit_that_the_hub_says(monkeypatch):
    class Api:
        def __init__(self, token):
            pass

        def model_info(self, repo, *, revision, timeout):
            return type("Info", (), {"sha": {("org/model", None): COMMIT, ("org/model", "dev"): OTHER}[repo, revision]})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    for revision, commit in ((None, COMMIT), ("dev", OTHER)):
        conf = ModelConf(name="mine", pretrained_model_name_or_path="org/model", revision=revision)
        assert checkpoint_identity(conf, HubConf())["content"] == commit


def test_a_model_of_an_unknown_commit_does_not_have_an_identity(tmp_path):
    with pytest.raises(NoIdentityError, match="the commit of org/model is unknown"):
        checkpoint_identity(
            ModelConf(name="mine", pretrained_model_name_or_path="org/model"), HubConf(offline=True, cache_dir=str(tmp_path))
        )
