"""Merging adapters into weights, and adapters that stay active on quantized weights while a newer one is trained.

`merged_copy` returns a plain model in full precision, for `export`. `merge_or_stack` returns the base for further training.

A merge into quantized weights would round the sum to 4 or 8 bits again. Most changes of an adapter are smaller than half a step of that
grid and would be lost: of a change of 1 % of the weights' standard deviation, 1.6 % remains (NF4). So a quantized layer has a list of
frozen adapters and adds their outputs to its own, as peft does for an active adapter. For other code the layer is unchanged: a new
PeftModel goes on top, its `disable_adapter` leaves the earlier adapters active, and `save_pretrained` writes only the new one. Weights that
aren't quantized (embeddings, head, `modules_to_save`) are merged or replaced as usual.

peft could also have several active adapters in one PeftModel. Then every `disable_adapter`, `save_pretrained` and `active_adapter` of trl,
transformers and ours would have to select one of them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from llmmod.errors import ConfigError, Problem
from llmmod.models.adapters.lora import quiet_peft
from llmmod.models.loading.quantization import STACKED, dequantized_weight, is_quantized_layer
from llmmod.models.loading.structure import base_model, rebuild_model
from llmmod.upstream import require_upstream

require_upstream(__name__)


def merged_copy(model: Any) -> Any:
    """A plain model on the CPU that computes the same as a model with its adapters.

    The original stays unchanged and usable; weights without adapters are shared with it if it is on the CPU and not quantized. Weights in 4
    or 8 bit are unpacked first, and the adapters merged into those: the same weights as in the quantized model, without 8 bit's rounding of
    activations.

    Args:
        model: a PeftModel, or a PreTrainedModel without adapters.

    Returns:
        A PreTrainedModel without modules of peft or bitsandbytes, in its config's dtype; `save_pretrained` writes it.
    """
    base = base_model(model)
    plain = rebuild_model(base, _plain_state(base), dtype=_dtype(base))
    if not isinstance(model, PeftModel):
        return plain.eval()
    _untie_where_adapted(base, plain)
    name = model.active_adapter
    config = copy.deepcopy(model.peft_config[name])
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False  # PiSSA and similar ones would take initial values from the base
    with quiet_peft():
        adapted = PeftModel(plain, config, autocast_adapter_dtype=True)
    # Without embeddings and without the hub: only the adapter's values are copied.
    set_peft_model_state_dict(adapted, get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            _merge_in_float32(layer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        # `safe_merge` adds to a copy of each weight, since the original shares the weight.
        return adapted.merge_and_unload(safe_merge=True).eval()


def _merge_in_float32(layer: Any) -> None:
    """Merge the adapter of a layer in 16 bits with one rounding: peft (0.21) rounds the matrices, their product and the sum separately."""
    weight = getattr(layer.get_base_layer(), "weight", None)
    if weight is not None and weight.dtype in (torch.float16, torch.bfloat16):
        own = weight.dtype
        weight.data = weight.data.float()
        layer.merge(safe_merge=True)
        weight = layer.get_base_layer().weight
        weight.data = weight.data.to(own)


def divergence(model: Any, other: Any, ids: Sequence[int]) -> float:
    """The mean KL divergence of two language models' next-token distributions on a text, in nats per token.

    Args:
        model: with the true distribution.
        other: may be on another device.
        ids: of the text.
    """
    was_training = model.training
    with torch.no_grad():
        true, found = (m.eval()(torch.tensor([list(ids)], device=m.device)).logits[0].cpu().double() for m in (model, other))
    model.train(was_training)
    return functional.kl_div(found.log_softmax(-1), true.log_softmax(-1), log_target=True, reduction="batchmean").item()


def _untie_where_adapted(base: Any, plain: Any) -> None:
    """Untie head and embeddings if an adapter changes only one of them, or both differently."""
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
        # peft stores a wrapped layer under one of these names.
        plain_name = module_name
        for wrapper in (".token_adapter.base_layer", ".base_layer", ".original_module"):
            plain_name = plain_name.replace(wrapper, "")
        own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        for name, tensor in own.items():
            full_name = f"{plain_name}.{name}".lstrip(".")
            if full_name in names:
                value = dequantized_weight(module) if name == "weight" else tensor
                if name == "weight" and plain_name in turned and is_quantized_layer(module):
                    value = value.T.contiguous()  # quantization turns GPT-2's Conv1D [in, out] into a linear layer [out, in]
                dtype = torch.float32 if full_name.startswith(in_float32) else own_dtype
                state[full_name] = value.detach().to("cpu", dtype)
    return state


def _dtype(base: Any) -> torch.dtype:
    """The original dtype of its weights: preparing quantized weights for training converts all others to float32, as upcasts do."""
    if getattr(base, "hf_quantizer", None) is None:
        shared = {id(getattr(module, "weight", None)) for module in (base.get_input_embeddings(), base.get_output_embeddings())}
        layers = [parameter for name, parameter in base.named_parameters() if id(parameter) not in shared and ".lora_" not in name]
        return max(layers, key=torch.numel).dtype
    chosen: Any = base.config.dtype
    return chosen if isinstance(chosen, torch.dtype) else getattr(torch, str(chosen))  # type: ignore[no-any-return]


class StackedAdapter(nn.Module):
    """A frozen adapter of one linear layer, without dropout: B A x * scaling, and DoRA's factor of each output channel.

    Args:
        down: [r, in].
        up: [out, r].
        scaling: of their product.
        factor: DoRA's magnitudes over the norms of the weight's rows, [out]; None: plain LoRA.
    """

    down: torch.Tensor
    up: torch.Tensor
    factor: torch.Tensor | None

    def __init__(self, down: torch.Tensor, up: torch.Tensor, *, scaling: float, factor: torch.Tensor | None = None) -> None:
        super().__init__()
        self.scaling = scaling
        # Buffers, which aren't trained, counted or cast; they move with the layer and aren't in state dicts.
        self.register_buffer("down", down.detach().clone(), persistent=False)
        self.register_buffer("up", up.detach().clone(), persistent=False)
        self.register_buffer("factor", None if factor is None else factor.detach().clone(), persistent=False)

    def forward(self, x: torch.Tensor, result: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The layer's output with this adapter, [..., out].

        Args:
            x: the layer's input, [..., in].
            result: its output so far, bias included.
            bias: [out].
        """
        low = functional.linear(functional.linear(x.to(self.down.dtype), self.down), self.up) * self.scaling
        if self.factor is None:
            return result + low.to(result.dtype)
        without = result if bias is None else result - bias
        total = (self.factor * (without + low)).to(result.dtype)
        return total if bias is None else total + bias

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight that computes the same, [out, in], float32."""
        total = weight.float() + self.scaling * (self.up.float() @ self.down.float())
        return total if self.factor is None else self.factor.float()[:, None] * total


def merge_or_stack(adapted: Any) -> Any:
    """The base model of a PeftModel with its active adapter merged, or stacked on weights that are quantized.

    Args:
        adapted: can't be used afterwards.

    Returns:
        A PreTrainedModel. On quantized weights it computes the same as the PeftModel, except for rounding of the last bits.

    Raises:
        ConfigError: this kind of adapter can't be stacked.
    """
    for name, layer in list(adapted.named_modules()):
        if isinstance(layer, LoraLayer) and is_quantized_layer(base := layer.get_base_layer()):
            for adapter in layer.active_adapters:
                if adapter in layer.lora_A:
                    _stack(base, layer, adapter)
            place, _, own_name = name.rpartition(".")
            setattr(adapted.get_submodule(place), own_name, base)
    with quiet_peft():
        return adapted.merge_and_unload()


def use_stacked_norms(adapted: Any, *, new: bool) -> None:
    """Set DoRA to compute norms of weights with their stacked adapters; changes a PeftModel in place.

    peft 0.21 computes norms of the quantized weight only, so an exported model would differ.

    Args:
        adapted: new.
        new: whether its magnitudes start with these norms, instead of a file's values.
    """
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer) and hasattr(layer.get_base_layer(), STACKED):
            for magnitude in layer.lora_magnitude_vector.values():
                magnitude.__class__ = _DoraOnStacked
                if new:
                    norms = torch.linalg.norm(dequantized_weight(layer.get_base_layer()), dim=1)
                    magnitude.weight.data = norms.to(magnitude.weight)


class _DoraOnStacked(DoraLinearLayer):
    """DoRA's magnitudes on a layer with stacked adapters."""

    def forward(self, x: torch.Tensor, *, base_layer: nn.Module, **given: Any) -> torch.Tensor:
        weight = nn.Parameter(dequantized_weight(base_layer).to(x.dtype), requires_grad=False)
        return super().forward(x, base_layer=SimpleNamespace(weight=weight, bias=base_layer.bias), **given)  # type: ignore[no-any-return]


