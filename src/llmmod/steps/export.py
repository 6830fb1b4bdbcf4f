"""A complete model directory: the weights with the adapters merged, tokenizer, generation settings, chat template, model card.

Any program that uses transformers can load it, and it answers like the run's own model. The session's model is not changed, so later steps
can use it. Weights are written as safetensors only, as transformers does. With `layout=original`, a model whose checkpoint has a
layout of 2023 is written in that layout, for programs of that time: old names of weights, and config.json, tokenizer and code as before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml
from transformers import GenerationConfig

from llmmod.config.schema.steps import ExportConf
from llmmod.distributed import rank
from llmmod.errors import ConfigError, Problem
from llmmod.files.paths import readable_by_umask
from llmmod.instantiate import build
from llmmod.models.adapters.merge import divergence, merged_copy
from llmmod.models.families.convert import check_original_layout, copy_original_files, original_names, write_original_config
from llmmod.models.generation.settings import context_length, generation_config
from llmmod.models.loading.quantization import is_quantized
from llmmod.models.reward import is_reward_model, set_reward_padding
from llmmod.protocols import StepReport
from llmmod.render.conversation import Conversation, Message
from llmmod.render.encode import encode_prompt
from llmmod.render.export import exported, with_template
from llmmod.steps.model_card import model_card

LAYOUTS = ("native", "original")
_PROBE = "What can you tell me about yourself, and what are you good at?"
_UNPACKED = (
    "{}: its weights are the quantized ones, unpacked and merged in full precision; next to the quantized model's, its next-token "
    "probabilities are {:.1e} nats apart (KL divergence, one prompt)"
)


class Export:
    """The step `export`.

    Args:
        conf: `steps.<name>`.
        name: the step's name, and that of the directory in the run's.
    """

    def __init__(self, conf: ExportConf, name: str) -> None:
        self.conf, self.name = conf, name

    def run(self, session: Any) -> StepReport:
        """Write `<run>/<name>/` whole or not at all.

        Raises:
            ConfigError: the layout doesn't exist, or the model can't be written in it.
        """
        key = f"steps.{self.name}.layout"
        if self.conf.layout not in LAYOUTS:
            raise ConfigError(Problem(key, f"'{self.conf.layout}' is not a layout", f"Allowed: {', '.join(LAYOUTS)}"))
        if rank() != 0:
            return StepReport()
        tokenizer, render = session.tokenizer(self.name), session.render(self.name)
        loaded = session.model(self.name)
        model = merged_copy(loaded.model)
        scores = is_reward_model(model)
        original = self.conf.layout == "original" and not session.root.smoke  # a rehearsal's stand-in was never in another layout
        if original:
            _check_writes(model, key)
            check_original_layout(model, key=key)
        settings = None if scores else _settings(session, model, tokenizer, render)
        tokenizer = _to_save(*exported(render, tokenizer), context=context_length(model))
        if scores:
            set_reward_padding(model, tokenizer, stop_ids=render.stop_ids)
        directory = session.run_dir / self.name
        with written_whole(directory) as partial:
            with original_names(model) if original else nullcontext():
                _save_model(model, settings, partial, max_shard_size=self.conf.max_shard_size)
            if original:
                write_original_config(model, partial)
            if not original or not copy_original_files(model, partial):
                tokenizer.save_pretrained(partial)
            if self.conf.model_card:
                metrics, overrides = _metrics(session.run_dir), _overrides(session.run_dir)
                card = model_card(session.root, session.parts, self.name, metrics=metrics, overrides=overrides)
                (partial / "README.md").write_text(card, encoding="utf-8")
        size = sum(file.stat().st_size for file in directory.glob("*.safetensors")) / 1e6
        summary = [f"{self.name}: a complete model in {directory} ({size:.0f} MB)"]
        if is_quantized(loaded.model) and loaded.head == "language":
            ids = encode_prompt(render.prompt(Conversation([Message("user", _PROBE)])), tokenizer)
            summary.append(_UNPACKED.format(self.name, divergence(loaded.model, model, ids)))
        return StepReport(artifacts={"model": self.name}, summary=summary)


def _settings(session: Any, model: Any, tokenizer: Any, render: Any) -> GenerationConfig:
    ids = {"pad_id": tokenizer.pad_token_id, "bos_id": tokenizer.bos_token_id}
    return generation_config(build(session.root.generation), model, stop_ids=render.stop_ids, **ids)


@contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """A temporary directory to write into, which replaces `directory` at the end, or is removed after an error."""
    partial, before = directory.with_name(f".{directory.name}.partial"), directory.with_name(f".{directory.name}.before")
    for leftover in (partial, before):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if directory.exists():
            directory.rename(before)
        partial.rename(directory)
    finally:
        for leftover in (partial, before):
            shutil.rmtree(leftover, ignore_errors=True)


def _save_model(model: Any, settings: GenerationConfig | None, directory: Path, *, max_shard_size: str) -> None:
    """Write weights, config.json and generation_config.json with the umask's permissions; the model's own settings don't change.

    Args:
        model: a PreTrainedModel.
        settings: None for a model that doesn't generate text.
        directory: exists.
        max_shard_size: e.g. 5GB.
    """
    own, cached = getattr(model, "generation_config", None), model.config.use_cache
    # transformers validates the settings that it saves, and those of many checkpoints are invalid after a trainer's changes.
    model.generation_config, model.config.use_cache = settings, True
    try:
        model.save_pretrained(directory, max_shard_size=max_shard_size)
    finally:
        model.generation_config, model.config.use_cache = own, cached
    readable_by_umask(directory)


def _to_save(tokenizer: Any, chat_template: str, *, context: int | None) -> Any:
    """A copy of the tokenizer with the training's chat template and the model's length."""
    tokenizer = with_template(tokenizer, chat_template)
    if context is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, context)
    for where_it_was_loaded in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(where_it_was_loaded, None)
    return tokenizer


def _check_writes(model: Any, key: str) -> None:
    if is_reward_model(model):
        raise ConfigError(Problem(key, "original, but a layout of 2023 doesn't have a reward head", "Allowed: native"))


def _metrics(run_dir: Path) -> dict[str, float]:
    """The run's metrics so far."""
    path = run_dir / "metrics.json"
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _overrides(run_dir: Path) -> list[str]:
    """The user's overrides; empty if the run was started from Python."""
    path = run_dir / ".hydra" / "overrides.yaml"
    found: list[str] = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else []
    return found or []
