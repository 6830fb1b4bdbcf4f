"""oneDNN's matrix products equal MKL's except for rounding, forward and backward, and MKL is used again afterwards."""

from __future__ import annotations

import pytest
import torch

from llmmod.models import matmul
from llmmod.models.matmul import helps_here, onednn_products, replaced_kernels

SHAPES = [(2, 32, 32), (7, 96, 64), (300, 576, 1536), (1, 64, 64), (33, 8, 64), (33, 64, 8)]  # rows, channels, columns


def products(rows, channels, columns, kind=torch.float32):
    """The output of a layer with a bias and one without for an input of three axes, and all gradients."""
    torch.manual_seed(0)
    first, second = torch.nn.Linear(channels, columns).to(kind), torch.nn.Linear(columns, channels, bias=False).to(kind)
    x = torch.randn(1, rows, channels).to(kind).requires_grad_()
    made = second(first(x))
    (made * torch.linspace(-1, 1, made.numel(), dtype=kind).view_as(made)).sum().backward()
    return [made.detach(), x.grad, first.weight.grad, first.bias.grad, second.weight.grad]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape):
    """Within 1e-4 of the largest number in float64, as MKL's are."""
    before, exact = products(*shape), products(*shape, torch.float64)
    with replaced_kernels():
        inside = products(*shape)
        again = products(*shape)
        half = products(*shape, torch.bfloat16)
    for found, wanted in zip(inside, exact, strict=True):
        scale = wanted.abs().max() + (wanted.abs().max() == 0)
        assert (found - wanted).abs().max() <= 1e-4 * scale
    assert all(map(torch.equal, inside, again)), "the same machine computes the same bits"
    assert all(map(torch.equal, half, products(*shape, torch.bfloat16))), "other types are left alone"
    assert all(map(torch.equal, before, products(*shape))), "afterwards all is as before"


def test_layers_and_their_gradients_use_the_replaced_product(monkeypatch):
    calls = []
    real = matmul._is_worth_it
    monkeypatch.setattr(matmul, "_is_worth_it", lambda *both: calls.append(real(*both)) or calls[-1])
    with replaced_kernels():
        products(7, 96, 64)
    assert calls.count(True) == 4, "two layers forward, and their inputs' gradients; seven rows are too few for the weights'"


@pytest.mark.parametrize(
    ("vendor", "capability", "helps"),
    [("AuthenticAMD", "AVX512", True), ("GenuineIntel", "AVX512", False), ("AuthenticAMD", "AVX2", False)],
)
def test_where_it_helps(monkeypatch, tmp_path, vendor, capability, helps):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nvendor_id : {vendor}\n", encoding="utf-8")
    monkeypatch.setattr(matmul, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert helps_here() is helps
    monkeypatch.setattr(matmul, "_CPUINFO", tmp_path / "none")
    assert not helps_here()
    if not helps:
        with onednn_products():
            pass


@pytest.mark.parametrize(
    ("outputs", "channels", "kind"), [(64, 96, torch.float32), (64, 8, torch.float32), (64, 96, torch.bfloat16)], ids=str
)
@torch.no_grad()
def test_a_linear_layer_is_the_same_bits_by_either_way(outputs, channels, kind):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(outputs, channels).to(kind), torch.randn(outputs).to(kind), torch.randn(5, 1, channels).to(kind)
    with replaced_kernels():
        for given in (bias, None):
            assert torch.equal(matmul.linear(weight, given)(x), torch.nn.functional.linear(x, weight, given))
    assert torch.equal(matmul.linear(weight, bias)(x), torch.nn.functional.linear(x, weight, bias))
