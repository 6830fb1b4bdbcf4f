"""stage.json, and the checks that use it before anything is loaded."""

from __future__ import annotations

import json

import pytest

from llmmod.models.loading.stage_file import StageFile, head_of, read_stage_file, write_stage_file, wrong_chain, wrong_head


@pytest.fixture
def left(tmp_path):
    def make(name="rm", kind="adapter", head="language", merged=(), config=None):
        directory = tmp_path / name
        directory.mkdir()
        (directory / ("adapter_config.json" if kind == "adapter" else "config.json")).write_text(json.dumps(config or {}))
        write_stage_file(directory, StageFile(name, kind, head, "org/base", "chatml", list(merged)))
        return directory

    return make


def test_what_was_written_is_read(left):
    read = read_stage_file(left(merged=["../sft"]))
    assert (read.stage, read.kind, read.head, read.base, read.render, read.merged) == (
        "rm",
        "adapter",
        "language",
        "org/base",
        "chatml",
        ["../sft"],
    )
    assert read.llmmod


@pytest.mark.parametrize("text", ["", "[]", "{", '{"stage": "rm"}'])
def test_a_missing_or_invalid_file(tmp_path, text):
    assert read_stage_file(tmp_path) is None
    (tmp_path / "stage.json").write_text(text)
    assert read_stage_file(tmp_path) is None


@pytest.mark.parametrize(
    ("file", "content", "head"),
    [
        ("adapter_config.json", {"task_type": "CAUSAL_LM"}, "language"),
        ("adapter_config.json", {"task_type": "SEQ_CLS"}, "reward"),
        ("adapter_config.json", {"task_type": None}, None),
        ("config.json", {"architectures": ["LlamaForSequenceClassification"]}, "reward"),
        ("config.json", {"architectures": ["LlamaForCausalLM"]}, "language"),
        ("config.json", {}, None),
    ],
)
def test_the_head_of_a_directory_that_another_tool_wrote(tmp_path, file, content, head):
    (tmp_path / file).write_text(json.dumps(content))
    assert head_of(tmp_path) == head


def test_the_wrong_head(left, tmp_path):
    scores, writes = left(head="reward"), left("sft", kind="full")
    assert wrong_head("rm", scores, wanted="reward", key="k") is None
    assert wrong_head("x", tmp_path, wanted="reward", key="k") is None  # the directory doesn't say which head it has
    assert str(wrong_head("out/rm", scores, wanted="language", key="finetune.adapters[0]")) == (
        "finetune.adapters[0]: 'out/rm' is an adapter with a reward head, made by stage=rm: it gives scores and doesn't generate text. "
        "Give one trained by stage=sft or another stage for language models."
    )
    assert str(wrong_head("out/sft", writes, wanted="reward", key="k")) == (
        "k: 'out/sft' is a model with a language head, made by stage=sft: it generates text and doesn't give scores. "
        "Give one trained by stage=rm."
    )


def test_an_adapter_that_was_trained_on_merged_adapters(left, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    left("sft")
    ppo = left("ppo", merged=["../sft"])
    assert wrong_chain("ppo", ppo, before=["sft"], key="k") is None
    assert wrong_chain("ppo", ppo, before=[str(tmp_path / "sft")], key="k") is None
    assert wrong_chain("sft", tmp_path / "sft", before=[], key="k") is None
    for before in ([], ["ppo"], ["sft", "ppo"]):
        assert str(wrong_chain("ppo", ppo, before=before, key="k")) == (
            "k: 'ppo' was trained on a base with sft merged into it, and doesn't fit without. Name them before it: [sft,ppo]."
        )
