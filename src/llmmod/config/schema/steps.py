"""The root of the composed configuration, and `steps.<name>.*`: what each step of the pipeline does.

A step takes its `model`, `finetune`, `training`, `dataset` and `render` from the root unless it has its own.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from llmmod.config.schema.base import Table
from llmmod.config.schema.data import DatasetConf, RenderConf
from llmmod.config.schema.distributed import DistributedConf
from llmmod.config.schema.generation import GenerationConf
from llmmod.config.schema.model import HubConf, ModelConf, TokenizerConf

# The parts of a configuration that steps read.
DATA = ("dataset", "render", "tokenizer", "model")
SPEAKS = ("model", "tokenizer", "render", "generation", "finetune.adapters", "training.use_cpu")
ANYTHING = (*DATA, "finetune", "training", "generation")


@dataclass
class StepConf:
    """The common keys of all steps. A part that is None comes from the root."""

    reads: ClassVar[tuple[str, ...]] = ANYTHING  # parts, or keys of them; a user's own step may read anything
    needs_model: ClassVar[bool] = False  # with its weights

    _target_: str = "???"
    model: ModelConf | None = None  # this step's own model, or {from_step: an earlier training step}; None: the root's
    finetune: Any = None  # which weights of the model this step trains; None: the root's
    training: Any = None  # this step's own stage and arguments; None: the root's
    dataset: DatasetConf | None = None  # this step's own data; None: the root's
    render: RenderConf | None = None  # how this step writes conversations; None: the root's


@dataclass
class ChatConf(StepConf):
    """A conversation in the terminal."""

    reads: ClassVar[tuple[str, ...]] = SPEAKS
    needs_model: ClassVar[bool] = True

    _target_: str = "llmmod.steps.chat.Chat"
    system: str | None = None  # the system text of the conversation; None: the render's
    history: bool = True  # keep the conversation; false: each question is independent


@dataclass
class CompareConf(StepConf):
    """The differences between two runs; without loading a model."""

    reads: ClassVar[tuple[str, ...]] = ()

    _target_: str = "llmmod.steps.compare.Compare"
    runs: list[str] = field(default_factory=list)  # the directories of the two runs


@dataclass
class EvaluateConf(StepConf):
    """Loss, perplexity and token accuracy on the validation split."""

    reads: ClassVar[tuple[str, ...]] = (*DATA, "finetune.adapters", "training")
    needs_model: ClassVar[bool] = True

    _target_: str = "llmmod.steps.evaluate.Evaluate"


@dataclass
class ExportConf(StepConf):
    """A complete model directory, adapters merged."""

    reads: ClassVar[tuple[str, ...]] = SPEAKS
    needs_model: ClassVar[bool] = True

    _target_: str = "llmmod.steps.export.Export"
    max_shard_size: str = "5GB"  # the largest size of a weights file, with its unit
    layout: str = "native"  # the names of the weights: transformers' (native), or those of the original checkpoint (original)
    model_card: bool = True  # write a README.md that describes the model and its training


@dataclass
class PlanConf(StepConf):
    """The memory and time of a training, before it is run; without loading weights."""

    # It plans the run of the same command without pipeline=[plan].
    reads: ClassVar[tuple[str, ...]] = (*DATA, "finetune", "training")

    _target_: str = "llmmod.steps.plan.step.Plan"
    # the memory of the planned device, with its unit: 24GB, 80GiB; None: that of this machine's GPU, or of its CPU without one
    device_memory: str | None = None
    largest: bool = True  # find the largest micro-batch and the longest examples that fit
    measure_speed: bool = True  # measure once how fast this machine multiplies matrices, to estimate the training's time


@dataclass
class PredictConf(StepConf):
    """Answers to the validation split's prompts, measured against the data's."""

    reads: ClassVar[tuple[str, ...]] = (*DATA, *SPEAKS, "training.predict")
    needs_model: ClassVar[bool] = True
    CHOICES: ClassVar[Table] = {"batch_size": ("auto",)}

    _target_: str = "llmmod.steps.predict.step.Predict"
    batch_size: int | str = "auto"  # how many prompts are answered together; auto: as many as fit in a quarter of the free memory
    max_samples: int | None = None  # how many prompts are answered; None: the whole validation split
    compare_with_base: int = 0  # how many prompts are also answered without the adapter, spread evenly over the split
    # the metrics of answers: name -> {_target_: a class with update(predict, label) and compute(), see llmmod.protocols.Metric}; null
    # leaves one out
    metrics: dict[str, Any] = field(
        default_factory=lambda: {
            "rouge": {"_target_": "llmmod.metrics.Rouge"},
            "bleu": {"_target_": "llmmod.metrics.Bleu"},
        }
    )


@dataclass
class PreviewConf(StepConf):
    """The examples that training will use; without loading a model."""

    # It shows the run of the same command without pipeline=[preview].
    reads: ClassVar[tuple[str, ...]] = (*DATA, "finetune", "training")

    _target_: str = "llmmod.steps.preview.step.Preview"
    max_samples: int = 1000  # how many examples preview.jsonl has
    on_page: int = 40  # how many examples preview.html shows
    in_terminal: int = 3  # how many examples the terminal shows


@dataclass
class TrainConf(StepConf):
    """Train, and save the adapter or model."""

    reads: ClassVar[tuple[str, ...]] = (*DATA, "finetune", "training")
    needs_model: ClassVar[bool] = True

    _target_: str = "llmmod.steps.train.Train"


@dataclass
class SweepConf:
    """The goal of a sweep (`-m`), and the sweep to resume."""

    CHOICES: ClassVar[Table] = {"direction": ("minimize", "maximize")}
    ACCEPTED: ClassVar[Table] = {"metric": ("str", "list[str]"), "direction": ("str", "list[str]")}

    metric: Any = "eval_loss"  # the metric in metrics.json that selects the best job; several in a list
    direction: Any = "minimize"  # whether lower or higher values are better; a list for several metrics, or one for all of them
    resume: str | None = None  # a sweep's directory, whose missing and failed jobs are run; None: a new sweep


@dataclass
class Root:
    """The whole configuration of a run. The chosen options give `finetune`, `training` and `steps` their types."""

    model: ModelConf = MISSING  # which checkpoint is loaded, and how
    tokenizer: TokenizerConf = field(default_factory=TokenizerConf)  # the tokenizer, the model's own unless a path is given
    finetune: Any = MISSING  # which weights of the model are trained: a FinetuneConf
    training: Any = MISSING  # the stage, its trainer and all arguments of that trainer: a StageConf
    dataset: DatasetConf = MISSING  # the source of rows, and how they become examples
    render: RenderConf = MISSING  # how a conversation is written
    generation: GenerationConf = MISSING  # how answers are generated
    steps: dict[str, Any] = field(default_factory=dict)  # what each step does: name -> a StepConf
    pipeline: list[str] = field(default_factory=list)  # the names of the steps to run, in order
    output_dir: str = MISSING  # the run's directory; it must be outside of the package
    # reuse training steps of earlier runs if their inputs haven't changed; only in runs with several training steps
    reuse: bool = True
    seed: int = 42  # the seed of everything random: weights, order of examples, dropout, sampling
    # continue the run in `output_dir`, or the newest unfinished run of the same configuration; without one, start a new run
    auto_resume: bool = False
    smoke: bool = False  # rehearse the run: tiny random weights of the same architecture, two optimizer steps, no download
    distributed: DistributedConf = field(default_factory=DistributedConf)  # the number of processes and machines, and the engine
    hub: HubConf = field(default_factory=HubConf)  # settings of downloads
    # the directory of a run to repeat with its recorded configuration; only on the command line, and only together with output_dir
    replay: str | None = None
    sweep: SweepConf = field(default_factory=SweepConf)  # how the jobs of a sweep are compared
