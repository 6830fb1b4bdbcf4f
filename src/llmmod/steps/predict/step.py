"""The step `predict`, its kind for a reward model, and what all kinds use: held-out examples, generation settings, ordered lines.

`training.predict` names the class for the work, since it depends on the stage: `completions` has answers to prompts and continuations of
documents. The scores of both answers of each held-out pair are here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from transformers import GenerationConfig

from llmmod.config.schema.steps import PredictConf
from llmmod.distributed import rank
from llmmod.errors import ConfigError, Problem, did_you_mean, one_line
from llmmod.files.paths import atomic_write
from llmmod.instantiate import build, locate
from llmmod.models.generation.settings import Reader, generation_config
from llmmod.protocols import Metric, Step, StepReport
from llmmod.trainers.build import choose_collator, prepare_for_inference
from llmmod.trainers.callbacks.progress import counting
from llmmod.trainers.rm import pair_rewards

PREDICTIONS = "generated_predictions.jsonl"
_SMOKE_TOKENS = 16
_SCORES = "scores.jsonl"
_PAIRS = 8  # scored at once by `batch_size: auto`


class Predict:
    """The step `predict`.

    Args:
        conf: `steps.<name>`.
        name: the step's name, and that of its directory.
    """

    def __init__(self, conf: PredictConf, name: str) -> None:
        self.conf, self.name = conf, name

    def run(self, session: Any) -> StepReport:
        """Run the class that `training.predict` names.

        Raises:
            ConfigError: there are no held-out examples.
        """
        node = dict(session.conf(self.name, "training").predict)
        step: Step = locate(node.pop("_target_"))(self.conf, self.name, **node)
        return step.run(session)


def batch_size_of(conf: PredictConf) -> int | None:
    """The number of prompts that are answered at once; None: as many as memory allows."""
    return None if conf.batch_size == "auto" else int(conf.batch_size)


def check_measured(wanted: str | None, metrics: Mapping[str, Any]) -> None:
    """Refuse a metric of answers, `predict_…`, that these metrics don't measure.

    Args:
        wanted: `training.metric_for_best_model`.
        metrics: `steps.predict.metrics`.

    Raises:
        ConfigError: with the known names.
    """
    name = "" if wanted is None else wanted.removeprefix("eval_")
    if not name.startswith("predict_"):
        return
    measured: list[str] = []
    for node in metrics.values():
        if node:
            tried: Metric = build(node)
            tried.update(predict="a", label="a")
            measured += [f"predict_{found}" for found in tried.compute()]
    if name not in measured:
        found = f"{wanted}, but the metrics of answers don't measure it"
        raise ConfigError(Problem("training.metric_for_best_model", found, did_you_mean(name, measured), f"Known: {', '.join(measured)}"))


def held_out_examples(session: Any, step: str, *, of: str = "eval") -> Any:
    """A step's held-out examples; with `of="eval_conversations"`, the conversations that they were made from.

    Raises:
        ConfigError: there are none.
    """
    found = getattr(session.splits(step), of)
    if found is None or (hasattr(found, "__len__") and not len(found)):  # streamed ones have no length
        do = "Set dataset.val_size (0.1: a tenth of them), dataset.val_split or dataset.val_files"
        raise ConfigError(Problem("dataset.val_size", "examples are not held out, so the model can't be measured", do=do))
    return found


def generation_settings(session: Any, name: str, model: Any) -> GenerationConfig:
    """`generation.*`, overridden by `training.generation_*`, as transformers' Seq2SeqTrainer has these arguments.

    Raises:
        ConfigError: `training.generation_config` names a directory without generation_config.json.
    """
    training = session.conf(name, "training")
    given = getattr(training, "generation_config", None)  # stages whose trainer is not a Seq2SeqTrainer don't have these fields
    length, beams = (getattr(training, field, None) for field in ("generation_max_length", "generation_num_beams"))
    if isinstance(given, dict):
        chosen = GenerationConfig(**given)
    elif given:
        try:
            chosen = GenerationConfig.from_pretrained(given)
        except OSError as error:
            found = f"{given} doesn't have a readable generation_config.json: {one_line(error, 200)}"
            raise ConfigError(
                Problem("training.generation_config", found, do="Name a directory that has one, or give its fields")
            ) from error
    else:
        chosen = build(session.root.generation)
    if length is not None:
        chosen.max_length, chosen.max_new_tokens = length, None
    if beams is not None:
        chosen.num_beams = beams
    chosen.num_return_sequences = None  # one completion for each prompt
    if session.root.smoke:
        chosen.max_new_tokens = min(chosen.max_new_tokens or _SMOKE_TOKENS, _SMOKE_TOKENS)
    return generation_config(chosen, model, stop_ids=session.render(name).stop_ids, pad_id=session.tokenizer(name).pad_token_id)


class OrderedLines:
    """A file of numbered lines. Each is on the disk as soon as it is written; they are sorted when the block ends without an error.

    Only the lines' positions are in memory. After an error the file has the lines in the order of writing.

    Args:
        path: replaced if it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._positions: dict[int, tuple[int, int]] = {}  # number -> offset and length, in bytes

    def __enter__(self) -> OrderedLines:
        self._file = self._path.open("wb")
        return self

    def write(self, number: int, line: str) -> None:
        """Write a line, given without its line break."""
        content = line.encode() + b"\n"
        self._positions[number] = (self._file.tell(), len(content))
        self._file.write(content)
        self._file.flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is not None:
            return
        with atomic_write(self._path) as partial, self._path.open("rb") as written, partial.open("wb") as ordered:
            for number in sorted(self._positions):
                offset, length = self._positions[number]
                written.seek(offset)
                ordered.write(written.read(length))


