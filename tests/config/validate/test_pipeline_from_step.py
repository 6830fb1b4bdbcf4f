"""`model.from_step`, and the parts that several training steps in one pipeline read."""

from __future__ import annotations

import json

import pytest

STAGES = ("experiment=stages",)

CASES = {
    "right": ("steps.second.model.from_step=first", []),
    "of a step that doesn't train": ("steps.evaluate.model.from_step=first", []),
    "as a mapping": ("'steps.second.model={from_step: first}'", []),
    "misspelt": (
        "steps.second.model.from_step=firts",
        ["steps.second.model.from_step: 'firts' is not a training step before second. Did you mean 'first'?"],
    ),
    "later": (
        "steps.first.model.from_step=second",
        [
            "steps.first.model.from_step: second doesn't come before first in the pipeline [first,second,evaluate]. Change their order.",
        ],
    ),
    "itself": (
        "steps.second.model.from_step=second",
        [
            "steps.second.model.from_step: second doesn't come before second in the pipeline [first,second,evaluate]. "
            "Allowed: first. Change their order."
        ],
    ),
    "doesn't train": (
        "'pipeline=[first,evaluate,second]' steps.second.model.from_step=evaluate",
        ["steps.second.model.from_step: evaluate doesn't train, so it doesn't produce a model. Allowed: first."],
    ),
    "not in the pipeline": (
        "'pipeline=[second]' steps.second.model.from_step=train",
        ["steps.second.model.from_step: 'train' is not a training step before second. Put one before second in the pipeline."],
    ),
    "root": (
        "model.from_step=first",
        ["model.from_step: set at the root, but the first step doesn't have an earlier one. Set it for one: steps.<name>.model.from_step."],
    ),
    "more of the model": (
        "steps.second.model.from_step=first steps.second.model.dtype=float32",
        ["steps.second.model.dtype: not read, since the step uses the model of first. Set it for first."],
    ),
    "trained from a reward model": (
        "steps.second.model.from_step=first steps.first.training.head=reward",
        ["steps.second.model.from_step: first trains a model with a reward head (stage=sft), but second needs a language model."],
    ),
    "evaluated as another kind": (
        "steps.second.training.head=reward steps.evaluate.model.from_step=second +stage@steps.evaluate.training=sft",
        [
            "steps.evaluate.model.from_step: second trains a model with a reward head (stage=sft), and steps.evaluate.training is for one "
            "with a language head. Leave steps.evaluate.training out."
        ],
    ),
    "key of a part that is null": (
        "steps.second.finetune.r=4",
        [
            "steps.second.finetune.r: steps.second.finetune is null, so the step uses the root's, which can't be set here. "
            "Choose one for this step: +finetune@steps.second.finetune=…."
        ],
    ),
    "a step's own, misspelt": (
        "steps.first.training.learning_ratee=3",
        ["steps.first.training.learning_ratee: no such field. Did you mean 'learning_rate'?"],
    ),
    "a step's own, out of bounds": (
        "steps.first.training.learning_rate=-1",
        ["steps.first.training.learning_rate: found -1. Allowed: above 0."],
    ),
    "a step's own, unread": (
        "steps.second.training.eval_steps=3",
        ["steps.second.training.eval_steps: only read with eval_strategy=steps."],
    ),
    "a root's key that every step overrides": (
        "training.learning_rate=1",
        ["training.learning_rate: the steps of the pipeline [first,second,evaluate] don't read it. Leave it out."],
    ),
    "part that the step doesn't read": (
        "'pipeline=[first,export]' +dataset@steps.export.dataset=llmmod_qa steps.export.dataset.cutoff_len=3",
        ["steps.export.dataset.cutoff_len: the step export doesn't read it. Leave it out."],
    ),
}


@pytest.mark.parametrize(("overrides", "lines"), CASES.values(), ids=CASES)
def test_messages(overrides, lines):
    import shlex

    from llmmod.config.compose import compose_config
    from llmmod.config.validate import validated
    from llmmod.errors import ConfigError

    try:
        validated(compose_config([*STAGES, "smoke=true", *shlex.split(overrides)]))
        found = []
    except ConfigError as error:
        found = str(error).splitlines()
    assert found == lines


@pytest.fixture
def left(tmp_path):
    """A function that writes the directory of an adapter or model as a training step does."""

    def make(name, kind="adapter", **fields):
        from llmmod.models.loading.stage_file import StageFile, write_stage_file

        directory = tmp_path / name
        directory.mkdir()
        files = ("adapter_config.json",) if kind == "adapter" else ("config.json", "model.safetensors")
        for file in files:
            (directory / file).write_text(json.dumps({"model_type": "llama"}))
        write_stage_file(directory, StageFile(**{"stage": name, "kind": kind, "head": "language", "base": "b", "render": "r"} | fields))

    return make


def test_an_adapter_of_the_wrong_kind(told, left):
    left("sft")
    left("rm", head="reward")
    wrong = (
        "'rm' is an adapter with a reward head, made by stage=rm: it gives scores and doesn't generate text. "
        "Give one trained by stage=sft or another stage for language models."
    )
    assert told("finetune.adapters=[rm]") == [f"finetune.adapters[0]: {wrong}"]
    assert told("finetune.adapters=[sft,rm]", "pipeline=[predict]") == [f"finetune.adapters[1]: {wrong}"]
    assert told("finetune.adapters=[sft]") == []
    assert told("finetune.adapters=[rm]", "finetune.resume_adapter=true", "training.head=reward", "pipeline=[train]") == []
    assert len(told("finetune.adapters=[rm]", "training.head=reward", "pipeline=[train]")) == 1  # without resume_adapter it would be merged


def test_an_adapter_without_those_it_was_trained_on(told, left):
    left("sft")
    left("ppo", merged=["../sft"])
    told_of = "finetune.adapters[0]: 'ppo' was trained on a base with sft merged into it, and doesn't fit without. "
    assert told("finetune.adapters=[ppo]", "pipeline=[predict]") == [told_of + "Name them before it: [sft,ppo]."]
    assert told("finetune.adapters=[sft,ppo]", "pipeline=[predict]") == []


def test_a_reward_model_where_a_language_model_is_needed(told, left):
    left("rm", kind="full", head="reward")
    named = "model.pretrained_model_name_or_path"
    problem = (
        "'rm' is a model with a reward head, made by stage=rm: it gives scores and doesn't generate text. "
        "Give one trained by stage=sft or another stage for language models."
    )
    assert told(f"{named}=rm", "pipeline=[train]") == [f"{named}: {problem}"]
    assert told(f"{named}=rm", "pipeline=[train]", "training.head=reward") == []
