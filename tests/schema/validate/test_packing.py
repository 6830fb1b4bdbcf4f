"""Packed rows that couldn't be kept apart, told before anything heavy is imported; the whole text."""

from __future__ import annotations

import json

import pytest

PACKED = "dataset.packing=true"
ITSELF = "can't keep the examples of a row apart: it computes attention itself, over the whole row, and its positions are those in the row"
WAY_OUT = "Leave it to the stage, derive yours from llmmod.stages.sft.SftTrainer, or set dataset.packing=false."


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model=bloom"], f"dataset.packing: true, and bloom {ITSELF}. Set it to false."),
        (["model=falcon", "smoke=true"], f"dataset.packing: true, and falcon {ITSELF}. Set it to false."),
        (
            ["model=baichuan_13b"],
            "dataset.packing: true, and baichuan can't keep the examples of a row apart: its ALiBi is part of a mask over the whole row. "
            "Set it to false.",
        ),
        (
            ["model.attn_implementation=eager"],
            "dataset.packing: true, and attention 'eager' can't keep the examples of a row apart. Set it to false.",
        ),
        (
            ["training.pad_to_multiple_of=8"],
            "dataset.packing: true, and training.pad_to_multiple_of asks for padding. Set it to false.",
        ),
        (
            ["training.collator._target_=llmmod.data.collate.PadRight"],
            "dataset.packing: true, and training.collator._target_=llmmod.data.collate.PadRight takes a row for one example. "
            "Set it to false.",
        ),
        (
            ["training.trainer._target_=trl.SFTTrainer"],
            "training.trainer._target_: trl.SFTTrainer with dataset.packing=true, and it doesn't keep the examples of a row apart. "
            f"{WAY_OUT}",
        ),
        (
            ["stage=pt", "training.trainer._target_=transformers.Trainer"],
            "training.trainer._target_: transformers.Trainer with dataset.packing=true, and it doesn't keep the examples of a row apart. "
            f"{WAY_OUT}",
        ),
    ],
    ids=["family", "rehearsal", "alibi", "attention", "multiple", "collator", "trainer", "trainer-of-documents"],
)
def test_refused(told, overrides, line):
    assert told(PACKED, *overrides) == [line]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["smoke=true"],
        ["model=baichuan"],
        ["model.attn_implementation=sdpa"],
        ["smoke=true", "model.architecture.model_type=unheard_of"],
        ["model=bloom", "pipeline=[predict]"],
    ],
    ids=["llama", "rehearsal", "becomes-llama", "sdpa", "unknown", "no-training"],
)
def test_right(told, overrides):
    assert told(PACKED, *overrides) == []


@pytest.fixture
def checkpoint(tmp_path):
    """A directory that looks like a model of a family."""

    def make(**config):
        for name in ("model.safetensors", "tokenizer.json"):
            (tmp_path / name).touch()
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return f"model.pretrained_model_name_or_path={tmp_path}"

    return make


def test_a_checkpoint_on_the_disk_says_what_it_is(told, checkpoint):
    assert told(PACKED, "model=llama2", checkpoint(model_type="falcon")) == [
        f"dataset.packing: true, and falcon {ITSELF}. Set it to false."
    ]
    assert told(PACKED, "model=bloom", checkpoint(model_type="llama")) == []


def test_a_baichuan_of_7_billion_becomes_llama(told, checkpoint):
    raw = {"model_type": "baichuan", "vocab_size": 64000, "num_hidden_layers": 32, "hidden_act": "silu"}
    sizes = {"num_attention_heads": 32, "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096}
    assert told(PACKED, "model=baichuan_13b", checkpoint(**raw, **sizes, rms_norm_eps=1e-6)) == []
