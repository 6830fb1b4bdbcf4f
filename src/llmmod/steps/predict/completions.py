"""`training.predict` of stages with a language model: answers to the held-out prompts, or continuations of the held-out documents.

Answers are measured against the data's and compared with the base model's. Continuations are not measured, since a text has many possible
ones; the step evaluate reports their perplexity. Each line is written at once, and the file is sorted at the end, so that an interruption
doesn't lose generated texts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from llmmod.data.examples.types import Ids
from llmmod.data.rows.records import PromptRecord
from llmmod.distributed import rank
from llmmod.instantiate import build
from llmmod.models.adapters.base_changing_init import as_base, has_lost_base
from llmmod.models.generation.generate import generate
from llmmod.models.generation.settings import Reader, answer_text
from llmmod.protocols import Metric, StepReport
from llmmod.render.conversation import Conversation
from llmmod.render.encode import encode
from llmmod.render.segments import own_beginning
from llmmod.steps.predict.step import PREDICTIONS, OrderedLines, PredictKind, batch_size_of, generation_settings, held_out_examples
from llmmod.trainers.build import prepare_for_inference
from llmmod.trainers.callbacks.progress import counting

log = logging.getLogger("llmmod.predict")
_SHOWN_CHARACTERS = 160  # of an answer in the run's summary
_GIVEN_TOKENS = 32  # tokens of a document that the model continues; of a shorter document, half of it


class PredictAnswers(PredictKind):
    """`training.predict` of stages that learn from conversations."""

    def run(self, session: Any) -> StepReport:
        """Write `<run>/<name>/generated_predictions.jsonl`, a line for each prompt: `prompt`, `label`, `predict`.

        Raises:
            ConfigError: there are no held-out examples.
        """
        conversations = held_out_examples(session, self.name, of="eval_conversations")[: self.conf.max_samples]
        if rank() != 0:
            return StepReport()
        loaded, tokenizer = session.model(self.name), session.tokenizer(self.name)
        model = prepare_for_inference(loaded.model, use_cpu=session.conf(self.name, "training").use_cpu)
        generator = _AnswerGenerator(model, tokenizer, session, self.name, batch_size=batch_size_of(self.conf))
        prompts = [example.input_ids for example in encode([generator.render.prompt(c) for c in conversations], tokenizer)]
        compared = evenly_spread(len(conversations), self.conf.compare_with_base)
        directory = session.step_dir(self.name)
        set_seed(session.root.seed)  # for sampled answers
        metrics, tuned = self._predict(generator, prompts, conversations, directory / PREDICTIONS, keep=compared)
        report = StepReport({f"predict_{name}": value for name, value in metrics.items()})
        report.artifacts["predictions"] = f"{self.name}/{PREDICTIONS}"
        numbers = [f"{len(prompts)} answer{'s' * (len(prompts) != 1)}", *(f"{name} {value:.1f}" for name, value in metrics.items())]
        report.summary.append(f"{self.name}: {', '.join(numbers)}; they are in {directory / PREDICTIONS}")
        if compared and loaded.kind != "base" and self._can_compare(model):
            items = self._compare(generator, prompts, conversations, tuned)
            (directory / "comparison.json").write_text(json.dumps(items, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
            report.artifacts["comparison"] = f"{self.name}/comparison.json"
            labels = {"question": "Q:     ", "base": "  base:  ", "tuned": "  tuned: "}
            report.summary += [label + _one_line(item[name]) for item in items for name, label in labels.items()]
        return report

    def while_training(self, session: Any) -> Callable[[Any, Path, Callable[[], None]], dict[str, float]]:
        """A function in which a model in training answers the held-out prompts: (model, file, called after each) -> metrics.

        Raises:
            ConfigError: there are no held-out examples.
        """
        conversations = held_out_examples(session, self.name, of="eval_conversations")[: self.conf.max_samples]
        render, tokenizer = session.render(self.name), session.tokenizer(self.name)
        prompts = [example.input_ids for example in encode([render.prompt(c) for c in conversations], tokenizer)]

        def answer(model: Any, path: Path, after_each: Callable[[], None]) -> dict[str, float]:
            generator = _AnswerGenerator(model, tokenizer, session, self.name, batch_size=batch_size_of(self.conf), after_each=after_each)
            return self._predict(generator, prompts, conversations, path, keep=[])[0]

        return answer

    def _predict(
        self, generator: _AnswerGenerator, prompts: list[list[int]], conversations: Sequence[Conversation], path: Path, *, keep: list[int]
    ) -> tuple[dict[str, float], dict[int, str]]:
        """Write all answers; the metrics, and the answers to the prompts numbered in `keep`."""
        metrics: list[Metric] = [build(node) for node in self.conf.metrics.values() if node]
        kept: dict[int, str] = {}
        with OrderedLines(path) as lines:
            for number, answer in generator.answers(prompts):
                label = generator.label(conversations[number], prompts[number])
                written = {"prompt": generator.text(prompts[number]), "label": label, "predict": answer}
                lines.write(number, json.dumps(written, ensure_ascii=False))
                if label:
                    for metric in metrics:
                        metric.update(predict=answer, label=label)
                if number in keep:
                    kept[number] = answer
        return {name: value for metric in metrics for name, value in metric.compute().items()}, kept

    def _can_compare(self, model: Any) -> bool:
        key = f"steps.{self.name}.compare_with_base"
        if not hasattr(model, "disable_adapter"):
            log.info("%s: this model has no adapter that could be switched off", key)
            return False
        if lost := has_lost_base(model):
            log.info("%s: LoftQ has quantized the model's own weights, so the base model can't be compared", key)
        return not lost

    def _compare(
        self, generator: _AnswerGenerator, prompts: list[list[int]], conversations: Sequence[Conversation], tuned: dict[int, str]
    ) -> list[dict[str, str]]:
        """The answers of the model with and without its adapter to the same prompts."""
        numbers = sorted(tuned)
        with as_base(generator.model):
            base = {numbers[place]: answer for place, answer in generator.answers([prompts[n] for n in numbers])}
        questions = {n: next((m.content for m in reversed(conversations[n].messages) if m.role == "user"), "") for n in numbers}
        labels = {n: generator.label(conversations[n], prompts[n]) for n in numbers}
        return [{"question": questions[n], "label": labels[n], "base": base[n], "tuned": tuned[n]} for n in numbers]


class _AnswerGenerator:
    """A model with its tokenizer, render and settings; `after_each` is called after each answer, in place of showing a bar."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        session: Any,
        name: str,
        *,
        batch_size: int | None,
        after_each: Callable[[], None] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.render = model, tokenizer, session.render(name)
        self.reader = Reader.of(self.render, tokenizer)
        self._name, self._batch_size, self._after_each = name, batch_size, after_each
        self._config = generation_settings(session, name, model)

    def answers(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, str]]:
        """(number of the prompt, its answer), in the order in which they are finished."""
        with _counted(self._name, len(prompts), self._after_each) as count:
            found = generate(self.model, prompts, config=self._config, batch_size=self._batch_size, tokenizer=self.tokenizer)
            for number, ids in found:
                yield number, self.reader(ids)
                count(1)

    def label(self, conversation: Conversation, prompt: Sequence[int]) -> str:
        """The data's answer, read in the same way as the model's: thoughts and tool calls as the render writes them."""
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


