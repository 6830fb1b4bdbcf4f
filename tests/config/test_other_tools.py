"""The names that other tools give to our keys: each is answered with ours, which exists, and stands on the page about other tools."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmmod.config.compose import compose_config
from llmmod.config.wording import groups, options_with, other_tools, part_of
from llmmod.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "recipes" / "other-tools.md"

ANSWERS = {
    "LLaMA-Factory's, at the root": ("lora_rank=8", "lora_rank: no such key or group. Did you mean 'finetune.r'?"),
    "inside its part": ("finetune.lora_rank=8", "finetune.lora_rank: no such field. Did you mean 'r'?"),
    "inside another part": ("training.max_seq_length=8", "training.max_seq_length: no such field. Did you mean 'dataset.cutoff_len'?"),
    "below its part": ("model.load_in_4bit=true", "model.load_in_4bit: no such field. Did you mean 'quantization.bits'?"),
    "an option of a group": ("template=llama2", "template: no such key or group. Did you mean 'render=…'?"),
    "inside a part, where an option isn't meant": ("finetune.adapter=x", "finetune.adapter: no such field. Did you mean 'adapters'?"),
    "the opposite": ("dataset.train_on_prompt=1", "dataset.train_on_prompt: no such field. Did you mean 'mask_prompt', the opposite?"),
    "of one part only": ("model.path=x", "model.path: no such field. Did you mean 'pretrained_model_name_or_path'?"),
    "below a part that doesn't exist": ("stepps.train.lr=1", "stepps.train.lr: no such key or group. Did you mean 'steps'?"),
    "a word that looks like ours": ("training.num_epochs=1", "training.num_epochs: no such field. Did you mean 'num_train_epochs'?"),
}  # fmt: skip


@pytest.fixture(scope="module")
def answered():
    with pytest.raises(ConfigError) as error:
        compose_config([override for override, _ in ANSWERS.values()])
    return dict(zip(ANSWERS, map(str, error.value.problems), strict=True))


@pytest.mark.parametrize("name", ANSWERS)
def test_a_name_of_another_tool_is_answered_with_ours(answered, name):
    assert answered[name] == ANSWERS[name][1]


def test_a_name_inside_a_step_s_own_part_is_answered_with_the_key_of_that_part():
    with pytest.raises(ConfigError) as error:
        compose_config(["+stage@steps.train.training=sft", "steps.train.training.lr=1"])
    assert str(error.value) == "steps.train.training.lr: no such field. Did you mean 'learning_rate'?"


@pytest.mark.parametrize("name", other_tools())
def test_our_key_exists(name):
    key = other_tools()[name].partition(",")[0]
    if key.endswith("="):
        assert key[:-1] in groups()
    elif key != "pipeline":
        group, _, rest = part_of(key)
        assert options_with(group, rest)


def test_the_page_has_the_table():
    rows = re.findall(r"^\| (`.*`) \| `([\w.=]+)`(?:, (.*))? \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = {name: f"{key}, {note}" if note else key for names, key, note in rows for name in re.findall(r"`(.*?)`", names)}
    assert shown == other_tools()
