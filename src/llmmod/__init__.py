"""llmmod: train, evaluate, export and chat with large language models by configuration alone.

Four functions for notebooks and other programs; this module doesn't import others before they are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__version__ = "0.1.0"
__all__ = ["compose", "load_model", "load_tokenizer", "run"]


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The validated configuration of `llmmod <overrides>`.

    Raises:
        ConfigError: with every problem found.
    """
    from llmmod.config.validate import compose_validated

    return compose_validated(overrides).config


def run(config: DictConfig) -> dict[str, float]:
    """Run a composed configuration, in this process unless `distributed` sets several; returns the metrics, flat, as in metrics.json.

    Raises:
        ConfigError: if the configuration was changed since `compose` and is no longer valid.
        LlmmodError: if a step fails; run.json in `output_dir` names the step.
    """
    from llmmod.pipeline.launch import run_config

    return run_config(config)


def load_model(path: str, **from_pretrained_arguments: Any) -> PreTrainedModel:
    """A model from any checkpoint that `model=…` can load.

    Args:
        path: a directory, a hub id, or `pkg://package/folder`.
        from_pretrained_arguments: as for `transformers.AutoModelForCausalLM.from_pretrained`.
    """
    from llmmod.models.loading.load import load_model as load

    return load(path, **from_pretrained_arguments)


def load_tokenizer(path: str, **from_pretrained_arguments: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of any checkpoint that `model=…` can load; arguments as in `load_model`."""
    from llmmod.models.loading.tokenizer import load_tokenizer as load

    return load(path, **from_pretrained_arguments)
