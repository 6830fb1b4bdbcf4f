"""`steps.<name>.*`: what each step of the pipeline does, and what it takes from the root unless it says otherwise.

Each module here is a step, found by its name: `train.py` has the dataclass `TrainConf`, which `conf/step/train.yaml` starts from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from llmmod.schema.data import DatasetConf, RenderConf
from llmmod.schema.model import ModelConf

# Parts of a configuration that steps read.
DATA = ("dataset", "render", "tokenizer", "model")
SPEAKS = ("model", "tokenizer", "render", "generation", "finetune.adapters", "training.use_cpu")
ANYTHING = (*DATA, "finetune", "training", "generation")


@dataclass
class StepConf:
    """What every step has. A part that is None comes from the root."""

    reads: ClassVar[tuple[str, ...]] = ANYTHING  # parts, or what of them; a step of the user's own may read anything
    needs_model: ClassVar[bool] = False  # with its weights

    _target_: str = "???"
    model: ModelConf | None = None  # this step's own model, or {from_step: an earlier training step}; None: the root's
    finetune: Any = None  # what this step trains of the model; None: as the root says
    training: Any = None  # this step's own stage and arguments; None: the root's
    dataset: DatasetConf | None = None  # this step's own data; None: the root's
    render: RenderConf | None = None  # how this step writes conversations; None: as the root says
