"""Datasets whose rows are of another kind than the stage needs, and options that don't apply to its kind of rows."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import pytest

from llmmod.config.validate.data import FORMATS
from llmmod.data import formats

STAGES = {
    "pt": "llmmod_text", "sft": "llmmod_qa", "rm": "llmmod_pairs", "ppo": "llmmod_prompts", "dpo": "llmmod_pairs", "kto": "llmmod_judged",
    "grpo": "llmmod_prompts",
}  # fmt: skip
OF = {"llmmod_text": "document", "llmmod_qa": "conversation", "llmmod_pairs": "preference", "llmmod_judged": "judgement"}
OF |= {"llmmod_prompts": "prompt"}
OWN = "or json and hub for your own data."


def test_the_kinds_are_those_of_the_formats():
    names = [module.name for module in pkgutil.iter_modules(formats.__path__)]
    assert {name: import_module(f"{formats.__name__}.{name}").KIND for name in names} == FORMATS


@pytest.mark.parametrize("dataset", OF)
@pytest.mark.parametrize("stage", STAGES)
def test_every_dataset_with_every_stage(told, stage, dataset):
    own, found = STAGES[stage], told(f"stage={stage}", f"dataset={dataset}")
    if dataset == own:
        assert found == []
    else:
        needs = f"the rows of '{dataset}' are of kind {OF[dataset]}, but stage={stage} needs {OF[own]}"
        assert found == [f"dataset: {needs}. Allowed: {own}, {OWN}"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["dataset.format=text"],
            "dataset.format: the records of 'text' are of kind document, not conversation. Allowed: auto, alpaca, messages, sharegpt.",
        ),
        (
            ["stage=dpo", "dataset=json", "+dataset.mix={a: {path: our/a, val_size: 2}, more: {path: our/more, format: kto}}"],
            "dataset.mix.more.format: the records of 'kto' are of kind judgement, not preference. Allowed: auto, preference.",
        ),
        (
            ["experiment=rlhf", "dataset@steps.rm.dataset=llmmod_qa"],
            "steps.rm.dataset: the rows of 'llmmod_qa' are of kind conversation, but stage=rm needs preference. "
            f"Allowed: llmmod_pairs, {OWN}",
        ),
    ],
    ids=["a format", "in a mix", "of a step"],
)
def test_a_format_for_other_rows(told, overrides, message):
    assert told(*overrides) == [message]


@pytest.mark.parametrize(
    "overrides",
    [
        ["stage=kto", "dataset=llmmod_pairs", "pipeline=[chat]"],
        ["stage=kto", "dataset.format=auto"],
        ["stage=kto", "dataset.format={_target_: llmmod.data.formats.text.read}"],
    ],
    ids=["not read", "found by the columns", "a function"],
)
def test_rows_of_unknown_kind_pass(told, overrides):
    assert [line for line in told(*overrides) if line.startswith("dataset")] == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["stage=dpo", "dataset.packing=true"],
            "dataset.packing: true, but the rows of this stage are of kind preference, and only conversations and documents can share a "
            "row. "
            "Set it to false.",
        ),
        (
            ["stage=sft", "dataset.ranked=ends"],
            "dataset.ranked: rankings are for stages that compare or judge answers. Leave it out, or use stage=rm, dpo or kto.",
        ),
        (
            ["stage=dpo", "dataset.mask_prompt=false"],
            "dataset.mask_prompt: not read: this stage fixes which tokens are trained.",
        ),
        (
            ["dataset.drop_last_block=true"],
            "dataset.drop_last_block: the last block exists only if documents are joined into blocks. Use stage=pt with "
            "dataset.packing=false.",
        ),
    ],
)
def test_options_of_other_kinds(told, overrides, message):
    assert told(*overrides) == [message]
