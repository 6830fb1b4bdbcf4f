"""`report.html` of a run: its course and results on one self-contained page, made from the files in its directory.

It is written whenever a run ends, also after a failure, from the files that exist. A failing report does not fail the run.
"""

from __future__ import annotations

import json
import logging
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from llmmod.config.compose import compose_config, resolved
from llmmod.errors import ConfigError
from llmmod.pages.page import Chart, Line, Tile, chart, number_text, page, write_page
from llmmod.runs.read import Run, flat, read_lines, read_run, series, smoothed

log = logging.getLogger("llmmod")
NAME = "report.html"
_MOST_CHARTS, _MOST_FILES, _MOST_ANSWERS, _MOST_CHARACTERS = 24, 80, 12, 2000
_PREDICTED = re.compile(r"step-(\d+)\.jsonl")
_LOG_LINES, _LOG_BYTES = 40, 2**14
_FIRST = ("loss", "predict", "accuracy", "token_accuracy", "mean_token_accuracy", "reward", "learning_rate", "grad_norm")
_SIGNS = {"completed": "Completed", "failed": "Failed", "pruned": "Pruned", "interrupted": "Interrupted", "running": "Not ended"}
_NOT_COMPARED = ("output_dir",)


class Changed(NamedTuple):
    """A value that is not the default: its key, the default, the run's value, and whether it was typed or came with an option."""

    key: str
    before: str
    after: str
    typed: bool


class Answer(NamedTuple):
    """A held-out example: the prompt, the data's answer, and the model's answer; `base` is the answer before the training, or None."""

    prompt: str
    label: str
    base: str | None
    tuned: str


class Status(NamedTuple):
    """The text of the card at the top of the page."""

    refused: bool
    headline: str
    explanation: str
    findings: tuple[()] = ()


def write_report(directory: Path) -> Path | None:
    """Write the report of the run in a directory; None if that fails, with a line in the log."""
    try:
        write_page(directory / NAME, report(read_run(directory)))
    except Exception as error:
        log.warning("%s can't be written: %s: %s", NAME, type(error).__name__, error)
        return None
    return directory / NAME


def report(run: Run) -> str:
    """The page."""
    status = str(run.record.get("status") or "unknown")
    names = {group: run.choices[group] for group in ("stage", "model", "finetune", "dataset", "render") if group in run.choices}
    title = " ".join(filter(None, (names.get(name) for name in ("stage", "model", "finetune")))) or run.directory.name
    rehearsal = [("smoke", "true: a rehearsal")] if run.config.get("smoke") else []
    return page(
        "llmmod.runs",
        NAME,
        title=title,
        account=[str(run.directory), *([f"Started {run.record['started']}"] if run.record.get("started") else [])],
        choices=[*names.items(), *rehearsal],
        status=_status(run, status),
        log=_log_tail(run.directory) if status != "completed" else "",
        tiles=list(_tiles(run)),
        charts=list(_charts(run)),
        pictures=list(_pictures(run)),
        metrics=_metrics(run.metrics),
        steps=[_step(step) for step in run.steps],
        answers=_answers(run),
        data=run.data,
        changes=_changes(run),
        command=run.command if run.overrides or run.config else "",
        versions=list(run.versions.items()),
        files=_files(run),
    )


def _status(run: Run, status: str) -> Status:
    headline = _SIGNS.get(status, f"Status: {status}")
    seconds = run.record.get("seconds")
    took = f" after {_clock(seconds)}" if isinstance(seconds, int | float) else ""
    done = [step.get("name") for step in run.steps if step.get("status") == "completed"]
    steps = f"{len(done)} of {len(run.steps)} steps done: {', '.join(map(str, done))}" if run.steps else "The run has not recorded a step."
    explanation = str(run.record.get("error") or "") or steps
    return Status(status != "completed", headline + took, explanation)


def _tiles(run: Run) -> Iterator[Tile]:
    metrics = run.metrics
    for name, label in (("eval_loss", "Loss on held-out examples"), ("eval_reward", "Reward on held-out prompts")):
        if name in metrics:
            before = metrics.get(f"{name}_before")
            notes = [] if before is None else [f"{number_text(before)} before the training"]
            yield Tile(label, number_text(metrics[name]), notes)
    if "train_loss" in metrics:
        yield Tile("Training loss", number_text(metrics["train_loss"]), ["mean over all steps"])
    for name in ("predict_rouge-l", "eval_accuracy", "eval_rewards/accuracies", "eval_token_accuracy"):
        if name in metrics:
            yield Tile(name, number_text(metrics[name]))
    taken = [entry["step"] for history in run.histories.values() for entry in history[-1:] if "step" in entry]
    if taken:
        speed = metrics.get("train_tokens_per_second")
        yield Tile("Optimizer steps", " + ".join(f"{step:,}" for step in taken), [] if speed is None else [f"{speed:,.0f} tokens a second"])
    peaks = [step["peak_rss_bytes"] for step in run.steps if "peak_rss_bytes" in step]
    if peaks:
        yield Tile("Peak memory", f"{max(peaks) / 1e9:.2f} GB", ["of the process, resident"])


