"""Paths that don't exist or are of the wrong kind, and the run's directory."""

from __future__ import annotations

import json
import os
import zipfile

import pytest

DATA = "dataset.data_files"
MODEL = "model.pretrained_model_name_or_path"
RESUME = "training.resume_from_checkpoint"


class TestData:
    def test_a_file_that_is_not_there(self, told, tmp_path):
        (tmp_path / "mydata.json").write_text("[]")
        assert told(f"{DATA}=mydate.json") == [
            f"{DATA}: no such file or directory: 'mydate.json' ({tmp_path}/mydate.json). Did you mean 'mydata.json'?"
        ]
        assert told(f"{DATA}=mydata.json") == []

    def test_several(self, told, tmp_path):
        (tmp_path / "a.json").write_text("[]")
        lines = told(f"{DATA}=[a.json,b.json,'*.jsonl',https://example.org/c.json]", "dataset.val_files=d.json")
        assert [line.split(" (")[0] for line in lines] == [
            f"{DATA}: no such file or directory: 'b.json'",
            f"{DATA}: no file matches '*.jsonl'",
            "dataset.val_files: no such file or directory: 'd.json'",
        ]

    def test_files_in_a_directory(self, told, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "a.json").write_text("[]")
        assert told("dataset.path=folder", f"{DATA}=a.json") == []
        assert told("dataset.path=folder", f"{DATA}=b.json")[0].startswith(f"{DATA}: no such file or directory: 'b.json'")

    def test_files_of_a_package(self, told):
        assert told(f"{DATA}=pkg://llmmod.demo/llmmod_qq.jsonl") == [
            f"{DATA}: 'pkg://llmmod.demo/llmmod_qq.jsonl': the package doesn't have 'llmmod_qq.jsonl'. Did you mean 'llmmod_qa.jsonl'?"
        ]
        assert told(f"{DATA}=pkg://no_such_package/a.json") == [
            f"{DATA}: 'pkg://no_such_package/a.json': the package 'no_such_package' isn't installed. Install it, or give a path."
        ]

    @pytest.mark.parametrize("path", ["./nowhere", "~/nowhere", "/nowhere/at/all", "a/b/c", "nowhere.json"])
    def test_a_path_that_does_not_exist(self, told, path):
        lines = told(f"dataset.path='{path}'", f"{DATA}=null", "dataset.val_files=null", "dataset.val_size=1")
        assert [line.split(":")[0] for line in lines] == ["dataset.path"]

    @pytest.mark.parametrize("path", ["org/name", "name", "https://example.org/x.json"])
    def test_a_name_on_the_hub_is_left_to_the_hub(self, told, path):
        assert told(f"dataset.path={path}", f"{DATA}=null", "dataset.val_files=null", "dataset.val_size=1") == []

    def test_no_data(self, told):
        more = [f"{DATA}=null", "dataset.val_files=null", "dataset.val_size=1"]
        assert told("dataset.path=null", *more) == ["dataset.path: is not set. Set dataset.path or dataset.data_files."]
        assert told("dataset.path=json", *more) == ["dataset.path: 'json' reads files, but files are not given. Set dataset.data_files."]

    def test_data_is_looked_at_in_a_rehearsal_too(self, told):
        assert len(told(f"{DATA}=nope.json", "smoke=true")) == 1

    def test_data_that_no_step_reads_is_not_looked_for(self, told):
        assert told("dataset.data_files=nope.json", "pipeline=[chat]") == [
            f"{DATA}: the steps of the pipeline [chat] don't read it. Leave it out."
        ]


