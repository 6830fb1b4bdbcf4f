"""Reward models: one number for each text, from a linear head on the trunk of a causal language model.

The class is transformers' `…ForSequenceClassification` with one label and with another `forward`. It finds the last real token by the
attention mask, or by the boundaries of a row that holds several texts (`attention.varlen`). transformers' own `forward` takes the last
token that isn't the padding token, which is one too early where the terminator is also the padding token. Names and files are those of
transformers, so `AutoModelForSequenceClassification` loads what is saved; `set_reward_padding` chooses a padding token with which that
class computes the same scores.

The head is in float32, also where the trunk isn't. It comes from a checkpoint or an adapter. A new head has random weights and is marked
as new; only training accepts such a model.

`adapters.reward_models` loads a reward model, or adds a reward adapter to a model in training. `score` works with both.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import PATH_KEY
from llmmod.models.attention.varlen import BOUNDARIES
from llmmod.models.families.baichuan import BaichuanConfig, BaichuanForSequenceClassification
from llmmod.models.loading.structure import base_model
from llmmod.models.loading.tiny import STAND_IN

HEAD = "score"  # transformers' name of the head in all families
_LANGUAGE_CONFIG = "llmmod_language_config"  # attribute of a reward model: the language model's values of the configuration that both share
_NEW = "head_is_new"  # attribute of a model whose head is random so far


class _Scoring:
    """The `forward` that replaces the one of transformers' class."""

    _keep_in_fp32_modules_strict: ClassVar[set[str]] = {HEAD}

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Scores at the last real token of each text, `logits` float32 [texts, 1].

        Args:
            input_ids: [batch, seq], padded on either side; with `cu_seq_lens_q` one row [1, tokens].
            attention_mask: [batch, seq], 0 where a token is padding; None: without padding.
            position_ids: [batch, seq]; None: counted from the first real token.
            inputs_embeds: [batch, seq, channels], instead of `input_ids`.
            kwargs: further arguments of the trunk, such as `cu_seq_lens_q` (`data.collators.FlatteningCollator`).
        """
        trunk, head = self.base_model, getattr(self, HEAD)  # type: ignore[attr-defined]
        kwargs |= {"input_ids": input_ids, "position_ids": position_ids, "inputs_embeds": inputs_embeds}
        hidden = trunk(**trunk_inputs(trunk, attention_mask=attention_mask, **kwargs))[0]  # [batch, seq, channels]
        return SequenceClassifierOutputWithPast(logits=head_scores(head, last_tokens(hidden, attention_mask, kwargs.get(BOUNDARIES))))


def trunk_inputs(trunk: Any, *, attention_mask: torch.Tensor | None, **given: Any) -> dict[str, Any]:
    """The arguments of a trunk, without those that are None. Positions are counted from the first real token, if the trunk takes them."""
    if attention_mask is not None and given.get("position_ids") is None and _takes_positions(type(trunk).forward):
        given["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    given = {"attention_mask": attention_mask, **given}
    return {name: value for name, value in given.items() if value is not None and name not in ("labels", "return_dict")}


def head_scores(head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """A head's scores of hidden states [texts, channels], float32 [texts, 1], on the head's device and without mixed precision."""
    weight = next(head.parameters())
    with torch.autocast(weight.device.type, enabled=False):
        return head(hidden.to(weight)).float()  # type: ignore[no-any-return]


def last_tokens(hidden: torch.Tensor, attention_mask: torch.Tensor | None, boundaries: torch.Tensor | None = None) -> torch.Tensor:
    """The hidden state of each text's last real token, [texts, channels].

    Args:
        hidden: [batch, seq, channels].
        attention_mask: [batch, seq]; None: without padding.
        boundaries: int32 [texts + 1], the first position of each text in the only row, and the end of the last text.
    """
    if boundaries is not None:
        return hidden[0, boundaries[1:].long().to(hidden.device) - 1]
    if attention_mask is None:
        return hidden[:, -1]
    places = torch.arange(1, attention_mask.shape[1] + 1, device=hidden.device)
    return hidden[torch.arange(len(hidden), device=hidden.device), (attention_mask.to(hidden.device) * places).argmax(1)]


def score(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """The scores of a batch of texts, float32 [batch], without gradients.

    Args:
        model: a reward model with or without adapters, or `adapters.reward_models.SharedBaseReward`; in evaluation mode.
        input_ids: int64 [batch, seq], with terminators, padded on either side or both.
        attention_mask: int64 [batch, seq], 0 where a token is padding; None: without padding.
    """
    with torch.no_grad():
        return model(input_ids=input_ids, attention_mask=attention_mask).logits.squeeze(-1)  # type: ignore[no-any-return]


def with_reward_head(model: Any, *, seed: int = 0) -> Any:
    """A reward model around the trunk of a causal language model. Both share the trunk; its weights aren't copied.

    Patches and hooks of the language model itself (trl's fused head, accelerate's hook for a model on several devices) stay on it. The
    hooks of the trunk's modules go on moving inputs between devices.

    Args:
        model: a PreTrainedModel without adapters, quantized or not. A reward model is returned as it is.
        seed: seed of the head's weights, which are drawn as in transformers. The global random state doesn't change.

    Raises:
        ConfigError: transformers doesn't have such a class for this family.
    """
    if is_reward_model(model):
        return model
    cls, config = reward_class(model.config), model.config
    own = {"id2label": config.id2label, "label2id": config.label2id}, config.get_text_config().pad_token_id
    config.num_labels = 1
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        new = cls(config)
    setattr(new, new.base_model_prefix, model.base_model)
    getattr(new, HEAD).weight = nn.Parameter(_new_weight(config, seed=seed).to(_device(model.base_model)))
    for name, value in vars(model).items():  # quantization, device map, name, and our own marks; a method would be the other model's
        if not callable(value) and name != "_hf_hook":
            vars(new).setdefault(name, value)
    new.name_or_path = model.name_or_path
    setattr(new, _NEW, True)
    setattr(new, _LANGUAGE_CONFIG, own)
    return new.train(model.training)


def _device(trunk: nn.Module) -> torch.device:
    """The device of a trunk's input. If all its weights are offloaded ("meta"), the CPU."""
    devices = (parameter.device for parameter in trunk.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def restore_language_config(scoring: Any) -> None:
    """Restore the configuration of the language model that a reward model was made from; both share it."""
    labels, pad_token_id = getattr(scoring, _LANGUAGE_CONFIG, ({}, None))
    if labels:
        vars(scoring.config).update(labels)
        scoring.config.get_text_config().pad_token_id = pad_token_id


@functools.cache
def _scoring_class(stock: type) -> type:
    return type(stock.__name__, (_Scoring, stock), {"__module__": stock.__module__, "__doc__": stock.__doc__})


def reward_class(config: Any) -> Any:
    """The class of reward models for a configuration. Its saved models name transformers' class.

    Raises:
        ConfigError: transformers doesn't have one for this family.
    """
    if isinstance(config, BaichuanConfig):
        return _scoring_class(BaichuanForSequenceClassification)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        found = f"{config.model_type}, for which transformers doesn't have a class with a reward head"
        raise ConfigError(Problem(PATH_KEY, found, do="Choose a model of another family"))
    return _scoring_class(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)])