class PredictKind:
    """The base of a class that `training.predict` names.

    Args:
        conf: `steps.<name>`.
        name: the step's name, and that of its directory.
    """

    def __init__(self, conf: PredictConf, name: str) -> None:
        self.conf, self.name = conf, name


class PredictRewards(PredictKind):
    """`training.predict` of `stage=rm`."""

    def run(self, session: Any) -> StepReport:
        """Write `<run>/<name>/scores.jsonl`, a line for each pair: `prompt`, `chosen`, `rejected`, `chosen_score`, `rejected_score`.

        Raises:
            ConfigError: there are no held-out examples.
        """
        pairs = held_out_examples(session, self.name)
        if rank() != 0:
            return StepReport()
        pairs = pairs.select(range(min(len(pairs), self.conf.max_samples or len(pairs))))
        training, tokenizer = session.conf(self.name, "training"), session.tokenizer(self.name)
        reader = Reader.of(session.render(self.name), tokenizer)
        model = prepare_for_inference(session.model(self.name).model, use_cpu=training.use_cpu)
        collator = choose_collator(training.collator, model=model, tokenizer=tokenizer, train=pairs)
        path, right = session.step_dir(self.name) / _SCORES, 0
        with OrderedLines(path) as lines, counting(self.name, len(pairs)) as count:
            for batch in pair_rewards(model, pairs, collator=collator, batch_size=batch_size_of(self.conf) or _PAIRS):
                for number, chosen, rejected in batch:
                    pair = pairs[number]
                    prompt = tokenizer.decode(pair["prompt_ids"], skip_special_tokens=False, clean_up_tokenization_spaces=False)
                    written = {"prompt": prompt, **{name: reader(pair[f"{name}_ids"]) for name in ("chosen", "rejected")}}
                    written |= {"chosen_score": chosen, "rejected_score": rejected}
                    lines.write(number, json.dumps(written, ensure_ascii=False))
                    right += chosen > rejected
                count(len(batch))
        summary = f"{self.name}: the chosen answer scores higher in {right} of {len(pairs)} held-out pairs; they are in {path}"
        return StepReport(artifacts={"scores": f"{self.name}/{_SCORES}"}, summary=[summary])
