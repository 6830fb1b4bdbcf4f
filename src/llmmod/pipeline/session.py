"""What a run has loaded, each thing once, for every step to share.

Tokenizer, render, data and model are made when a step first asks for them and kept under the configuration they were made from, so
that two steps with the same configuration get the same object, and a step with a configuration of its own gets one of its own.
Nothing here imports torch: what does is named by its dotted path and comes through `instantiate`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmmod.instantiate import build, locate
from llmmod.protocols import LoadedModel, Render
from llmmod.schema.root import Root


class Session:
    """The shared state of a run.

    Args:
        root: the validated configuration, as plain Python.
        run_dir: the run's directory, which exists.
    """

    def __init__(self, root: Root, run_dir: Path) -> None:
        self.root = root
        self.run_dir = run_dir
        self.current: LoadedModel | None = None
        self._made: dict[tuple[str, ...], Any] = {}
        self._left: dict[str, Any] = {}

    def step_dir(self, step: str) -> Path:
        """The directory a step writes to, created."""
        directory = self.run_dir / step
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def conf(self, step: str, part: str) -> Any:
        """A step's own `model`, `finetune`, `training`, `dataset` or `render`, else the root's."""
        own = getattr(self.root.steps[step], part, None)
        return own if own is not None else getattr(self.root, part)

    def tokenizer(self, step: str) -> Any:
        """The tokenizer of a step's model."""
        model, render = self.conf(step, "model"), self.conf(step, "render")
        extra = locate("llmmod.render.tokens.named_tokens")(render) if self.root.smoke else []
        return self._once(
            ("tokenizer", repr(self.root.tokenizer), repr(model), repr(extra)),
            lambda: locate("llmmod.models.build.tokenizer_from")(
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
        """A step's model with the weights of its checkpoint, and nothing added."""
        conf, tokenizer = self.conf(step, "model"), self.tokenizer(step)
        return self._once(
            ("model", repr(conf), repr(self.root.smoke)),
            lambda: locate("llmmod.models.build.model_from")(
                conf, hub=self.root.hub, smoke=self.root.smoke, tokenizer=tokenizer, seed=self.root.seed
            ),
        )

    def model(self, step: str) -> LoadedModel:
        """What an earlier step trained, else the step's model with the adapters that its configuration names."""
        if self.current is None:
            base, finetune = self.base_model(step), self.conf(step, "finetune")
            adapted = locate("llmmod.models.adapt.with_adapters")(base, finetune) if finetune.adapters else base
            self.current = LoadedModel(model=adapted, kind="adapter" if finetune.adapters else "base")
        return self.current

    def forget_model(self) -> None:
        """Let go of loaded models, for a step that leaves a new one in their place."""
        self._made = {key: made for key, made in self._made.items() if key[0] != "model"}

    def put(self, name: str, value: Any) -> None:
        """Leave something for later steps."""
        self._left[name] = value

    def get(self, name: str) -> Any:
        """What an earlier step left under `name`, or None."""
        return self._left.get(name)

    def _once(self, key: tuple[str, ...], make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