def is_reward_model(model: Any) -> bool:
    """Whether a model, with or without adapters, is a reward model."""
    return isinstance(base_model(model), _Scoring)


def mark_trained(model: Any) -> None:
    """Mark a reward model's head as trained or loaded, so that it no longer counts as new."""
    setattr(base_model(model), _NEW, False)


def require_head(model: Any) -> None:
    """Accept a reward head that was trained, or the random one of a rehearsal.

    Raises:
        ConfigError: the head is random, because neither the model's directory nor an adapter has one.
    """
    base = base_model(model)
    if getattr(base, _NEW, False) and not getattr(base, STAND_IN, False):
        found = f"'{model.name_or_path}' doesn't have a reward head, and a random one would give random scores"
        raise ConfigError(Problem(PATH_KEY, found, do="Name the adapter that has one in finetune.adapters, or train: pipeline=[train,…]"))


def set_reward_padding(model: Any, tokenizer: Any, *, stop_ids: Collection[int]) -> None:
    """Choose the padding token that is saved with a reward model. Changes the model and the tokenizer in place.

    transformers' class scores the last token that isn't the padding token. In many models the terminator is also the padding token; then
    another special token has to pad. Without such a token the model gets no padding token, and other programs score one text at a time.

    Args:
        model: a reward model; None: only change the tokenizer.
        tokenizer: the copy that is saved with the model.
        stop_ids: ids that end a text.
    """
    special = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *tokenizer.all_special_ids]
    chosen = next((token for token in special if token is not None and token not in stop_ids), None)
    if chosen is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chosen)
    if model is not None:
        model.config.get_text_config().pad_token_id = chosen


def _new_weight(config: Any, *, seed: int) -> torch.Tensor:
    """Random weights of a new head, [1, channels], from transformers' normal distribution."""
    width, std = config.get_text_config().hidden_size, getattr(config, "initializer_range", 0.02)
    return torch.empty(1, width).normal_(std=std, generator=torch.Generator().manual_seed(seed))


@functools.cache
def _takes_positions(forward: Callable[..., Any]) -> bool:
    return "position_ids" in inspect.signature(forward).parameters
