"""llmmod.trainers.rm: trl's loss from shared rows, evaluation against a naive loop, low memory, and resuming to the bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from datasets import Dataset
from preferences import RM_COLLATORS
from trl import RewardConfig, RewardTrainer

from llmmod.config.schema.model import LoraConf
from llmmod.data.collators import RewardCollator
from llmmod.models.adapters.setup import setup_lora
from llmmod.models.packing import packed_attention
from llmmod.trainers.rm import pair_losses, pair_rewards


@pytest.fixture
def theirs(tiny_reward, tiny_tokenizer, toy_pairs, tmp_path):
    """A function: changes of the arguments -> trl's trainer with the same model."""

    def make(**changes):
        whole = toy_pairs.train.map(lambda pair: {name: pair["prompt_ids"] + pair[name] for name in ("chosen_ids", "rejected_ids")})
        arguments = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": None, **changes}
        args = RewardConfig(str(tmp_path), **arguments)
        return RewardTrainer(copy.deepcopy(tiny_reward), args, train_dataset=whole, processing_class=copy.deepcopy(tiny_tokenizer))

    return make


def naive(model, pairs):
    """Chosen and rejected reward of each pair, [pairs, 2], float64: one text at a time."""
    with torch.no_grad():
        texts = [[pair["prompt_ids"] + pair[name] for name in ("chosen_ids", "rejected_ids")] for pair in pairs]
        hidden = [[model.base_model(torch.tensor([text]))[0][0, -1] for text in both] for both in texts]
        return torch.tensor([[float(model.score(state)) for state in both] for both in hidden], dtype=torch.float64)


@pytest.mark.parametrize("centering", [None, 0.2])
@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("collator", RM_COLLATORS)
def test_loss_and_gradient_are_those_of_trls_trainer(rm_trainer, theirs, toy_pairs, tiny_reward, collator, margin, centering):
    ours, theirs = rm_trainer(collator=collator, center_rewards_coefficient=centering), theirs(center_rewards_coefficient=centering)
    pairs = [pair | ({"margin": number / 3} if margin else {}) for number, pair in enumerate(toy_pairs.train.select(range(5)))]
    batch = ours.data_collator(pairs)
    with packed_attention(ours.model, batch):
        loss = ours.compute_loss(ours.model.train(), batch)
        loss.backward()
    expected = theirs.compute_loss(theirs.model.train(), RewardCollator(ours.processing_class)(pairs))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for name, parameter in theirs.model.named_parameters():
        torch.testing.assert_close(ours.model.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("collator", RM_COLLATORS)
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_evaluation_is_exact_over_all_pairs_whatever_the_batch(rm_trainer, toy_pairs, tiny_reward, batch, collator):
    """With batches of one pair only, answers that are compared with another pair's would stay unnoticed."""
    metrics = rm_trainer(per_device_eval_batch_size=batch, collator=collator).evaluate()
    chosen, rejected = naive(tiny_reward, toy_pairs.eval).unbind(1)
    expected = {
        "eval_loss": torch.log1p((rejected - chosen).exp()).mean(),
        "eval_accuracy": (chosen > rejected).double().mean(),
        "eval_margin": (chosen - rejected).mean(),
        "eval_chosen_reward": chosen.mean(),
        "eval_rejected_reward": rejected.mean(),
    }
    assert 0.2 < expected["eval_accuracy"] < 0.8
    assert {name: metrics[name] for name in expected} == pytest.approx({n: float(value) for n, value in expected.items()}, abs=1e-5)


def test_the_last_smaller_batch_counts_by_its_pairs(rm_trainer, tiny_reward, toy_pairs):
    """The mean of the batches' means would differ."""
    metrics = rm_trainer(per_device_eval_batch_size=29).evaluate()
    losses = -torch.nn.functional.logsigmoid(naive(tiny_reward, toy_pairs.eval).diff(dim=1)[:, 0].neg())
    of_means = (losses[:29].mean() + losses[29]) / 2
    assert metrics["eval_loss"] == pytest.approx(float(losses.mean()), abs=1e-6)
    assert abs(float(of_means - losses.mean())) > 1e-3


def test_an_evaluation_keeps_nothing_of_its_pairs(rm_trainer):
    trainer = rm_trainer(per_device_eval_batch_size=3)
    kept, step = [], trainer.prediction_step

    def watched(*args, **kwargs):
        kept.append(step(*args, **kwargs))
        return kept[-1]

    trainer.prediction_step = watched
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation", prediction_loss_only=True)
    assert set(kept) == {(None, None, None)}
    assert (output.predictions, output.label_ids) == (None, None)


def test_training_logs_the_means_over_its_pairs(rm_trainer, toy_pairs, tiny_reward):
    chosen, rejected = naive(tiny_reward, toy_pairs.train).unbind(1)
    trainer = rm_trainer(per_device_train_batch_size=5, gradient_accumulation_steps=8, max_steps=1, learning_rate=0.0)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "accuracy" in entry)
    assert logged["accuracy"] == pytest.approx(float((chosen > rejected).double().mean()), abs=1e-6)
    assert logged["margin"] == pytest.approx(float((chosen - rejected).mean()), abs=1e-5)
    assert logged["loss"] == pytest.approx(float(pair_losses(chosen, rejected).mean()), abs=1e-5)
    tokens = [len(pair["prompt_ids"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"]) for pair in toy_pairs.train]
    assert trainer.state.num_input_tokens_seen == sum(tokens)


def test_a_pairs_loss_by_hand():
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    plain = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))]
    assert pair_losses(chosen, rejected).tolist() == pytest.approx(plain)
    centred = [plain[0] + 0.5 * 1, plain[1] + 0.5 * 4]
    assert pair_losses(chosen, rejected, centering=0.5).tolist() == pytest.approx(centred)
    margins = [math.log(1 + math.exp(-0.25)), math.log(1 + math.exp(2))]
    assert pair_losses(chosen, rejected, margin=torch.tensor([0.75, 0.0])).tolist() == pytest.approx(margins)


