"""Writes the reference of every key as Markdown, a page for each section of the configuration.

    python -m devtools.key_pages docs/reference
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import MISSING

from devtools.key_reference import STAGES, Key, keys
from llmmod.config.register import SCHEMAS, register_schemas, schema_class
from llmmod.config.schema.steps import Root
from llmmod.config.wording import hints

_WAYS = ("full", "freeze", "lora", "qlora")
# page -> title, topic
_ABOUT: Mapping[str, tuple[str, str]] = {
    "root": ("The root", "Keys of the run itself, and `hub.*`, the settings of downloads."),
    "model": ("model and tokenizer", "Which checkpoint is loaded, and how. A `model` option sets the name, the path and `lora_targets`."),
    "finetune": ("finetune", "Which weights of the model are trained. `lora` and `qlora` have every field of `peft.LoraConfig`."),
    "training": ("training, in every stage", "The common keys of all stages. A stage's own keys are on its page."),
    "dataset": ("dataset", "The source of rows, and how they become examples."),
    "render": ("render", "How a conversation is written. The parts are lists of texts and `{token: …}` items."),
    "generation": (
        "generation",
        "How answers are generated: every field of `transformers.GenerationConfig`. null is the value of the checkpoint's "
        "`generation_config.json`, or without one there, the value in brackets.",
    ),
    "distributed": ("distributed", "The processes of a run. The engine's own settings are under `fsdp` and `deepspeed`."),
    "steps": ("steps", "The steps of the pipeline. A part that is null comes from the root."),
}
_HEAD = """Each key has its type, its default, its allowed values, and the stages that read it.
llmmod refuses a key that the run does not read; a note says when."""


@dataclass(frozen=True)
class Page:
    """A page: its topic, and its keys under headings; a heading may be empty."""

    name: str
    title: str
    about: str
    groups: Sequence[tuple[str, Sequence[Key]]]


def pages() -> list[Page]:
    """All pages, in the order of the site."""
    register_schemas()
    rows = [_page(name, [("", _of(name)[1])]) for name in ("dataset", "render", "generation", "distributed")]
    return [_root(), _page("model", [_of("model"), _of("tokenizer")]), _finetune(), *_training(), *rows, _steps()]


def merged(options: Mapping[str, Iterable[Key]]) -> dict[tuple[str, ...], list[Key]]:
    """The keys of several options, each once: grouped by the options that have it, with the default of each.

    If all options have a key, its meaning may be worded differently; the most frequent wording is used.

    Args:
        options: name -> its keys, whose `defaults` are under that name.
    """
    given = {option: list(several) for option, several in options.items()}
    times = Counter((key.key, key.type, key.allowed) for several in given.values() for key in several)
    found: dict[tuple[str, ...], list[Key]] = {}
    for key in (key for several in given.values() for key in several):
        alike = (key.key, key.type, key.allowed)
        found.setdefault(alike if times[alike] == len(given) else (*alike, key.meaning), []).append(key)
    groups: dict[tuple[str, ...], list[Key]] = {}
    for several in found.values():
        defaults = {option: text for key in several for option, text in key.defaults.items()}
        stages = tuple(stage for stage in STAGES if any(stage in key.stages for key in several))
        notes = tuple(dict.fromkeys(note for key in several for note in key.notes))
        meaning = Counter(key.meaning for key in several).most_common(1)[0][0]
        groups.setdefault(tuple(defaults), []).append(replace(several[0], defaults=defaults, stages=stages, notes=notes, meaning=meaning))
    return groups


def _schema(path: str) -> type:
    found = schema_class(f"schema/{path}")
    assert found is not None
    return found


def _of(part: str) -> tuple[str, list[Key]]:
    schema = hints(Root)[part]
    return part, list(keys(schema, part))


def _page(name: str, groups: Sequence[tuple[str, Sequence[Key]]]) -> Page:
    title, about = _ABOUT[name]
    steps = {path.rpartition("/")[2]: _schema(path.partition("/")[2]) for path in SCHEMAS if path.startswith("schema/step/")}
    readers = [step for step, schema in steps.items() if any(part.split(".")[0] == name for part in schema.reads)]  # type: ignore[attr-defined]
    return Page(name, title, f"{about} Steps that read them: {', '.join(readers)}." if readers else about, groups)


def _root() -> Page:
    """The root's own values, and those of its nodes without a page."""
    with_page = {*_ABOUT, "tokenizer"}
    own = [key for key in keys(Root, "", option="config") if key.key.partition(".")[0] not in with_page]
    own = [replace(key, defaults=dict.fromkeys([""], next(iter(key.defaults.values())))) for key in own]
    nodes = [field.name for field in dataclasses.fields(Root) if dataclasses.is_dataclass(hints(Root)[field.name])]
    groups = [("the run", [key for key in own if "." not in key.key])]
    groups += [(node, [key for key in own if key.key.startswith(f"{node}.")]) for node in nodes if node not in with_page]
    return _page("root", groups)


