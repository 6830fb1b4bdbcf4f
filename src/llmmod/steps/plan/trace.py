"""Trace two optimizer steps of the real trainer on a model with fake tensors: memory in each phase, and FLOPs.

Trainer, collator, loss and optimizer are those of the run, so the trace includes their savings: the head only on labelled positions, the
prompt that two answers share, the reference that is the model with its adapter off. In the second step the optimizer has its states.
Completions of ppo and grpo are not generated: they get the largest allowed length, and their cache is allocated.

For a GPU, a model with many equal layers is traced twice, with few of them: the tensors of each phase are linear in the number of layers.
The holes in a CPU's heap are not, so all layers are traced there, up to 48.
"""

from __future__ import annotations

import gc
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from llmmod.models import packing
from llmmod.models.loading.structure import base_model, decoder_layers
from llmmod.models.matmul import helps_here
from llmmod.steps.plan.memory import Peak, Tracer, without_values
from llmmod.steps.plan.model import varied_layers, with_layers
from llmmod.trainers import efficient
from llmmod.trainers.arguments import training_arguments
from llmmod.trainers.build import release, restored_after_training, trainer_from
from llmmod.trainers.online import grpo
from llmmod.trainers.ppo import rollout
from llmmod.upstream import replaced

_DEPTHS = (2, 5)  # numbers of layers traced for a deeper model
_MOST_ON_CPU = 48  # layers that are all traced there: 0.2 CPU s each
EVALUATION = "0."  # begins the names of the phases of an evaluation
_SLOTS = 64  # completions generated together
_LEAST = 32  # as in models.matmul
_OWN_DEVICES, _GENERATE, _MEASURE = "OWN_DEVICES", "generate_in_order", "_measure"  # of ours, replaced in a trace


@dataclass(frozen=True)
class Rows:
    """The rows that a training is traced on.

    Args:
        train: the examples of a micro-batch.
        held_out: the examples of an evaluation batch; empty without an evaluation.
        capacity: tokens of a packed row; None: rows aren't packed.
    """

    train: Sequence[Mapping[str, Any]]
    held_out: Sequence[Mapping[str, Any]] = ()
    capacity: int | None = None


@dataclass(frozen=True)
class Trace:
    """The result of tracing a training.

    Args:
        peaks: phase of the run -> its peak.
        flops: FLOPs of an optimizer step with `micro_batches`.
        micro_batches: micro-batches of that step.
    """

    peaks: Mapping[str, Peak]
    flops: float
    micro_batches: int

    @property
    def peak(self) -> Peak:
        """The peak of the phase whose tensors take most."""
        return max(self.peaks.values(), key=lambda peak: peak.live)

    @property
    def heap(self) -> int:
        """The most memory that the process has, bytes."""
        return max(peak.heap for peak in self.peaks.values())


