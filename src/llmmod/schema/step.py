"""`steps.<name>.*`: what each step of the pipeline does, and what it takes from the root unless it says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmmod.schema.data import DatasetConf, RenderConf
from llmmod.schema.model import ModelConf


@dataclass
class StepConf:
    """What every step has. A part that is None comes from the root."""

    _target_: str = "???"
    model: ModelConf | None = None
    finetune: Any = None
    training: Any = None
    dataset: DatasetConf | None = None
    render: RenderConf | None = None


@dataclass
class TrainConf(StepConf):
    """Train, and save the adapter or model."""

    _target_: str = "llmmod.steps.train.Train"


@dataclass
class EvaluateConf(StepConf):
    """Loss, perplexity and token accuracy on the validation split."""

    _target_: str = "llmmod.steps.evaluate.Evaluate"


@dataclass
class PredictConf(StepConf):
    """Answers to the validation split's prompts, and how close they come to the data's."""

    _target_: str = "llmmod.steps.predict.Predict"
    batch_size: int = 8  # prompts generated together
    max_samples: int | None = None  # prompts; None: the whole validation split
    compare_with_base: int = 0  # prompts that the model without its adapter answers too, evenly spread over the split
    # name -> {_target_: a class with update(predict, label) and compute(), see llmmod.protocols.Metric}; null leaves one out
    metrics: dict[str, Any] = field(
        default_factory=lambda: {
            "rouge": {"_target_": "llmmod.metrics.rouge.Rouge"},
            "bleu": {"_target_": "llmmod.metrics.bleu.Bleu"},
        }
    )


@dataclass
class ExportConf(StepConf):
    """A complete model directory, adapters merged."""

    _target_: str = "llmmod.steps.export.Export"
    max_shard_size: str = "5GB"  # with its unit
    layout: str = "native"  # native: transformers' own names; original: the checkpoint's, where it had others
    model_card: bool = True


@dataclass
class ChatConf(StepConf):
    """A conversation in the terminal."""

    _target_: str = "llmmod.steps.chat.Chat"
    system: str | None = None  # None: the render's
    history: bool = True  # false: each question stands alone


@dataclass
class PreviewConf(StepConf):
    """Examples as training will see them; no model is loaded."""

    _target_: str = "llmmod.steps.preview.Preview"
    max_samples: int = 1000  # examples written to preview.jsonl
    on_page: int = 40  # examples shown on preview.html
    in_terminal: int = 3  # examples printed