def _charts(run: Run) -> Iterator[Chart]:
    several = len(run.histories) > 1
    for step, history in run.histories.items():
        measured = series(history)
        names = list(dict.fromkeys(name.removeprefix("eval_") for name in measured if not name.startswith("train_")))
        for name in sorted(names, key=_order)[:_MOST_CHARTS]:
            train, held_out = measured.get(name, []), measured.get(f"eval_{name}", [])
            lines = [Line("training", train, 0)]
            if len(train) > 20:
                lines = [Line("training, as logged", train, 0, faint=True)]
                lines += [Line("training, smoothed", list(zip((x for x, _ in train), smoothed([y for _, y in train]), strict=True)), 0)]
            title = f"{step}: {name}" if several else name
            made = chart(title, [*lines, Line("held out", held_out, 1)], logarithmic=name in ("loss", "grad_norm"))
            if made is not None:
                yield made


def _pictures(run: Run) -> Iterator[tuple[str, str]]:
    """The pictures of plans, as (name of the step, address of an image). Scripts in an SVG do not run in an image."""
    for step in run.steps:
        name = str(step.get("name", "?"))
        with suppress(OSError):
            yield name, "data:image/svg+xml;base64," + b64encode((run.directory / name / "plan.svg").read_bytes()).decode("ascii")


def _order(name: str) -> tuple[int, str]:
    return next((place for place, first in enumerate(_FIRST) if name == first or name.startswith(first + "_")), len(_FIRST)), name


def _metrics(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value before the training, value now) of each metric."""
    texts = {name: number_text(value) if isinstance(value, int | float) else str(value) for name, value in metrics.items()}
    compared = {f"{name}_before" for name in texts}
    return [(name, texts.get(f"{name}_before", ""), text) for name, text in texts.items() if name not in compared]


def _step(step: Mapping[str, Any]) -> dict[str, Any]:
    links = [(name, quote(str(path))) for name, path in (step.get("artifacts") or {}).items()]
    seconds = {name: _clock(step[name]) if isinstance(step.get(name), int | float) else "" for name in ("seconds", "cpu_seconds")}
    named = {name: str(step.get(name) or "?") for name in ("name", "status")}
    return {**named, **seconds, "reused": step.get("reused_from") or "", "links": links}


def _answers(run: Run) -> list[Answer]:
    """Answers to the same prompts before and after the training, or during it; else the first answers."""
    found = []
    for step in run.steps:
        place = run.directory / str(step.get("name", "?"))
        numbered = {int(match[1]): path for path in place.glob("predictions/step-*.jsonl") if (match := _PREDICTED.fullmatch(path.name))}
        if len(numbered) > 1:
            first, last = (read_lines(numbered[number], _MOST_ANSWERS) for number in (min(numbered), max(numbered)))
            for before, after in zip(first, last, strict=False):
                prompt, label, base = (_cut(before.get(name)) for name in ("prompt", "label", "predict"))
                found.append(Answer(prompt, label, base, _cut(after.get("predict"))))
        try:
            compared = json.loads((place / "comparison.json").read_text(encoding="utf-8"))
            found += [Answer(*(_cut(one.get(name)) for name in ("question", "label", "base", "tuned"))) for one in compared]
        except (OSError, ValueError, AttributeError):
            lines = read_lines(place / "generated_predictions.jsonl", _MOST_ANSWERS)
            found += [Answer(_cut(one.get("prompt")), _cut(one.get("label")), None, _cut(one.get("predict"))) for one in lines]
    return found[:_MOST_ANSWERS]


def _cut(text: Any) -> str:
    said = "" if text is None else str(text)
    return said if len(said) <= _MOST_CHARACTERS else f"{said[:_MOST_CHARACTERS]} …"


def _changes(run: Run) -> list[Changed]:
    """The values that differ from plain `llmmod`, options and typed values first."""
    if not run.config:
        return []
    try:
        choices, usual = _defaults()
    except ConfigError:
        return []
    typed = {override.lstrip("+~").partition("=")[0].partition("@")[0] for override in run.overrides}
    options = [
        Changed(group, str(choices.get(group)), option, typed=group in typed)
        for group, option in run.choices.items()
        if option != str(choices.get(group))
    ]
    keys = [key for key in {**usual, **run.config} if key not in _NOT_COMPARED and usual.get(key) != run.config.get(key)]
    set_by_key = typed - set(run.choices)
    by_hand = {key for key in keys if any(key == name or key.startswith(f"{name}.") for name in set_by_key)}
    values = [Changed(key, _text(usual.get(key)), _text(run.config.get(key)), typed=key in by_hand) for key in keys]
    return sorted(options + values, key=lambda change: not change.typed)


@cache
def _defaults() -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of plain `llmmod`, by group, and its values, by key."""
    defaults = compose_config([])
    return defaults.choices, flat(resolved(defaults.config)[0])


def _text(value: Any) -> str:
    return "not set" if value is None else _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def _files(run: Run) -> list[tuple[str, str, str]]:
    """(path, link, size) of the run's files, each checkpoint as one line."""

    def place(path: Path) -> str:
        depth = next((number for number, part in enumerate(path.parts) if part.startswith("checkpoint-")), len(path.parts))
        return "/".join(path.parts[: depth + 1])

    sized = {name: sum((run.directory / path).stat().st_size for path in paths) for name, paths in groupby(run.files, place)}
    return [(name, quote(name), _size(size)) for name, size in sized.items() if name != NAME][:_MOST_FILES]


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def _log_tail(directory: Path) -> str:
    try:
        with (directory / "run.log").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-_LOG_LINES:])
    except OSError:
        return ""