def _stack(base: Any, layer: Any, adapter: str) -> None:
    low, high, scaling = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter]
    factor = None
    if adapter in layer.lora_magnitude_vector:
        whole = dequantized_weight(base).float() + scaling * (high.float() @ low.float())
        factor = layer.lora_magnitude_vector[adapter].weight / torch.linalg.norm(whole, dim=1)
    elif adapter in layer.lora_variant:
        found = f"an adapter of a kind ({type(layer.lora_variant[adapter]).__name__}) that can't stay beside quantized weights"
        raise ConfigError(Problem("finetune.adapters", found, do="Use model.quantization.bits=null"))
    if (shift := layer.lora_B[adapter].bias) is not None:
        if base.bias is None:
            found = "an adapter with lora_bias on quantized layers without a bias of their own"
            raise ConfigError(Problem("finetune.adapters", found, do="Use model.quantization.bits=null"))
        base.bias.data = base.bias.data + (scaling * shift.data).to(base.bias)
    if not hasattr(base, STACKED):
        setattr(base, STACKED, nn.ModuleList())
        # A hook, since accelerate replaces `forward` of the layers of a model with a device map.
        base.register_forward_hook(_with_stacked)
    getattr(base, STACKED).append(StackedAdapter(low, high, scaling=scaling, factor=factor))


def _with_stacked(layer: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    for adapter in getattr(layer, STACKED):
        output = adapter(inputs[0], output, layer.bias)
    return output