def test_rewards_come_with_their_pairs_number_longest_first(tiny_reward, toy_pairs, tiny_tokenizer):
    found = list(pair_rewards(tiny_reward.eval(), toy_pairs.eval, collator=RewardCollator(tiny_tokenizer), batch_size=7))
    flat = {number: (chosen, rejected) for batch in found for number, chosen, rejected in batch}
    assert [len(batch) for batch in found] == [7, 7, 7, 7, 2]
    expected = naive(tiny_reward, toy_pairs.eval)
    torch.testing.assert_close(torch.tensor([flat[number] for number in range(30)], dtype=torch.float64), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["full", "lora"])
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(rm_trainer, tiny_reward, tmp_path, way):
    changes = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2, "disable_dropout": False}
    lora = LoraConf(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.1)

    def trainer(name):
        torch.manual_seed(2)
        model = copy.deepcopy(tiny_reward)
        return rm_trainer(setup_lora(model, lora) if way == "lora" else model, output_dir=tmp_path / name, **changes)

    whole = trainer("whole")
    whole.train()
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    expected = whole.model.state_dict()
    assert any(name.endswith("score.weight") or "score.modules_to_save" in name for name in expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, resumed)]
    assert losses[0] == losses[1]


def test_heads_and_adapters_of_a_quantized_model_stay_in_float32(tiny_llama, rm_trainer):
    """trl would round them to bfloat16 permanently."""
    from llmmod.config.schema.model import QuantizationConf
    from llmmod.models.loading.quantization import quantization_config
    from llmmod.models.loading.structure import rebuild_model
    from llmmod.models.reward import with_reward_head

    base = rebuild_model(tiny_llama, quantization_config=quantization_config(QuantizationConf(bits=4)))
    model = setup_lora(with_reward_head(base), LoraConf(r=4, target_modules="all-linear"))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = rm_trainer(model)
    assert all(torch.equal(trainer.model.get_parameter(name), tensor) for name, tensor in before.items())
    assert {tensor.dtype for tensor in before.values()} == {torch.float32}


def test_streamed_pairs_are_trained_too(rm_trainer, toy_pairs):
    trainer = rm_trainer(train=toy_pairs.train.to_iterable_dataset(), max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_longest_pairs_come_together_by_length(rm_trainer):
    """A pair's length counts all three columns."""
    uneven = [
        {"prompt_ids": [5] * n, "chosen_ids": [6] * m, "rejected_ids": [7] * 2} for n, m in ((1, 30), (30, 1), (1, 1), (2, 2), (1, 2))
    ]
    trainer = rm_trainer(train=Dataset.from_list(uneven), train_sampling_strategy="group_by_length", per_device_train_batch_size=2)
    first = next(iter(trainer._get_train_sampler()))
    assert first in (0, 1)


def test_group_by_length_does_not_change_the_evaluation(rm_trainer):
    """transformers 5.23 would sort held-out pairs by their `input_ids`, which pairs don't have."""
    usual, sorted_ = (rm_trainer(train_sampling_strategy=order).evaluate()["eval_loss"] for order in ("random", "group_by_length"))
    assert sorted_ == pytest.approx(usual, rel=1e-5)
