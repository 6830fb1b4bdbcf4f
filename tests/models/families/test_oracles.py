"""Each family computes what its original code computes, within 1e-4 in float32, where logits have a standard deviation of 1 to 6.

The references come from the original implementations (see legacy_checkpoints/README.md).
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmmod.models.families.convert import family_of_model
from llmmod.models.families.layouts import FAMILIES, family_of

TOLERANCE = 1e-4


def labelled(reference):
    """The references' labels; the first five are ignored."""
    labels = reference["input_ids"].clone()
    labels[:, :5] = -100
    return labels


def test_logits_and_loss(name, load, reference):
    model, expected = load(name), reference(name)
    with torch.no_grad():
        output = model(expected["input_ids"], labels=labelled(expected))
    assert torch.allclose(output.logits, expected["logits"], atol=TOLERANCE, rtol=0)
    assert output.loss.item() == pytest.approx(expected["loss"].item(), abs=TOLERANCE)


def test_left_padded_logits(name, load, reference):
    model, expected = load(name), reference(name)
    mask = expected["left_attention_mask"]
    with torch.no_grad():
        logits = model(expected["left_input_ids"], attention_mask=mask).logits
    assert mask.min() == 0, "something is padded"
    assert torch.allclose(logits[mask.bool()], expected["left_logits"][mask.bool()], atol=TOLERANCE, rtol=0)


def test_greedy_tokens_with_the_cache(name, load, reference):
    model, expected = load(name), reference(name)
    ids = model.generate(expected["input_ids"][:1], max_new_tokens=12, do_sample=False)
    assert torch.equal(ids, expected["greedy"])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["as it is", "gradient checkpointing"])
def test_gradients_by_their_original_names(name, load, reference, checkpointing):
    model, expected = load(name).train(), reference(name)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss = model(expected["input_ids"], labels=labelled(expected)).loss
    assert loss.item() == pytest.approx(expected["train_loss"].item(), abs=TOLERANCE)
    loss.backward()
    parameters, family = dict(model.named_parameters()), family_of_model(model)
    gradients = {key.removeprefix("grad."): value for key, value in expected.items() if key.startswith("grad.")}
    assert len(gradients) == 4
    for original, gradient in gradients.items():
        found = torch.cat([parameters[native].grad for native in family.native_names(original, depth=2)])
        assert torch.allclose(found, gradient, atol=TOLERANCE, rtol=0), original


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_attention(name, load, reference, attention):
    expected = reference(name)
    with torch.no_grad():
        logits = load(name, attn_implementation=attention)(expected["input_ids"]).logits
    assert torch.allclose(logits, expected["logits"], atol=TOLERANCE, rtol=0)


def swapped(directory, one, other):
    """Exchange two weights of each layer in a checkpoint."""
    file = directory / "model.safetensors"
    state = load_file(file)
    other_name = {key: key.replace(one, other) if one in key else key.replace(other, one) for key in state}
    save_file({other_name[key]: value for key, value in state.items()}, file, metadata={"format": "pt"})


def moved_by(model, expected):
    with torch.no_grad():
        return (model(expected["input_ids"]).logits - expected["logits"]).abs().max().item()


def test_exchanged_matrices_change_the_logits(load, reference, copied):
    directory = copied("qwen")
    swapped(directory, "mlp.w1", "mlp.w2")
    assert moved_by(load(directory), reference("qwen")) > 1


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        pytest.param(
            "chatglm2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}, id="rotary"
        ),
        pytest.param("chatglm2", {"rms_norm_eps": 0.1}, id="norm"),
        pytest.param("qwen", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, id="theta"),
    ],
)
def test_another_configuration_changes_the_logits(load, reference, name, fields):
    assert moved_by(load(name, **fields), reference(name)) > 1e-2


def test_the_head_of_baichuan2_is_normalised(load, reference, copied):
    expected = reference("baichuan2_7b")
    assert moved_by(load(copied("baichuan2_7b", z_loss_weight=None)), expected) > 1, "as it is in the file, it's another function"
    assert torch.allclose(load("baichuan2_7b").lm_head.weight.norm(dim=-1), torch.ones(256), atol=1e-6)


def test_baichuan2_13b_is_baichuan_13b_with_a_normalised_head(load, reference, copied):
    # Each logit is a product with one row of the head, so dividing the row by its length divides the logit.
    expected = reference("baichuan_13b")
    lengths = load("baichuan_13b").lm_head.weight.norm(dim=-1)
    model = load(copied("baichuan_13b", z_loss_weight=0))
    assert family_of_model(model).name == "Baichuan2-13B"
    with torch.no_grad():
        logits = model(expected["input_ids"]).logits
    assert torch.allclose(logits, expected["logits"] / lengths, atol=TOLERANCE, rtol=0)


def test_the_names_of_a_table_are_those_of_the_native_class(name, load):
    model = load(name)
    family = family_of_model(model)
    inside = {f"model.layers.0.{part}" for parts in family.in_layer.values() for part in parts}
    modules = {key for key, _ in model.named_modules()}
    assert inside | set(family.outside.values()) <= modules
    own = {key.rpartition(".")[0] for key in model.state_dict() if ".layers." not in key or ".layers.0." in key}
    assert own <= inside | set(family.outside.values()), "and each parameter has an original name"


def test_no_checkpoint_fits_two_families(name):
    from pathlib import Path

    directory = Path(__file__).parents[1] / "legacy_checkpoints" / name
    raw = json.loads((directory / "config.json").read_text())
    assert [f for f in FAMILIES if f.model_type == raw["model_type"] and f.fits(raw)] == [family_of(raw, path="x")]
