"""llmmod.trainers.efficient: compiled layers give the same results as uncompiled ones, and are compiled once for packed rows."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from torch._dynamo.utils import counters

from llmmod.data.dataset.packing import PackedDataset
from llmmod.models.loading.structure import decoder_layers
from llmmod.trainers.build import restored_after_training
from llmmod.trainers.efficient import is_compiled

# This backend traces like torch.compile's default and runs the graph as it is. Compiling kernels is torch's job and takes minutes.
FLAT = {"per_device_train_batch_size": 1, "collator": {"_target_": "llmmod.data.collators.FlatteningCollator"}}
COMPILING = {"torch_compile": True, "torch_compile_backend": "aot_eager"}


@pytest.fixture
def packed():
    """Eleven examples of 3 to 13 tokens, in rows of 16: rows of one example and of several."""
    return PackedDataset(Dataset.from_list([{"input_ids": list(range(5, 8 + n)), "labels": list(range(5, 8 + n))} for n in range(11)]), 16)


def trained(trainer):
    """The loss of each step of a training, and the number of compiled graphs."""
    torch._dynamo.reset()
    counters.clear()
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], counters["stats"]["unique_graphs"]


def test_the_same_losses_and_nothing_is_compiled_after_the_first_step(toy_trainer, tiny_llama, lora_conf, packed):
    found = []
    for changes in ({}, COMPILING, {**COMPILING, "max_steps": 1}):
        torch.manual_seed(0)
        model = get_peft_model(copy.deepcopy(tiny_llama), lora_conf())
        with restored_after_training(model):
            trainer = toy_trainer(model=model, train=packed, **FLAT, eval_strategy="no", eval_on_start=False, **changes)
            layers = decoder_layers(model)[1]
            assert [is_compiled(layer) for layer in layers] == [bool(changes)] * len(layers)
            found.append(trained(trainer))
        assert not any(map(is_compiled, model.modules()))
    (plain, none), (compiled, graphs), (_, in_first_step) = found
    assert len({len(row["seq_lengths"]) for row in packed}) > 1
    assert len(plain) > len(packed) > 4
    assert compiled == pytest.approx(plain, abs=1e-5)
    assert (none, graphs) == (0, in_first_step)
    assert graphs > 0


def test_evaluation_in_other_shapes_is_not_compiled(toy_trainer, packed):
    with_evaluation, without = (
        toy_trainer(train=packed, max_steps=2, **FLAT, eval_on_start=often, eval_strategy="no", **COMPILING) for often in (True, False)
    )
    graphs = trained(without)[1]
    assert trained(with_evaluation)[1] == graphs > 0
    assert [entry["eval_loss"] for entry in with_evaluation.state.log_history if "eval_loss" in entry]
