"""Every field of peft's LoraConfig, from the generated schema, either works in each of these steps or is refused before anything is loaded.

The steps: the adapter is trained, saved, loaded on the original base, loaded for a resumed training, trained further and exported, and
transformers alone loads the export. The logits are the same each time.
"""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from llmmod.config.compose import compose_config, to_root
from llmmod.config.schema.generated.lora import LoraConfig
from llmmod.config.validate import validated
from llmmod.errors import ConfigError
from llmmod.models.adapters.base_changing_init import save_for_base
from llmmod.models.adapters.merge import merged_copy
from llmmod.models.adapters.setup import setup_inference, setup_lora

TARGETS = "target_modules=[q_proj,v_proj]"
WORKS = {
    "r": ["r=3"],
    "target_modules": ["target_modules=all-linear"],
    "exclude_modules": ["exclude_modules=[k_proj]"],
    "lora_alpha": ["lora_alpha=5"],
    "lora_dropout": ["lora_dropout=0.3"],
    "bias": ["bias=lora_only"],
    "use_rslora": ["use_rslora=true"],
    "modules_to_save": ["modules_to_save=[embed_tokens]"],
    "init_lora_weights": ["init_lora_weights=pissa"],
    "layers_to_transform": ["layers_to_transform=[1]"],
    "layers_pattern": ["layers_to_transform=[1]", "layers_pattern=layers"],
    "rank_pattern": ["+rank_pattern={q_proj:2}"],
    "alpha_pattern": ["+alpha_pattern={q_proj:5}"],
    "trainable_token_indices": ["trainable_token_indices=[5,6,7]"],
    "loftq_config": ["init_lora_weights=loftq", "+loftq_config={loftq_bits:8}"],
    "use_dora": ["use_dora=true"],
    "velora_config": ["+velora_config={num_groups:4}"],
    "monteclora_config": ["+monteclora_config={num_samples:3}"],
    "runtime_config": ["+runtime_config={ephemeral_gpu_offload:true}"],
    "target_parameters": ["target_modules=[]", "target_parameters=[mlp.experts.gate_up_proj]"],
    "use_bdlora": [TARGETS, "+use_bdlora={nblocks:2,target_modules_bd_a:[q_proj],target_modules_bd_b:[v_proj]}"],
    "kasa_config": ["+kasa_config={}"],
    "ensure_weight_tying": ["modules_to_save=[embed_tokens]", "ensure_weight_tying=true"],
}  # fmt: skip
REFUSED = {
    "task_type": "task_type=SEQ_CLS",
    "peft_type": "peft_type=LOHA",
    "auto_mapping": "+auto_mapping={a:1}",
    "peft_version": "peft_version=0.1",
    "base_model_name_or_path": "base_model_name_or_path=another",
    "revision": "revision=main",
    "inference_mode": "inference_mode=true",
    "fan_in_fan_out": "fan_in_fan_out=true",
    "megatron_config": "+megatron_config={a:1}",
    "megatron_core": "megatron_core=another",
    "eva_config": "+eva_config={rho:1}",
    "corda_config": "+corda_config={cache_file:x}",
    "lora_ga_config": "+lora_ga_config={direction:ArB2r}",
    "alora_invocation_tokens": "alora_invocation_tokens=[5,6]",
    "use_qalora": "use_qalora=true",
    "qalora_group_size": "qalora_group_size=8",
    "layer_replication": "layer_replication=[[0,2],[1,2]]",
    "lora_bias": "lora_bias=true",
    "arrow_config": "+arrow_config={top_k:2}",
}
OF_EMBEDDINGS = ("modules_to_save", "trainable_token_indices", "ensure_weight_tying")
RUN_TIME = {"monteclora_config"}  # samples while it trains


def finetune(*fields):
    keys = [f"+finetune.{field[1:]}" if field.startswith("+") else f"finetune.{field}" for field in fields]
    own = [] if any(field.startswith("r=") for field in fields) else ["finetune.r=4"]
    composed = compose_config(["model=llama2", "finetune=lora", "smoke=true", *own, *keys])
    validated(composed)
    return to_root(composed.config).finetune


def test_every_field_is_here():
    names = {field.name for field in dataclasses.fields(LoraConfig)} - {"_target_"}
    assert WORKS.keys() | REFUSED.keys() == names
    assert not WORKS.keys() & REFUSED.keys()


def tied(model):
    """A model like the given one, but with tied embeddings."""
    torch.manual_seed(0)
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = True
    return type(model)(config).eval()


def mixtral(config):
    torch.manual_seed(0)
    fields = {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    return MixtralForCausalLM(MixtralConfig(**fields, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4)).eval()


def steps(model, ids, count=2):
    torch.manual_seed(0)  # for dropout
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(count):
        model.train()(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("field", [*WORKS, *(f"{field} (tied)" for field in OF_EMBEDDINGS)])
def test_it_works_all_the_way(field, tiny_llama, tmp_path, ids, logits):
    field, _, with_one_weight = field.partition(" ")
    base = mixtral(tiny_llama.config) if field == "target_parameters" else tied(tiny_llama) if with_one_weight else tiny_llama
    untouched = [copy.deepcopy(base) for _ in range(4)]
    conf = finetune(*WORKS[field])
    before = logits(base, ids)
    model = steps(setup_lora(base, conf), ids)
    expected = logits(model, ids)
    assert (expected - before).abs().max() > 1e-3

    def same(found):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5)

    model.save_pretrained(tmp_path / "checkpoint")  # as a trainer saves it
    resumed = setup_lora(untouched[0], conf)
    resumed.load_adapter(str(tmp_path / "checkpoint"), "default", is_trainable=True)
    same(logits(resumed, ids))
    merged_copy(model).save_pretrained(tmp_path / "export")
    same(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "export"), ids))
    same(logits(model, ids))  # the export doesn't change it
    model.save_pretrained(tmp_path / "adapter")
    save_for_base(model, tmp_path / "adapter")
    chosen = dataclasses.replace(conf, adapters=[str(tmp_path / "adapter")])
    same(logits(setup_inference(untouched[1], chosen), ids))
    goes_on = setup_lora(untouched[2], dataclasses.replace(chosen, resume_adapter=True))
    same(logits(goes_on, ids))
    if field not in RUN_TIME:
        assert (logits(steps(goes_on, ids, 1), ids) - expected).abs().max() > 1e-4
    chained = setup_lora(untouched[3], dataclasses.replace(finetune(TARGETS), adapters=[str(tmp_path / "adapter")]))
    same(logits(chained, ids))  # merged, with a new adapter that doesn't change anything yet


@pytest.mark.parametrize("field", REFUSED)
def test_it_is_refused_before_anything_is_loaded(field):
    with pytest.raises(ConfigError) as raised:
        finetune(REFUSED[field])
    assert [problem.key for problem in raised.value.problems] == [f"finetune.{field}"]


@pytest.mark.parametrize("field", ["alora_invocation_tokens", "layer_replication", "lora_bias"])
def test_an_adapter_of_somebody_else_s_that_has_it_is_refused(field, tiny_llama, tmp_path):
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model

    value = {"alora_invocation_tokens": [5, 6], "layer_replication": [(0, 2), (1, 2)], "lora_bias": True}[field]
    config = PeftLora(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **{field: value})
    get_peft_model(copy.deepcopy(tiny_llama), config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"the adapter '.*' has {field}, but "):
        setup_inference(tiny_llama, dataclasses.replace(finetune(), adapters=[str(tmp_path)]))
