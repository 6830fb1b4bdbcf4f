"""The memory of a traced program equals torch's own record of the same program, and the heap is checked against blocks followed by hand."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from llmmod.steps.plan.devices import Heap
from llmmod.steps.plan.memory import Tracer, without_values

CONFIG = LlamaConfig(
    vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)  # fmt: skip


def train(model):
    """Two steps of Adam."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    for _ in range(2):
        ids = torch.arange(96).reshape(2, 48)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_live_bytes_are_those_of_torchs_profiler():
    model = LlamaForCausalLM(CONFIG)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as real:
        train(model)
    events = sorted((e.start_ns(), e.nbytes()) for e in real.profiler.kineto_results.events() if e.name() == "[memory]")
    now = most = 0
    for _, size in events:
        now += size
        most = max(most, now)
    weights = sum(p.nbytes for p in model.parameters())
    tracer = Tracer(vocabulary=512)
    with without_values(tracer):
        planned = LlamaForCausalLM(CONFIG)
        tracer.tag(list(planned.parameters()), "weights")
        tracer.restart()
        train(planned)
    (peak,) = tracer.peaks.values()
    assert peak.parts["weights"] == weights == sum(p.nbytes for p in planned.parameters())
    # Some kernels allocate a little memory, and the trace allocates a new tensor for a sum of gradients that autograd computes in place.
    assert peak.live - weights == pytest.approx(most, rel=0.03)
    assert peak.heap >= peak.live


def test_what_is_picked_by_a_mask_has_its_true_shape_and_numbers_can_be_read():
    tracer = Tracer()
    with without_values(tracer):
        weight, labels = torch.empty(4, 6), torch.tensor([-100, 3, -100, 5])
        picked = weight[labels >= 0]
        assert picked.shape == (2, 6)
        assert labels.tolist() == [-100, 3, -100, 5]
        assert float(picked.sum()) == 1.0


def test_an_order_of_examples_keeps_its_numbers():
    """Operations that return integers by default keep their values: an index without values would select masks and ids without values."""
    tracer, mask = Tracer(), torch.tensor([[1, 1, 0], [1, 0, 0]])
    with without_values(tracer):
        order = torch.randperm(2)
        assert sorted(order.tolist()) == torch.arange(2).tolist() == [0, 1]
        assert sorted(mask[order].sum(1).tolist()) == [1, 2]
        assert float(torch.ones(3).sum()) == 1.0  # floating-point numbers have no values


@pytest.mark.parametrize(
    ("filled", "graph", "between", "grows"),
    [
        pytest.param(1.0, 1, (0, 40), True, id="objects of the graph stay"),
        pytest.param(1.0, 1, (-1, 40), False, id="the backward pass frees them"),
        pytest.param(1.0, 0, (0, 4), True, id="other objects stay for a while"),
        pytest.param(1.0, 0, (0, 40), False, id="other objects are freed"),
        pytest.param(0.0, 1, (0, 4), False, id="the gaps are free"),
    ],
)
def test_a_hole_takes_a_block_of_its_own_size_only_if_the_gaps_beside_it_are_free(filled, graph, between, grows, monkeypatch):
    """For an aligned block, glibc allocates 96 bytes more and leaves them free next to it."""
    for name, value in (("_FILLED", filled), ("_FREED", 1.0), ("_GAP_LIFE", 20)):
        monkeypatch.setattr(f"llmmod.steps.plan.devices.{name}", value)
    heap, size = Heap(), 1 << 20
    heap.take(0, 16 << 20)
    heap.give(0)  # blocks of less than 16 MB now come from the heap
    for number in (1, 2, 3):
        heap.take(number, size, graph=graph)
    kind, blocks = between
    for number in range(4, 4 + blocks):
        heap.take(number, 2048, graph=kind)
    heap.give(2)
    before = heap.bytes
    heap.take(1000, size)
    assert (heap.bytes > before) == grows
    assert heap.bytes <= before + size + 200
