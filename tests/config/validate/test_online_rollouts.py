"""Settings that ppo and grpo don't support are refused before heavy imports; the full messages."""

from __future__ import annotations

import pytest

SHIFTED = "model.shift_attn: true, but answers are sampled without it, so their probabilities would differ. Set it to false."
STREAMED = "dataset.streaming: true, but {} reads its prompts again. Set it to false."


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_refused(told, stage):
    assert told(f"stage={stage}", "model.shift_attn=true") == [SHIFTED]
    assert told(f"stage={stage}", "dataset.streaming=true", "training.max_steps=3") == [STREAMED.format(stage)]


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_held_out_prompts_may_be_a_streams(told, stage):
    assert told(f"stage={stage}", "pipeline=[evaluate,predict]", "dataset.streaming=true") == []


def test_each_step_by_its_own_parts(told):
    assert told("experiment=rlhf", "model.shift_attn=true") == [SHIFTED]
    streamed = told("experiment=rlhf", "steps.ppo.dataset.streaming=true", "steps.ppo.training.max_steps=3")
    assert streamed == [f"steps.ppo.{STREAMED.format('ppo')}"]
    assert told("experiment=rlhf", "steps.rm.dataset.streaming=true") == []


def test_trl_treats_an_answer_that_ends_with_a_stop_string_as_truncated(told):
    asked = ("stage=grpo", "+training.generation_kwargs.stop_strings=[x]")
    said = "true, but trl treats an answer that ends with a stop string (training.generation_kwargs.stop_strings) as truncated"
    assert told(*asked, "training.mask_truncated_completions=true") == [f"training.mask_truncated_completions: {said}. Set it to false."]
    assert told(*asked) == []
