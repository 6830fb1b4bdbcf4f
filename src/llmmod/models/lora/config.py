"""`finetune.*` as a peft.LoraConfig.

Only what differs from the schema's defaults is passed on, so that peft's deprecated fields stay untouched. Its configurations within the
configuration (EVA, CorDA, LoftQ, …) are dicts in the schema and become their classes here: peft builds most of them from dicts too, but
drops the keys it doesn't know.
"""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft

from llmmod.errors import ConfigError, Problem, did_you_mean
from llmmod.schema.finetune import LoraConf
from llmmod.schema.generated.lora import ACCEPTED, LoraConfig


def lora_config(conf: LoraConf) -> peft.LoraConfig:
    """The adapter's configuration, in plain Python throughout, so that `save_pretrained` can write it.

    Args:
        conf: composed, resolved and converted by `to_object`.

    Raises:
        ConfigError: a nested configuration has no such field, or peft refuses the values or their combination.
    """
    default = LoraConfig()
    names = [f.name for f in dataclasses.fields(LoraConfig) if f.name != "_target_"]
    chosen = {name: getattr(conf, name) for name in names if getattr(conf, name) != getattr(default, name)}
    if conf.init_lora_weights == "loftq":
        chosen.setdefault("loftq_config", {})  # peft asks for it, though it has defaults
    nested = {name: _nested(name, value) for name, value in chosen.items() if isinstance(value, dict) and _class_path(name)}
    return _built(peft.LoraConfig, chosen | nested, key="finetune")


def _class_path(name: str) -> str | None:
    """The class that a dict in this field stands for, None where it stands for itself."""
    return next((path for path in ACCEPTED.get(name, ()) if path.startswith("peft.")), None)


def _nested(name: str, value: dict[str, Any]) -> Any:
    module, _, class_name = str(_class_path(name)).rpartition(".")
    cls = getattr(importlib.import_module(module), class_name)
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    unknown = [key for key in value if key not in known]
    if unknown:
        raise ConfigError(Problem(f"finetune.{name}.{key}", "no such field", did_you_mean(str(key), known)) for key in unknown)
    return _built(cls, value, key=f"finetune.{name}")


def _built(cls: type, values: dict[str, Any], *, key: str) -> Any:
    try:
        return cls(**values)
    except (ImportError, TypeError, ValueError) as error:  # loftq asks for scipy
        raise ConfigError(Problem(key, f"{cls.__name__} refuses it: {error}")) from error


@contextmanager
def quiet_peft() -> Iterator[None]:
    """While it lasts, peft 0.21 doesn't pass on that transformers 5.23 has renamed `is_gradient_checkpointing`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield
