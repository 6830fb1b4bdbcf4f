"""Writing a model in the layout that its checkpoint came in: `export.layout=original`, and the 13B Baichuans always."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import has_tokenizer, tokenizer_files
from llmmod.files.paths import resolve_path
from llmmod.models.families.convert import conversions, original_config
from llmmod.models.families.family import Family
from llmmod.models.families.registry import family_of
from llmmod.upstream import require_upstream

require_upstream(__name__)

_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # of a row's length, after rounding to the type


def family_of_model(model: Any) -> Family | None:
    """The family a model was loaded from, None where it came in the native layout."""
    raw = original_config(model.config)
    return None if raw is None else family_of(raw, path=str(model.config._name_or_path))


@contextmanager
def original_names(model: Any) -> Iterator[None]:
    """While it lasts, `model.save_pretrained` writes the weights under the names they have in the original layout."""
    family = family_of_model(model)
    own = model._weight_conversions if hasattr(model, "_weight_conversions") else None
    model._weight_conversions = [] if family is None else conversions(family, depth=model.config.num_hidden_layers)
    try:
        yield
    finally:
        model._weight_conversions = own


def check_original_layout(model: Any, *, key: str) -> None:
    """Nothing, where a model can be written in the layout that its checkpoint came in.

    Args:
        model: a PreTrainedModel.
        key: the configuration key that asks for it.

    Raises:
        ConfigError: it came in the native layout, or its head isn't what the original code takes it for.
    """
    family = family_of_model(model)
    if family is None:
        raise ConfigError(Problem(key, f"'{model.config._name_or_path}' came in the native layout; it has no other", "Allowed: native"))
    head = model.get_output_embeddings().weight
    if family.unit_rows and not has_unit_rows(head):
        found = f"{family.name}'s own code divides each row of the head by its length, and this head was trained without that"
        raise ConfigError(Problem(key, found, "Allowed: native"))


def has_unit_rows(weight: torch.Tensor) -> bool:
    """Whether each row of a matrix [rows, channels] has length 1, as far as its type can say; a row of zeros counts."""
    lengths = weight.detach().float().norm(dim=-1)
    return bool((((lengths - 1).abs() < _TOLERANCE.get(weight.dtype, 1e-2)) | (lengths == 0)).all())


def copy_original_files(model: Any, directory: Path) -> bool:
    """Copy tokenizer and Python code of the original checkpoint, which old programs read, where it is a directory of this machine.

    Returns:
        Whether there was a tokenizer among them.
    """
    source = resolve_path(str(model.config._name_or_path))
    if not isinstance(source, Path) or not source.is_dir():
        return False
    for file in {*source.glob("*.py"), *tokenizer_files(source)}:
        shutil.copy(file, directory)
    return has_tokenizer(source)


def write_original_config(model: Any, directory: Path) -> None:
    """Put the original config.json in the place of a native one, with the type that the weights are written in."""
    raw = dict(original_config(model.config) or {})
    raw.pop("dtype", None)
    raw["torch_dtype"] = str(model.dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
