"""What answers are worth: reward models and functions, as `training.reward` names them, added up by their weights.

A reward is a model's directory (`path`), what an earlier step of the run left (`step`), or a function or class of anybody's, named by its
`_target_`. A function is called as trl's GRPO calls it: with `prompts` and `completions` (lists of messages, or texts where the data has
no messages), `completion_ids`, and each further column of the data by its name; it returns a number for each answer. What else trl hands in
(`log_extra`, `log_metric`, `trainer_state`) it isn't given, and it isn't awaited.
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

from llmmod.config.schema.online_training import reward_nodes, unfit
from llmmod.data.collators import padded
from llmmod.errors import ConfigError, Problem, RunError
from llmmod.instantiate import arguments, build, locate
from llmmod.models.adapters.init import has_lost_base
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
    """Answers that are to be scored.

    Args:
        prompts: ids.
        answers: ids, terminators included.
        columns: of the data, a value for each prompt.
        texts: of the answers, as `models.generation.Reader` reads them.
    """

    prompts: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]]
    texts: Sequence[str]


Scorer = Callable[[Completions], torch.Tensor]  # float32 [answers]


class Rewards:
    """The weighted sum of all rewards of an answer.

    Args:
        scorers: by name.
        weights: by name; 1 where there is none.
    """

    def __init__(self, scorers: Mapping[str, Scorer], weights: Mapping[str, float] | None = None) -> None:
        self.scorers, self.weights = dict(scorers), dict(weights or {})

    def __call__(self, answers: Completions) -> torch.Tensor:
        """Scores, float32 [answers].

        Raises:
            RunError: a function gives something else than a number an answer.
        """
        total = torch.zeros(len(answers.answers))
        for name, scorer in self.scorers.items():
            total += self.weights.get(name, 1.0) * scorer(answers)
        return total

    @contextmanager
    def left_out(self, model: Any) -> Iterator[None]:
        """Within it, a model saves the adapter that is trained, and none of a reward's beside it."""
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
        """Let go of reward models, and take their adapters out of the model that is trained."""
        for scorer in self.scorers.values():
            if isinstance(scorer, ModelScorer):
                scorer.release()
        self.scorers = {}


def rewards_from(
    conf: Mapping[str, Any], weights: Mapping[str, float], *, model: Any, tokenizer: Any, run_dir: Path, rows: int, left_out: float = 0.0
) -> Rewards:
    """What `training.reward` names.

    Args:
        conf: see `config.schema.online_training.reward_nodes`.
        weights: `training.reward_weights`.
        model: that is trained; a reward adapter on its base is put beside its own.
        tokenizer: of prompts' texts.
        run_dir: where the run's steps have their directories.
        rows: answers that a reward model scores together.
        left_out: what an answer has that a function gives no number for (None).

    Raises:
        ConfigError: a reward that isn't there, or can't score these answers.
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
    """A class is built with the node's other fields; a function is called with them each time."""
    target = locate(node["_target_"])
    asked: Callable[..., Any] = build(dict(node)) if inspect.isclass(target) else functools.partial(target, **arguments(dict(node)))
    awaited = inspect.iscoroutinefunction(asked) or inspect.iscoroutinefunction(type(asked).__call__)
    if problem := unfit(KEY, node["_target_"], awaited=awaited, required=_required(asked)):
        raise ConfigError(problem)
    return asked


def _required(function: Callable[..., Any]) -> list[str]:
    """The arguments without a default; none where nobody knows them."""
    try:
        given = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [parameter.name for parameter in given if parameter.default is parameter.empty]


class FunctionScorer:
    """Asks a function.

    Args:
        name: of the reward.
        function: see the module.
        tokenizer: of the prompts' texts, where the data has no messages.
        left_out: what counts where the function gives None.
    """

    def __init__(self, name: str, function: Callable[..., Any], tokenizer: Any, *, left_out: float = 0.0) -> None:
        self._name, self._function, self._tokenizer, self._left_out = name, function, tokenizer, left_out

    def __call__(self, answers: Completions) -> torch.Tensor:
        """Scores, float32 [answers]."""
        texts = list(answers.texts)
        messages = answers.columns.get("prompt")
        given = {name: values for name, values in answers.columns.items() if name not in ("prompt", "prompt_ids")}
        if messages is None:
            given |= {"prompts": [self._prompt(ids) for ids in answers.prompts], "completions": texts}
        else:
            given |= {"prompts": messages, "completions": [[{"role": "assistant", "content": text}] for text in texts]}
        return self._checked(self._function(**given, completion_ids=answers.answers), len(texts))

    def _checked(self, scores: Any, count: int) -> torch.Tensor:
        if len(scores) != count:
            raise RunError(f"{KEY}.{self._name}: the function gave {len(scores)} numbers for {count} answers.")
        found = [None if score is None else float(score) for score in scores]
        if bad := next((score for score in found if score is not None and not math.isfinite(score)), None):
            raise RunError(f"{KEY}.{self._name}: the function gave {bad}, which is no score.")
        return torch.tensor([self._left_out if score is None else score for score in found])

    def _prompt(self, ids: Sequence[int]) -> str:
        return answer_text(ids, self._tokenizer, stop_ids=()).strip()


