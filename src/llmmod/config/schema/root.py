"""The root of the composed configuration."""

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
    training: Any = MISSING  # the stage, its trainer and all arguments of that trainer: a StageConf
    dataset: DatasetConf = MISSING  # where rows come from, and what becomes of them
    render: RenderConf = MISSING  # how a conversation is written
    generation: GenerationConf = MISSING  # how answers are generated
    steps: dict[str, Any] = field(default_factory=dict)  # what each step does: name -> a StepConf
    pipeline: list[str] = field(default_factory=list)  # the names of the steps to run, in order
    output_dir: str = MISSING  # the run's directory; it can't lie inside the package
    # take training steps from an earlier run where nothing that affects them has changed; of runs with several training steps
    reuse: bool = True
    seed: int = 42  # the seed of everything random: weights, order of examples, dropout, sampling
    smoke: bool = False  # rehearse the run: tiny random weights of the same architecture, two optimizer steps, no download
    hub: HubConf = field(default_factory=HubConf)  # how downloads are made
