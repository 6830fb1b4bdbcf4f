"""A tiny model set up for each way to fine-tune, and changed as by a training."""

from __future__ import annotations

from copy import deepcopy

import torch

WAYS = ("full", "freeze", "lora", "qlora")
# A tiny random model can learn little with frozen embeddings.
FREEZE = {"num_layers_trainable": 1, "extra_trainable": ["embed_tokens", "norm"]}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
EMBEDDINGS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"]


def untrained(config, way):
    """A Llama with random weights: its first layer only, which learns a toy task; all layers if some of them are to be frozen."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(deepcopy(config))
    if way != "freeze":
        del model.model.layers[1:]
        model.config.num_hidden_layers = 1
    return model


def quantized(model):
    """The model in 4 bits."""
    from llmmod.config.schema.model import QuantizationConf
    from llmmod.models.loading.quantization import quantization_config
    from llmmod.models.loading.structure import rebuild_model

    return rebuild_model(model, quantization_config=quantization_config(QuantizationConf(bits=4)))


def prepared(model, way, *, freeze=None, **lora):
    """The model set up for one way to fine-tune.

    Args:
        freeze: changes of `FREEZE`.
        lora: changes of `LORA`.
    """
    from llmmod.config.schema.model import FreezeConf, FullConf, LoraConf
    from llmmod.models.adapters.setup import setup_freeze, setup_full, setup_lora

    if way == "full":
        return setup_full(model, FullConf(name=way))
    if way == "freeze":
        return setup_freeze(model, FreezeConf(name=way, **FREEZE | (freeze or {})))
    return setup_lora(quantized(model) if way == "qlora" else model, LoraConf(name=way, task_type="CAUSAL_LM", **LORA | lora))


def adapted(model, **changes):
    """The model with a new adapter of peft, the same each time."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | changes))


def moved(model, by=0.02):
    """Change every trained parameter slightly, the same way each time, like a training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return model
