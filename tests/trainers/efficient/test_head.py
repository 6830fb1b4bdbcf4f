"""llmmod.trainers.efficient against trl's own function: what the patched head passes to `log_probs`, and when it calls it."""

from __future__ import annotations

import pytest
import torch
import trl.trainer.utils
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from llmmod.trainers.efficient import LogProbFunction, efficient_head

OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def run(function, *, bias=False, softcap=None, scale=1.0, temperature=1.0, outputs=OUTPUTS, dtype=torch.float32, rows=7):
    """The outputs, and the gradients of a weighted sum of the log-probabilities."""
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 16).to(dtype).requires_grad_() for n in (rows, 50))
    offset = torch.randn(50).to(dtype).requires_grad_() if bias else None
    targets, weights = torch.randint(0, 50, (rows,)), torch.rand(rows)
    found = function.apply(hidden, weight, offset, targets, temperature, 32, softcap, scale, outputs)
    (found[0] * weights).sum().backward()
    gradients = [tensor.grad for tensor in (hidden, weight, offset) if tensor is not None]
    return [None if x is None else x.detach() for x in found], gradients


@pytest.mark.parametrize(
    "changes",
    [{}, {"bias": True}, {"softcap": 3.0}, {"scale": 0.25}, {"temperature": 0.7}, {"outputs": ("log_probs",)}, {"rows": 0}],
    ids=lambda changes: next(iter(changes), "plain"),
)
def test_the_same_as_trl_s(changes):
    ours, theirs = (run(function, **changes) for function in (LogProbFunction(ChunkedLogProbFunction), ChunkedLogProbFunction))
    for mine, its in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        assert (mine is None) == (its is None)
        if mine is not None:
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


def test_bfloat16_within_its_precision():
    ours, theirs = (run(f, dtype=torch.bfloat16) for f in (LogProbFunction(ChunkedLogProbFunction), ChunkedLogProbFunction))
    torch.testing.assert_close(ours[0][0], theirs[0][0], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(ours[1][0], theirs[1][0], rtol=5e-2, atol=5e-2)


def test_what_is_not_needed_is_not_computed():
    all_of_it, _ = run(LogProbFunction(ChunkedLogProbFunction))
    found, _ = run(LogProbFunction(ChunkedLogProbFunction, only=("log_probs", "is_top1")))
    assert [x is not None for x in found] == [True, False, False, False, True]
    torch.testing.assert_close(found[0], all_of_it[0])


def test_the_patch_ends_with_the_block():
    before = trl.trainer.utils._use_triton, trl.trainer.utils._ChunkedLogProbFunction
    with efficient_head() as head:
        assert trl.trainer.utils._use_triton(torch.device("cpu"))
        assert trl.trainer.utils._ChunkedLogProbFunction is head
    assert (trl.trainer.utils._use_triton, trl.trainer.utils._ChunkedLogProbFunction) == before


@pytest.mark.parametrize("autocast", [False, True])
def test_a_head_of_float32_computes_in_float32(autocast):
    torch.manual_seed(0)
    hidden = torch.randn(7, 16).bfloat16().requires_grad_()
    weight, targets = torch.randn(50, 16, requires_grad=True), torch.randint(0, 50, (7,))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = LogProbFunction(ChunkedLogProbFunction).apply(hidden, weight, None, targets, 1.0, 32, None, 1.0, OUTPUTS)
    expected = torch.log_softmax(hidden.float() @ weight.T, -1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)  # bfloat16 is 1e-2 off
    mine = torch.autograd.grad(found[0].sum(), (hidden, weight), retain_graph=True)
    its = torch.autograd.grad(expected.sum(), (hidden, weight))
    torch.testing.assert_close(mine[1], its[1], rtol=1e-4, atol=1e-5)
    assert mine[0].dtype is torch.bfloat16
