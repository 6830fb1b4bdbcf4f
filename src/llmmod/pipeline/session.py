"""The shared state of a run's steps: each tokenizer, render, dataset and model is loaded once.

Tokenizer, render and data are built when a step first needs them, and stored by their configuration: two steps with the same
configuration get the same object. `model_pool` passes models from step to step. This module doesn't import torch: modules that do are
named by their dotted path, and `instantiate` imports them.

`compatibility_warnings` lists models and adapters that a step takes from an earlier step or from a directory, and that were trained with
another render or on another base. That can be intended, so it is a warning, before anything is loaded; combinations that can't work are
errors of `config.validate`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmmod.config.schema.base import Weights
from llmmod.config.schema.model import decides_weights
from llmmod.config.schema.steps import Root, StepConf
from llmmod.config.schema.training import reward_nodes
from llmmod.config.step_parts import StepConfigs
from llmmod.distributed import rank
from llmmod.instantiate import build, import_own, locate
from llmmod.pipeline.model_pool import CurrentModel, ModelPool
from llmmod.protocols import LoadedModel, ModelLineage
from llmmod.render.segments import Render

log = logging.getLogger("llmmod")
_SHARED, _OWN = "shared", "own"  # whether the next job of a sweep may use it


@dataclass
class Left:
    """Objects that a job of a sweep leaves for the next one in the same process.

    Args:
        loaded: tokenizers, renders and datasets, by their configuration.
        model: the model in memory, with its checkpoint's weights; None: none, or its weights have changed.
        model_inputs: the other inputs of its loading, besides its own configuration.
    """

    loaded: dict[tuple[str, ...], Any] = field(default_factory=dict)
    model: CurrentModel | None = None
    model_inputs: str = ""


class Session:
    """The shared state of a run; `parts` has the configuration of each step.

    Args:
        root: the validated configuration, as plain Python.
        run_dir: the run's directory, which exists.
        left: objects of the last job of a sweep in this process; this job's replace them.
    """

    def __init__(self, root: Root, run_dir: Path, left: Left | None = None) -> None:
        self.root = root
        self.run_dir = run_dir
        self.parts = StepConfigs(root)
        self._left = left or Left()
        current = self._left.model if self._left.model_inputs == self._model_inputs() else None
        self._left.model = None  # this job may change it
        self._models = ModelPool(self.parts, load=self._load, on_release=lambda: self.put("trainer", None), current=current)
        self._loaded: dict[tuple[str, ...], Any] = {}
        self._shared: dict[str, Any] = {}
        self.data: list[dict[str, Any]] = []  # an account of each dataset that was read, for run.json
        self._accounted: set[tuple[str, ...]] = set()

    def step_dir(self, step: str) -> Path:
        """The directory that a step writes to; it is created."""
        directory = self.run_dir / step
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def conf(self, step: str, part: str) -> Any:
        """The `model`, `finetune`, `training`, `dataset` or `render` of a step."""
        return self.parts.of(step, part)

    def tokenizer(self, step: str) -> Any:
        """The tokenizer of a step's model."""
        model, render = self.conf(step, "model"), self.conf(step, "render")
        extra = import_own("llmmod.render.segments.named_tokens")(render) if self.root.smoke else []
        return self._once(
            ("tokenizer", repr(self.root.tokenizer), repr(model), repr(extra)),
            lambda: import_own("llmmod.models.loading.build.build_tokenizer")(
                self.root.tokenizer, model, hub=self.root.hub, smoke=self.root.smoke, extra_tokens=extra
            ),
        )

    def render(self, step: str) -> Render:
        """The render of a step."""
        conf, tokenizer = self.conf(step, "render"), self.tokenizer(step)
        made: Render = self._once(("render", repr(conf), str(id(tokenizer))), lambda: build(conf, tokenizer=tokenizer))
        return made

    def splits(self, step: str) -> Any:
        """A step's examples, rendered and tokenized, after the check that training and inference use the same ids."""
        conf, render, tokenizer = self.conf(step, "dataset"), self.render(step), self.tokenizer(step)
        written, kind = self.conf(step, "render"), self.conf(step, "training").data_kind

        def load() -> Any:
            splits = locate(conf._target_)(
                conf,
                kind=kind,
                render=render,
                tokenizer=tokenizer,
                seed=self.root.seed,
                hub=self.root.hub,
                smoke=self.root.smoke,
                verify=written.name if written.verify else None,
            )
            return splits, {"name": conf.name, "render": written.name, **_account(splits)}

        key = ("splits", kind, repr(conf), str(id(render)), str(self.root.seed), str(written.verify))
        splits, account = self._once(key, load, shared=not conf.streaming)
        if key not in self._accounted:
            self._accounted.add(key)
            self.data.append({"step": step, **account})
            if self.root.replay is not None and rank() == 0:
                for line in import_own("llmmod.runs.replay.other_data")(self.root.replay, self.data[-1]):
                    log.warning("replay: differs from the recorded run: %s", line)
        return splits

    def base_model(self, step: str) -> Any:
        """The initial model of a training step, without new adapters: its checkpoint's, or the result of `model.from_step`."""
        return self._models.base(step)

    def register_trained(self, step: str, result: LoadedModel, *, base_intact: bool = False) -> None:
        """Register a model that a step trained and saved, for later steps; see `pipeline.model_pool`."""
        self._models.register_trained(step, result, base_intact=base_intact)

    def register_reused(self, step: str, result: LoadedModel) -> None:
        """Register a model that an earlier run trained and saved, as if it were this run's."""
        self._models.register_reused(step, result)

    def register_saved(self, step: str, result: LoadedModel) -> None:
        """Register a model that a step trained and saved, and of which each process has only a part."""
        self._models.register_saved(step, result)

    def from_step(self, step: str) -> str | None:
        """The earlier training step whose result a step starts from, or None."""
        return self.parts.from_step(step)

    @property
    def trains_several(self) -> bool:
        """Whether the run has several training steps and isn't a rehearsal."""
        return not self.root.smoke and sum(map(self.parts.trains, self.root.pipeline)) > 1

    def training_lineage(self, step: str) -> ModelLineage:
        """The lineage of a training step, for stage.json."""
        return self._models.training_lineage(step)

    def base_lineage(self, step: str) -> ModelLineage:
        """The lineage of the model under the adapter of a step that doesn't train."""
        return self._models.base_lineage(step)

    def result(self, step: str) -> LoadedModel:
        """The result of an earlier training step: its kind, head and directory."""
        return self._models.result(step)

    def model(self, step: str) -> LoadedModel:
        """The model of an earlier step, by `model.from_step` or the pipeline's order, else the model of the step's configuration."""
        return self._models.model(step)

    def put(self, name: str, value: Any) -> None:
        """Store a value for later steps."""
        self._shared[name] = value

    def get(self, name: str) -> Any:
        """The value that an earlier step stored under `name`, or None."""
        return self._shared.get(name)

    def _load(self, step: str, conf: Any, *, saved: bool) -> Any:
        smoke = self.root.smoke and not saved  # files that a rehearsal saved can be read
        load = import_own("llmmod.models.loading.build.build_model")
        return load(conf, hub=self.root.hub, smoke=smoke, tokenizer=self.tokenizer(step), seed=self.root.seed)

    def leave(self) -> None:
        """Leave this job's loaded objects to the next job; to be called after all steps."""
        self._left.loaded = {key: value for key, value in self._loaded.items() if key[0] == _SHARED}
        self._left.model, self._left.model_inputs = self._models.leave(), self._model_inputs()

    def _model_inputs(self) -> str:
        """The other inputs of a model's loading, besides its configuration: the seed for random weights, the tokenizer in a rehearsal."""
        models = [self.parts.of(step, "model") for step in self.parts.steps if isinstance(self.parts.get(f"steps.{step}"), StepConf)]
        made = self.root.smoke or any(model.weights == Weights.random for model in models)
        renders = [self.parts.of(step, "render") for step in self.parts.steps] if self.root.smoke else []
        return repr((self.root.hub, self.root.smoke, self.root.tokenizer, self.root.distributed, self.root.seed if made else None, renders))

    def _once(self, key: tuple[str, ...], make: Callable[[], Any], *, shared: bool = True) -> Any:
        key = (_SHARED if shared else _OWN, repr(self.root.hub), str(self.root.smoke), *key)
        if key not in self._loaded:
            self._loaded[key] = self._left.loaded[key] if key in self._left.loaded else make()
        return self._loaded[key]


