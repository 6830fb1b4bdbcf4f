"""Quantized weights: their largest difference from the original, and errors."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from llmmod.config.schema.base import Dtype
from llmmod.config.schema.model import QuantizationConf
from llmmod.errors import ConfigError
from llmmod.models.loading import quantization as cpu_kernels
from llmmod.models.loading.load import load_model
from llmmod.models.loading.quantization import dequantized_weight, quantization_config
from llmmod.models.loading.structure import rebuild_model

# As a share of a block's largest weight: half the widest gap between NF4's levels, -1 and -0.6962 (Dettmers et al. 2023, appendix E),
# and fp4's, 2/3 and 1; a little more where the blocks' maxima are quantized to 8 bits, too. In 8 bits: half a
# step of 1/127 of a row's largest weight, and the rounding to float16, to which bitsandbytes converts the weights first.
BOUNDS = {("nf4", False): 0.1520, ("nf4", True): 0.1600, ("fp4", False): 0.1667}


def test_nothing_is_quantized_unless_bits_say_so():
    assert quantization_config(QuantizationConf()) is None


@pytest.mark.parametrize(("kind", "double"), BOUNDS, ids=str)
def test_four_bits_stay_within_half_a_step(tiny_llama, kind, double):
    conf = QuantizationConf(bits=4, type=kind, double_quant=double)
    quantized = rebuild_model(tiny_llama, quantization_config=quantization_config(conf))
    before, after = tiny_llama.model.layers[0].mlp.up_proj.weight, dequantized_weight(quantized.model.layers[0].mlp.up_proj)
    blocks, errors = before.reshape(-1, 64), (before - after).reshape(-1, 64)  # bitsandbytes quantizes blocks of 64 weights
    assert (errors.abs().amax(1) <= BOUNDS[kind, double] * blocks.abs().amax(1) + 1e-6).all()
    assert errors.abs().max() > 0


@pytest.mark.parametrize("shape", [(64, 32), (136, 80), (9, 10)], ids=str)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_weights_are_unpacked_as_they_were_packed_whatever_the_width(shape, kind):
    # On CPUs with AVX512, unpatched bitsandbytes takes the start of each row for the start of a block of 64.
    from bitsandbytes import functional

    quantization_config(QuantizationConf(bits=4))
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type=kind)
    pairs = packed.flatten().long()
    levels = torch.stack([pairs >> 4, pairs & 15], dim=1).flatten()[: weight.numel()]
    expected = state.code[levels] * state.absmax.repeat_interleave(64)[: weight.numel()]
    assert torch.equal(functional.dequantize_4bit(packed, state), expected.reshape(shape))


def test_eight_bits_stay_within_half_a_step(tiny_llama, ids, logits):
    quantized = rebuild_model(tiny_llama, quantization_config=quantization_config(QuantizationConf(bits=8)))
    layer, before = quantized.model.layers[0].mlp.up_proj, tiny_llama.model.layers[0].mlp.up_proj.weight
    for moment in ("before its first forward", "after it"):
        error = (before - dequantized_weight(layer)).abs()
        assert (error <= before.abs().amax(1, keepdim=True) * (0.5 / 127 + 2**-11)).all(), moment
        logits(quantized, ids)  # the layer is still usable after unpacking


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("way", ["rebuilt", "loaded"])
def test_evaluation_leaves_gradients_as_they_were(tiny_llama, llama_directory, ids, logits, way, bits):
    # On a CPU with AVX512-BF16, unpatched bitsandbytes doesn't compute gradients after a 4-bit layer was evaluated once.
    conf = quantization_config(QuantizationConf(bits=bits))
    given = {"quantization_config": conf}
    model = rebuild_model(tiny_llama, **given) if way == "rebuilt" else load_model(str(llama_directory), **given)

    def gradient():
        embeddings = model.train().get_input_embeddings().weight.requires_grad_()
        return torch.autograd.grad(model(input_ids=ids, labels=ids).loss, embeddings)[0]

    before, weight = gradient(), dequantized_weight(model.model.layers[0].mlp.up_proj).clone()
    logits(model, ids)
    assert torch.equal(gradient(), before)
    assert torch.equal(dequantized_weight(model.model.layers[0].mlp.up_proj), weight)


def test_packed_in_parts_to_the_same_bits(monkeypatch):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    quantization_config(QuantizationConf(bits=4))
    weights = torch.randn(300, 70, generator=torch.Generator().manual_seed(0))  # 328 blocks and 8 weights
    expected, state = quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
    monkeypatch.setattr(cpu_kernels, "_PACKED_AT_ONCE", 4096)
    found, in_parts = quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
    assert torch.equal(found, expected)
    assert torch.equal(dequantize_4bit(found, in_parts), dequantize_4bit(expected, state))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_packing_takes_little_memory_beside_the_weights():
    """Unpatched bitsandbytes takes 16 bytes per weight."""
    from bitsandbytes.functional import quantize_4bit

    def kilobytes(name):
        return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))

    quantization_config(QuantizationConf(bits=4))
    weights = torch.ones(4 * 2**20, dtype=torch.float16)
    quantize_4bit(weights[: 2**20], quant_type="nf4")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = kilobytes("VmRSS")
    quantize_4bit(weights, quant_type="nf4")
    assert (kilobytes("VmHWM") - before) * 1024 < 8 * len(weights)  # 3 to 5, depending on the allocator's free memory


def test_a_plain_layers_weight_is_itself(tiny_llama):
    assert dequantized_weight(tiny_llama.lm_head) is tiny_llama.lm_head.weight


def test_the_same_from_memory_as_from_disk(tiny_llama, llama_directory, ids, logits):
    conf = quantization_config(QuantizationConf(bits=4))
    from_disk = load_model(str(llama_directory), quantization_config=conf)
    assert torch.equal(logits(rebuild_model(tiny_llama, quantization_config=conf), ids), logits(from_disk, ids))


def test_falcon_from_disk_is_quantized_and_computes_nearly_the_same(tmp_path, ids, logits):
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(0)
    model = FalconForCausalLM(FalconConfig(vocab_size=40, hidden_size=64, num_hidden_layers=2, num_attention_heads=4))
    model.save_pretrained(tmp_path)
    quantized = load_model(str(tmp_path), quantization_config=quantization_config(QuantizationConf(bits=8)))
    assert type(quantized.transformer.h[0].mlp.dense_h_to_4h).__name__ == "Linear8bitLt"
    assert torch.cosine_similarity(logits(quantized, ids), logits(model, ids), dim=-1).min() > 0.99
    plain = load_model(str(tmp_path))
    assert type(plain.transformer.h[0].mlp.dense_h_to_4h).__name__ == "FalconLinear"  # the patch is undone


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        pytest.param(QuantizationConf(bits=4, compute_dtype=Dtype.float16), torch.float16, id="chosen"),
        pytest.param(QuantizationConf(bits=4), torch.bfloat16 if torch.cuda.is_available() else torch.float32, id="auto"),
    ],
)
def test_the_type_of_matrix_products(conf, expected):
    assert quantization_config(conf).bnb_4bit_compute_dtype is expected


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        pytest.param(QuantizationConf(bits=3), "model.quantization.bits: found 3. Allowed: 4, 8, null", id="bits"),
        pytest.param(QuantizationConf(bits=4, type="nf5"), "model.quantization.type: found 'nf5'. Did you mean 'nf4'\\?", id="type"),
    ],
)
def test_what_does_not_exist(conf, message):
    with pytest.raises(ConfigError, match=message):
        quantization_config(conf)


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes.*pip install 'llmmod\[quantization\]'"):
        quantization_config(QuantizationConf(bits=4))
