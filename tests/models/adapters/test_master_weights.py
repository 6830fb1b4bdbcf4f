"""Trained weights in a 16-bit model: float32 during training, used in the model's dtype, and rounded at the end."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmmod.config.schema.base import TrainableDtype
from llmmod.config.schema.model import FreezeConf, FullConf, LoraConf
from llmmod.errors import ConfigError
from llmmod.models.adapters.precision import to_stored_dtype
from llmmod.models.adapters.setup import setup_freeze, setup_full, setup_lora
from llmmod.models.reward import with_reward_head

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def full(model, **fields):
    return setup_full(model, FullConf(name="full", **fields))


def freeze(**fields):
    return lambda model, **more: setup_freeze(model, FreezeConf(name="freeze", num_layers_trainable=1, **fields, **more))


def lora(**fields):
    given = {"name": "lora", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"], **fields}
    return lambda model, **more: setup_lora(model, LoraConf(**given, **more))


WAYS = {
    "full": full,
    "layers": freeze(),
    "modules of layers": freeze(name_module_trainable=["mlp"]),
    "layers, embeddings, norm and head": freeze(extra_trainable=["embed_tokens", "norm", "lm_head"]),
    "adapters and the head": lora(modules_to_save=["lm_head"]),
    "adapters, embeddings, norms": lora(modules_to_save=["embed_tokens", "norm", "input_layernorm"]),
    "adapters and biases": lora(bias="all"),
    "adapters and tokens": lora(trainable_token_indices=[5, 6]),
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def model(tiny_tokenizer):
    """A function: dtype -> a Llama with biases, whose values are 16-bit numbers also in float32."""

    def make(dtype, *, tied=False):
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.1}
        torch.manual_seed(0)
        biased = {"attention_bias": True, "mlp_bias": True}
        made = LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny_tokenizer), tie_word_embeddings=tied, **sizes, **biased))
        with torch.no_grad():
            for name, p in made.named_parameters():
                if name.endswith("bias"):
                    p.normal_(std=0.1)
        return made.half().bfloat16().half().to(dtype)

    return make


def gradients(model, ids):
    """The gradient of the loss for each trained parameter."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def types(model):
    return {name: p.dtype for name, p in model.named_parameters()}


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@HALF
@EVERY_WAY
def test_trained_in_float32_with_the_gradients_of_a_model_of_float32(model, ids, way, dtype):
    found, expected = (gradients(WAYS[way](model(of)), ids) for of in (dtype, torch.float32))
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.dtype is torch.float32, name
        # Frozen layers compute in 16 bits: bfloat16 has an 8-bit mantissa, so a loss is off by some thousandths.
        assert torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0) > 0.99, name
        assert gradient.norm() == pytest.approx(float(expected[name].norm()), rel=0.05), name


@EVERY_WAY
def test_afterwards_types_and_values_are_those_that_came_in(model, ids, way):
    before = model(torch.bfloat16)
    expected = before(input_ids=ids).logits
    adapted = WAYS[way](copy.deepcopy(before))
    assert any(p.dtype is torch.float32 for p in adapted.parameters() if p.requires_grad)
    to_stored_dtype(adapted)
    # An adapter's own matrices and the rows of single tokens are float32, as peft creates them.
    of_base = {dtype for name, dtype in types(adapted).items() if "lora_" not in name and "trainable_tokens" not in name}
    assert of_base == {torch.bfloat16}
    assert hooks(adapted) == 0
    torch.testing.assert_close(adapted(input_ids=ids).logits, expected, rtol=0, atol=0)
    assert not to_stored_dtype(adapted), "nothing is left to do"


