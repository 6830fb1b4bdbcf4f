"""The models of a run: one is in memory at a time, and the next step gets it wherever it can.

An adapter is put on a base model. The next training step gets the same base with that adapter unloaded, or merged where the step starts
from the earlier step's result (`model.from_step`); nothing is read again for it. A model that is no longer in memory is read again: from
its checkpoint, or from what a step saved.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmmod.config.schema.base import Weights
from llmmod.config.schema.model import ModelConf
from llmmod.config.schema.quantization import decides_weights
from llmmod.config.step_parts import StepConfigs
from llmmod.instantiate import import_own
from llmmod.protocols import LoadedModel, ModelLineage

# What weights are: ("checkpoint", a configuration), or ("step", the name of the step that left them).
Origin = tuple[str, ...]

_REWARD = "llmmod.models.adapters.reward_models.load_reward_model"


@dataclass
class CurrentModel:
    """The model in memory.

    Args:
        model: without the adapter that is on it.
        origin: what its weights are; None: they have changed since, and no other step can use them.
        owner: who put an adapter on it, or trained it: a step, or the adapters of a configuration.
        owned: the model as its owner left it.
    """

    model: Any
    origin: Origin | None
    owner: Origin | None = None
    owned: LoadedModel | None = None


class ModelPool:
    """The models of a run.

    Args:
        parts: which configuration each step goes by.
        load: reads the model of a `model.*`, given the step, the configuration, and whether this run or an earlier one `saved` it.
        on_release: called before a model leaves memory, so that others release it too.
        current: the model that an earlier run left in memory; None: there is none.
    """

    def __init__(
        self,
        parts: StepConfigs,
        *,
        load: Callable[..., Any],
        on_release: Callable[[], None],
        current: CurrentModel | None = None,
    ) -> None:
        self._parts, self._load, self._on_release = parts, load, on_release
        self._results: dict[str, LoadedModel] = {}
        self._current = current

    def result(self, step: str) -> LoadedModel:
        """What a training step left; its `model` may be another step's by now, its `path` stays."""
        return self._results[step]

    def base(self, step: str) -> Any:
        """The model that a step begins with, nothing added: its checkpoint's, or what the step of `model.from_step` left."""
        origin, current = self._origin(step), self._current
        if current is None or not self._become(current, origin):
            self._release()
            self._current = current = CurrentModel(self._read(step, origin), origin)
        return current.model

    def register_trained(self, step: str, result: LoadedModel, *, base_intact: bool) -> None:
        """Take what a step trained, on the base it was given.

        Args:
            step: its name.
            result: the model, saved.
            base_intact: whether the base's weights are under an adapter what they were.
        """
        self._results[step] = result
        if self._current is None or result.kind == "full":
            self._current = CurrentModel(result.model, None)
        self._current.owner, self._current.owned = ("step", step), result
        if not base_intact:
            self._current.origin = None

    def leave(self) -> CurrentModel | None:
        """The model in memory for another run, nothing added; None if its weights are not those of its checkpoint."""
        current = self._current
        if current is None or current.origin is None or current.origin[0] != "checkpoint" or not self._become(current, current.origin):
            return None
        self._current = None
        return current

    def register_reused(self, step: str, result: LoadedModel) -> None:
        """Take what a step left in an earlier run: it is on the disk alone until somebody asks for it."""
        self._results[step] = result

    def register_saved(self, step: str, result: LoadedModel) -> None:
        """Take what a step trained and saved, of which this process has a part alone: the steps that follow load it."""
        self._release()
        self._results[step] = result

    def model(self, step: str) -> LoadedModel:
        """The model that a step which doesn't train works on: what a training step left, else that of its configuration."""
        followed = self._parts.followed(step)
        return self._configured(step) if followed is None else self._trained_by(followed)

    def training_lineage(self, step: str) -> ModelLineage:
        """What a training step begins with, seen from its directory."""
        conf, earlier = self._parts.of(step, "model"), self._parts.from_step(step)
        chain = [_absolute(path) for path in _merged_adapters(self._parts.of(step, "finetune"))]
        if earlier is None:
            return _checkpoint_lineage(conf, chain)
        if self._results[earlier].kind == "full":
            return ModelLineage(f"../{earlier}", chain)
        before = self.training_lineage(earlier)
        return before._replace(merged=[*before.merged, f"../{earlier}", *chain])

    def base_lineage(self, step: str) -> ModelLineage:
        """What is under the adapter of the model that a step works on which doesn't train: as `training_lineage`."""
        followed = self._parts.followed(step)
        if followed is not None:
            return self.training_lineage(followed)
        conf, adapters = self._parts.of(step, "model"), self._parts.of(step, "finetune").adapters
        return _checkpoint_lineage(conf, [_absolute(path) for path in adapters[:-1]])

    def _configured(self, step: str) -> LoadedModel:
        """The step's checkpoint with the adapters that its configuration names."""
        finetune, head = self._parts.of(step, "finetune"), self._parts.of(step, "training").head
        owner = ("configured", *self._origin(step), repr(finetune.adapters), head)
        if self._current is not None and self._current.owner == owner and self._current.owned is not None:
            return self._current.owned
        base = _with_head(self.base(step), head)
        adapted = import_own("llmmod.models.adapters.setup.setup_inference")(base, finetune) if finetune.adapters else base
        if head == "reward":
            import_own("llmmod.models.reward.require_head")(adapted)
        return self._set_owner(owner, LoadedModel(adapted, "adapter" if finetune.adapters else "base", head), merged=finetune.adapters[:-1])

    def _trained_by(self, step: str) -> LoadedModel:
        result, current, own = self._results[step], self._current, ("step", step)
        if current is not None and current.owner == own:
            return result
        if current is not None and self._become(current, own):
            return replace(result, model=current.model, kind="full")  # its adapter has been merged for a later step
        if result.kind == "full":
            self._release()
            self._current = CurrentModel(self._read_result(step), own)
            return replace(result, model=self._current.model)
        base, finetune = _with_head(self.base(step), result.head), self._parts.of(step, "finetune")
        chain = _merged_adapters(finetune)
        adapted = import_own("llmmod.models.adapters.setup.setup_inference")(base, replace(finetune, adapters=[*chain, str(result.path)]))
        self._results[step] = replace(result, model=adapted)
        return self._set_owner(own, self._results[step], merged=chain)

    def _set_owner(self, owner: Origin, owned: LoadedModel, *, merged: list[str]) -> LoadedModel:
        current = self._current
        assert current is not None
        current.owner, current.owned = owner, owned
        if merged:
            current.origin = None
        return owned

    def _origin(self, step: str) -> Origin:
        earlier = self._parts.from_step(step)
        return ("checkpoint", repr(self._checkpoint(step))) if earlier is None else ("step", earlier)

    def _become(self, current: CurrentModel, origin: Origin) -> bool:
        """Whether the model in memory is, or could be made, the one that is asked for."""
        if current.owner == origin and current.owned is not None:
            if current.owned.kind == "adapter":
                current.model = import_own("llmmod.models.adapters.merge.merge_or_stack")(current.owned.model)
            else:
                import_own("llmmod.models.loading.structure.set_name")(current.model, str(current.owned.path))
            current.origin = origin
        elif current.origin != origin:
            return False
        elif current.owned is not None and current.owned.kind == "adapter":
            import_own("llmmod.models.adapters.load.unload_adapter")(current.owned.model)
        self._drop_owned(current)
        return True

    def _drop_owned(self, current: CurrentModel) -> None:
        if current.owned is not None:
            self._on_release()
            current.owned.model = None  # nobody is to compute with it by mistake: it isn't what it was
        current.owner = current.owned = None

    def _read(self, step: str, origin: Origin) -> Any:
        if origin[0] == "checkpoint":
            return self._load(step, self._checkpoint(step), saved=False)
        earlier, result = origin[1], self._results[origin[1]]
        if result.kind == "full":
            return self._read_result(earlier)
        base = self._read(earlier, self._origin(earlier))
        chain = [*_merged_adapters(self._parts.of(earlier, "finetune")), str(result.path)]
        return import_own("llmmod.models.adapters.load.merge_adapters")(base, chain)

    def _read_result(self, step: str) -> Any:
        """The whole model that a step saved."""
        conf, path = self._parts.of(step, "model"), str(self._results[step].path)
        # What changed the checkpoint when it was read is in the files that were saved.
        own: dict[str, Any] = {
            "pretrained_model_name_or_path": path,
            "gguf_file": None,
            "size": None,
            "revision": None,
            "config": {},
            "install": None,
        }
        scaling = replace(conf.rope_scaling, type=None, factor=None)
        if self._results[step].head == "reward":
            own["_target_"] = _REWARD
        return self._load(step, replace(conf, **own, weights=Weights.pretrained, rope_scaling=scaling), saved=True)

    def _checkpoint(self, step: str) -> ModelConf:
        """A step's `model.*`; where it scores, and its checkpoint has a reward head, it is read with it."""
        conf: ModelConf = self._parts.of(step, "model")
        scores = self._parts.of(step, "training").head == "reward"
        checkpoint = Path(str(conf.pretrained_model_name_or_path)).expanduser()
        has_head = import_own("llmmod.models.loading.stage_file.head_of")(checkpoint) == "reward"
        return replace(conf, _target_=_REWARD) if scores and has_head else conf

    def _release(self) -> None:
        if self._current is not None:
            self._drop_owned(self._current)
            self._on_release()
            self._current = None
            gc.collect()  # a trainer and its model hold each other


def _checkpoint_lineage(conf: ModelConf, merged: list[str]) -> ModelLineage:
    base = conf.sizes.get(conf.size or "", conf.pretrained_model_name_or_path)
    return ModelLineage(base, merged, conf.gguf_file, decides_weights(conf.quantization))


def _merged_adapters(finetune: Any) -> list[str]:
    """Of `finetune.adapters`, those that were merged into a training step's base."""
    return list(finetune.adapters[:-1] if finetune.resume_adapter else finetune.adapters)


def _absolute(path: str) -> str:
    place = Path(path).expanduser()
    return str(place.absolute()) if place.exists() else path


def _with_head(model: Any, head: str) -> Any:
    return import_own("llmmod.models.reward.with_reward_head")(model) if head == "reward" else model