def _account(splits: Any) -> dict[str, Any]:
    """The account of a dataset for run.json; a user's own class may lack some of the attributes."""
    report, findings = getattr(splits, "report", None), getattr(splits, "findings", None)
    said: dict[str, Any] = {"content": dict(getattr(splits, "content", {})), "examples": getattr(splits, "identity", None), "lines": []}
    if report is not None:
        said["lines"] = [*report.lines(), *report.losses()]
    return said | {"certified": findings is not None, "findings": [str(finding) for finding in findings or ()]}


def compatibility_warnings(parts: StepConfigs) -> list[str]:
    """A line for each model, adapter or reward that a step uses and that was trained with another render or base."""
    steps = [step for step in parts.steps if isinstance(parts.get(f"steps.{step}"), StepConf)]
    return list(dict.fromkeys(line for step in steps for line in [*_between_steps(parts, step), *_with_directories(parts, step)]))


def _between_steps(parts: StepConfigs, step: str) -> Iterator[str]:
    """Warnings about results of earlier steps of the run."""
    begins = parts.from_step(step) if parts.trains(step) else parts.followed(step)
    scored = [node["step"] for node in _rewards(parts, step) if "step" in node]
    for earlier in filter(None, [begins, *scored]):
        yield from _other_render(earlier, parts.of(earlier, "render").name, step, parts)


