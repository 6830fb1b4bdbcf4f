"""llmmod.trainers.log_probs gives the numbers and gradients of the plain computation with all logits, in float64 within 1e-10."""

from __future__ import annotations

import pytest
import torch

from llmmod.trainers import log_probs as module
from llmmod.trainers.log_probs import log_probs

ROWS, VOCABULARY, CHANNELS = 23, 50, 16
OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
# Rows per tile and per slice: more than all rows; a few, which don't divide the number of rows; one.
SIZES = [(1000, 1000), (7, 3), (1, 1)]
WAYS = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 3.0},
    "scale": {"scale": 0.25},
    "temperature": {"temperature": 0.7},
    "all of it": {"bias": True, "softcap": 4.0, "scale": 1.5, "temperature": 0.8},
}


def given(*, dtype=torch.float64, bias=False, rows=ROWS):
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, CHANNELS).to(dtype).requires_grad_() for n in (rows, VOCABULARY))
    return hidden, weight, torch.randn(VOCABULARY).to(dtype).requires_grad_() if bias else None, torch.randint(0, VOCABULARY, (rows,))


def plain(hidden, weight, bias, targets, *, temperature=1.0, softcap=None, scale=1.0):
    """The same numbers from the logits of all rows."""
    logits = torch.nn.functional.linear(hidden, weight, bias) * scale
    logits = (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / temperature
    log_p = torch.log_softmax(logits, -1)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    chosen = log_p.gather(1, targets[:, None])[:, 0]
    return chosen, entropy, (2 * log_p).logsumexp(-1), logits.mean(-1), logits.argmax(-1) == targets


@pytest.fixture(params=SIZES, ids=["whole", "in tiles", "a row each"])
def sizes(request, monkeypatch):
    monkeypatch.setattr(module, "TILE_LOGITS", request.param[0] * VOCABULARY)
    monkeypatch.setattr(module, "_SLICE", request.param[1] * VOCABULARY)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("way", WAYS)
def test_the_numbers(way):
    changes = dict(WAYS[way])
    tensors = given(bias=changes.pop("bias", False))
    for mine, its in zip(log_probs(*tensors, outputs=OUTPUTS, **changes), plain(*tensors, **changes), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("entropy_gradient", [False, True], ids=["", "with the entropy"])
@pytest.mark.parametrize("alike", [True, False], ids=["mean", "weighted"])
@pytest.mark.parametrize("way", WAYS)
def test_the_gradient(way, alike, entropy_gradient):
    """The gradient of a mean and of a weighted sum, with a right and a wrong hint that all tokens have the same weight."""
    changes = dict(WAYS[way])
    *tensors, targets = given(bias=changes.pop("bias", False))
    trained, weights = [x for x in tensors if x is not None], torch.ones(ROWS).double() / ROWS if alike else torch.randn(ROWS).double()

    def gradients(found):
        loss = (found[0] * weights).sum() + (0.3 * found[1] * weights.flip(0)).sum() * entropy_gradient
        return torch.autograd.grad(loss, trained)

    its = gradients(plain(*tensors, targets, **changes))
    for hint in (False, True):
        found = log_probs(*tensors, targets, outputs=OUTPUTS, uniform_gradient=hint, entropy_gradient=entropy_gradient, **changes)
        if not entropy_gradient:
            found = (found[0], found[1].detach(), *found[2:])
        for mine, expected in zip(gradients(found), its, strict=True):
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10)


def test_the_gradient_in_float32_is_the_plain_one_within_a_millionth():
    tensors = given(dtype=torch.float32)
    wanted = tensors[:2]
    mine, its = (torch.autograd.grad(found[0].mean(), wanted) for found in (log_probs(*tensors, uniform_gradient=True), plain(*tensors)))
    for one, other in zip(mine, its, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("frozen", [0, 1, 2], ids=["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen):
    *tensors, targets = given(bias=True)
    tensors[frozen].requires_grad_(False)
    (found, *_) = log_probs(*tensors, targets, uniform_gradient=True)
    found.sum().backward()
    expected = torch.autograd.grad(plain(*tensors, targets)[0].sum(), [x for x in tensors if x.requires_grad])
    for mine, its in zip([x.grad for x in tensors if x.requires_grad], expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-10)
    assert tensors[frozen].grad is None


def test_a_second_backward_pass_gives_the_same():
    tensors = given()
    (found, *_) = log_probs(*tensors, uniform_gradient=True)
    first, second = (torch.autograd.grad(found.sum(), tensors[:2], retain_graph=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_without_a_gradient_only_the_logits_are_computed(monkeypatch):
    tensors, products = given(), []
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, other: products.append(one.shape) or real(one, other))
    with torch.no_grad():
        found = log_probs(*tensors, outputs=OUTPUTS, uniform_gradient=True)[0]
    assert not found.requires_grad
    assert products == []
    log_probs(*tensors, uniform_gradient=True)
    assert products == [(ROWS, VOCABULARY), (VOCABULARY, ROWS)]  # of the hidden states, and of the weight


def test_no_array_is_larger_than_a_tile(monkeypatch):
    monkeypatch.setattr(module, "TILE_LOGITS", 5 * VOCABULARY)

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            self.most = max(self.most, found.numel() if isinstance(found, torch.Tensor) else 0)
            return found

    *tensors, targets = given(dtype=torch.float32, rows=1000)
    tensors[1].requires_grad_(False)
    tensors[0].requires_grad_(False)
    narrow = tensors[0][:, :4].contiguous().requires_grad_(), tensors[1][:, :4].contiguous(), None
    with Sizes() as sizes:
        log_probs(*narrow, targets, outputs=OUTPUTS)[0].sum().backward()
    assert sizes.most == 1000 * 4  # hidden states; their logits would be 50,000


def test_no_rows():
    tensors = given(rows=0, bias=True)
    found = log_probs(*tensors, outputs=OUTPUTS, uniform_gradient=True)
    assert [len(values) for values in found] == [0] * 5
    found[0].sum().backward()
    assert not any(tensor.grad.any() for tensor in tensors[:3])


def test_of_equal_logits_the_first_is_the_most_likely():
    hidden, weight = torch.ones(3, 2), torch.ones(4, 2)
    assert log_probs(hidden, weight, None, torch.tensor([0, 1, 3]), outputs=("is_top1",))[4].tolist() == [True, False, False]


def test_under_autocast_it_is_of_16_bits_and_the_gradient_of_its_own_type():
    tensors = given(dtype=torch.float32, bias=True)
    for hint in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            found = log_probs(*tensors, uniform_gradient=hint)[0]
        its = plain(*tensors)[0]
        assert found.dtype is torch.float32
        torch.testing.assert_close(found, its, rtol=2e-2, atol=5e-2)
        mine, expected = (torch.autograd.grad(x.mean(), tensors[:3]) for x in (found, its))
        for one, other in zip(mine, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=5e-2, atol=5e-3)
