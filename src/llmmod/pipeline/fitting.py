"""Whether what a step takes from an earlier step, or from a directory that one wrote, was made for what the step does with it.

What can't be right is refused when the configuration is checked (`schema.validate`). Here is what may be meant, and mostly isn't: another
render than it was trained with, another base than an adapter was trained on. It is told before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmmod.instantiate import import_own
from llmmod.pipeline.parts import Parts
from llmmod.schema.quantization import decides_weights
from llmmod.schema.reward import reward_nodes
from llmmod.schema.step import StepConf


def doubts(parts: Parts) -> list[str]:
    """A line for each thing that a step takes and that was made for something else."""
    steps = [step for step in parts.steps if isinstance(parts.get(f"steps.{step}"), StepConf)]
    return list(dict.fromkeys(line for step in steps for line in [*_of_steps(parts, step), *_of_directories(parts, step)]))


def _of_steps(parts: Parts, step: str) -> Iterator[str]:
    """Of what earlier steps of the run leave."""
    begins = parts.from_step(step) if parts.trains(step) else parts.followed(step)
    scored = [node["step"] for node in _rewards(parts, step) if "step" in node]
    for earlier in filter(None, [begins, *scored]):
        yield from _another_render(earlier, parts.of(earlier, "render").name, step, parts)


def _of_directories(parts: Parts, step: str) -> Iterator[str]:
    """Of what earlier runs left; a step that goes by what a step of this run leaves reads none."""
    if not parts.trains(step) and parts.followed(step) is not None:
        return
    model, adapters = parts.of(step, "model"), parts.of(step, "finetune").adapters
    base = model.sizes.get(model.size, model.pretrained_model_name_or_path)
    scored = [str(node["path"]) for node in _rewards(parts, step) if "path" in node]
    for path in filter(None, [base, *adapters, *scored]):
        left = import_own("llmmod.models.stage_file.read_stage_file")(Path(path).expanduser())
        if left is None:
            continue
        yield from _another_render(f"'{path}'", left.render, step, parts)
        if path in adapters and base and left.base and not left.base.startswith("..") and Path(left.base).name != Path(base).name:
            yield f"'{path}' was trained on {left.base}, and {step} puts it on {base}"
        own = decides_weights(model.quantization)
        if path in adapters and left.quantization != own and parts.from_step(step) is None:
            yield f"'{path}' was trained on {_bits(left.quantization)}, and {step} puts it on {_bits(own)}"


def _bits(quantization: Mapping[str, Any] | None) -> str:
    if quantization is None:
        return "weights that aren't quantized"
    rest = ", ".join(f"{name}={value}" for name, value in quantization.items() if name != "bits" and value is not None)
    return f"weights of {quantization['bits']} bits ({rest})"


def _another_render(what: str, render: str, step: str, parts: Parts) -> Iterator[str]:
    own = parts.of(step, "render").name
    if render != own:
        yield f"{what} was trained with render={render}, and {step} writes with render={own}"


def _rewards(parts: Parts, step: str) -> list[dict[str, Any]]:
    conf = getattr(parts.of(step, "training"), "reward", None) if parts.trains(step) else None
    return [] if conf is None else list(reward_nodes(conf).values())
