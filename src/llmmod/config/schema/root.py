"""The root of the composed configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from llmmod.config.schema.data import DatasetConf, RenderConf
from llmmod.config.schema.generation import GenerationConf
from llmmod.config.schema.model import HubConf, ModelConf, TokenizerConf


@dataclass
class Root:
    """Everything a run is made of. `finetune`, `training` and `steps` are typed by the options chosen for them."""

    model: ModelConf = MISSING  # which checkpoint is loaded, and how
    tokenizer: TokenizerConf = field(default_factory=TokenizerConf)  # the tokenizer, the model's own unless a path is given
    finetune: Any = MISSING  # what of the model is trained: a FinetuneConf
    training: Any = MISSING  # the stage, its trainer and all arguments of that: a StageConf
    dataset: DatasetConf = MISSING  # where rows come from, and what becomes of them
    render: RenderConf = MISSING  # how a conversation is written
    generation: GenerationConf = MISSING  # how answers are generated
    steps: dict[str, Any] = field(default_factory=dict)  # name -> a StepConf
    pipeline: list[str] = field(default_factory=list)  # names of `steps`, in order
    output_dir: str = MISSING  # the run's directory, never one inside the package
    reuse: bool = True  # of several training steps in a run: take what an earlier run left of those where nothing has changed since
    seed: int = 42  # of all that is drawn at random: weights, order of examples, dropout, sampling
    smoke: bool = False  # a rehearsal: tiny random weights of the same architecture, two optimizer steps, no download
    hub: HubConf = field(default_factory=HubConf)  # how downloads are made