class Traced:
    """A training that can be traced several times, with different rows or arguments.

    Args:
        model: from `planned_model`.
        tracer: the tracer in which the model was built.
        training: `training.*`.
        tokenizer: the model's tokenizer.
        on_gpu: whether it will run on a GPU.
        smoke: whether it is a rehearsal.
    """

    def __init__(self, model: Any, tracer: Tracer, training: Any, *, tokenizer: Any, on_gpu: bool, smoke: bool = False) -> None:
        self.model, self._tracer, self.training, self._tokenizer = model, tracer, training, tokenizer
        self._on_gpu, self._smoke = on_gpu, smoke
        self.layers = decoder_layers(base_model(model))[1]
        varied = len(varied_layers(self.layers))
        self.depths = [varied] if varied <= (_DEPTHS[1] + 1 if on_gpu else _MOST_ON_CPU) else [*_DEPTHS]  # how many are traced, each time
        self._weights = [*model.parameters(), *model.buffers()]
        tracer.tag(self._weights, "weights")
        tracer.vocabulary = base_model(model).config.get_text_config().vocab_size

    def run(self, rows: Rows, **changes: Any) -> Trace:
        """The trace of a training on these rows; `changes`: changes to `training.*`."""
        conf = replace(self.training, **changes)
        conf = replace(conf, **_without_effects(conf))
        traces = [(depth, self._traced(conf, rows, depth)) for depth in self.depths]
        return traces[0][1] if len(traces) == 1 else extrapolated(traces, len(varied_layers(self.layers)))

    def _traced(self, conf: Any, rows: Rows, depth: int) -> Trace:
        tracer, marks = self._tracer, _Marks(self._tracer)
        tracer.restart(recomputes=bool(conf.gradient_checkpointing))
        copies = 2 * conf.gradient_accumulation_steps
        train: Any = Dataset.from_list([*rows.train] * copies)
        if rows.capacity is not None:
            train.capacity = rows.capacity
        held_out = Dataset.from_list([*rows.held_out]) if rows.held_out else None
        with with_layers(self.model, depth), tempfile.TemporaryDirectory() as directory:
            args = training_arguments(conf, output_dir=Path(directory) / "train", seed=1, smoke=self._smoke, has_eval=False)
            self._train(conf, args, train, held_out, marks)
        gc.collect()  # trainer and model refer to each other; what is left would count in the next trace
        flops = sum(count for phase, count in tracer.flops.items() if phase.startswith("2."))
        return Trace(dict(tracer.peaks), flops, conf.gradient_accumulation_steps)

    def _train(self, conf: Any, args: Any, train: Any, held_out: Any, marks: _Marks) -> None:
        tracer = self._tracer
        with ExitStack() as stack:
            contexts = (without_values(tracer), restored_after_training(self.model), _completions(tracer), marks.on(self.model))
            for context in (*contexts, replaced(packing, _MEASURE, _computed(tracer, getattr(packing, _MEASURE)))):
                stack.enter_context(context)
            if self._on_gpu:
                stack.enter_context(replaced(efficient, _OWN_DEVICES, ()))  # there trl computes the head
            trainer = trainer_from(
                conf, model=self.model, args=args, train=train, evaluation=held_out, tokenizer=self._tokenizer, callbacks=[marks]
            )
            marks.trainer = trainer
            if isinstance(getattr(trainer, "ref_model", None), torch.nn.Module):
                tracer.tag([*trainer.ref_model.parameters()], "reference")
                tracer.tag(self._weights, "weights")  # the model and the reference share these
            trainer.train()
            if held_out is not None:
                trainer.evaluate()
            release(trainer)
        marks.trainer = None


