"""Adapters merged into full-precision weights: what `export` writes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from llmmod.models.lora.config import quiet_peft
from llmmod.models.quantize import is_quantized_layer, unpacked_weight
from llmmod.models.rebuild import rebuilt


def merged(model: Any) -> Any:
    """A plain model on the CPU that computes what a model and its adapters compute together.

    The original stays as it is and usable; weights that no adapter changes are shared with it where it is on the CPU and not quantized.
    From 4 or 8 bit the weights are unpacked first and the adapters merged into those: what the quantized model computes with, less
    8 bit's rounding of activations.

    Args:
        model: a PeftModel, or a PreTrainedModel without adapters.

    Returns:
        A PreTrainedModel with nothing of peft or bitsandbytes in it; it is written by `save_pretrained`, and in its config's dtype.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    plain = rebuilt(base, _plain_state(base), dtype=_dtype(base))
    if not isinstance(model, PeftModel):
        return plain.eval()
    _untie_where_adapted(base, plain)
    name = model.active_adapter
    with quiet_peft():
        adapted = PeftModel(plain, _mergeable(model.peft_config[name]), autocast_adapter_dtype=True)
    # Neither embeddings nor a hub are asked for: what the adapter holds is all that is copied.
    set_peft_model_state_dict(adapted, get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            _merge_in_float32(layer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        # `safe_merge` adds to a copy of each weight, rather than to the one that is shared with the original.
        return adapted.merge_and_unload(safe_merge=True).eval()


def _merge_in_float32(layer: Any) -> None:
    """Merge the adapter of one layer of 16 bits, rounding once: peft (0.21) rounds matrices, their product and the sum, each anew."""
    weight = getattr(layer.get_base_layer(), "weight", None)
    if weight is not None and weight.dtype in (torch.float16, torch.bfloat16):
        own = weight.dtype
        weight.data = weight.data.float()
        layer.merge(safe_merge=True)
        weight = layer.get_base_layer().weight
        weight.data = weight.data.to(own)


def divergence(model: Any, other: Any, ids: Sequence[int]) -> float:
    """How far apart two language models are on a text: the mean KL divergence of their next-token distributions, nats a token.

    Args:
        model: whose distribution is the true one.
        other: perhaps on another device.
        ids: of the text.
    """
    was_training = model.training
    with torch.no_grad():
        true, found = (m.eval()(torch.tensor([list(ids)], device=m.device)).logits[0].double().cpu() for m in (model, other))
    model.train(was_training)
    return functional.kl_div(found.log_softmax(-1), true.log_softmax(-1), log_target=True, reduction="batchmean").item()


def _untie_where_adapted(base: Any, plain: Any) -> None:
    """Give head and embeddings a weight each where they share one and an adapter changes only one of them, or both differently."""
    embeddings = (base.get_input_embeddings(), base.get_output_embeddings())
    if embeddings[1] is not None and base.config.tie_word_embeddings and any(isinstance(module, BaseTunerLayer) for module in embeddings):
        plain.config.tie_word_embeddings = False
        head = plain.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())


def _plain_state(base: Any) -> dict[str, torch.Tensor]:
    """Parameter name -> tensor of the model under the adapters, on the CPU, quantized weights unpacked."""
    with torch.device("meta"):
        empty = type(base)(base.config)
    names, turned = empty.state_dict().keys(), {name for name, module in empty.named_modules() if isinstance(module, Conv1D)}
    in_float32 = tuple(f"{name}." for name in base._keep_in_fp32_modules_strict or ())
    state, own_dtype = {}, _dtype(base)
    for module_name, module in base.named_modules():
        # peft keeps a layer it wraps under one of these names.
        plain_name = module_name
        for wrapper in (".token_adapter.base_layer", ".base_layer", ".original_module"):
            plain_name = plain_name.replace(wrapper, "")
        own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        for name, tensor in own.items():
            full_name = f"{plain_name}.{name}".lstrip(".")
            if full_name in names:
                value = unpacked_weight(module) if name == "weight" else tensor
                if name == "weight" and plain_name in turned and is_quantized_layer(module):
                    value = value.T.contiguous()  # quantizing makes of GPT-2's Conv1D [in, out] a linear layer [out, in]
                dtype = torch.float32 if full_name.startswith(in_float32) else own_dtype
                state[full_name] = value.detach().to("cpu", dtype)
    return state


def _dtype(base: Any) -> torch.dtype:
    """The type its weights had: preparing quantized weights for training turns all others to float32, and head or norms may be upcast."""
    if getattr(base, "hf_quantizer", None) is None:
        shared = {id(getattr(module, "weight", None)) for module in (base.get_input_embeddings(), base.get_output_embeddings())}
        layers = [parameter for name, parameter in base.named_parameters() if id(parameter) not in shared and ".lora_" not in name]
        return max(layers, key=torch.numel).dtype
    chosen: Any = base.config.dtype
    return chosen if isinstance(chosen, torch.dtype) else getattr(torch, str(chosen))  # type: ignore[no-any-return]


def _mergeable(config: Any) -> Any:
    """An adapter's configuration that leaves the base as it is: PiSSA and its like take their first values out of it."""
    config = copy.deepcopy(config)
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False
    return config