def _with_directories(parts: StepConfigs, step: str) -> Iterator[str]:
    """Warnings about directories of earlier runs; a step that uses a result of this run doesn't read one."""
    if not parts.trains(step) and parts.followed(step) is not None:
        return
    model, adapters = parts.of(step, "model"), parts.of(step, "finetune").adapters
    base = model.sizes.get(model.size, model.pretrained_model_name_or_path)
    scored = [str(node["path"]) for node in _rewards(parts, step) if "path" in node]
    for path in filter(None, [base, *adapters, *scored]):
        left = import_own("llmmod.models.loading.stage_file.read_stage_file")(Path(path).expanduser())
        if left is None:
            continue
        yield from _other_render(f"'{path}'", left.render, step, parts)
        if path in adapters and base and left.base and not left.base.startswith("..") and Path(left.base).name != Path(base).name:
            yield f"'{path}' was trained on {left.base}, but {step} puts it on {base}"
        own = decides_weights(model.quantization)
        if path in adapters and left.quantization != own and parts.from_step(step) is None:
            yield f"'{path}' was trained on {_weights_text(left.quantization)}, but {step} puts it on {_weights_text(own)}"


def _weights_text(quantization: Mapping[str, Any] | None) -> str:
    if quantization is None:
        return "weights that aren't quantized"
    rest = ", ".join(f"{name}={value}" for name, value in quantization.items() if name != "bits" and value is not None)
    return f"weights of {quantization['bits']} bits ({rest})"


def _other_render(what: str, render: str, step: str, parts: StepConfigs) -> Iterator[str]:
    own = parts.of(step, "render").name
    if render != own:
        yield f"{what} was trained with render={render}, but {step} uses render={own}"


def _rewards(parts: StepConfigs, step: str) -> list[dict[str, Any]]:
    conf = getattr(parts.of(step, "training"), "reward", None) if parts.trains(step) else None
    return [] if conf is None else list(reward_nodes(conf).values())
