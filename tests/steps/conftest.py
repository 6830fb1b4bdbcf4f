"""A session with a tiny model, as a step uses it, and the toy task of tests/support/toy.py for steps that train and evaluate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from preferences import rm_conf, toy_pairs
from toy import lora_conf, one_thread, sft_conf, toy_session, toy_splits, toy_trainer

from llmmod.config.schema.data import DatasetConf, RenderConf
from llmmod.config.schema.generation import GenerationConf
from llmmod.config.schema.model import LoraConf, ModelConf
from llmmod.config.schema.steps import ChatConf, ExportConf, Root
from llmmod.config.schema.training import SftConf
from llmmod.config.step_parts import StepConfigs
from llmmod.protocols import LoadedModel
from llmmod.render.template import Template

__all__ = ["lora_conf", "one_thread", "rm_conf", "sft_conf", "toy_pairs", "toy_session", "toy_splits", "toy_trainer"]


def chatml(tokenizer):
    """ChatML as a render (https://github.com/openai/openai-python/blob/v0.28.1/chatml.md)."""
    start, end = {"token": "<|im_start|>"}, {"token": "<|im_end|>"}
    return Template(
        tokenizer=tokenizer,
        name="chatml",
        prefix=[start, "system\n{{system}}", end],
        empty_prefix=[],
        prompt=[start, "user\n{{query}}", end, "\n", start, "assistant\n"],
        response=["{{response}}", end],
        sep=["\n"],
        bos="never",
    )


@dataclass
class FakeSession:
    """The part of a session that steps use."""

    root: Root
    run_dir: Path
    loaded: LoadedModel
    tiny_tokenizer: Any
    asked: list[str] = field(default_factory=list)

    @property
    def parts(self):
        return StepConfigs(self.root)

    def conf(self, step, part):
        return getattr(self.root.steps[step], part) or getattr(self.root, part)

    def tokenizer(self, step):
        return self.tiny_tokenizer

    def render(self, step):
        return chatml(self.tiny_tokenizer)

    def model(self, step):
        self.asked.append(step)
        return self.loaded


@pytest.fixture
def make_session(tmp_path, tiny_tokenizer):
    """A session with the given model, greedy, with 24 tokens per answer."""

    def make(tiny, *, kind="base", **changes):
        values = {
            "model": ModelConf(name="tiny"),
            "finetune": LoraConf(name="lora"),
            "training": SftConf(stage="sft"),
            "dataset": DatasetConf(name="qa"),
            "render": RenderConf(name="chatml"),
            "generation": GenerationConf(do_sample=False, max_new_tokens=24),
            "steps": {"export": ExportConf(), "chat": ChatConf()},
            "pipeline": ["export", "chat"],
            "output_dir": str(tmp_path),
        }
        return FakeSession(Root(**{**values, **changes}), tmp_path, LoadedModel(tiny, kind), tiny_tokenizer)

    return make
