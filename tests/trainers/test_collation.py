"""llmmod.trainers.build: the choice of the collator. Packed rows train the same as padded batches."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from llmmod.data.collators import FlatteningCollator, PaddingCollator
from llmmod.data.dataset.packing import PackedDataset
from llmmod.errors import ConfigError
from llmmod.models.loading.tiny import tiny_model
from llmmod.trainers.build import choose_collator, prepare_for_inference
from llmmod.trainers.sft import sums_by_example

FLATTEN, PAD = ({"_target_": f"llmmod.data.collators.{name}"} for name in ("FlatteningCollator", "PaddingCollator"))


def model(family, attention, tokenizer):
    if family == "llama":
        return SimpleNamespace(config=SimpleNamespace(model_type=family, _attn_implementation=attention))
    return tiny_model({"model_type": family, "hidden_size": 64, "num_hidden_layers": 2}, tokenizer=tokenizer, seed=0)


def collator(tiny_tokenizer, node=FLATTEN, family="llama", train=(), attention="sdpa", multiple=None, trainer=None):
    parts = {"model": model(family, attention, tiny_tokenizer), "tokenizer": tiny_tokenizer, "train": train}
    return choose_collator(node, **parts, pad_to_multiple_of=multiple, trainer=trainer)


def test_one_row_where_the_model_keeps_examples_apart(tiny_tokenizer):
    assert isinstance(collator(tiny_tokenizer), FlatteningCollator)
    assert isinstance(collator(tiny_tokenizer, attention="flash_attention_2"), FlatteningCollator)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"family": "mamba"}, "batches are padded: MambaForCausalLM can't keep the examples of a row apart. Measured on a tiny random one"),
        ({"attention": "flex_attention"}, "attention 'flex_attention' can't"),
        ({"multiple": 8}, "training.pad_to_multiple_of asks for padding"),
        ({"trainer": "trl.SFTTrainer"}, "trl.SFTTrainer doesn't keep the examples of a row apart"),
    ],
    ids=["family", "attention", "multiple", "trainer"],
)
def test_padded_elsewhere_and_one_line_says_why(tiny_tokenizer, caplog, toy_splits, changes, told):
    caplog.set_level(logging.INFO, "llmmod.train")
    found = collator(tiny_tokenizer, **changes)
    assert isinstance(found, PaddingCollator)
    assert found.multiple == changes.get("multiple", 1)
    why = [record.getMessage() for record in caplog.records if record.name == "llmmod.train"]
    assert len(why) == 1
    assert told in why[0]
    with pytest.raises(ConfigError, match=r"dataset\.packing"):
        collator(tiny_tokenizer, train=PackedDataset(toy_splits.train, 64), **changes)


def test_packed_rows_but_padded_batches_where_a_mask_keeps_them_apart(tiny_tokenizer, caplog, toy_splits):
    caplog.set_level(logging.INFO, "llmmod.train")
    assert isinstance(collator(tiny_tokenizer, family="bloom"), PaddingCollator)
    assert (
        "BloomForCausalLM keeps the examples of a row apart by a mask over all of it, which costs more than padding" in caplog.messages[0]
    )
    assert isinstance(collator(tiny_tokenizer, family="bloom", train=PackedDataset(toy_splits.train, 64)), FlatteningCollator)


def test_our_trainers_get_rows_of_several(tiny_tokenizer, toy_splits):
    trainer = "llmmod.trainers.sft.SftTrainer"
    assert isinstance(collator(tiny_tokenizer, trainer=trainer, train=PackedDataset(toy_splits.train, 64)), FlatteningCollator)


def test_a_collator_that_the_user_sets_is_kept(tiny_tokenizer, toy_splits):
    assert isinstance(collator(tiny_tokenizer, PAD), PaddingCollator)
    assert collator(tiny_tokenizer, {}) is None
    with pytest.raises(ConfigError, match="PaddingCollator treats a row as one example"):
        collator(tiny_tokenizer, PAD, train=PackedDataset(toy_splits.train, 64))


@pytest.fixture
def trained(toy_trainer, tiny_llama):
    """Train the toy task from the same weights each time: the log, and the weights afterwards."""
    start = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}

    def run(**changes):
        tiny_llama.load_state_dict(start)
        trainer = toy_trainer(**changes)
        trainer.train()
        return trainer, {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}

    return run


def assert_like(found, expected):
    """Tolerances for float32 after ten steps of Adam, which turn small differences of the gradient into larger ones of the weights."""
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-3)


def test_flattened_batches_train_what_padded_ones_do(trained, toy_splits):
    (one, flat), (other, padded) = trained(collator=FLATTEN), trained(collator=PAD)
    assert_like(flat, padded)
    losses = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (one, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert len(losses[0]) == 10
    evaluated = [[entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry] for trainer in (one, other)]
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-3)
    tokens = 2 * sum(map(len, toy_splits.train["input_ids"]))
    assert one.state.num_input_tokens_seen == other.state.num_input_tokens_seen == tokens
    counted = [max(entry.get("num_tokens", 0) for entry in trainer.state.log_history) for trainer in (one, other)]
    assert counted == [tokens, tokens]


def test_packed_rows_have_the_gradient_of_the_examples(trained, toy_splits, tiny_llama):
    """All data in one optimizer step: the gradient is that of the mean over the labelled tokens, for every division into rows."""
    seen = []

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *args, model, **kwargs):
            seen.append({name: p.grad.clone() for name, p in model.named_parameters()})

    packed = PackedDataset(toy_splits.train, 40)
    assert 1 < len(packed) < 18
    once = {
        "max_steps": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "eval_strategy": "no",
        "eval_on_start": False,
        "callbacks": [Gradients()],
    }
    trainer, _ = trained(train=packed, collator=FLATTEN, per_device_train_batch_size=1, gradient_accumulation_steps=len(packed), **once)
    assert trainer.state.num_input_tokens_seen == packed.tokens
    trained(collator=PAD, per_device_train_batch_size=18, **once)
    for name, gradient in seen[1].items():
        torch.testing.assert_close(seen[0][name], gradient, rtol=1e-4, atol=1e-6)


def test_the_model_s_attention_is_its_own_before_and_after(trained, tiny_llama):
    trained(collator=FLATTEN, max_steps=1)
    assert tiny_llama.config._attn_implementation == "sdpa"


def test_a_user_s_own_metric_gets_logits_of_a_row(toy_trainer, tiny_tokenizer):
    trainer = toy_trainer(collator=FLATTEN, per_device_eval_batch_size=6)
    trainer.compute_metrics = lambda prediction: {"vocabulary": prediction.predictions.shape[-1]}
    with pytest.warns(FutureWarning):
        assert trainer.evaluate()["eval_vocabulary"] == len(tiny_tokenizer)


def test_sums_by_example_by_hand():
    """Two examples of 3 and 2 tokens in a row of 5. The values are those of tokens 2 to 5; the second example's first token has none."""
    values = [torch.tensor([[1.0, 2.0, 0.0, 8.0]]), torch.tensor([[True, True, False, True]])]
    assert sums_by_example(values, torch.tensor([0, 3, 5])).tolist() == [[3.0, 2.0], [8.0, 1.0]]
    assert sums_by_example(values, None).tolist() == [[11.0, 3.0]]
    assert sums_by_example(values, torch.tensor([0, 3, 4, 5])).tolist() == [[3.0, 2.0], [0.0, 0.0], [8.0, 1.0]]


def test_lengths_for_grouping_are_not_counted_token_by_token(toy_trainer, toy_splits, monkeypatch):
    trainer = toy_trainer(train_sampling_strategy="group_by_length")
    expected = [len(ids) for ids in toy_splits.train["input_ids"]]

    def refuse(*args):
        raise AssertionError("read")

    monkeypatch.setattr(type(toy_splits.train), "__getitem__", refuse)
    sampler = trainer._get_train_sampler()
    assert sampler._sampler.lengths == expected
    assert sorted(sampler) == list(range(18))


@pytest.mark.parametrize(("accelerators", "rank", "number"), [(1, 1, 0), (1, 0, 0), (2, 1, 1)])
def test_processes_are_placed_as_accelerate_does_also_where_they_share(monkeypatch, tiny_llama, accelerators, rank, number):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: accelerators)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    places = []
    monkeypatch.setattr(type(tiny_llama), "to", lambda model, device: places.append(device))
    prepare_for_inference(tiny_llama)
    assert places == [torch.device("meta", number)]