class TestModel:
    @pytest.mark.parametrize("path", ["./nowhere", "/nowhere", "a/b/c"])
    def test_a_directory_that_is_not_there(self, told, path):
        assert told(f"{MODEL}={path}") == [f"{MODEL}: '{path}' does not exist."]

    def test_a_directory_without_weights(self, told, tmp_path):
        (tmp_path / "mine").mkdir()
        assert told(f"{MODEL}=mine") == [f"{MODEL}: 'mine' is not a model directory: it doesn't have config.json."]
        (tmp_path / "mine" / "config.json").write_text("{}")
        assert told(f"{MODEL}=mine") == [
            f"{MODEL}: 'mine' doesn't have weights. A model directory has *.safetensors or pytorch_model*.bin next to its config.json."
        ]
        assert told(f"{MODEL}=mine", "model.weights=random") == []
        assert told(f"{MODEL}=mine", "smoke=true") == []
        (tmp_path / "mine" / "model.safetensors").write_bytes(b"")
        assert told(f"{MODEL}=mine") == []

    def test_a_step_s_own(self, told):
        lines = told("+model@steps.chat.model=llama", "steps.chat.model.pretrained_model_name_or_path=/nowhere", "pipeline=[train,chat]")
        assert lines == ["steps.chat.model.pretrained_model_name_or_path: '/nowhere' does not exist."]

    def test_sizes(self, told):
        assert told("model=llama", "model.size=14b") == ["model.size: '14b' is not a size of this model. Did you mean '13b'?"]

    def test_a_revision_of_a_directory(self, told, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "model.safetensors").write_bytes(b"")
        lines = told(f"{MODEL}={tmp_path}", "model.revision=main")
        assert lines == [f"model.revision: not read, since '{tmp_path}' is a directory on this machine. Leave it out."]

    def test_the_tokenizer_s(self, told):
        key = "tokenizer.pretrained_model_name_or_path"
        assert told(f"{key}=/nowhere") == [f"{key}: '/nowhere' does not exist."]

    def test_adapters(self, told, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        (tmp_path / "a" / "adapter_config.json").write_text("{}")
        (tmp_path / "b" / "config.json").write_text("{}")
        assert told("finetune.adapters=[a,org/name]") == []
        assert told("finetune.adapters=[a,b,./c]") == [
            "finetune.adapters[1]: 'b' is not an adapter: it doesn't have adapter_config.json. "
            "That is a model: give it as model.pretrained_model_name_or_path.",
            "finetune.adapters[2]: './c' does not exist.",
        ]


def checkpoint(run):
    directory = run / "train" / "checkpoint-2"
    directory.mkdir(parents=True)
    (directory / "trainer_state.json").write_text("{}")
    with zipfile.ZipFile(directory / "optimizer.pt", "w") as file:
        file.writestr("optimizer/data.pkl", b"")
    empty = b"{}"
    (directory / "model.safetensors").write_bytes(len(empty).to_bytes(8, "little") + empty)
    return directory


class TestCheckpoint:
    def test_points_nowhere(self, told):
        assert told(f"{RESUME}=/nowhere") == [
            f"{RESUME}: /nowhere is not a directory. Give the path of a checkpoint, or true for this run's newest."
        ]

    def test_the_newest_of_this_run(self, told, tmp_path):
        assert told(f"{RESUME}=true", "output_dir=run") == []  # without a checkpoint the run starts from the beginning
        checkpoint(tmp_path / "run")
        assert told(f"{RESUME}=true", "output_dir=run") == []
        assert told(f"{RESUME}=true") == [
            f"{RESUME}: true, but without output_dir each run has a new directory, which doesn't have a checkpoint yet. "
            "Set output_dir to the run to continue, or set auto_resume=true instead, which finds it."
        ]

    def test_a_checkpoint(self, told, tmp_path):
        assert told(f"{RESUME}={checkpoint(tmp_path / 'old')}") == []

    def test_a_checkpoint_that_is_cut_off(self, told, tmp_path):
        directory = checkpoint(tmp_path / "old")
        (directory / "optimizer.pt").write_bytes((directory / "optimizer.pt").read_bytes()[:20])
        assert told(f"{RESUME}={directory}") == [
            f"{RESUME}: {directory} is damaged: optimizer.pt is cut off or can't be read. Choose another checkpoint, or start a new run."
        ]


class TestOutput:
    def test_a_file(self, told, tmp_path):
        (tmp_path / "x").write_text("")
        assert told("output_dir=x") == ["output_dir: 'x' is a file. Choose another directory."]
        assert told("output_dir=x/y") == [f"output_dir: 'x/y' can't be created: {tmp_path}/x is a file. Choose another directory."]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_no_right_to_write(self, told, tmp_path):
        (tmp_path / "x").mkdir(mode=0o500)
        assert told("output_dir=x/y") == [
            f"output_dir: 'x/y' can't be written: permission denied for {tmp_path}/x. Choose another directory."
        ]

    def test_no_right_to_write_as_the_system_says(self, told, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert told("output_dir=x") == [f"output_dir: 'x' can't be written: permission denied for {tmp_path}. Choose another directory."]

    def test_another_run(self, told, tmp_path):
        checkpoint(tmp_path / "run")
        (tmp_path / "run" / "run.json").write_text(json.dumps({"status": "completed"}))
        assert told("output_dir=run") == [
            "output_dir: 'run' contains another run. Choose another directory, or continue that run: training.resume_from_checkpoint=true."
        ]
        assert told("output_dir=run", f"{RESUME}=true") == []

    def test_only_the_first_of_several_processes_checks(self, told, tmp_path, monkeypatch):
        """The others may start later, when the first has already written into the directory."""
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "run.json").write_text("{}")
        monkeypatch.setenv("WORLD_SIZE", "2")
        for rank, problems in (("0", 1), ("1", 0)):
            monkeypatch.setenv("RANK", rank)
            assert len(told("output_dir=run")) == problems

    def test_an_empty_directory(self, told, tmp_path):
        (tmp_path / "run").mkdir()
        assert told("output_dir=run") == []
