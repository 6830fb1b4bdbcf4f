"""Reward models from the disk: a full model's directory, or an adapter that has the head with it. Without its head there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmmod.beginning import Beginning, seen_from
from llmmod.errors import ConfigError, Problem
from llmmod.models.adapters import attached, read_adapter, with_chain
from llmmod.models.checkpoint import PATH_KEY, Checkpoint, check_model_directory, find_checkpoint
from llmmod.models.families.limits import watch_length
from llmmod.models.load import WHERE, explained, is_reward_checkpoint, load_config, load_model, read_config
from llmmod.models.own_length import keep_own_lengths
from llmmod.models.quantize import plain_linears, quantization_config, quantized_device_map, with_float32_parts
from llmmod.models.rebuild import set_name
from llmmod.models.reward import HEAD, mark_trained, require_head, reward_class, with_reward_head
from llmmod.models.stage_file import read_stage_file
from llmmod.paths import resolve_path
from llmmod.schema.quantization import QuantizationConf


def load_reward_model(path: str, *, key: str = PATH_KEY, **arguments: Any) -> Any:
    """A reward model with its trained head, in evaluation mode; `models.reward.score` scores with it.

    Args:
        path: a reward model's directory or hub id, or the directory of an adapter that was trained by `stage=rm`; that is put on what it
            was trained on: the same quantization, the same earlier adapters.
        key: the configuration key that the path was typed for.
        arguments: those of from_pretrained, for the model's weights.

    Returns:
        A PreTrainedModel, or a PeftModel around one.

    Raises:
        ConfigError: there is no such checkpoint, it is of another kind, or it has no head.
    """
    located = resolve_path(path, key=key)
    if isinstance(located, Path) and (located / "adapter_config.json").is_file():
        adapted = attached(with_reward_head(_under(located, path, key, arguments)), path, key=key)
        require_head(adapted)
        return adapted
    checkpoint = find_checkpoint(path, key=key)
    check_model_directory(checkpoint, key=key)
    return _full(checkpoint, path, key, dict(arguments))


def _full(checkpoint: Checkpoint, path: str, key: str, arguments: dict[str, Any]) -> Any:
    where = {name: arguments[name] for name in WHERE if name in arguments}
    raw, config = read_config(checkpoint, **where), arguments.pop("config", None)
    if not is_reward_checkpoint(raw):
        raise ConfigError(Problem(key, f"'{path}' is no reward model: it has no head that scores", do="Train one: stage=rm"))
    config = load_config(checkpoint, {}, **where) if config is None else config
    if len(raw.get("id2label") or {0: ""}) != 1:
        raise ConfigError(Problem(key, f"'{path}' tells {len(raw['id2label'])} classes apart, and a reward is one number"))
    config.num_labels = 1
    with explained(checkpoint, arguments, key), plain_linears(config.model_type if arguments.get("quantization_config") else ""):
        source = checkpoint.path
        model, info = reward_class(config).from_pretrained(source, config=config, **{**arguments, "output_loading_info": True})
    missing = sorted(info["missing_keys"])
    if missing:
        lacks = "its reward head" if any(name.startswith(f"{HEAD}.") for name in missing) else f"{len(missing)} of its weights"
        raise ConfigError(Problem(key, f"'{path}' lacks {lacks}, among them {missing[0]}; made up, it would score at random"))
    set_name(model, path)
    keep_own_lengths(model)
    watch_length(model)
    mark_trained(model)
    return (model, info) if arguments.get("output_loading_info") else model


def _under(directory: Path, path: str, key: str, arguments: dict[str, Any]) -> Any:
    """What an adapter was trained on, read anew: quantized where it was, with the earlier adapters that were there."""
    left = read_stage_file(directory)
    began = Beginning(None, []) if left is None else left.beginning
    base = began.base or read_adapter(path, key)[0].base_model_name_or_path
    if not base:
        raise ConfigError(Problem(key, f"the adapter '{path}' doesn't say which model it was trained on", do="Train one: stage=rm"))
    given: dict[str, Any] = {} if began.gguf_file is None else {"gguf_file": began.gguf_file}
    if began.quantization is not None:
        config = quantization_config(QuantizationConf(**began.quantization))
        given |= {"quantization_config": config, "device_map": quantized_device_map(arguments.get("device_map"))}
    model = load_model(seen_from(base, directory), **{**arguments, **given})
    return with_chain(with_float32_parts(model), [seen_from(name, directory) for name in began.merged])