@contextmanager
def _counted(name: str, total: int, after_each: Callable[[], None] | None) -> Iterator[Callable[[int], None]]:
    """Like `counting`; during a training, the callback for that training's progress."""
    if after_each is None:
        with counting(name, total) as count:
            yield count
    else:
        yield lambda more: after_each()


def evenly_spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` numbers below `count`, evenly spread: neighbours in a dataset are often alike."""
    wanted = min(wanted, count)
    return [place * count // wanted for place in range(wanted)]


def _one_line(text: str) -> str:
    joined = " ".join(text.split()) or "(nothing)"
    return joined if len(joined) <= _SHOWN_CHARACTERS else joined[: _SHOWN_CHARACTERS - 1] + "…"


class PredictDocuments(PredictKind):
    """`training.predict` of stages that learn from documents: the model continues the beginning of each held-out document."""

    def run(self, session: Any) -> StepReport:
        """Write `<run>/<name>/generated_predictions.jsonl`, a line for each document: `prompt` (its beginning), `label`, `predict`.

        Raises:
            ConfigError: there are no held-out documents.
        """
        rows = held_out_examples(session, self.name)
        if rank() != 0:
            return StepReport()
        model = prepare_for_inference(session.model(self.name).model, use_cpu=session.conf(self.name, "training").use_cpu)
        set_seed(session.root.seed)
        path = session.step_dir(self.name) / PREDICTIONS
        count = self._continue(session, model, self._beginnings(session, rows), path)
        summary = f"{self.name}: {count} document{'s' * (count != 1)} continued; they are in {path}"
        return StepReport(artifacts={"predictions": f"{self.name}/{PREDICTIONS}"}, summary=[summary])

    def while_training(self, session: Any) -> Callable[[Any, Path, Callable[[], None]], dict[str, float]]:
        """As in `PredictAnswers`; continuations don't have metrics.

        Raises:
            ConfigError: there are no held-out documents.
        """
        parts = self._beginnings(session, held_out_examples(session, self.name))

        def go_on(model: Any, path: Path, after_each: Callable[[], None]) -> dict[str, float]:
            self._continue(session, model, parts, path, after_each)
            return {}

        return go_on

    def _beginnings(self, session: Any, rows: Iterable[Any]) -> list[list[Ids]]:
        """Each document in two parts: the model's input, and the data's continuation."""
        tokenizer = session.tokenizer(self.name)
        read = (row["input_ids"] for row in rows)
        documents = islice(whole_documents(read, eos=tokenizer.eos_token_id, bos=own_beginning(tokenizer)), self.conf.max_samples)
        return [np.split(document, [max(1, min(_GIVEN_TOKENS, len(document) // 2))]) for document in documents]

    def _continue(
        self, session: Any, model: Any, parts: Sequence[Sequence[Ids]], path: Path, after_each: Callable[[], None] | None = None
    ) -> int:
        """Write the continuations, and return their number."""
        tokenizer, config = session.tokenizer(self.name), generation_settings(session, self.name, model)
        config.eos_token_id = tokenizer.eos_token_id  # it ends documents; answers may have other end tokens
        first = own_beginning(tokenizer)
        prompts = [[*([] if first is None else [first]), *beginning.tolist()] for beginning, _ in parts]
        with OrderedLines(path) as lines, _counted(self.name, len(parts), after_each) as count:
            for number, ids in generate(model, prompts, config=config, batch_size=batch_size_of(self.conf), tokenizer=tokenizer):
                prompt, label = (tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in parts[number])
                written = {"prompt": prompt, "label": label, "predict": answer_text(ids, tokenizer, stop_ids=[config.eos_token_id])}
                lines.write(number, json.dumps(written, ensure_ascii=False))
                count(1)
        return len(parts)


def whole_documents(rows: Iterable[Sequence[int]], *, eos: int, bos: int | None = None) -> Iterator[Ids]:
    """The documents that rows were made from, without the tokens that begin and end each of them.

    Args:
        rows: ids; blocks that run from one document into the next, or the pieces of a document, in order.
        eos: ends a document.
        bos: begins a document, or None.
    """
    kept: list[Ids] = []
    for row in rows:
        *ended, rest = np.split(np.asarray(row, np.int32), np.flatnonzero(np.asarray(row) == eos) + 1)
        for part in ended:
            document = np.concatenate([*kept, part])[bos is not None : -1]
            kept = []
            if len(document):
                yield document
        kept.append(rest)
    last = np.concatenate([*kept, np.empty(0, np.int32)])[bos is not None :]
    if len(last):  # its eos would have been a row of one token, and such rows are left out
        yield last
