"""Reward models from the disk, and a reward adapter that shares the base of the model that is trained.

`load_reward_model` loads a full model's directory, or an adapter with its head; without a head it is an error. `shared_base_reward` adds a
reward adapter to the model with the trained adapter, on one base in memory, with a separate head; PPO scores with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from llmmod.config.schema.model import QuantizationConf
from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import PATH_KEY, Checkpoint, check_model_directory, find_checkpoint
from llmmod.files.paths import resolve_path
from llmmod.models.adapters.base_changing_init import base_biases, changes_base
from llmmod.models.adapters.load import load_adapter, merge_adapters, read_adapter
from llmmod.models.adapters.lora import quiet_peft
from llmmod.models.attention.rope import use_per_sequence_rope
from llmmod.models.families.convert import native_adapter
from llmmod.models.families.native import warn_beyond_trained_length
from llmmod.models.loading.load import WHERE, explain_loading_errors, is_reward_checkpoint, load_config, load_model, read_config
from llmmod.models.loading.quantization import plain_linears, quantization_config, quantized_device_map, with_float32_parts
from llmmod.models.loading.stage_file import read_stage_file
from llmmod.models.loading.structure import set_name
from llmmod.models.reward import HEAD, head_scores, last_tokens, mark_trained, require_head, reward_class, trunk_inputs, with_reward_head
from llmmod.protocols import ModelLineage, resolve_from


class SharedBaseReward:
    """A reward model that shares a language model's trunk, with its own adapter; `models.reward.score` scores with it.

    Args:
        model: the PeftModel that is trained. After each score it is unchanged.
        name: of the reward adapter in it.
        head: its head.
    """

    def __init__(self, model: Any, name: str, head: nn.Module) -> None:
        self.model, self.name, self.head = model, name, head

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> SequenceClassifierOutputWithPast:
        """Scores of a batch padded on either side, `logits` float32 [batch, 1]; see `models.reward.score`."""
        trunk = self.model.get_base_model().base_model
        with using_adapter(self.model, self.name):
            given = trunk_inputs(trunk, input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            hidden = trunk(**given)[0]  # [batch, seq, channels]
        return SequenceClassifierOutputWithPast(logits=head_scores(self.head, last_tokens(hidden, attention_mask)))


def can_share_base(path: str, model: Any, *, key: str) -> bool:
    """Whether a reward adapter that was trained on a PeftModel's base can be added to this model.

    Not if the reward model has trained biases or modules, of which peft 0.21 supports one set per model; and not if the policy's adapter
    was initialised from the base's weights, which have changed then.
    """
    config, _ = read_adapter(path, key)
    own = getattr(config, "bias", "none") != "none" or set(config.modules_to_save or ()) - {HEAD}
    return not own and not changes_base(getattr(model.active_peft_config, "init_lora_weights", None))


def shared_base_reward(model: Any, path: str, *, name: str = "reward", key: str = "training.reward_model") -> SharedBaseReward:
    """A trained reward adapter, added to a model with other adapters; its base isn't loaded again.

    Args:
        model: a PeftModel of a causal language model, on the base that the reward adapter was trained on.
        path: the reward adapter's directory, as `stage=rm` wrote it.
        name: of the adapter within the model.
        key: the configuration key that the path was typed for.

    Raises:
        ConfigError: the adapter doesn't exist, doesn't have a reward head, or doesn't fit the model.
    """
    config, state = read_adapter(path, key)
    base = model.get_base_model()
    heads = {place: tensor for place, tensor in state.items() if place.split(".")[-2:-1] == [HEAD]}
    if len(heads) != 1:
        raise ConfigError(Problem(key, f"the adapter '{path}' doesn't have a reward head", do="Give one trained by stage=rm"))
    state = native_adapter(base, config, {place: tensor for place, tensor in state.items() if place not in heads})
    config.modules_to_save, config.task_type, config.inference_mode, config.init_lora_weights = None, None, True, False
    with _kept(model), quiet_peft():
        model.add_adapter(name, config)
        result = set_peft_model_state_dict(model, state, adapter_name=name)
    missing = [place for place in result.missing_keys if f".{name}." in place]
    if missing or result.unexpected_keys:
        odd = f"{len(missing)} of its weights are missing, {len(result.unexpected_keys)} are unexpected"
        raise ConfigError(Problem(key, f"the adapter '{path}' doesn't fit {type(base).__name__}: {odd}"))
    weight = next(iter(heads.values())).float()
    head = nn.Linear(weight.shape[1], 1, bias=False, dtype=torch.float32)
    head.weight = nn.Parameter(weight, requires_grad=False)
    return SharedBaseReward(model, name, head.to(next(base.parameters()).device))


@contextmanager
def using_adapter(model: Any, name: str) -> Iterator[None]:
    """A context in which a PeftModel computes with another of its adapters, without dropout.

    Biases that are trained with its own adapter have the base's values meanwhile.
    """
    training = model.training
    with base_biases(model), _kept(model):
        model.set_adapter(name, inference_mode=True)
        model.eval()
        try:
            yield
        finally:
            model.train(training)


@contextmanager
def _kept(model: Any) -> Iterator[None]:
    """A context that restores the active adapters and the trained parameters at its end."""
    active, flags = model.active_adapter, [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        model.set_adapter(active, inference_mode=True)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def load_reward_model(path: str, *, key: str = PATH_KEY, **arguments: Any) -> Any:
    """A reward model with its trained head, in evaluation mode; `models.reward.score` scores with it.

    Args:
        path: a reward model's directory or hub id, or the directory of an adapter trained by `stage=rm`; the adapter gets the base that it
            was trained on, with the same quantization and earlier adapters.
        key: the configuration key that the path was typed for.
        arguments: those of from_pretrained, for the model's weights.

    Returns:
        A PreTrainedModel, or a PeftModel around one.

    Raises:
        ConfigError: the checkpoint doesn't exist, is of another kind, or doesn't have a head.
    """
    located = resolve_path(path, key=key)
    if isinstance(located, Path) and (located / "adapter_config.json").is_file():
        adapted = load_adapter(with_reward_head(_under(located, path, key, arguments)), path, key=key)
        require_head(adapted)
        return adapted
    checkpoint = find_checkpoint(path, key=key)
    check_model_directory(checkpoint, key=key)
    return _full(checkpoint, path, key, dict(arguments))


def _full(checkpoint: Checkpoint, path: str, key: str, arguments: dict[str, Any]) -> Any:
    where = {name: arguments[name] for name in WHERE if name in arguments}
    raw, config = read_config(checkpoint, **where), arguments.pop("config", None)
    if not is_reward_checkpoint(raw):
        raise ConfigError(Problem(key, f"'{path}' is not a reward model: it doesn't have a reward head", do="Train one: stage=rm"))
    config = load_config(checkpoint, {}, **where) if config is None else config
    if len(raw.get("id2label") or {0: ""}) != 1:
        raise ConfigError(Problem(key, f"'{path}' classifies into {len(raw['id2label'])} classes, but a reward is one number"))
    config.num_labels = 1
    source, own_linears = checkpoint.path, config.model_type if arguments.get("quantization_config") else ""
    with explain_loading_errors(checkpoint, arguments, key), plain_linears(own_linears):
        model, info = reward_class(config).from_pretrained(source, config=config, **{**arguments, "output_loading_info": True})
    missing = sorted(info["missing_keys"])
    if missing:
        lacks = "its reward head" if any(name.startswith(f"{HEAD}.") for name in missing) else f"{len(missing)} of its weights"
        raise ConfigError(Problem(key, f"'{path}' lacks {lacks}, among them {missing[0]}; with random values it would give random scores"))
    set_name(model, path)
    use_per_sequence_rope(model)
    warn_beyond_trained_length(model)
    mark_trained(model)
    return (model, info) if arguments.get("output_loading_info") else model


def _under(directory: Path, path: str, key: str, arguments: dict[str, Any]) -> Any:
    """The base that an adapter was trained on, loaded with the same quantization and earlier adapters."""
    left = read_stage_file(directory)
    lineage = ModelLineage(None, []) if left is None else left.lineage
    base = lineage.base or read_adapter(path, key)[0].base_model_name_or_path
    if not base:
        raise ConfigError(Problem(key, f"the adapter '{path}' doesn't say which model it was trained on", do="Train one: stage=rm"))
    given: dict[str, Any] = {} if lineage.gguf_file is None else {"gguf_file": lineage.gguf_file}
    if lineage.quantization is not None:
        config = quantization_config(QuantizationConf(**lineage.quantization))
        given |= {"quantization_config": config, "device_map": quantized_device_map(arguments.get("device_map"))}
    model = load_model(resolve_from(base, directory), **{**arguments, **given})
    return merge_adapters(with_float32_parts(model), [resolve_from(name, directory) for name in lineage.merged])
