"""The trainer around the formulas: real optimizer steps, when rollouts happen, unusual answers, and what is logged and saved."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from answering import check_measured_texts, check_rewarded_texts, check_told_of_before_and_after, even, never_ends, noted
from peft import LoraConfig, get_peft_model

from llmmod.errors import ConfigError
from llmmod.trainers.online.rewards import Rewards
from llmmod.trainers.ppo.rollout import mini_batch

LOGGED = {
    "reward", "score", "kl", "entropy", "clip_fraction", "value_clip_fraction", "policy_loss", "value_loss", "explained_variance",
    "answer_length", "terminated", "approx_kl", "kl_coef",
}  # fmt: skip


def finite(trainer):
    """Every number of the log, and every weight."""
    numbers = [value for entry in trainer.state.log_history for value in entry.values() if isinstance(value, float)]
    return all(torch.isfinite(torch.tensor(numbers))) and all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.fixture
def rollouts(monkeypatch):
    """Of each rollout, (optimizer steps before it, its prompts)."""
    from llmmod.trainers.ppo.rollout import RolloutCollector

    made, real = [], RolloutCollector.collect

    def make(self, prompts):
        made.append((self._trainer.state.global_step, [len(ids) for ids in prompts["prompt_ids"]]))
        return real(self, prompts)

    monkeypatch.setattr(RolloutCollector, "collect", make)
    return made


def test_steps_per_rollout_and_the_schedule_over_optimizer_steps(ppo_trainer, rollouts):
    """2 mini-batches, 2 passes: 4 optimizer steps per rollout of 4 * 2 * 2 prompts. Of 10 steps, the last brings the learning rate to 0."""
    trainer = ppo_trainer(max_steps=10, lr_scheduler_type="linear", learning_rate=1e-3)
    trainer.train()
    assert [step for step, _ in rollouts] == [0, 4, 8]
    assert all(len(prompts) == 16 for _, prompts in rollouts)
    assert trainer.state.global_step == 10
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-3 * (1 - step / 10) for step in range(10)])


def test_epochs_count_prompts(ppo_trainer, rollouts):
    """18 prompts, 16 per rollout: two rollouts per epoch, the second filled up; 1.5 epochs are three rollouts."""
    trainer = ppo_trainer(max_steps=-1, num_train_epochs=1.5, learning_rate=1e-4)
    trainer.train()
    assert trainer.state.global_step == 12
    assert len(rollouts) == 3


def test_each_pass_takes_every_answer_once_in_an_order_of_its_own():
    passes = [[mini_batch(12, size=4, number=number, epoch=epoch, seed=5) for number in range(3)] for epoch in range(2)]
    for parts in passes:
        assert sorted(number for part in parts for number in part) == list(range(12))
    assert passes[0] != passes[1]


def test_at_first_the_policy_is_the_one_that_sampled(ppo_trainer):
    """So the ratio is 1, nothing is clipped, and the KL to the reference is 0; the adapter's dropout is off."""
    trainer = ppo_trainer(max_steps=1, cliprange=1e-4)
    trainer.train()
    first = trainer.state.log_history[0]
    assert (first["clip_fraction"], first["value_clip_fraction"], first["kl"]) == (0.0, 0.0, 0.0)
    assert first["approx_kl"] < 1e-9
    assert first.keys() >= LOGGED