@EVERY_WAY
def test_recomputed_activations_give_the_same_gradients(model, ids, way):
    plain = gradients(WAYS[way](model(torch.bfloat16)).train(), ids)
    checkpointed = model(torch.bfloat16)
    checkpointed.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    found = gradients(WAYS[way](checkpointed).train(), ids)
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("way", ["full", "layers, embeddings, norm and head", "adapters and the head"])
def test_weights_that_are_shared_stay_so(model, ids, way):
    tied = WAYS[way](model(torch.bfloat16, tied=True))
    if not hasattr(tied, "peft_config"):
        assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert tied(input_ids=ids).logits.dtype is torch.float32
    to_stored_dtype(tied)
    assert tied(input_ids=ids).logits.dtype is torch.bfloat16


def test_a_trained_head_begins_with_the_logits_of_its_reference(model, ids):
    """To the bit: trainers compare the log-probabilities of whole answers, and rounded logits would differ at every token."""
    adapted = WAYS["adapters and the head"](model(torch.bfloat16))
    with torch.no_grad():
        own = adapted(input_ids=ids).logits
        with adapted.disable_adapter():
            reference = adapted(input_ids=ids).logits
    assert own.dtype is torch.float32
    assert torch.equal(own, reference)


@pytest.mark.parametrize("way", ["full", "layers", "adapters and the head"])
def test_a_reward_model(model, ids, way):
    fields = {"task_type": "SEQ_CLS", "modules_to_save": ["norm"]} if "adapters" in way else {}
    scoring = lora(**fields)(with_reward_head(model(torch.bfloat16))) if fields else WAYS[way](with_reward_head(model(torch.bfloat16)))
    scoring(input_ids=ids).logits.sum().backward()
    assert {p.grad.dtype for p in scoring.parameters() if p.requires_grad} == {torch.float32}
    to_stored_dtype(scoring)
    in_float32 = {name for name, dtype in types(scoring).items() if dtype is torch.float32 and "lora_" not in name}
    assert in_float32
    assert all("score" in name for name in in_float32), "as a reward head always is"


def test_under_autocast_too(model, ids):
    for way, adapt in WAYS.items():
        with torch.autocast("cpu", torch.bfloat16):
            assert all(gradient.dtype is torch.float32 for gradient in gradients(adapt(model(torch.bfloat16)), ids).values()), way


def test_what_is_upcast_on_request_and_trained_is_rounded_back_as_well(model, ids):
    adapted = full(model(torch.bfloat16), upcast_layernorm=True, upcast_head=True)
    to_stored_dtype(adapted)
    assert set(types(adapted).values()) == {torch.bfloat16}
    adapted(input_ids=ids)


def test_float32_stays_as_it_is(model):
    adapted = full(model(torch.float32))
    assert hooks(adapted) == 0
    assert not to_stored_dtype(adapted)


def test_a_warning_where_rounding_undoes_the_change(model, caplog):
    """Next to 0.1, bfloat16's numbers are 0.0005 apart."""
    for change, lost in ((1e-5, True), (1e-2, False)):
        caplog.clear()
        adapted = full(model(torch.bfloat16))
        with torch.no_grad():
            for p in adapted.parameters():
                p.add_(change)
        with caplog.at_level(logging.WARNING):
            to_stored_dtype(adapted)
        told = "the change in training is too small for bfloat16, the checkpoint's dtype, in which it is saved:"
        assert any(told in message for message in caplog.messages) is lost


def test_trained_as_it_is_on_request_with_a_warning(model, caplog):
    with caplog.at_level(logging.WARNING):
        adapted = full(model(torch.bfloat16), trainable_dtype=TrainableDtype.checkpoint)
    assert set(types(adapted).values()) == {torch.bfloat16}
    assert any("finetune.trainable_dtype=checkpoint: weights are trained in bfloat16" in message for message in caplog.messages)


def test_float16_is_not_trained_as_it_is(model):
    with pytest.raises(ConfigError) as error:
        full(model(torch.float16), trainable_dtype=TrainableDtype.checkpoint)
    assert str(error.value) == (
        "finetune.trainable_dtype: checkpoint, but the weights are in float16, in which Adam's epsilon is 0 and steps become huge. "
        "Use finetune.trainable_dtype=float32, or model.dtype=bfloat16."
    )
