"""The trainer around the formulas: real optimizer steps, when it generates, unusual answers, and what is logged, saved and refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from answering import check_measured_texts, check_rewarded_texts, check_told_of_before_and_after, never_ends, noted
from peft import LoraConfig, get_peft_model

from llmmod.errors import ConfigError
from llmmod.steps.preview.figures import plan

LOGGED = {
    "reward", "reward_std", "rewards/even/mean", "entropy", "clip_ratio/region_mean", "completions/mean_length",
    "completions/clipped_ratio", "frac_reward_zero_std",
}  # fmt: skip


def finite(trainer):
    """Every number of the log, and every weight."""
    numbers = [value for entry in trainer.state.log_history for value in entry.values() if isinstance(value, float)]
    return all(math.isfinite(number) for number in numbers) and all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.fixture
def asked(monkeypatch):
    """The prompts of each generation, in order; each should come `num_generations` times in a row."""
    from llmmod.trainers.online.grpo import GrpoTrainer

    made, real = [], GrpoTrainer._generate_and_score_completions

    def generate(self, inputs):
        made.append([tuple(row["prompt_ids"]) for row in inputs])
        return real(self, inputs)

    monkeypatch.setattr(GrpoTrainer, "_generate_and_score_completions", generate)
    return made


def test_steps_per_generation_and_the_schedule_over_optimizer_steps(grpo_trainer, asked):
    """A generation of 4 prompts has 4 micro-batches of 4, is used twice, and a step takes 2 micro-batches: 4 optimizer steps."""
    trainer = grpo_trainer(max_steps=6, steps_per_generation=4, num_iterations=2, lr_scheduler_type="linear", learning_rate=1e-3)
    trainer.train()
    assert [len(prompts) for prompts in asked] == [16, 16]
    assert all(prompts[start : start + 4] == [prompts[start]] * 4 for prompts in asked for start in (0, 4, 8, 12))
    assert not set(asked[0]) & set(asked[1])
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-3 * (1 - step / 6) for step in range(6)])


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({}, 9), ({"steps_per_generation": 8}, 12), ({"generation_batch_size": 32, "num_iterations": 2}, 24), ({"num_generations": 8}, 18)],
    ids=str,
)
def test_epochs_count_prompts(grpo_trainer, grpo_conf, asked, changes, steps):
    """18 prompts, all of them answered, the last generation filled up; the preview shows the same number of steps."""
    conf = {"max_steps": -1, "num_train_epochs": 1.0, "learning_rate": 1e-4, "max_completion_length": 1, **changes}
    trainer = grpo_trainer(**conf)
    trainer.train()
    assert trainer.state.global_step == steps == plan(grpo_conf(**conf), 18, smoke=False).steps
    assert len({prompt for prompts in asked for prompt in prompts}) == 18


def test_the_first_step_has_a_ratio_of_one_for_every_adapter(grpo_trainer, tiny_llama):
    """An adapter that changes the model from the start, with dropout: a second one isn't created, and its first state is the reference."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.5, task_type="CAUSAL_LM")
    adapted = get_peft_model(tiny_llama, config)
    trainer = grpo_trainer(adapted, max_steps=3, beta=0.1, num_iterations=2, epsilon=1e-4)
    assert list(adapted.peft_config) == ["default"]
    trainer.train()
    first, second, third = trainer.state.log_history[:3]
    assert (first["clip_ratio/region_mean"], first["kl"]) == (0.0, 0.0)
    assert second["clip_ratio/region_mean"] > 0  # the same answers, after a step
    assert third["kl"] > 0
    assert first.keys() >= LOGGED
    assert finite(trainer)


