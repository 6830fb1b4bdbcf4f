"""Packed rows on a GPU: each example as alone on the CPU, with every attention kernel, without reading numbers back from the card."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from on_gpu import DEVICE, ON_GPU, needs_card
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import is_flash_attn_2_available

from llmmod.data.collators import FlatteningCollator, PrefixSharingCollator, PrefixSharingRewardCollator
from llmmod.models.packing import packed_attention

LENGTHS = (20, 1, 33, 2, 12)
NEAR = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # nats per token
KERNELS = {
    "math float32": (SDPBackend.MATH, torch.float32),
    "efficient float32": (SDPBackend.EFFICIENT_ATTENTION, torch.float32),
    "math bfloat16": (SDPBackend.MATH, torch.bfloat16),
    "efficient bfloat16": (SDPBackend.EFFICIENT_ATTENTION, torch.bfloat16),
    "flash bfloat16": (SDPBackend.FLASH_ATTENTION, torch.bfloat16),
    "flash float16": (SDPBackend.FLASH_ATTENTION, torch.float16),
    "flash_attention_2 bfloat16": (None, torch.bfloat16),
}


def examples(seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(5, 350, (length,), generator=generator).tolist() for length in LENGTHS]
    return [{"input_ids": tokens, "labels": tokens} for tokens in ids]


def placed(batch):
    return {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def row(rows):
    batch = placed(FlatteningCollator()(rows))
    del batch["labels"]
    return batch


def kernel(backend):
    return nullcontext() if backend is None else sdpa_kernel(backend)


def losses(logits, rows):
    """The loss of each example in the row, in nats per token."""
    ends = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    parts = zip(pairwise(ends), rows, strict=True)
    return torch.stack([loss(logits[0, start:end], example["input_ids"]) for (start, end), example in parts])


def loss(logits, ids):
    total = torch.nn.functional.cross_entropy(
        logits[:-1].float(), torch.tensor(ids[1:], dtype=torch.int64, device=logits.device), reduction="sum"
    )
    return total / max(1, len(ids) - 1)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "math float32" else needs_card) for name in KERNELS])
def test_each_example_is_as_it_is_alone_on_the_cpu(tiny_llama, name):
    backend, dtype = KERNELS[name]
    rows = examples()
    expected = torch.stack([loss(tiny_llama(torch.tensor([r["input_ids"]])).logits[0], r["input_ids"]) for r in rows])
    expected.sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in tiny_llama.parameters()])
    model = copy.deepcopy(tiny_llama).to(DEVICE, dtype)
    model.zero_grad()
    if backend is None:
        if not is_flash_attn_2_available():
            pytest.skip("flash_attn isn't installed")
        model.set_attn_implementation("flash_attention_2")
    inputs = row(rows)
    with packed_attention(model, inputs), kernel(backend):
        found = losses(model(**inputs, use_cache=False).logits, rows)
        found.sum().backward()
    torch.testing.assert_close(found.float().cpu(), expected.detach(), rtol=0, atol=NEAR[dtype])
    of_row = torch.cat([p.grad.float().cpu().flatten() for p in model.parameters()])
    assert (of_row - gradient).norm() / gradient.norm() < (1e-3 if dtype is torch.float32 else 0.1)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "math float32" else needs_card) for name in KERNELS])
def test_no_bit_of_an_example_depends_on_its_neighbours(tiny_llama, name):
    """The same shapes use the same kernels, so another example's tokens don't change anything, not even the rounding."""
    backend, dtype = KERNELS[name]
    if backend is None and not is_flash_attn_2_available():
        pytest.skip("flash_attn isn't installed")
    model = tiny_llama.to(DEVICE, dtype)
    if backend is None:
        model.set_attn_implementation("flash_attention_2")
    one, two = examples(1), examples(2)
    two[2] = one[2]
    start, end = sum(LENGTHS[:2]), sum(LENGTHS[:3])
    found = []
    for rows in (one, two):
        inputs = row(rows)
        with torch.no_grad(), packed_attention(model, inputs), kernel(backend):
            found.append(model(**inputs, use_cache=False).logits[0])
    assert torch.equal(found[0][start:end], found[1][start:end])
    assert not torch.equal(found[0][end:], found[1][end:])


PAIRS = [{"prompt_ids": [5, 6, 7, 8], "chosen_ids": [9, 10], "rejected_ids": [11, 12, 13]}] * 3
ROWS = {
    "examples": (FlatteningCollator, examples()),
    "pairs": (PrefixSharingCollator, PAIRS),
    "scored pairs": (PrefixSharingRewardCollator, PAIRS),
}


@needs_card
@pytest.mark.parametrize("kind", ROWS)
def test_forward_and_backward_read_nothing_back(tiny_llama, kind):
    """torch raises where the host waits for the card."""
    collator, rows = ROWS[kind]
    batch = placed(collator()(rows))
    inputs = {name: batch[name] for name in batch if name in ("input_ids", "position_ids") or name.startswith(("cu_", "max_", "segment_"))}
    model = tiny_llama.to(DEVICE).train()
    for mode in ("default", "error"):  # the first pass loads kernels
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            with packed_attention(model, inputs):
                model(**inputs, use_cache=False).logits.float().square().mean().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_suite_runs_on_the_card():
    assert DEVICE.type == "cuda" or not ON_GPU
