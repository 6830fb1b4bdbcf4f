"""Answers to the held-out prompts, how close they come to the data's, and how they differ from the base model's.

Answers are written as they are made, and put into the data's order at the end: an interruption loses none that was made.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, set_seed

from llmmod.config.schema.steps import PredictConf
from llmmod.data.rows.records import PromptRecord
from llmmod.distributed import rank
from llmmod.errors import ConfigError, Problem, one_line
from llmmod.instantiate import build
from llmmod.models.adapters.init import as_base, has_lost_base
from llmmod.models.generation.generate import answers
from llmmod.models.generation.settings import Reader, generation_config
from llmmod.protocols import Metric, StepReport
from llmmod.render.conversation import Conversation
from llmmod.render.encode import encode
from llmmod.steps.predict.step import OrderedLines, held_out
from llmmod.trainers.build import prepare_for_inference
from llmmod.trainers.callbacks.progress import counting

log = logging.getLogger("llmmod.predict")
_SMOKE_TOKENS = 16
_SHOWN = 160  # characters of an answer at the end of a run


class PredictAnswers:
    """What the step `predict` does for stages whose model writes: `training.predict`.

    Args:
        conf: `steps.<name>`.
        name: the step's name, and that of the directory in the run's.
    """

    def __init__(self, conf: PredictConf, name: str) -> None:
        self.conf, self.name = conf, name

    def run(self, session: Any) -> StepReport:
        """Write `<run>/<name>/generated_predictions.jsonl`, a line a prompt: `prompt`, `label`, `predict`.

        Raises:
            ConfigError: there are no held-out examples.
        """
        conversations = held_out(session, self.name, of="eval_conversations")[: self.conf.max_samples]
        if rank() != 0:
            return StepReport()
        loaded, tokenizer = session.model(self.name), session.tokenizer(self.name)
        model = prepare_for_inference(loaded.model, use_cpu=session.conf(self.name, "training").use_cpu)
        speaker = _Speaker(model, tokenizer, session, self.name, batch_size=self.conf.batch_size)
        prompts = [example.input_ids for example in encode([speaker.render.prompt(c) for c in conversations], tokenizer)]
        shown = _spread(len(conversations), self.conf.compare_with_base)
        directory = session.step_dir(self.name)
        set_seed(session.root.seed)  # of sampled answers
        metrics, tuned = self._predict(speaker, prompts, conversations, directory, shown=shown)
        report = StepReport({f"predict_{name}": value for name, value in metrics.items()})
        report.artifacts["predictions"] = f"{self.name}/{_FILE}"
        told = [f"{name} {value:.1f}" for name, value in metrics.items()]
        report.summary.append(f"{self.name}: {', '.join([f'{len(prompts)} answers', *told])}; they are in {directory / _FILE}")
        if shown and loaded.kind != "base" and self._can_compare(model):
            self._compare(speaker, prompts, conversations, tuned, report, directory)
        return report

    def _predict(
        self, speaker: _Speaker, prompts: list[list[int]], conversations: Sequence[Conversation], directory: Path, *, shown: list[int]
    ) -> tuple[dict[str, float], dict[int, str]]:
        """The metrics of all answers, and the answers to the prompts numbered in `shown`."""
        metrics: list[Metric] = [build(node) for node in self.conf.metrics.values() if node]
        kept: dict[int, str] = {}
        with OrderedLines(directory / _FILE) as lines:
            for number, answer in speaker.answers(prompts):
                label = speaker.label(conversations[number], prompts[number])
                written = {"prompt": speaker.text(prompts[number]), "label": label, "predict": answer}
                lines.write(number, json.dumps(written, ensure_ascii=False))
                if label:
                    for metric in metrics:
                        metric.update(predict=answer, label=label)
                if number in shown:
                    kept[number] = answer
        return {name: value for metric in metrics for name, value in metric.compute().items()}, kept

    def _can_compare(self, model: Any) -> bool:
        if hasattr(model, "disable_adapter"):
            if lost := has_lost_base(model):
                log.info(
                    "steps.%s.compare_with_base: LoftQ has quantized the model's own weights, so there is none to compare with", self.name
                )
            return not lost
        log.info("steps.%s.compare_with_base: this model has no adapter that could be switched off", self.name)
        return False

    def _compare(
        self,
        speaker: _Speaker,
        prompts: list[list[int]],
        conversations: Sequence[Conversation],
        tuned: dict[int, str],
        report: StepReport,
        directory: Path,
    ) -> None:
        """Let the model without its adapter answer the same prompts; both answers go into comparison.json and the summary."""
        numbers = sorted(tuned)
        with as_base(speaker.model):
            base = {numbers[place]: answer for place, answer in speaker.answers([prompts[n] for n in numbers])}
        compared = [
            {
                "question": _question(conversations[number]),
                "label": speaker.label(conversations[number], prompts[number]),
                "base": base[number],
                "tuned": tuned[number],
            }
            for number in numbers
        ]
        (directory / "comparison.json").write_text(json.dumps(compared, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        report.artifacts["comparison"] = f"{self.name}/comparison.json"
        for item in compared:
            report.summary += [f"Q:     {_line(item['question'])}", f"  base:  {_line(item['base'])}", f"  tuned: {_line(item['tuned'])}"]


_FILE = "generated_predictions.jsonl"


class _Speaker:
    """A model with all it needs to answer prompts."""

    def __init__(self, model: Any, tokenizer: Any, session: Any, name: str, *, batch_size: int) -> None:
        self.model, self.tokenizer, self.render = model, tokenizer, session.render(name)
        self.reader = Reader.of(self.render, tokenizer)
        self._name, self._batch_size = name, batch_size
        self._config = settings(session, name, model)

    def answers(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, str]]:
        """(number of the prompt, its answer), in whatever order they are done."""
        with counting(self._name, len(prompts)) as count:
            batches = answers(self.model, prompts, config=self._config, batch_size=self._batch_size, tokenizer=self.tokenizer)
            for batch in batches:
                for number, ids in batch:
                    yield number, self.reader(ids)
                count(len(batch))

    def label(self, conversation: Conversation, prompt: Sequence[int]) -> str:
        """The answer that the data has, read as the model's are: thoughts and calls of tools as the render writes them."""
        last = conversation.messages[-1]
        if last.role != "assistant":
            return ""
        if last.reasoning or last.tool_calls:
            (answered,) = PromptRecord(replace(conversation, messages=conversation.messages[:-1]), [last]).answered()
            ids = encode([self.render.examples(answered)[-1]], self.tokenizer)[0].input_ids
            if ids[: len(prompt)] == list(prompt):
                return self.reader(ids[len(prompt) :])
        return self.render.read_answer(last.text)

    def text(self, ids: Sequence[int]) -> str:
        """A prompt as the model sees it, special tokens included."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def settings(session: Any, name: str, model: Any) -> GenerationConfig:
    """`generation.*`, with what `training.generation_*` says instead: transformers' Seq2SeqTrainer has these arguments."""
    training = session.conf(name, "training")
    # Stages whose trainer is no Seq2SeqTrainer don't have them.
    given, length, beams = (
        getattr(training, name, None) for name in ("generation_config", "generation_max_length", "generation_num_beams")
    )
    chosen = _chosen(given) or build(session.root.generation)
    if length is not None:
        chosen.max_length, chosen.max_new_tokens = length, None
    if beams is not None:
        chosen.num_beams = beams
    chosen.num_return_sequences = None  # one answer a prompt
    if session.root.smoke:
        chosen.max_new_tokens = min(chosen.max_new_tokens or _SMOKE_TOKENS, _SMOKE_TOKENS)
    tokenizer, render = session.tokenizer(name), session.render(name)
    return generation_config(chosen, model, stop_ids=render.stop_ids, pad_id=tokenizer.pad_token_id)


def _chosen(given: Any) -> GenerationConfig | None:
    if isinstance(given, dict):
        return GenerationConfig(**given)
    try:
        return GenerationConfig.from_pretrained(given) if given else None
    except OSError as error:
        found = f"there is no generation_config.json in {given}: {one_line(error, 200)}"
        raise ConfigError(Problem("training.generation_config", found, do="Name a directory that has one, or give its fields")) from error


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` numbers below `count`, evenly spread: neighbours in a dataset are often alike."""
    wanted = min(wanted, count)
    return [place * count // wanted for place in range(wanted)]


def _question(conversation: Conversation) -> str:
    return next((m.content for m in reversed(conversation.messages) if m.role == "user"), "")


def _line(text: str) -> str:
    joined = " ".join(text.split()) or "(nothing)"
    return joined if len(joined) <= _SHOWN else joined[: _SHOWN - 1] + "…"