def test_a_new_adapter_is_compared_with_the_model_without_it(grpo_trainer, tiny_llama):
    adapted = get_peft_model(tiny_llama, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trainer = grpo_trainer(adapted, max_steps=2, beta=0.1)
    trainer.train()
    assert trainer.initial is None
    assert [entry["kl"] > 0 for entry in trainer.state.log_history[:2]] == [False, True]
    assert trainer.evaluate()["eval_kl"] > 0


def test_full_weights_that_were_trained_elsewhere_do_not_have_a_kl(grpo_trainer):
    metrics = grpo_trainer(beta=0.1).evaluate()
    assert "eval_kl" not in metrics
    assert "eval_loss" not in metrics
    assert {"eval_reward", "eval_rewards/even/mean", "eval_entropy", "eval_completions/mean_length"} <= metrics.keys()


def test_answers_of_one_token(grpo_trainer):
    trainer = grpo_trainer(max_completion_length=1)
    trainer.train()
    assert all(entry["completions/mean_length"] == 1 for entry in trainer.state.log_history if "loss" in entry)
    assert finite(trainer)


def test_an_answer_that_a_string_ended_is_not_clipped(grpo_trainer, tiny_llama):
    """Nearly every token contains one of these letters; the padding token doesn't."""
    never_ends(tiny_llama)
    lengths = {}
    for strings in (None, list("abcdefghijklmnopqrstuvwxyz")):
        trainer = grpo_trainer(max_steps=1, max_completion_length=16, generation_kwargs={"stop_strings": strings} if strings else {})
        trainer.train()
        first = trainer.state.log_history[0]
        lengths[bool(strings)] = first["completions/mean_length"]
        assert (first["completions/clipped_ratio"] < 1.0) == bool(strings)
    assert lengths[True] < lengths[False] == 16


def test_answers_that_are_all_cut_off_and_left_out(grpo_trainer, tiny_llama):
    never_ends(tiny_llama)
    before = tiny_llama.lm_head.weight.clone()
    trainer = grpo_trainer(mask_truncated_completions=True, num_iterations=2, beta=0.1, max_completion_length=3)
    trainer.train()
    assert trainer.state.log_history[0]["completions/clipped_ratio"] == 1.0
    assert torch.equal(tiny_llama.lm_head.weight, before)


@pytest.mark.parametrize("changes", [{}, {"scale_rewards": "batch"}, {"multi_objective_aggregation": "normalize_then_sum"}], ids=str)
def test_scores_that_do_not_vary_teach_nothing_wrong(grpo_trainer, tiny_llama, changes):
    before = tiny_llama.lm_head.weight.clone()
    trainer = grpo_trainer(scorers={"even": lambda completions: torch.ones(len(completions.ids))}, max_steps=2, **changes)
    trainer.train()
    assert finite(trainer)
    assert torch.equal(tiny_llama.lm_head.weight, before)


def test_the_held_out_reward_is_the_same_however_it_is_batched(grpo_trainer):
    """Greedy answers (top_k=1), so that random numbers don't make a difference; of 6 prompts in batches of 4, the last batch has 2."""
    found = [grpo_trainer(per_device_eval_batch_size=size, top_k=1).evaluate() for size in (1, 4, 6)]
    for name in ("eval_reward", "eval_rewards/even/mean", "eval_completions/mean_length", "eval_completions/clipped_ratio", "eval_entropy"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-5) == pytest.approx(found[2][name], rel=1e-5)


def test_the_standard_error_of_the_held_out_reward_is_that_of_the_prompts_means(grpo_trainer):
    scored, by_prompt = noted()
    trainer = grpo_trainer(scorers={"even": scored}, num_generations_eval=2, per_device_eval_batch_size=4)
    found = trainer.evaluate()
    means = np.array([np.mean(scores) for scores in by_prompt.values()])
    assert {len(scores) for scores in by_prompt.values()} == {2}
    assert found["eval_reward"] == pytest.approx(means.mean(), rel=1e-6)
    assert found["eval_reward_se"] == pytest.approx(means.std(ddof=1) / np.sqrt(len(means)), rel=1e-6)


def test_evaluating_changes_nothing_about_training(grpo_trainer, tiny_llama):
    start = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    found = []
    for strategy in ("no", "steps"):
        tiny_llama.load_state_dict(start)
        grpo_trainer(eval_strategy=strategy, eval_steps=1, max_steps=3, num_iterations=2).train()
        found.append({name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in start)


@pytest.mark.curves
def test_the_files_that_it_writes(grpo_trainer, tmp_path):
    trainer = grpo_trainer(max_steps=2, num_sample_answers=2, num_iterations=2, save_strategy="steps", save_steps=2, log_completions=True)
    trainer.train()
    directory = tmp_path / "train"
    assert (directory / "grpo.png").read_bytes()[:4] == b"\x89PNG"
    lines = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 0]
    assert lines[0].keys() == {"step", "prompt", "answer", "reward"}
    names = {path.name for path in (directory / "checkpoint-2").iterdir()}
    assert {"model.safetensors", "training_state_0.pt", "optimizer.pt", "trainer_state.json"} <= names
    assert not {"README.md", "training_args.bin"} & names
    assert sorted(path.name for path in (directory / "completions").iterdir()) == ["completions_00001.parquet", "completions_00002.parquet"]


def test_samples_have_each_reward_and_their_weighted_sum(grpo_trainer, tmp_path):
    scorers = {"one": lambda a: torch.ones(len(a.ids)), "none": lambda a: torch.full((len(a.ids),), torch.nan)}
    grpo_trainer(scorers=scorers, reward_weights={"one": 3.0}, max_steps=1).train()
    line = json.loads((tmp_path / "train" / "samples.jsonl").read_text().splitlines()[0])
    assert (line["reward"], line["rewards/one"], line["rewards/none"]) == (3.0, 1.0, None)


def test_the_best_is_the_one_that_earns_most(grpo_trainer):
    settings = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = grpo_trainer(max_steps=4, **settings)
    trainer.train()
    measured = {entry["step"]: entry["eval_reward"] for entry in trainer.state.log_history if "eval_reward" in entry}
    assert trainer.state.best_metric == max(measured.values())
    assert trainer.evaluate()["eval_reward"] == pytest.approx(max(measured.values()), abs=1e-6)


def test_refused(grpo_trainer, toy_prompts, tiny_llama):
    with pytest.raises(ConfigError, match=r"dataset\.streaming: true, but grpo reads its prompts again\. Set it to false"):
        grpo_trainer(train=toy_prompts[0].to_iterable_dataset())
    with pytest.raises(ConfigError, match=r"training\.collator: set, but grpo makes its batches of completions itself\. Leave it out"):
        grpo_trainer(collator={"_target_": "llmmod.data.collators.PaddingCollator"})
    with pytest.raises(ConfigError, match=r"training\.generation_kwargs\.min_tokens: not a field of GenerationConfig"):
        grpo_trainer(generation_kwargs={"min_tokens": 3})
    tiny_llama.config.output_router_logits, tiny_llama.config.router_aux_loss_coef = False, 0.001
    with pytest.raises(ConfigError, match=r"training\.router_aux_loss_coef: 0\.001 in the model's config.*Set it to 0"):
        grpo_trainer()


def test_what_is_rewarded_is_what_a_reader_sees(scored_texts, grpo_trainer, tmp_path):
    seen, scored = scored_texts
    check_rewarded_texts(grpo_trainer, {"scorers": {"even": scored}}, seen, tmp_path)


def test_held_out_answers_are_measured_beside_their_reward(scored_texts, grpo_trainer, toy_prompts):
    seen, scored = scored_texts
    check_measured_texts(grpo_trainer, {"scorers": {"even": scored}}, seen, toy_prompts[1])


def test_metrics_of_answers_are_reported_before_and_after(grpo_trainer):
    check_told_of_before_and_after(grpo_trainer)
