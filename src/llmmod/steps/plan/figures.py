"""The figures of a plan, as lines for the terminal, as metrics, as a picture, and in the error of a training that ran out of memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch

from llmmod.errors import LlmmodError, Problem, RunError, one_line
from llmmod.steps.plan.devices import Device

# Part -> its name and its colour in the picture.
SHOWN: Mapping[str, tuple[str, str]] = {
    "baseline": ("program", "#8a8f98"),
    "weights": ("weights", "#3b6fb6"),
    "gathered": ("gathered for other processes", "#7da3d8"),
    "reference": ("reference", "#8064a2"),
    "reward": ("reward models", "#b08fd0"),
    "gradients": ("gradients", "#c0504d"),
    "optimizer": ("optimizer", "#e0853d"),
    "activations": ("activations", "#5b9b56"),
    "logits": ("logits", "#c9b037"),
    "fragments": ("fragments", "#c9cdd3"),
}
_WIDTH, _BAR = 720, 26
SAID = "plan"  # the session's key of the plan's verdict
_ON_CPU = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
_STYLE = "svg.plan{color:#222}@media(prefers-color-scheme:dark){svg.plan{color:#ddd}}"


@dataclass(frozen=True)
class PlanFigures:
    """The figures of a plan.

    Args:
        device: the device that it is for.
        way: how several processes share the model.
        processes: the number of processes.
        memory: the memory of each device: part -> bytes.
        parameters, trained: the number of the model's parameters, and of its trained parameters.
        tokens: tokens of the training data in all epochs; None: not known.
        steps: optimizer steps; None: not known.
        flops: FLOPs of all steps; None: not known.
        rate: FLOP/s, measured; 0: not measured.
        micro_batch: the largest micro-batch that fits; None: not computed.
        cutoff_len: the longest example that fits; None: not computed.
        advice: overrides that make it fit, the one with the lowest cost first.
        notes: assumptions.
    """

    device: Device
    way: str
    processes: int
    memory: Mapping[str, int]
    parameters: int
    trained: int
    tokens: int | None
    steps: int | None
    flops: float | None
    rate: float
    micro_batch: int | None = None
    cutoff_len: int | None = None
    advice: Sequence[str] = ()
    notes: Sequence[str] = field(default=())

    @property
    def total(self) -> int:
        """The memory of each device, bytes."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the device has enough memory."""
        return self.total <= self.device.bytes

    @property
    def seconds(self) -> float | None:
        """The duration of the steps at half of the measured rate; None if it wasn't measured."""
        return None if not self.rate or self.flops is None else self.flops / (self.rate / 2 * self.processes)

    @property
    def verdict(self) -> str:
        """The memory needed, the memory of the device, and whether it fits, in words."""
        each = f"each of {self.processes} devices ({self.way})" if self.processes > 1 else self.device.name
        fits = "fits" if self.fits else "does NOT fit"
        return f"{gigabytes(self.total)} on {each}, which has {gigabytes(self.device.bytes)}: it {fits}"

    def metrics(self) -> dict[str, float]:
        """The figures for metrics.json."""
        named = {
            "plan_memory_bytes": self.total,
            **{f"plan_memory_{part}_bytes": self.memory.get(part, 0) for part in SHOWN},
            "plan_device_bytes": self.device.bytes,
            "plan_fits": int(self.fits),
            "plan_parameters": self.parameters,
            "plan_trained_parameters": self.trained,
            "plan_tokens": self.tokens,
            "plan_steps": self.steps,
            "plan_flops": self.flops,
            "plan_seconds": self.seconds,
            "plan_largest_micro_batch": self.micro_batch,
            "plan_largest_cutoff_len": self.cutoff_len,
        }
        return {name: float(value) for name, value in named.items() if value is not None}

    def lines(self) -> list[str]:
        """The lines for the terminal."""
        share = f" ({self.trained / self.parameters:.2%})" if self.trained < self.parameters else ""
        found = [f"{self.parameters:,} parameters, {self.trained:,} of them trained{share}"]
        work = [f"{self.tokens:,} tokens"] if self.tokens is not None else []
        work += [f"{self.steps:,} optimizer steps"] if self.steps is not None else []
        work += [f"{self.flops:.3g} FLOPs"] if self.flops is not None else []
        if self.seconds is not None:
            work.append(
                f"about {shown_time(self.seconds)} at half of the {self.rate / 1e9:,.0f} GFLOP/s of a matrix product"
            )
        found += [", ".join(work)] if work else []
        found.append(self.verdict)
        parts = ", ".join(f"{SHOWN[part][0]} {gigabytes(size)}" for part, size in self.ordered() if size >= self.total / 200)
        found.append(f"of it {parts}")
        if self.micro_batch:
            found.append(f"the largest micro-batch of such examples that fits: {self.micro_batch}")
        if self.cutoff_len:
            found.append(f"the longest examples that fit, with this micro-batch: {self.cutoff_len:,} tokens")
        found += [f"to make it fit: {line}" for line in self.advice]
        return [*found, *self.notes]

    def ordered(self) -> list[tuple[str, int]]:
        """The parts in the order of the picture, with their bytes."""
        return [(part, self.memory[part]) for part in SHOWN if self.memory.get(part)]

    def picture(self) -> str:
        """The memory as a bar, with a line at the device's capacity: an SVG for a page."""
        scale = (_WIDTH - 20) / max(self.total, self.device.bytes)
        boxes, legend, x = [], [], 10.0
        for number, (part, size) in enumerate(self.ordered()):
            name, colour = SHOWN[part]
            told, wide = escape(f"{name} {gigabytes(size)}"), size * scale
            box = f'<rect x="{x:.1f}" y="22" width="{wide:.1f}" height="{_BAR}" fill="{colour}">'
            boxes.append(f"{box}<title>{told}</title></rect>")
            left, top = 10 + number % 4 * 178, 74 + number // 4 * 20
            legend.append(f'<rect x="{left}" y="{top - 10}" width="11" height="11" fill="{colour}"/>')
            legend.append(f'<text x="{left + 16}" y="{top}">{told}</text>')
            x += wide
        end = 10 + self.device.bytes * scale
        height = 74 + (len(self.ordered()) - 1) // 4 * 20 + 12
        said = escape(f"{gigabytes(self.total)} of {gigabytes(self.device.bytes)}: {'fits' if self.fits else 'does not fit'}")
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="plan" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Memory: {said}"'
            f' font-size="12" font-family="sans-serif" fill="currentColor"><style>{_STYLE}</style>'
            f'<text x="10" y="14">{said}</text>{"".join(boxes)}'
            f'<path d="M{end:.1f} 18v{_BAR + 8}" stroke="currentColor" stroke-width="2" stroke-dasharray="4 2"/>{"".join(legend)}</svg>'
        )


