"""Every command that the README shows composes and passes validation, and both languages show the same ones."""

import re
import shlex
import struct
import zipfile
from pathlib import Path

import pytest

from llmmod.app import _allowed_modules
from llmmod.pipeline.sweep import sweep_jobs
from llmmod.schema.compose import compose_config, validated

ROOT = Path(__file__).parents[2]


def commands(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(\.venv/bin/)?llmmod ", line) and "<date>" not in line]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A directory with the files that the commands speak of."""
    monkeypatch.chdir(tmp_path)
    row = '{"instruction": "Who?", "output": "Me."}\n'
    (tmp_path / "my.jsonl").write_text(row * 20)
    (tmp_path / "my.csv").write_text("question,answer\n" + "Who?,Me.\n" * 100)
    (tmp_path / "my_run" / "train").mkdir(parents=True)
    (tmp_path / "my_run" / "train" / "adapter_config.json").write_text("{}")
    (tmp_path / "my_run" / "train" / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "my_reward" / "train").mkdir(parents=True)
    (tmp_path / "my_reward" / "train" / "adapter_config.json").write_text("{}")
    for step in ("train", "ppo"):
        checkpoint = tmp_path / "outputs" / "mine" / step / "checkpoint-4"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text("{}")
        (checkpoint / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")  # no tensors, but whole
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            with zipfile.ZipFile(checkpoint / name, "w") as archive:
                archive.writestr("data.pkl", b"")
    (tmp_path / "my_package.py").write_text("class MyCallback:\n    pass\n")
    return tmp_path


@pytest.mark.parametrize("command", commands("README.md"))
def test_the_command_composes_and_validates(command, work, monkeypatch):
    allow, arguments = _allowed_modules(shlex.split(command)[1:])
    monkeypatch.setenv("LLMMOD_ALLOW", ",".join(allow))
    # A model directory of the reader's own is the one thing that can't be made up.
    overrides = [a for a in arguments if a != "-m" and "/models/" not in a]
    jobs = sweep_jobs(overrides) if "-m" in arguments else [overrides]
    for job in jobs:
        assert validated(compose_config(job)).pipeline


def test_there_are_commands_for_every_group():
    text = " ".join(commands("README.md"))
    for group in ("model=", "finetune=", "stage=", "dataset=", "render=", "generation=", "pipeline=", "-m ", "smoke=true"):
        assert group in text


def test_both_languages_show_the_same_commands():
    assert commands("README_zh.md") == commands("README.md")