def _finetune() -> Page:
    schemas = {way: _schema(f"finetune/{'lora' if way == 'qlora' else way}") for way in _WAYS}
    groups = merged({way: keys(schema, "finetune", option=f"finetune/{way}") for way, schema in schemas.items()})
    return _page("finetune", [("every way" if ways == _WAYS else ", ".join(ways), found) for ways, found in groups.items()])


def _training() -> list[Page]:
    schemas = {stage: _schema(f"training/{stage}") for stage in STAGES}
    groups = merged({stage: keys(schema, "training", option=f"stage/{stage}", stage=stage) for stage, schema in schemas.items()})
    found = [_page("training", [("", groups.pop(STAGES))])]
    for stage in STAGES:
        what = (schemas[stage].__doc__ or "").split("\n\n")[0].strip()
        about = f"Keys of `stage={stage}` besides [those of all stages](training.md). {what}"
        own = [key for stages, several in groups.items() if stage in stages for key in several]
        order = list(hints(schemas[stage]))
        own.sort(key=lambda key: order.index(key.key.split(".")[1]))
        found.append(Page(f"training-{stage}", f"training, stage={stage}", about, [("", own)]))
    return found


def _steps() -> Page:
    names = [path.rpartition("/")[2] for path in SCHEMAS if path.startswith("schema/step/")]
    groups = merged({name: keys(_schema(f"step/{name}"), "step", shown_at="steps.<name>", option=f"step/{name}") for name in names})
    return _page("steps", [("every step" if len(steps) == len(names) else ", ".join(steps), found) for steps, found in groups.items()])


def markdown(page: Page) -> str:
    """The page's text."""
    lines = [f"# {page.title}", "", page.about, "", _HEAD, ""]
    for heading, group in page.groups:
        lines += [f"## {heading}", ""] if heading else []
        level = "###" if heading else "##"
        for key in sorted((key for key in group if not key.unread), key=lambda key: key.key.endswith("._target_")):
            lines += [f"{level} `{key.key}`", "", _escaped(key.meaning), "", *_facts(key), ""]
    if set_elsewhere := [key for _, group in page.groups for key in group if key.unread]:
        lines += ["## Keys that stages never read", "", "llmmod refuses these arguments of the trainers.", ""]
        lines += ["| key | why, and what to set instead |", "|---|---|"]
        lines += [f"| `{key.key}` | {_escaped(key.unread)} |" for key in set_elsewhere]
    return "\n".join(lines).rstrip() + "\n"


def _facts(key: Key) -> list[str]:
    stages = "all" if key.stages == STAGES else ", ".join(key.stages)
    facts = {"Type": f"`{key.type}`", "Default": _defaults(key.defaults), "Allowed": key.allowed, "Stages": stages}
    lines = [*(f"{name}: {text}" for name, text in facts.items() if text), *(f"Note: {_escaped(note)}" for note in key.notes)]
    return ["{.facts}", *(f"- {line}" for line in lines)]


def _defaults(defaults: Mapping[str, str]) -> str:
    """The default, or each default with the options that have it, the most frequent first."""
    options: dict[str, list[str]] = {}
    for option, text in defaults.items():
        options.setdefault(text, []).append(option)
    if len(options) == 1:
        (text,) = options
        return "the option sets it" if text == MISSING else f"`{text}`"
    return "; ".join(f"`{text}` ({', '.join(names)})" for text, names in sorted(options.items(), key=lambda item: -len(item[1])))


def _escaped(text: str) -> str:
    """The text with Markdown's marks escaped; text between backticks is unchanged."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\<>*_\[\]{}|#$])", r"\\\1", part) for part in parts)


def main(arguments: Sequence[str]) -> int:
    """Write every page, and their index, into the given directory; returns the exit code."""
    directory = Path(arguments[0])
    directory.mkdir(parents=True, exist_ok=True)
    found = pages()
    rows = [f"| [{page.title}]({page.name}.md) | {sum(len(group) for _, group in page.groups)} | {page.about} |" for page in found]
    index = ["# Every key", "", _HEAD, "", "| page | keys | what |", "|---|---|---|", *rows, "", "```{toctree}", ":hidden:", ""]
    texts = {page.name: markdown(page) for page in found} | {"index": "\n".join([*index, *(page.name for page in found), "```", ""])}
    for path in directory.glob("*.md"):
        path.unlink()
    for name, text in texts.items():
        (directory / f"{name}.md").write_text(text, encoding="utf-8")
    print(f"{directory}: {len(found)} pages, {sum(len(group) for page in found for _, group in page.groups)} keys")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
