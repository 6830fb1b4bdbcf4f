"""A step with our own forward gives transformers' logits for the same token; all other cases use transformers' forward."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import GenerationConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from llmmod.models.generation.decoder import Decoder
from llmmod.models.loading.tiny import tiny_model

ROOT = Path(__file__).parents[3]
PROMPTS = [[33, 44, 55], [66, 77, 88, 99, 111], [120]]


def decoded(model, *, slots=3):
    """The logits from which each of six tokens was chosen, and why the model's own forward computed them; None if ours did."""
    config = GenerationConfig(do_sample=False, max_new_tokens=6)
    config.max_length = None
    decoder, seen = Decoder(model, config, slots=slots), []
    choose = decoder._chooser.__call__
    decoder._chooser = lambda logits, uniform: seen.append(logits.clone()) or choose(logits, uniform)
    decoder._chooser.samples = False
    list(decoder.run(PROMPTS))
    return seen, None if decoder._step._own else decoder._step._reason


def difference(model, monkeypatch, **given):
    """The largest difference between our forward's logits and the model's own, as a share of the largest logit.

    The first logits are those of the prompts. In 16 bits the two may choose different tokens; logits after that are not compared.
    """
    found, reason = decoded(model, **given)
    assert reason is None
    with monkeypatch.context() as patched:
        patched.setattr("llmmod.models.generation.step._why_not", lambda model: "it is the reference")
        wanted, reason = decoded(model, **given)
    assert reason == "it is the reference"
    differences = []
    for one, other in zip(found, wanted, strict=True):
        differences.append(float((one - other).abs().max() / other.abs().max()))
        if not torch.equal(one.argmax(-1), other.argmax(-1)):
            break
    assert len(differences) > 1
    return max(differences)


@pytest.fixture
def make(tiny_tokenizer):
    """A tiny model of an option's architecture with random norms and biases, so that leaving one out shows."""

    def build(option, **fields):
        architecture = yaml.safe_load((ROOT / "conf" / "model" / f"{option}.yaml").read_text(encoding="utf-8"))["architecture"]
        model = tiny_model(architecture | {"initializer_range": 0.2} | fields, tokenizer=tiny_tokenizer, seed=0).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.uniform_(-1, 1) if "norm" in name or name.endswith("bias") else None
        return model

    return build


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 8}


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize(
    ("option", "fields"),
    [("llama3", {}), ("mistral", {"sliding_window": 4}), ("qwen2_5", {}), ("qwen3", {}),
     ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}), ("llama", {"rope_parameters": YARN})],
    ids=["plain", "a window", "biases", "norms of heads", "a window in one layer", "yarn"],
)  # fmt: skip
def test_the_logits_of_transformers(make, option, fields, slots, monkeypatch):
    """Within 1e-4 of the largest logit in float32, within 1e-9 in float64."""
    model = make(option, **fields)
    assert difference(model, monkeypatch, slots=slots) <= 1e-4
    assert difference(model.double(), monkeypatch, slots=slots) <= 1e-9


def test_layers_that_the_configuration_leaves_out(tiny_llama, monkeypatch):
    model = copy.deepcopy(tiny_llama)
    model.config.num_hidden_layers = 1
    assert difference(model, monkeypatch) <= 1e-4


def test_bfloat16_rounds_at_other_places(tiny_llama, monkeypatch):
    assert difference(copy.deepcopy(tiny_llama).bfloat16(), monkeypatch) <= 0.1


def test_beside_accelerates_forward(tiny_llama, monkeypatch):
    """accelerate's forward casts, as autocast around the decoder does. After its removal, the model keeps an attribute `forward`."""
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # an earlier training may have set the precision of the process
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    model = accelerator.prepare(copy.deepcopy(tiny_llama))
    assert "forward" in vars(model)
    with accelerator.autocast():
        assert difference(model, monkeypatch) <= 0.1
    assert decoded(model)[1] == "LlamaForCausalLM has hooks or another forward", "it casts and nothing around it does"
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    assert "forward" in vars(model)
    assert difference(model, monkeypatch) <= 1e-4


def test_an_adapter_and_a_hook_on_a_linear_layer(tiny_lora, monkeypatch):
    """Such layers are called as modules, or through `LeanLayers`."""
    model, seen = tiny_lora.double(), []
    model.base_model.model.model.layers[1].mlp.up_proj.register_forward_hook(lambda *given: seen.append(given[2].shape))
    assert difference(model, monkeypatch) <= 1e-9
    assert seen[0] != seen[1], "a row of prompts, then a token a slot"


@pytest.mark.parametrize("part", ["model", "model.layers.1", "model.layers.0.self_attn", "model.layers.1.mlp"])
def test_hooks_on_a_module_run(tiny_llama, part):
    model, calls = copy.deepcopy(tiny_llama), []
    model.get_submodule(part).register_forward_pre_hook(lambda *given: calls.append(given))
    _, reason = decoded(model)
    assert reason == f"{type(model.get_submodule(part)).__name__} has hooks or another forward"
    assert len(calls) == 6


@pytest.mark.parametrize("option", ["gemma3", "phi1_5", "glm4"])
def test_other_layers_are_left_to_transformers(make, option):
    assert decoded(make(option))[1] == "its layers are not built like Llama's"


def test_a_layer_that_computes_something_else_is_found_at_the_first_step(tiny_llama, monkeypatch, caplog):
    """Another release of transformers could change a layer."""
    own = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda module, x: 2 * own(module, x))
    with caplog.at_level("DEBUG", logger="llmmod"):
        model = copy.deepcopy(tiny_llama)
        first, reason = decoded(model)
        second, again = decoded(model)
    assert reason == again
    assert reason.startswith("its logits would differ by ")
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert [record.getMessage() for record in caplog.records] == [f"LlamaForCausalLM decodes with its own forward: {reason}"] * 2


def test_a_model_is_compared_once(tiny_llama):
    model, calls = copy.deepcopy(tiny_llama), []
    norm = model.model.norm
    norm.register_forward_pre_hook(lambda *given: calls.append(given[1][0].dim()))  # [batch, seq, channels], ours [slots, channels]
    decoded(model)
    decoded(model)
    assert calls.count(3) == 3, "two rows of prompts, one step"
    assert calls.count(2) == 1 + 4 + 5
