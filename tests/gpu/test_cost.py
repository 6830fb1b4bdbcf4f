"""The cost of a step on a GPU: compiled layers, memory, and how often the host waits."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from datasets import Dataset
from on_gpu import DEVICE, needs_card
from peft import get_peft_model
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from llmmod.data.dataset.packing import PackedDataset

FLAT = {"per_device_train_batch_size": 1, "collator": {"_target_": "llmmod.data.collators.FlatteningCollator"}}
QUIET = {"eval_strategy": "no", "eval_on_start": False, "bf16": False}
pytestmark = needs_card


def rows(count, length, labelled):
    ids = [[5 + (n * 7 + place) % 300 for place in range(length)] for n in range(count)]
    return [{"input_ids": tokens, "labels": [-100] * (length - labelled) + tokens[length - labelled :]} for tokens in ids]


def test_compiled_layers_give_the_same_losses_and_compile_once(toy_trainer, tiny_llama, lora_conf):
    packed = PackedDataset(
        Dataset.from_list([{"input_ids": list(range(5, 8 + n)), "labels": list(range(5, 8 + n))} for n in range(11)]), 16
    )
    found = []
    for changes in ({}, {"torch_compile": True}, {"torch_compile": True, "max_steps": 1}):
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        trainer = toy_trainer(model=get_peft_model(copy.deepcopy(tiny_llama), lora_conf()), train=packed, **FLAT, **QUIET, **changes)
        trainer.train()
        found.append(([entry["loss"] for entry in trainer.state.log_history if "loss" in entry], counters["stats"]["unique_graphs"]))
    (plain, none), (compiled, graphs), (_, in_first_step) = found
    assert compiled == pytest.approx(plain, abs=1e-3)
    assert (none, graphs) == (0, in_first_step)


@pytest.fixture
def wide(tiny_tokenizer):
    """A model whose logits are by far its largest tensors: 32,768 tokens, 64 channels."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=2**15, max_position_embeddings=4096, tie_word_embeddings=True, **shape))


def peak(trainer):
    """The peak memory of a training in bytes, above the memory before it."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trainer.train()
    return torch.cuda.max_memory_allocated() - before


def test_logits_of_prompts_are_never_made(toy_trainer, wide):
    length = 4096
    trainer = toy_trainer(model=wide, train=Dataset.from_list(rows(2, length, labelled=16)), **FLAT, **QUIET, max_steps=2)
    assert peak(trainer) < length * 2**15 * 4  # bytes of all logits in float32, once


def test_gradient_checkpointing_takes_less(toy_trainer, wide):
    data = Dataset.from_list(rows(2, 4096, labelled=16))
    peaks = []
    for checkpointing in (False, True):
        model = copy.deepcopy(wide)
        peaks.append(peak(toy_trainer(model=model, train=data, **FLAT, **QUIET, max_steps=2, gradient_checkpointing=checkpointing)))
        del model
    assert peaks[1] < 0.7 * peaks[0]


# Per optimizer step: the loss and the gradient's norm are checked before the update, tokens are counted, and the loss is logged.
MOST_WAITS = 8


class Waits(TrainerCallback):
    """Lets torch warn wherever the host waits for the card, from the third step on."""

    def on_step_begin(self, args, state, control, **kwargs):
        torch.cuda.set_sync_debug_mode("warn" if state.global_step >= 2 else "default")

    def on_train_end(self, args, state, control, **kwargs):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("layers", [2, 8])
def test_how_often_the_host_waits_does_not_grow_with_the_layers(toy_trainer, layers):
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=400, num_hidden_layers=layers, max_position_embeddings=512, **shape))
    data = PackedDataset(Dataset.from_list(rows(60, 20, labelled=10)), 64)
    steps = 6
    trainer = toy_trainer(model=model, train=data, **FLAT, **QUIET, max_steps=steps, callbacks=[Waits()])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    waits = [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA" in str(w.message)]
    assert DEVICE.type == "cuda"
    assert len(waits) <= MOST_WAITS * (steps - 2), waits
