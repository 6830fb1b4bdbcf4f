"""llmmod.trainers.efficient: compiled layers give the same results as uncompiled ones, and are compiled once for packed rows."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from torch._dynamo.utils import counters
from transformers import TrainerCallback

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


class Graphs(TrainerCallback):
    """The number of compiled graphs after each evaluation and each step, in `after`."""

    def __init__(self):
        torch._dynamo.reset()
        counters.clear()
        self.after = []

    def on_evaluate(self, args, state, control, **kwargs):
        self.after.append(("evaluation", counters["stats"]["unique_graphs"]))

    def on_step_end(self, args, state, control, **kwargs):
        self.after.append(("step", counters["stats"]["unique_graphs"]))


def test_the_same_losses_and_only_the_first_step_compiles(toy_trainer, tiny_llama, lora_conf, packed):
    """Also where an evaluation has batches of other shapes."""
    losses, graphs = [], []
    for changes in ({}, COMPILING):
        torch.manual_seed(0)
        model, counted = get_peft_model(copy.deepcopy(tiny_llama), lora_conf()), Graphs()
        with restored_after_training(model):
            trainer = toy_trainer(model=model, train=packed, callbacks=[counted], **FLAT, **changes)
            layers = decoder_layers(model)[1]
            assert [is_compiled(layer) for layer in layers] == [bool(changes)] * len(layers)
            trainer.train()
        assert not any(map(is_compiled, model.modules()))
        losses.append([entry[name] for entry in trainer.state.log_history for name in ("loss", "eval_loss") if name in entry])
        graphs.append(counted.after)
    plain, compiled = graphs
    assert len({len(row["seq_lengths"]) for row in packed}) > 1
    assert len(packed) > 4
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert [what for what, _ in compiled] == ["evaluation", *(["step"] * len(packed) + ["evaluation"]) * 2]
    assert {count for _, count in plain} == {compiled[0][1]} == {0}
    assert {count for _, count in compiled[1:]} == {compiled[1][1]} != {0}
