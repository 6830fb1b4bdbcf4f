"""Arguments of stage=grpo that aren't supported are refused before heavy imports; the full messages."""

from __future__ import annotations

import pytest

OWN = "true, but llmmod samples the answers itself, with the model that is trained. Set it to false."


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["training.use_vllm=true"], f"training.use_vllm: {OWN}"),
        (["training.use_transformers_continuous_batching=true"], f"training.use_transformers_continuous_batching: {OWN}"),
        (
            ["training.sync_ref_model=true"],
            "training.sync_ref_model: true, but the reference shares weights with the model that is trained, and keeps its initial state. "
            "Set it to false.",
        ),
        (
            ["training.cast_lm_head_to_fp32=true"],
            "training.cast_lm_head_to_fp32: true, but finetune.upcast_head does that. Set it to false.",
        ),
        (
            ["training.neftune_noise_alpha=5"],
            "training.neftune_noise_alpha: 5.0, but an answer's probability would differ from the one at sampling. Set it to null.",
        ),
        (
            ["training.train_sampling_strategy=group_by_length"],
            "training.train_sampling_strategy: group_by_length, but the lengths of a prompt's answers are unknown before they are sampled. "
            "Allowed: random, sequential.",
        ),
        (
            ["training.num_generations=7"],
            "training.num_generations: 7 answers to a prompt, but 32 are sampled at once. Set training.per_device_train_batch_size or "
            "gradient_accumulation_steps so that 7 divides 32.",
        ),
        (
            ["training.generation_batch_size=12"],
            "training.generation_batch_size: 12 answers, in micro-batches of 8. Allowed: multiples of 8.",
        ),
        (
            ["training.generation_batch_size=16", "training.steps_per_generation=2"],
            "training.steps_per_generation: 2, but generation_batch_size=16 sets it too. Keep one of them.",
        ),
        (
            ["training.per_device_eval_batch_size=5"],
            "training.per_device_eval_batch_size: 5 answers in all processes, but 2 to each prompt. Allowed: multiples of 2.",
        ),
        (
            ["training.num_generations_eval=null", "training.per_device_eval_batch_size=4"],
            "training.per_device_eval_batch_size: 4 answers in all processes, but 8 to each prompt. Allowed: multiples of 8.",
        ),
        (["training.num_generations=1"], "training.num_generations: found 1. Allowed: 2 or more."),
        (["training.max_completion_length=null"], "training.max_completion_length: null. Allowed: a number."),
        (["training.beta=-1"], "training.beta: found -1. Allowed: 0 or more."),
        (
            ["training.loss_type=gspo"],
            "training.loss_type: found 'gspo'. Did you mean 'sapo'? Allowed: grpo, bnpo, dr_grpo, dapo, cispo, sapo, vespo, luspo.",
        ),
        (["training.scale_rewards=groups"], "training.scale_rewards: found 'groups'. Did you mean 'group'? Allowed: group, batch, none."),
        (["+training.reward_weights.overlp=2"], "training.reward_weights.overlp: not a reward. Did you mean 'overlap'?"),
        (["training.vllm_mode=server"], "training.vllm_mode: the model that is trained generates the answers, without another engine."),
        (["training.vespo_k_pos=1"], "training.vespo_k_pos: only the loss vespo reads it."),
        (["training.epsilon=0.1", "training.loss_type=sapo"], "training.epsilon: not read by this loss_type."),
        (["training.entropy_target=0.1"], "training.entropy_target: only read with use_adaptive_entropy=true."),
        (["training.use_bias_correction_kl=false"], "training.use_bias_correction_kl: not read with training.beta=0."),
        (
            ["training.chat_template_kwargs={enable_thinking: false}"],
            "training.chat_template_kwargs.enable_thinking: prompts are rendered to text before, and tools are not called.",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_refused(told, overrides, line):
    assert told("stage=grpo", *overrides) == [line]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["training.num_generations=4", "training.steps_per_generation=8", "training.num_iterations=2", "training.beta=0.1"],
        ["training.loss_type=cispo", "training.epsilon_high=5"],
        ["training.reward.path=org/rm", "training.generation_batch_size=64"],
        ["+training.reward.short._target_=llmmod.rewards.brevity", "+training.reward.short.limit=20"],
    ],
    ids=str,
)
def test_right(told, overrides):
    assert told("stage=grpo", *overrides) == []


def test_a_rehearsal_reports_what_the_run_would(told):
    (line,) = told("stage=grpo", "training.num_generations=7", "smoke=true")
    assert line.startswith("training.num_generations: 7 answers to a prompt, but")


def test_whole_groups_over_several_processes(told, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    assert told("stage=grpo", "training.num_generations=6", "training.per_device_eval_batch_size=2") == []
    assert [line.split(":")[0] for line in told("stage=grpo", "training.num_generations=5")] == ["training.num_generations"]