def test_without_dropout(ppo_trainer, tiny_llama):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.5, task_type="CAUSAL_LM")
    adapted = get_peft_model(tiny_llama, config)
    trainer = ppo_trainer(adapted, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["approx_kl"] < 1e-9
    assert trainer.state.log_history[0]["kl"] == 0.0


def test_answers_of_one_token(ppo_trainer):
    trainer = ppo_trainer(max_completion_length=1, max_steps=4)
    trainer.train()
    assert all(entry["answer_length"] == 1 for entry in trainer.state.log_history if "answer_length" in entry)
    assert finite(trainer)


def test_answers_that_are_all_cut_off_pay_the_penalty(ppo_trainer, tiny_llama):
    never_ends(tiny_llama)
    trainer = ppo_trainer(max_steps=4, missing_eos_penalty=2.0, kl_coef=0.0, learning_rate=1e-5)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["terminated"] == 0.0
    assert first["reward"] == pytest.approx(first["score"] - 2.0)
    assert finite(trainer)


def test_an_answer_also_ends_at_a_stop_string_and_nothing_after_it_counts(ppo_trainer, tiny_llama):
    """Once, the padding after it was scored and trained, and the answer got the penalty for a missing end token."""
    never_ends(tiny_llama)
    seen = []

    def scored(answers):
        seen.extend(answers.ids)
        return even(answers)

    letters = set("abcdefghijklmnopqrstuvwxyz")
    named = {"stop_strings": sorted(letters)}
    trainer = ppo_trainer(scorer=scored, max_steps=1, max_completion_length=16, generation_kwargs=named, missing_eos_penalty=2.0)
    trainer.train()
    said = [(trainer.processing_class.decode(answer[:-1]), trainer.processing_class.decode(answer[-1])) for answer in seen]
    assert not any(letters & set(before) for before, _ in said)
    first = trainer.state.log_history[0]
    assert first["answer_length"] == pytest.approx(sum(map(len, seen)) / len(seen))
    assert first["terminated"] == pytest.approx(sum(bool(letters & set(last)) for _, last in said) / len(said))
    assert first["terminated"] > 0.5


@pytest.mark.parametrize("scaled", [False, True])
def test_scores_that_do_not_vary_teach_nothing_wrong(ppo_trainer, scaled):
    trainer = ppo_trainer(scorer=lambda completions: torch.ones(len(completions.ids)), use_score_scaling=scaled, use_score_norm=scaled)
    trainer.train()
    assert finite(trainer)


def test_the_first_advantages_are_by_how_much_an_answer_is_better_than_others(ppo_trainer):
    """Also if every answer earns a lot: with a value head of zeros, all tokens of all answers would be better than expected here."""
    earned = []

    def scored(answers):
        scores = 5.0 + even(answers)
        earned.append(scores)
        return scores

    trainer = ppo_trainer(scorer=scored, whiten_advantages=False, kl_coef=0.0, max_steps=1)
    trainer.train()
    rollout, scores = trainer.rollout, earned[0]
    by_token = scores[:, None].expand(rollout.mask.shape)[rollout.mask]
    torch.testing.assert_close(rollout.values[rollout.mask], by_token.mean().expand(by_token.shape))
    better = scores > by_token.mean()
    assert better.any()
    assert not better.all()
    for row, is_better in enumerate(better.tolist()):
        assert ((rollout.advantages[row][rollout.mask[row]] > 0) == is_better).all()


def test_an_update_that_goes_too_far_ends_its_rollout(ppo_trainer, rollouts):
    """Where every update goes too far, each rollout ends early, the next one takes the same prompts, and all steps are made."""
    trainer = ppo_trainer(target_kl=1e-6, max_steps=6)
    trainer.train()
    assert trainer.state.global_step == 6
    # In a rollout's first step, the policy still has the weights that sampled the answers, so the KL is 0.
    assert [step for step, _ in rollouts] == [0, 2, 4]
    assert rollouts[0][1] == rollouts[1][1]


def test_the_held_out_reward_is_the_same_however_it_is_batched(ppo_trainer, tiny_llama):
    """Greedy answers (top_k=1), so that random numbers don't make a difference."""
    found = [ppo_trainer(per_device_eval_batch_size=size, top_k=1).evaluate() for size in (1, 4, 6)]
    for name in ("eval_score", "eval_reward", "eval_answer_length", "eval_terminated"):
        assert found[0][name] == pytest.approx(found[1][name]) == pytest.approx(found[2][name])
    assert "eval_kl" not in found[0]


def test_several_answers_to_a_held_out_prompt_count_as_one(ppo_trainer):
    """The reward is the mean over prompts of the means over answers; its standard error is that of the prompts' means."""
    scored, by_prompt = noted()
    trainer = ppo_trainer(scorer=scored, num_generations_eval=3, per_device_eval_batch_size=4)
    found = trainer.evaluate()
    assert {len(scores) for scores in by_prompt.values()} == {3}
    means = np.array([np.mean(scores) for scores in by_prompt.values()])
    assert len(means) == len(trainer.eval_dataset)
    assert found["eval_reward"] == found["eval_score"] == pytest.approx(means.mean(), rel=1e-6)
    assert found["eval_reward_se"] == pytest.approx(means.std(ddof=1) / np.sqrt(len(means)), rel=1e-6)


def test_evaluating_holds_sums_alone(ppo_trainer):
    trainer = ppo_trainer(per_device_eval_batch_size=1)
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation")
    assert (output.predictions, output.label_ids) == (None, None)
    assert trainer._held_out.take() == {}


def test_evaluating_changes_nothing_about_training(ppo_trainer, tiny_llama):
    start = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    found = []
    for strategy in ("no", "steps"):
        tiny_llama.load_state_dict(start)
        ppo_trainer(eval_strategy=strategy, eval_steps=1, max_steps=3).train()
        found.append({name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in start)


@pytest.mark.curves
def test_the_files_that_it_writes(ppo_trainer, tmp_path):
    trainer = ppo_trainer(max_steps=5, num_sample_answers=2)
    trainer.train()
    directory = tmp_path / "train"
    assert (directory / "ppo.png").read_bytes()[:4] == b"\x89PNG"
    lines = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 0, 4, 4]
    assert lines[0].keys() == {"step", "prompt", "answer", "score", "reward", "kl"}
    trainer.release()
    trainer.save_model(str(directory))
    assert {"model.safetensors", "value_head.safetensors"} <= {path.name for path in directory.iterdir()}


def test_a_stream_is_refused(ppo_trainer, toy_prompts):
    with pytest.raises(ConfigError, match=r"dataset\.streaming: true, but ppo reads its prompts again\. Set it to false"):
        ppo_trainer(train=toy_prompts[0].to_iterable_dataset())


def test_the_best_is_the_one_that_earns_most(ppo_trainer):
    settings = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = ppo_trainer(max_steps=4, **settings)
    trainer.train()
    measured = {entry["step"]: entry["eval_reward"] for entry in trainer.state.log_history if "eval_reward" in entry}
    assert trainer.state.best_metric == max(measured.values())
    assert trainer.evaluate()["eval_reward"] == pytest.approx(max(measured.values()), abs=1e-6)


def test_several_rewards_are_added_up_by_their_weights():
    both = Rewards({"one": lambda a: torch.ones(2), "three": lambda a: torch.full((2,), 3.0)}, {"three": 0.5})

    class Two:
        ids = ((), ())

    assert both(Two()).tolist() == [2.5, 2.5]


def test_what_is_rewarded_is_what_a_reader_sees(scored_texts, ppo_trainer, tmp_path):
    seen, scored = scored_texts
    check_rewarded_texts(ppo_trainer, {"scorer": scored}, seen, tmp_path)


def test_held_out_answers_are_measured_beside_their_reward(scored_texts, ppo_trainer, toy_prompts):
    seen, scored = scored_texts
    check_measured_texts(ppo_trainer, {"scorer": scored}, seen, toy_prompts[1])


def test_metrics_of_answers_are_reported_before_and_after(ppo_trainer):
    check_told_of_before_and_after(ppo_trainer)
