"""The models of a run: one is in memory at a time, and the next step uses it if it can.

A training step adds an adapter to a base model. The next training step gets the same base with the adapter unloaded, or merged if the step
starts from the earlier step's result (`model.from_step`), without reading files again. A model that is no longer in memory is read from its
checkpoint, or from the files that a step saved.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmmod.config.schema.base import Weights
from llmmod.config.schema.model import ModelConf, decides_weights
from llmmod.config.step_parts import StepConfigs
from llmmod.instantiate import import_own
from llmmod.protocols import LoadedModel, ModelLineage

# Origin of weights: ("checkpoint", a configuration), or ("step", the name of the step that trained them).
Origin = tuple[str, ...]

_REWARD = "llmmod.models.adapters.reward_models.load_reward_model"


@dataclass
class CurrentModel:
    """The model in memory.

    Args:
        model: without its adapter.
        origin: of its weights; None: they have changed since, and other steps can't use them.
        owner: a step that added an adapter or trained it, or a configuration with adapters.
        owned: the owner's model, with its adapter.
    """

    model: Any
    origin: Origin | None
    owner: Origin | None = None
    owned: LoadedModel | None = None


class ModelPool:
    """The models of a run.

    Args:
        parts: the configuration of each step.
        load: reads the model of `model.*` from the step, the configuration, and whether a run `saved` it.
        on_release: called before a model is released, so that others release it too.
        current: the model that an earlier run left in memory, or None.
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
        """The result of a training step; later steps may have changed its `model`, but not the files in `path`."""
        return self._results[step]

    def base(self, step: str) -> Any:
        """The initial model of a step, without new adapters: its checkpoint's, or the result of the step in `model.from_step`."""
        origin, current = self._origin(step), self._current
        if current is None or not self._become(current, origin):
            self._release()
            self._current = current = CurrentModel(self._read(step, origin), origin)
        return current.model

    def register_trained(self, step: str, result: LoadedModel, *, base_intact: bool) -> None:
        """Register a model that a step trained from the base it got.

        Args:
            step: its name.
            result: the model, saved.
            base_intact: whether the base's weights under the adapter are unchanged.
        """
        self._results[step] = result
        if self._current is None or result.kind == "full":
            self._current = CurrentModel(result.model, None)
        self._current.owner, self._current.owned = ("step", step), result
        if not base_intact:
            self._current.origin = None

    def leave(self) -> CurrentModel | None:
        """The model in memory for another run, without adapters; None if its weights differ from its checkpoint."""
        current = self._current
        if current is None or current.origin is None or current.origin[0] != "checkpoint" or not self._become(current, current.origin):
            return None
        self._current = None
        return current

    def register_reused(self, step: str, result: LoadedModel) -> None:
        """Register a step's result from an earlier run; it stays on the disk until a step needs it."""
        self._results[step] = result

    def register_saved(self, step: str, result: LoadedModel) -> None:
        """Register a model that a step saved and of which this process has only a part; later steps load it."""
        self._release()
        self._results[step] = result

    def model(self, step: str) -> LoadedModel:
        """The model of a step that doesn't train: a training step's result, else the model of its configuration."""
        followed = self._parts.followed(step)
        return self._configured(step) if followed is None else self._trained_by(followed)

    def training_lineage(self, step: str) -> ModelLineage:
        """The lineage of a training step, with paths relative to its directory."""
        conf, earlier = self._parts.of(step, "model"), self._parts.from_step(step)
        chain = [_absolute(path) for path in _merged_adapters(self._parts.of(step, "finetune"))]
        if earlier is None:
            return _checkpoint_lineage(conf, chain)
        if self._results[earlier].kind == "full":
            return ModelLineage(f"../{earlier}", chain)
        before = self.training_lineage(earlier)
        return before._replace(merged=[*before.merged, f"../{earlier}", *chain])

    def base_lineage(self, step: str) -> ModelLineage:
        """The lineage of the model under the adapter of a step that doesn't train; see `training_lineage`."""
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
            return replace(result, model=current.model, kind="full")  # its adapter was merged for a later step
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
        """Whether the model in memory is the requested one, or was changed into it."""
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
            current.owned.model = None  # it has changed, so it must not be used by mistake
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
        # The saved files already have the changes that were made when the checkpoint was read.
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
        """A step's `model.*`; if the step scores and the checkpoint has a reward head, it is read with that head."""
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
    """The `finetune.adapters` that are merged into a training step's base."""
    return list(finetune.adapters[:-1] if finetune.resume_adapter else finetune.adapters)


def _absolute(path: str) -> str:
    place = Path(path).expanduser()
    return str(place.absolute()) if place.exists() else path


def _with_head(model: Any, head: str) -> Any:
    return import_own("llmmod.models.reward.with_reward_head")(model) if head == "reward" else model
