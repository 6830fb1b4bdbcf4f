"""Each way to fine-tune: the names of the parameters that it trains, and its errors."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

from llmmod.config.schema.model import FreezeConf, FullConf, LoraConf, QuantizationConf
from llmmod.errors import ConfigError
from llmmod.models.adapters.setup import setup_freeze, setup_full, setup_inference, setup_lora
from llmmod.models.loading.quantization import quantization_config
from llmmod.models.loading.structure import rebuild_model
from llmmod.models.loading.tiny import tiny_model

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def lora(**fields):
    return LoraConf(**{"name": "lora", "r": 4, "task_type": "CAUSAL_LM", "target_modules": "all-linear"} | fields)


def trained(model):
    return {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}


def adapters(*projections):
    blocks = {p: "self_attn" if p[0] in "qkvo" else "mlp" for p in projections}
    return {f"model.layers.{n}.{block}.{p}.lora_{matrix}.default.weight" for n in (0, 1) for p, block in blocks.items() for matrix in "AB"}


def step(model, ids):
    """The loss before and after a step of plain gradient descent."""
    before = model.train()(input_ids=ids, labels=ids).loss
    before.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p -= 0.5 * p.grad
    return before.item(), model(input_ids=ids, labels=ids).loss.item()


def test_full(tiny_llama):
    tiny_llama.requires_grad_(False)
    assert trained(setup_full(tiny_llama, FullConf(name="full"))) == {name for name, _ in tiny_llama.named_parameters()}


def test_freeze(tiny_llama):
    conf = FreezeConf(name="freeze", num_layers_trainable=-1, name_module_trainable=["self_attn"], extra_trainable=["norm"])
    expected = {f"model.layers.0.self_attn.{p}.weight" for p in PROJECTIONS[:4]} | {"model.norm.weight"}
    assert trained(setup_freeze(tiny_llama, conf)) == expected


@pytest.mark.parametrize(("count", "layers"), [(3, {0, 1}), (-24, {0, 1}), (1, {1})])
def test_a_rehearsal_trains_no_more_layers_than_its_stand_in_has(tiny_tokenizer, count, layers):
    architecture = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = tiny_model(architecture, tokenizer=tiny_tokenizer, seed=0)
    conf = FreezeConf(name="freeze", num_layers_trainable=count, name_module_trainable=["mlp"])
    assert {int(name.split(".")[2]) for name in trained(setup_freeze(model, conf))} == layers


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        pytest.param("all-linear", PROJECTIONS, id="all but the head"),
        pytest.param(["q_proj", "v_proj"], ("q_proj", "v_proj"), id="named"),
        pytest.param(".*mlp.(up|down)_proj", ("up_proj", "down_proj"), id="a regular expression"),
    ],
)
def test_lora(tiny_llama, targets, expected):
    assert trained(setup_lora(tiny_llama, lora(target_modules=targets))) == adapters(*expected)


def test_a_target_by_its_whole_name(tiny_llama):
    model = setup_lora(tiny_llama, lora(target_modules=["layers.1.mlp.up_proj"]))
    assert trained(model) == {f"model.layers.1.mlp.up_proj.lora_{m}.default.weight" for m in "AB"}


@pytest.mark.parametrize("targets", [["c_fc", "q_proj"], "c_fc"], ids=["beside one that exists", "alone"])
def test_a_target_that_does_not_exist_names_those_that_do(tiny_llama, targets):
    with pytest.raises(ConfigError) as error:
        setup_lora(tiny_llama, lora(target_modules=targets))
    assert str(error.value) == (
        "finetune.target_modules: LlamaForCausalLM doesn't have a module 'c_fc'. "
        "Allowed: down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj. Or use all: all-linear."
    )


def test_a_misspelt_target_has_a_nearest(tiny_llama):
    with pytest.raises(ConfigError, match=r"doesn't have a module 'q_porj'. Did you mean 'q_proj'\? Linear layers: down_proj"):
        setup_lora(tiny_llama, lora(target_modules=["q_porj"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_are_float32_on_weights_of_16_bits(tiny_llama, dtype, ids):
    model = setup_lora(tiny_llama.to(dtype), lora())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model(input_ids=ids).logits.dtype is dtype


@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_on_quantized_weights_learn(tiny_llama, bits, ids):
    quantized = rebuild_model(tiny_llama, quantization_config=quantization_config(QuantizationConf(bits=bits)))
    model = setup_lora(quantized, lora())
    assert trained(model) == adapters(*PROJECTIONS)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    before, after = step(model, ids)
    assert after < before


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("adapt", "conf"), [(setup_full, FullConf(name="full")), (setup_freeze, FreezeConf(name="freeze"))], ids=["full", "freeze"]
)
def test_quantized_weights_are_trained_by_adapters_alone(tiny_llama, adapt, conf, bits):
    quantized = rebuild_model(tiny_llama, quantization_config=quantization_config(QuantizationConf(bits=bits)))
    with pytest.raises(ConfigError, match=rf"model.quantization.bits: .*finetune={conf.name}. Use finetune=qlora"):
        adapt(quantized, conf)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"use_rslora": True}, id="rslora"),
        pytest.param({"use_dora": True}, id="dora"),
        pytest.param({"init_lora_weights": "pissa"}, id="pissa"),
        pytest.param({"bias": "lora_only", "rank_pattern": {"q_proj": 2}}, id="rank pattern"),
        pytest.param({"modules_to_save": ["lm_head"]}, id="modules to save"),
    ],
)
def test_pefts_own_fields_train(tiny_llama, fields, ids):
    before, after = step(setup_lora(tiny_llama, lora(**fields)), ids)
    assert after < before


def test_norms_are_upcast_on_request(tiny_llama, ids):
    model = setup_lora(tiny_llama.bfloat16(), lora(upcast_layernorm=True))
    assert model.get_base_model().model.norm.weight.dtype is torch.float32
    before, after = step(model, ids)
    assert after < before


@pytest.mark.parametrize("fields", [{}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head"]}], ids=str)
def test_the_head_is_upcast_on_request(tiny_llama, ids, fields):
    model = setup_lora(tiny_llama.bfloat16(), lora(upcast_head=True, **fields))
    assert model.get_output_embeddings().weight.dtype is torch.float32
    assert model.get_base_model().model.layers[0].mlp.up_proj.weight.dtype is torch.bfloat16
    assert model(input_ids=ids).logits.dtype is torch.float32
    before, after = step(model, ids)
    assert after < before


def test_checkpointing_that_is_on_gives_adapters_the_same_gradients(tiny_llama, ids):
    torch.manual_seed(0)
    model = setup_lora(tiny_llama, lora(init_lora_weights=False)).train()
    model(input_ids=ids, labels=ids).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    model.get_base_model().activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model(input_ids=ids, labels=ids).loss.backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, plain[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_trainer_may_turn_checkpointing_on(tiny_llama, ids, tmp_path, reentrant):
    tiny_llama.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    model = setup_lora(tiny_llama, lora())
    arguments = TrainingArguments(
        tmp_path, max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True, gradient_checkpointing=True, learning_rate=0.1,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant}, logging_strategy="no", save_strategy="no",
    )  # fmt: skip
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in ids]
    Trainer(model, arguments, train_dataset=rows).train()
    assert all(p.abs().sum() > 0 for name, p in model.named_parameters() if "lora_B" in name)


def test_resuming_nothing_is_refused(tiny_llama):
    with pytest.raises(ConfigError, match=r"finetune.resume_adapter: true, but finetune.adapters is empty"):
        setup_lora(tiny_llama, lora(resume_adapter=True))


def test_without_adapters_a_model_is_used_as_it_is(tiny_llama):
    assert setup_inference(tiny_llama, lora()) is tiny_llama
