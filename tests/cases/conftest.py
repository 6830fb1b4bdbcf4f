"""Failures that users of other tools reported, reproduced as they met them: with a checkpoint and files on the disk, and a command.

The models are those of `byte_llama`, whose tokens are bytes. Each test names the reports that it reproduces.
"""

from __future__ import annotations

import pytest
from byte_llama import write_byte_llama
from toy import one_thread
from typed import asked

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The checkpoint."""
    return write_byte_llama(tmp_path_factory.mktemp("cases") / "base")


@pytest.fixture(autouse=True)
def _where_the_user_is(tmp_path, monkeypatch):
    """Run in an empty directory, as a user would."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def go(base):
    """A function that runs llmmod on a file of rows."""

    def run(file, *overrides, model=base, render="chatml", pipeline="train", output="run"):
        chosen = ["model=llama", f"model.pretrained_model_name_or_path={model}", f"render={render}", "dataset=json", "reuse=false"]
        return asked(*chosen, f"dataset.data_files={file}", f"pipeline=[{pipeline}]", f"output_dir={output}", *overrides)

    return run
