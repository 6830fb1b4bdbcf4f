"""The root of the composed configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from llmmod.schema.data import DatasetConf, RenderConf
from llmmod.schema.generation import GenerationConf
from llmmod.schema.model import HubConf, ModelConf, TokenizerConf


@dataclass
class Root:
    """Everything a run is made of. `finetune`, `training` and `steps` are typed by the options chosen for them."""

    model: ModelConf = MISSING
    tokenizer: TokenizerConf = field(default_factory=TokenizerConf)
    finetune: Any = MISSING  # a FinetuneConf
    training: Any = MISSING  # a StageConf
    dataset: DatasetConf = MISSING
    render: RenderConf = MISSING
    generation: GenerationConf = MISSING
    steps: dict[str, Any] = field(default_factory=dict)  # name -> a StepConf
    pipeline: list[str] = field(default_factory=list)  # names of `steps`, in order
    output_dir: str = MISSING  # the run's directory
    reuse: bool = True  # of several training steps in a run: take what an earlier run left of those where nothing has changed since
    seed: int = 42
    smoke: bool = False  # a rehearsal: tiny random weights of the same architecture, two optimizer steps, no download
    hub: HubConf = field(default_factory=HubConf)