def memory_of(parts: Counter[str], *, baseline: int, fragments: int, reward: int) -> dict[str, int]:
    """The memory of a device: part -> bytes."""
    return {"baseline": baseline, **parts, "reward": reward, "fragments": fragments}


def gigabytes(size: float) -> str:
    """`12.3 GB`, `640 MB`, in units of 10^9 and 10^6 bytes."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def shown_time(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`, `5.2 days`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if unit < 3600 else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86400:.1f} days"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine ran out of memory. On a CPU, torch (2.13) only says it in the error's text."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ON_CPU)


@contextmanager
def memory_explained(session: Any, step: str) -> Iterator[None]:
    """A context in which an out-of-memory error becomes one that names the keys to lower.

    Args:
        session: the run's session.
        step: the step that trains.

    Raises:
        RunError: memory ran out.
    """
    try:
        yield
    except LlmmodError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(str(memory_problem(error, session, step))) from error


def memory_problem(error: BaseException, session: Any, step: str) -> Problem:
    """The problem in four parts: the micro-batch, what happened and was planned, smaller values, and other ways to save memory."""
    training, finetune = session.conf(step, "training"), session.conf(step, "finetune")
    key, size, times = "training.per_device_train_batch_size", training.per_device_train_batch_size, training.gradient_accumulation_steps
    said = session.get(SAID)
    planned = f"the plan was: {said}" if said else "it was not planned: 'pipeline=[plan]' shows in seconds what fits"
    smaller = f"Try {size // 2} with training.gradient_accumulation_steps={times * 2}, which trains the same" if size > 1 else ""
    less = [] if training.gradient_checkpointing else ["model.gradient_checkpointing=true (slower)"]
    less += ["dataset.cutoff_len"]
    less += ["training.max_completion_length"] if hasattr(training, "max_completion_length") else []
    less += ["training.per_device_eval_batch_size"] if training.eval_strategy != "no" else []
    less += (
        ["finetune=lora"]
        if not hasattr(finetune, "r")
        else ["finetune=qlora"]
        if session.conf(step, "model").quantization.bits is None
        else []
    )
    return Problem(key, f"{size}, and memory ran out ({one_line(error, 200)}); {planned}", smaller, f"Use less memory: {', '.join(less)}")
