"""The scores of completions: reward models and functions, as `training.reward` names them, and their weighted sum.

A reward is a model's directory (`path`), the result of an earlier step of the run (`step`), or a function or class (`_target_`). A
function is called as trl's GRPOTrainer calls it: with `prompts` and `completions` (lists of messages, or texts if the data has no
messages), `completion_ids`, and each further column of the data by its name; it returns a number for each completion. It does not get
trl's `log_extra`, `log_metric` and `trainer_state`, and it must not be async.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmmod.config.schema.training import reward_nodes, unfit
from llmmod.data.collators import padded
from llmmod.errors import ConfigError, Problem, RunError
from llmmod.instantiate import arguments, build, locate
from llmmod.models.adapters.base_changing_init import has_lost_base
from llmmod.models.adapters.load import load_adapter, read_adapter, restore_base_model
from llmmod.models.adapters.precision import to_stored_dtype
from llmmod.models.adapters.reward_models import can_share_base, load_reward_model, shared_base_reward
from llmmod.models.generation.settings import answer_text
from llmmod.models.loading.quantization import is_quantized
from llmmod.models.loading.stage_file import read_stage_file
from llmmod.models.loading.structure import base_model
from llmmod.models.reward import require_head, score, with_reward_head
from llmmod.protocols import ModelLineage
from llmmod.trainers.build import prepare_for_inference, spans_devices

KEY = "training.reward"
LINEAGE_ATTRIBUTE = "lineage"  # attribute of a model without its adapter: as from `ModelLineage.resolve`


@dataclass
class Completions:
    """Completions to be scored.

    Args:
        prompts: ids.
        ids: of the completions, terminators included.
        columns: of the data, a value for each prompt.
        texts: of the completions, as `models.generation.settings.Reader` reads them.
    """

    prompts: Sequence[Sequence[int]]
    ids: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]]
    texts: Sequence[str]


Scorer = Callable[[Completions], torch.Tensor]  # float32 [completions]


class Rewards:
    """The weighted sum of all rewards of a completion.

    Args:
        scorers: by name.
        weights: by name; 1 for a name without a weight.
    """

    def __init__(self, scorers: Mapping[str, Scorer], weights: Mapping[str, float] | None = None) -> None:
        self.scorers, self.weights = dict(scorers), dict(weights or {})

    def __call__(self, completions: Completions) -> torch.Tensor:
        """Scores, float32 [completions].

        Raises:
            RunError: a function does not return a number for each completion.
        """
        total = torch.zeros(len(completions.ids))
        for name, scorer in self.scorers.items():
            total += self.weights.get(name, 1.0) * scorer(completions)
        return total

    @contextmanager
    def left_out(self, model: Any) -> Iterator[None]:
        """A context in which `model.save_pretrained` saves the trained adapter only, not those of rewards."""
        if not hasattr(model, "peft_config") or len(model.peft_config) == 1:
            yield
            return
        save = model.save_pretrained
        model.save_pretrained = functools.partial(save, selected_adapters=[model.active_adapter])
        try:
            yield
        finally:
            model.save_pretrained = save

    def release(self) -> None:
        """Free reward models, and remove their adapters from the policy."""
        for scorer in self.scorers.values():
            if isinstance(scorer, ModelScorer):
                scorer.release()
        self.scorers = {}


def rewards_from(
    conf: Mapping[str, Any], weights: Mapping[str, float], *, model: Any, tokenizer: Any, run_dir: Path, rows: int, left_out: float = 0.0
) -> Rewards:
    """The rewards that `training.reward` names.

    Args:
        conf: see `config.schema.training.reward_nodes`.
        weights: `training.reward_weights`.
        model: the policy; a reward adapter of the same base model is added to it.
        tokenizer: decodes prompts.
        run_dir: the run's directory, which has those of its steps.
        rows: completions that a reward model scores at once.
        left_out: the score of a completion for which a function returns None.

    Raises:
        ConfigError: a reward does not exist, or can't score these completions.
    """
    scorers: dict[str, Scorer] = {}
    for name, node in reward_nodes(conf).items():
        if "_target_" in node:
            scorers[name] = FunctionScorer(name, _function(node), tokenizer, left_out=left_out)
        else:
            path = str(run_dir / node["step"]) if "step" in node else str(node["path"])
            scorers[name] = ModelScorer(path, model, name=f"reward_{name}", pad_id=tokenizer.pad_token_id or 0, rows=rows)
    return Rewards(scorers, weights)


def _function(node: Mapping[str, Any]) -> Callable[..., Any]:
    """A class is built with the other fields of the node; a function gets them at each call."""
    target = locate(node["_target_"])
    function: Callable[..., Any] = build(dict(node)) if inspect.isclass(target) else functools.partial(target, **arguments(dict(node)))
    awaited = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    if problem := unfit(KEY, node["_target_"], awaited=awaited, required=_required(function)):
        raise ConfigError(problem)
    return function


def _required(function: Callable[..., Any]) -> list[str]:
    """The arguments without a default; empty if the signature is unknown."""
    try:
        given = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [parameter.name for parameter in given if parameter.default is parameter.empty]


class FunctionScorer:
    """Scores with a function.

    Args:
        name: of the reward.
        function: see the module.
        tokenizer: decodes prompts, if the data has no messages.
        left_out: the score where the function returns None.
    """

    def __init__(self, name: str, function: Callable[..., Any], tokenizer: Any, *, left_out: float = 0.0) -> None:
        self._name, self._function, self._tokenizer, self._left_out = name, function, tokenizer, left_out

    def __call__(self, completions: Completions) -> torch.Tensor:
        """Scores, float32 [completions]."""
        texts, messages = list(completions.texts), completions.columns.get("prompt")
        given = {name: values for name, values in completions.columns.items() if name not in ("prompt", "prompt_ids")}
        if messages is None:
            prompts = [answer_text(ids, self._tokenizer, stop_ids=()).strip() for ids in completions.prompts]
            given |= {"prompts": prompts, "completions": texts}
        else:
            given |= {"prompts": messages, "completions": [[{"role": "assistant", "content": text}] for text in texts]}
        scores = self._function(**given, completion_ids=completions.ids)
        if len(scores) != len(texts):
            raise RunError(f"{KEY}.{self._name}: the function gave {len(scores)} numbers for {len(texts)} completions.")
        found = [None if score is None else float(score) for score in scores]
        if bad := next((score for score in found if score is not None and not math.isfinite(score)), None):
            raise RunError(f"{KEY}.{self._name}: the function gave {bad}, which is not a score.")
        return torch.tensor([self._left_out if score is None else score for score in found])


class ModelScorer:
    """Scores with a reward model.

    A reward adapter that was trained on the policy's base model is added to the policy as a second adapter. If the policy isn't a PeftModel
    or can't take it, the adapter gets a copy of that base model. Any other reward model is loaded separately.

    Args:
        path: of a reward adapter or a full reward model.
        policy: the model that is trained.
        name: of the adapter within it.
        pad_id: the padding.
        rows: completions scored at once.

    Raises:
        ConfigError: the reward model is missing, or it has another vocabulary.
    """

    def __init__(self, path: str, policy: Any, *, name: str, pad_id: int, rows: int) -> None:
        self._policy, self._name, self._pad_id, self._rows = policy, name, pad_id, rows
        same, adapted = same_lineage(Path(path), policy), hasattr(policy, "peft_config")
        self.shares_base = same and adapted and can_share_base(path, policy, key=KEY)
        self._model: Any
        if self.shares_base:
            self._model = shared_base_reward(policy, path, name=name, key=KEY)
        else:
            # A copy of a model that spans devices would call the modules of the original, and LoftQ has changed the base.
            copied = policy if same and not spans_devices(policy) and not (adapted and has_lost_base(policy)) else None
            self._model = prepare_for_inference(_own_reward_model(path, copied), use_cpu=policy.device.type == "cpu").requires_grad_(False)
            _check_vocabulary(path, self._model, policy)

    def __call__(self, completions: Completions) -> torch.Tensor:
        """Scores, float32 [completions]; completions of similar length are scored together."""
        texts = [[*prompt, *answer] for prompt, answer in zip(completions.prompts, completions.ids, strict=True)]
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        scores, device = torch.zeros(len(texts)), self._policy.device if self.shares_base else self._model.device
        for start in range(0, len(order), self._rows):
            numbers = order[start : start + self._rows]
            ids, mask = padded([texts[number] for number in numbers], fill=self._pad_id)
            scores[numbers] = score(self._model, ids.to(device), mask.to(device)).float().cpu()
        return scores

    def release(self) -> None:
        """Remove the adapter from the policy."""
        if self.shares_base and self._name in self._policy.peft_config:
            self._policy.delete_adapter(self._name)
        self._model = None


def same_lineage(path: Path, policy: Any) -> bool:
    """Whether a directory has an adapter that was trained on the same weights that the policy started from."""
    if not (path / "adapter_config.json").is_file():
        return False
    base = base_model(policy)
    left, own = read_stage_file(path), getattr(base, LINEAGE_ATTRIBUTE, None)
    if left is not None and own is not None:
        return left.lineage.resolve(path) == own
    # One of the two doesn't record its full lineage. A model's name alone doesn't tell about earlier adapters and quantization.
    lineage = ModelLineage(None, []) if left is None else left.lineage
    plain = ModelLineage(lineage.base, [], lineage.gguf_file)
    if is_quantized(base) or lineage != plain or (own is not None and len(own) != len(plain.resolve(path))):
        return False
    config, _ = read_adapter(str(path), KEY)
    return config.base_model_name_or_path in (None, "", base.name_or_path)


def _own_reward_model(path: str, policy: Any) -> Any:
    """A separate reward model; an adapter gets a copy of the base model of `policy`, if that is given."""
    if policy is None:
        return load_reward_model(path, key=KEY)
    base = copy.deepcopy(policy)
    to_stored_dtype(base)
    base = restore_base_model(base) if hasattr(base, "peft_config") else base
    adapted = load_adapter(with_reward_head(base), path, key=KEY)
    require_head(adapted)
    return adapted


def _check_vocabulary(path: str, model: Any, policy: Any) -> None:
    found, own = (each.config.get_text_config().vocab_size for each in (model, policy))
    if found != own:
        what = f"'{path}' has a vocabulary of {found} tokens, but the trained model has {own}"
        raise ConfigError(Problem(KEY, what, do="Train a reward model on the same model: stage=rm"))
