"""A tiny checkpoint and small data on disk, like a user's: fixtures for tests that start from a configuration."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def checkpoint(tmp_path, tiny_llama, tiny_tokenizer):
    """The directory of the tiny Llama."""
    tiny_llama.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def rows(tmp_path):
    """The rows of `write_rows`."""
    return write_rows(tmp_path / "rows.jsonl")


def write_rows(path):
    """Eight rows that every stage accepts."""

    def row(number):
        said = {"chosen": f"It is {number}.", "rejected": "No."}
        return {"prompt": f"What is {number}?", "response": said["chosen"], **said}

    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(8)))
    return path


def overrides_of(checkpoint, rows):
    """The overrides of a configuration with both, without the stages."""
    return [
        f"model.pretrained_model_name_or_path={checkpoint}", "model.gguf_file=null", "render=chatml", "finetune.r=2", "dataset=json",
        f"dataset.data_files={rows}", "dataset.columns.prompt=prompt", "dataset.columns.response=response", "dataset.val_size=2",
    ]  # fmt: skip
