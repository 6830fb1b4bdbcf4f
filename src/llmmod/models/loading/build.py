"""From configuration to model and tokenizer: computes from_pretrained's arguments and calls the configured classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from llmmod.code_arguments import code_refused
from llmmod.config.schema.base import Dtype, Weights
from llmmod.config.schema.model import HubConf, ModelConf, TokenizerConf
from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import PATH_KEY, Checkpoint, check_model_directory, find_checkpoint, hub_arguments, path_of_size, set_proxies
from llmmod.files.paths import resolve_path
from llmmod.instantiate import locate
from llmmod.models.attention.rope import check_scaled, scale_rope
from llmmod.models.attention.shifted import shift_attention
from llmmod.models.loading.load import load_config, load_model
from llmmod.models.loading.quantization import check_quantized, quantization_config, quantized_device_map
from llmmod.models.loading.structure import rebuild_model, set_name
from llmmod.models.loading.tiny import random_model, shrunk_model, tiny_model, tiny_tokenizer
from llmmod.models.loading.tokenizer import TOKENIZER_KEY, set_pad_token
from llmmod.upstream import require_upstream

require_upstream(__name__)

log = logging.getLogger(__name__)

_ATTENTION_KEY = "model.attn_implementation"
_NEEDS_ACCELERATOR = {
    "flash_attention_2": "its kernels are for GPUs",
    "flash_attention_3": "its kernels are for GPUs",
    "flex_attention": "on a CPU it doesn't have a gradient, and compiles for minutes (torch 2.13)",
}


def build_model(conf: ModelConf, *, hub: HubConf, smoke: bool, tokenizer: Any, seed: int = 42) -> Any:
    """The configured model, with the weights of its checkpoint, or random ones.

    Args:
        conf: `model.*`.
        hub: `hub.*`.
        smoke: whether to build a tiny random model of `conf.architecture`, or of the checkpoint's architecture, otherwise as configured.
        tokenizer: of the model's inputs.
        seed: of random weights.

    Raises:
        ConfigError: the checkpoint doesn't exist, or settings contradict each other.
    """
    check_attention(conf.attn_implementation)
    quantized = quantization_config(conf.quantization)
    dtype = None if conf.dtype is Dtype.auto else getattr(torch, conf.dtype.value)
    if smoke or conf.weights is Weights.random:
        model = _random_model(conf, hub, smoke=smoke, tokenizer=tokenizer, seed=seed, dtype=dtype)
        model = rebuild_model(model, quantization_config=quantized) if quantized else model
    else:
        device_map = conf.device_map if quantized is None else quantized_device_map(conf.device_map)
        model = _pretrained_model(conf, hub, dtype=dtype or "auto", quantization_config=quantized, device_map=device_map)
    if quantized:
        check_quantized(model)
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        found = f"the tokenizer has {len(tokenizer)} tokens, but the model has embeddings for {rows}"
        do = "Use the model's own, or set model.config.vocab_size with model.weights=random"
        raise ConfigError(Problem(TOKENIZER_KEY, found, do=do))
    if conf.rope_scaling.type is not None:
        check_scaled(model, conf.rope_scaling.type)
    elif conf.model_max_length is not None:
        _set_context(model.config, conf.model_max_length)
    if conf.shift_attn:
        shift_attention(model, conf.shift_attn_group_size)
    if conf.gradient_checkpointing:
        # Reentrant checkpointing needs inputs that require gradients, which outputs of frozen embeddings don't.
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if conf.print_structure:
        print(model)
    return model


def check_attention(name: str | None) -> None:
    """Refuse an implementation of attention that doesn't work here, before a model is loaded.

    Args:
        name: as in `attn_implementation`; None: transformers' choice.

    Raises:
        ConfigError: it needs an accelerator, which this machine doesn't have.
    """
    if name in _NEEDS_ACCELERATOR and not torch.accelerator.is_available():
        found = f"{name} needs an accelerator: {_NEEDS_ACCELERATOR[name]}"
        raise ConfigError(Problem(_ATTENTION_KEY, found, "Allowed here: sdpa, eager, null"))


def build_tokenizer(conf: TokenizerConf, model: ModelConf, *, hub: HubConf, smoke: bool, extra_tokens: Sequence[str] = ()) -> Any:
    """The configured tokenizer: the model's own, unless another is named.

    Args:
        conf: `tokenizer.*`.
        model: `model.*`.
        hub: `hub.*`.
        smoke: whether this is a rehearsal, without downloads; if the tokenizer isn't on this machine, the project's tiny one is used.
        extra_tokens: special tokens for the tiny one, so that it has those of the render.

    Returns:
        A tokenizer with a padding token.

    Raises:
        ConfigError: the tokenizer doesn't exist.
    """
    tokenizer = _tokenizer(conf, model, replace(hub, offline=hub.offline or smoke), smoke=smoke)
    if tokenizer is None:
        tokenizer = tiny_tokenizer(extra_tokens)
    set_pad_token(tokenizer)
    if model.model_max_length is not None:
        tokenizer.model_max_length = model.model_max_length
    return tokenizer


def model_path(conf: ModelConf) -> str | None:
    """The checkpoint of a model option, as typed.

    Raises:
        ConfigError: the option doesn't have this size.
    """
    return path_of_size(conf.pretrained_model_name_or_path, conf.size, conf.sizes)


def model_checkpoint(conf: ModelConf) -> Checkpoint:
    """The checkpoint of a model option, located.

    Raises:
        ConfigError: it isn't set, or doesn't exist.
    """
    path = model_path(conf)
    if path is None:
        raise ConfigError(Problem(PATH_KEY, "not set", do="Give a hub id or a directory"))
    return find_checkpoint(path, gguf_file=conf.gguf_file, install=conf.install)


def _pretrained_model(conf: ModelConf, hub: HubConf, **arguments: Any) -> Any:
    checkpoint = model_checkpoint(conf)
    check_model_directory(checkpoint)
    arguments |= {"attn_implementation": conf.attn_implementation, "gguf_file": checkpoint.gguf_file}
    given = {name: value for name, value in arguments.items() if value is not None}
    fields = conf.config
    if conf.rope_scaling.type is not None:
        fields = {"config": _scaled(load_config(checkpoint, conf.config, **_where(conf, hub)), conf)}
    elif fields and locate(conf._target_) is load_model:
        load_config(checkpoint, fields, **_where(conf, hub))  # refuses unknown fields with their key, which from_pretrained wouldn't name
    load = locate(conf._target_)
    with code_refused(PATH_KEY, checkpoint.path):
        model = load(checkpoint.path, **given, **_where(conf, hub), **fields, **conf.kwargs)
    # The path as typed, not its place on this machine, since adapters save it as their base.
    set_name(model, str(model_path(conf)))
    return model


def _prepared(config: Any, conf: ModelConf) -> Any:
    """The configuration for a new model, with scaled positions and its attention set in place."""
    if conf.attn_implementation is not None:
        config._attn_implementation = conf.attn_implementation
    return _scaled(config, conf)


def _scaled(config: Any, conf: ModelConf) -> Any:
    """A configuration with its positions scaled in place if configured."""
    scaling = conf.rope_scaling
    if scaling.type is not None:
        scale_rope(config, kind=scaling.type, factor=scaling.factor, max_length=conf.model_max_length)
    return config


def _random_model(conf: ModelConf, hub: HubConf, *, smoke: bool, tokenizer: Any, seed: int, dtype: torch.dtype | None) -> Any:
    if smoke:
        path = model_path(conf)
        if path is not None and _is_installed(path):
            check_model_directory(model_checkpoint(conf))  # a hub id is accepted without a download
        named = {"tokenizer": tokenizer, "seed": seed, "dtype": dtype, "prepare": lambda config: _prepared(config, conf)}
        if conf.architecture or path is None:
            return tiny_model(conf.architecture, **named)
        return shrunk_model(_own_config(conf, hub), **named)
    checkpoint = model_checkpoint(conf)
    check_model_directory(checkpoint, weights=False)
    config = _prepared(load_config(checkpoint, conf.config, **_where(conf, hub)), conf)
    return random_model(config, seed=seed, dtype=dtype)


def _own_config(conf: ModelConf, hub: HubConf) -> Any:
    """The configuration of a checkpoint on this machine, without a download."""
    checkpoint = model_checkpoint(conf)
    check_model_directory(checkpoint, weights=False)
    try:
        return load_config(checkpoint, conf.config, **_where(conf, replace(hub, offline=True)))
    except ConfigError as error:
        if checkpoint.local:
            raise
        what = f"config.json of '{checkpoint.path}', which has the architecture"
        found = f"{what}, isn't on this machine, and a rehearsal doesn't download files"
        do = "Give a directory, or model.architecture={model_type: …}, or choose the model's own option"
        raise ConfigError(Problem(PATH_KEY, found, do=do)) from error


def _tokenizer(conf: TokenizerConf, model: ModelConf, hub: HubConf, *, smoke: bool) -> Any:
    """The tokenizer, or None if a rehearsal doesn't find it on this machine. Files that the user names must be valid in a rehearsal too."""
    own = conf.pretrained_model_name_or_path is None
    path = model_path(model) if own else conf.pretrained_model_name_or_path
    key = PATH_KEY if own else TOKENIZER_KEY
    if smoke and (path is None or not _is_installed(path)):
        return None
    checkpoint = model_checkpoint(model) if own else find_checkpoint(str(path), key=key)
    where = _where(model if own else replace(model, revision=None), hub)
    gguf = {"gguf_file": checkpoint.gguf_file} if checkpoint.gguf_file else {}
    try:
        load = locate(conf._target_)
        with code_refused(PATH_KEY, checkpoint.path):
            return load(checkpoint.path, **gguf, **where, **conf.kwargs)
    except ConfigError as error:
        if smoke and not checkpoint.local:
            return None
        renamed = [replace(p, key=p.key.replace(PATH_KEY, key), do=p.do.replace(PATH_KEY, key)) for p in error.problems]
        raise ConfigError(renamed) from error


def _is_installed(path: str) -> bool:
    """Whether the package of a `pkg://` path is installed; true for any other path."""
    try:
        resolve_path(path)
    except ConfigError:
        return False
    return True


def _where(conf: ModelConf, hub: HubConf) -> dict[str, Any]:
    """The arguments about the place of files and access to them, the same for every from_pretrained."""
    set_proxies(hub.proxies)
    given = {"revision": conf.revision, "trust_remote_code": conf.trust_remote_code or None}
    return {name: value for name, value in given.items() if value is not None} | hub_arguments(hub)


def _set_context(config: Any, length: int) -> None:
    """Set the model's maximum length to `length` tokens; a smaller one than the model's is only set for the tokenizer."""
    text = config.get_text_config()
    own = getattr(text, "max_position_embeddings", None)
    if own is None or length <= own:
        return
    if getattr(text, "rope_parameters", None) is None:
        found = f"{length} tokens, but this model has {own} learned positions and can't have more"
        raise ConfigError(Problem("model.model_max_length", found))
    log.warning("model.model_max_length=%d is beyond the %d positions that the model was trained on; see model.rope_scaling.", length, own)
    text.max_position_embeddings = length
