"""What a run has loaded, each thing once, for every step to share.

Tokenizer, render and data are made when a step first asks for them and kept under the configuration they were made from, so that two
steps with the same configuration get the same object, and a step with a configuration of its own gets one of its own. Models are handed
on from step to step (`pipeline.models`).
Nothing here imports torch: what does is named by its dotted path and comes through `instantiate`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmmod.beginning import Beginning
from llmmod.instantiate import build, import_own, locate
from llmmod.pipeline.models import Models
from llmmod.pipeline.parts import Parts
from llmmod.protocols import LoadedModel, Render
from llmmod.schema.root import Root


class Session:
    """The shared state of a run; `parts` says which configuration each step goes by.

    Args:
        root: the validated configuration, as plain Python.
        run_dir: the run's directory, which exists.
    """

    def __init__(self, root: Root, run_dir: Path) -> None:
        self.root = root
        self.run_dir = run_dir
        self.parts = Parts(root)
        self._models = Models(self.parts, load=self._load, let_go=lambda: self.put("trainer", None))
        self._made: dict[tuple[str, ...], Any] = {}
        self._left: dict[str, Any] = {}

    def step_dir(self, step: str) -> Path:
        """The directory a step writes to, created."""
        directory = self.run_dir / step
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def conf(self, step: str, part: str) -> Any:
        """The `model`, `finetune`, `training`, `dataset` or `render` that a step goes by."""
        return self.parts.of(step, part)

    def tokenizer(self, step: str) -> Any:
        """The tokenizer of a step's model."""
        model, render = self.conf(step, "model"), self.conf(step, "render")
        extra = import_own("llmmod.render.tokens.named_tokens")(render) if self.root.smoke else []
        return self._once(
            ("tokenizer", repr(self.root.tokenizer), repr(model), repr(extra)),
            lambda: import_own("llmmod.models.build.tokenizer_from")(
                self.root.tokenizer, model, hub=self.root.hub, smoke=self.root.smoke, extra_tokens=extra
            ),
        )

    def render(self, step: str) -> Render:
        """How a step's conversations are written."""
        conf, tokenizer = self.conf(step, "render"), self.tokenizer(step)
        made: Render = self._once(("render", repr(conf), str(id(tokenizer))), lambda: build(conf, tokenizer=tokenizer))
        return made

    def splits(self, step: str) -> Any:
        """A step's examples, rendered and tokenized, after proof that training and inference see the same ids."""
        conf, render, tokenizer = self.conf(step, "dataset"), self.render(step), self.tokenizer(step)
        written, kind = self.conf(step, "render"), self.conf(step, "training").data_kind
        return self._once(
            ("splits", kind, repr(conf), str(id(render))),
            lambda: locate(conf._target_)(
                conf,
                kind=kind,
                render=render,
                tokenizer=tokenizer,
                seed=self.root.seed,
                hub=self.root.hub,
                smoke=self.root.smoke,
                verify=written.name if written.verify else None,
            ),
        )

    def base_model(self, step: str) -> Any:
        """The model that a training step begins with, and nothing added: its checkpoint's, or what the step of `model.from_step` left."""
        return self._models.base(step)

    def trained(self, step: str, result: LoadedModel, *, base_intact: bool = False) -> None:
        """Take what a step trained and saved, for the steps that follow; see `pipeline.models`."""
        self._models.trained(step, result, base_intact=base_intact)

    def found(self, step: str, result: LoadedModel) -> None:
        """Take what an earlier run trained and saved, as if this one had."""
        self._models.found(step, result)

    def from_step(self, step: str) -> str | None:
        """The earlier training step whose result a step begins with."""
        return self.parts.from_step(step)

    @property
    def trains_several(self) -> bool:
        """Whether the run has several training steps, and is no rehearsal."""
        return not self.root.smoke and sum(map(self.parts.trains, self.root.pipeline)) > 1

    def begins_with(self, step: str) -> Beginning:
        """What a training step begins with, as stage.json has it."""
        return self._models.begins_with(step)

    def stands_on(self, step: str) -> Beginning:
        """What is under the adapter of the model that another step works on."""
        return self._models.stands_on(step)

    def result(self, step: str) -> LoadedModel:
        """What an earlier training step left: its kind, head and directory."""
        return self._models.result(step)

    def model(self, step: str) -> LoadedModel:
        """What an earlier step trained, as `model.from_step` or the pipeline's order has it, else the model of the step's configuration."""
        return self._models.model(step)

    def put(self, name: str, value: Any) -> None:
        """Leave something for later steps."""
        self._left[name] = value

    def get(self, name: str) -> Any:
        """What an earlier step left under `name`, or None."""
        return self._left.get(name)

    def _load(self, step: str, conf: Any, *, saved: bool) -> Any:
        smoke = self.root.smoke and not saved  # what a rehearsal saved is there to be read
        load = import_own("llmmod.models.build.model_from")
        return load(conf, hub=self.root.hub, smoke=smoke, tokenizer=self.tokenizer(step), seed=self.root.seed)

    def _once(self, key: tuple[str, ...], make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