class ModelScorer:
    """Asks a reward model. An adapter that was trained on what the policy started from is put beside the policy's own adapter; where that
    has none, or can't stand beside it, on a copy of what the policy started from. Any other is a model of its own.

    Args:
        path: of a reward adapter or a full reward model.
        policy: the model that is to be trained.
        name: of the adapter within it.
        pad_id: fills up.
        rows: answers scored together.

    Raises:
        ConfigError: there is no such reward model, or it reads another vocabulary.
    """

    def __init__(self, path: str, policy: Any, *, name: str, pad_id: int, rows: int) -> None:
        self._policy, self._name, self._pad_id, self._rows = policy, name, pad_id, rows
        same, adapted = same_lineage(Path(path), policy), hasattr(policy, "peft_config")
        self.beside = same and adapted and can_share_base(path, policy, key=KEY)
        self._model: Any
        if self.beside:
            self._model = shared_base_reward(policy, path, name=name, key=KEY)
        else:
            # A copy of a model that is spread would call the modules of the original, and LoftQ's has lost its base.
            copied = policy if same and not spans_devices(policy) and not (adapted and has_lost_base(policy)) else None
            self._model = prepare_for_inference(_apart(path, copied), use_cpu=policy.device.type == "cpu").requires_grad_(False)
            _same_vocabulary(path, self._model, policy)

    def __call__(self, answers: Completions) -> torch.Tensor:
        """Scores, float32 [answers]; prompts and answers of like length together."""
        texts = [[*prompt, *answer] for prompt, answer in zip(answers.prompts, answers.answers, strict=True)]
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        scores, device = torch.zeros(len(texts)), self._policy.device if self.beside else self._model.device
        for start in range(0, len(order), self._rows):
            numbers = order[start : start + self._rows]
            ids, mask = padded([texts[number] for number in numbers], fill=self._pad_id)
            scores[numbers] = score(self._model, ids.to(device), mask.to(device)).float().cpu()
        return scores

    def release(self) -> None:
        """Take the adapter out of the policy again."""
        if self.beside and self._name in self._policy.peft_config:
            self._policy.delete_adapter(self._name)
        self._model = None


def same_lineage(path: Path, policy: Any) -> bool:
    """Whether a directory holds an adapter that was trained on the very weights that the policy started from."""
    if not (path / "adapter_config.json").is_file():
        return False
    base = base_model(policy)
    left, own = read_stage_file(path), getattr(base, LINEAGE_ATTRIBUTE, None)
    if left is not None and own is not None:
        return left.lineage.resolve(path) == own
    # One of the two doesn't say all that it started from, and a name alone says nothing of earlier adapters and of quantization.
    lineage = ModelLineage(None, []) if left is None else left.lineage
    plain = ModelLineage(lineage.base, [], lineage.gguf_file)
    if is_quantized(base) or lineage != plain or (own is not None and len(own) != len(plain.resolve(path))):
        return False
    config, _ = read_adapter(str(path), KEY)
    return config.base_model_name_or_path in (None, "", base.name_or_path)


def _apart(path: str, policy: Any) -> Any:
    """A reward model of its own; of an adapter, on a copy of what `policy` started from where there is one."""
    if policy is None:
        return load_reward_model(path, key=KEY)
    base = copy.deepcopy(policy)
    to_stored_dtype(base)
    base = restore_base_model(base) if hasattr(base, "peft_config") else base
    adapted = load_adapter(with_reward_head(base), path, key=KEY)
    require_head(adapted)
    return adapted


def _same_vocabulary(path: str, model: Any, policy: Any) -> None:
    found, own = (each.config.get_text_config().vocab_size for each in (model, policy))
    if found != own:
        what = f"'{path}' reads a vocabulary of {found} tokens and the model that is trained writes one of {own}"
        raise ConfigError(Problem(KEY, what, do="Train a reward model on the same model: stage=rm"))