def _computed(tracer: Tracer, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the tracer paused: llmmod measures on a tiny real model how its class separates packed examples."""

    def compute(*args: Any) -> Any:
        with tracer.paused():
            return function(*args)

    return compute


def scratch_of(left: torch.Tensor, right: torch.Tensor) -> int:
    """Bytes of a product's workspace: oneDNN reorders the right factor, in float32 if `models.matmul` uses it."""
    if left.dtype is torch.bfloat16:
        return int(right.nbytes)
    is_ordered = left.dtype is torch.float32 and left.shape[0] > 1 and min(left.shape[1], right.shape[1]) >= _LEAST
    return int(right.nbytes) if is_ordered and helps_here() else 0


def _without_effects(conf: Any) -> dict[str, Any]:
    """The changes to `training.*` for two steps without logs, checkpoints and other effects."""
    times = min(conf.gradient_accumulation_steps, 2)
    if times * conf.per_device_train_batch_size % (getattr(conf, "num_generations", None) or 1):
        times = conf.gradient_accumulation_steps  # grpo's completions of a prompt are in as many micro-batches
    wanted = {
        "max_steps": 2, "gradient_accumulation_steps": times, "eval_strategy": "no",
        "save_strategy": "no", "logging_steps": 1, "report_to": "none", "load_best_model_at_end": False, "eval_on_start": False,
        "torch_compile": False, "callbacks": {}, "metrics": {}, "train_sampling_strategy": "sequential", "num_ppo_epochs": 1,
        "num_mini_batches": 1, "num_iterations": 1, "reward": {"length": {"_target_": "llmmod.rewards.brevity"}}, "reward_weights": {},
        "num_sample_answers": 0, "precompute_ref_log_probs": False, "warmup_steps": 0, "neftune_noise_alpha": None, "push_to_hub": False,
        "dataloader_num_workers": 0, "resume_from_checkpoint": None,
    }  # fmt: skip
    return {name: value for name, value in wanted.items() if hasattr(conf, name)}


class _Marks(TrainerCallback):
    """Tells the tracer the phase of the run: step, forward, head, backward of the layers, optimizer."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer, self._step, self._forwards, self._backward = tracer, 0, 0, False
        self.trainer: Any = None

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        """A context in which hooks on a model's layers name the phase."""
        layers = decoder_layers(base_model(model))[1]
        names = {len(layers) - 1: "top", 0: "bottom"}
        handles = [
            layer.register_forward_hook(self._after(names.get(n, "middle"), last=layer is layers[-1])) for n, layer in enumerate(layers)
        ]
        handles.append(layers[0].register_forward_pre_hook(self._before))
        trained = [p for p in model.parameters() if p.requires_grad]
        handles += [p.register_post_accumulate_grad_hook(lambda p: self._tracer.tag(p.grad, "gradients")) for p in trained]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __deepcopy__(self, memo: Any) -> _Marks:
        return self  # a copy of the model, such as the reference, has the same hooks

    def _enter(self, name: str) -> None:
        self._tracer.phase, self._tracer.records = f"{self._step}.{self._forwards} {name}", name in ("forward", "head")

    def _before(self, module: Any, args: Any) -> None:
        if not self._backward:  # gradient checkpointing repeats the forward pass
            self._forwards += 1
            self._enter("forward" if torch.is_grad_enabled() else "forward without gradients")

    def _after(self, name: str, *, last: bool) -> Any:
        def after(module: Any, args: Any, output: Any) -> None:
            if self._backward:
                return
            hidden = output[0] if isinstance(output, tuple) else output
            if last:
                self._enter("head" if torch.is_grad_enabled() else "head without gradients")
            if hidden.requires_grad:
                hidden.register_hook(lambda gradient: self._in_backward(name))

        return after

    def _in_backward(self, name: str) -> None:
        self._backward = True
        self._enter(f"backward, {name}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the next step."""
        self._step, self._forwards = self._step + 1, 0
        self._tracer.tag(getattr(self.trainer, "initial", None), "reference")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the evaluation."""
        self._step = 0

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a micro-batch."""
        self._backward = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the optimizer's phase."""
        self._backward = False
        self._enter("optimizer")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tag the optimizer's states."""
        self._tracer.tag(dict(self.trainer.optimizer.state), "optimizer")
        self._enter("rest")


@contextmanager
def _completions(tracer: Tracer) -> Iterator[None]:
    """A context in which completions of ppo and grpo have the largest allowed length, and their cache is allocated."""

    def generate(model: Any, prompts: Any, *, config: Any, batch_size: int | None = None, **given: Any) -> list[list[int]]:
        text = base_model(model).config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        channels = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        slots, tokens = min(batch_size or _SLOTS, len(prompts)), max(map(len, prompts)) + config.max_new_tokens
        before, tracer.phase = tracer.phase, "generation"
        cache = _empty(model, 2 * text.num_hidden_layers, slots, heads * channels, tokens)
        logits = _empty(model, 3, slots, text.vocab_size, dtype=torch.float32)
        tracer.phase = before
        del cache, logits
        return [[5] * config.max_new_tokens for _ in prompts]

    with replaced(rollout, _GENERATE, generate), replaced(grpo, _GENERATE, generate):
        yield


def _empty(model: Any, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A fake tensor, in the model's dtype unless `dtype` is given."""
    return next(base_model(model).parameters()).new_empty(shape, dtype=dtype or base_model(model).dtype)


def extrapolated(traces: Sequence[tuple[int, Trace]], size: int) -> Trace:
    """The trace at a size (layers, or tokens of a micro-batch), from traces at two others: phase by phase, linear."""
    (few, first), (more, second) = traces
    share = (size - few) / (more - few)

    def line(one: float, other: float) -> float:
        return one + (other - one) * share

    peaks = {}
    for name, peak in first.peaks.items():
        if (other := second.peaks.get(name)) is not None:
            parts = {part: round(line(peak.parts[part], other.parts[part])) for part in {*peak.parts, *other.parts}}
            peaks[name] = Peak(Counter(parts), round(line(peak.heap, other.heap)))
    return Trace(peaks, line(first.flops, second.flops), first.micro_batches)
