"""The reference of every key matches the schemas and the validation, and is complete."""

from __future__ import annotations

import dataclasses
import importlib
import re
from enum import Enum

import pytest

from devtools.key_pages import main, markdown, merged, pages
from devtools.key_reference import STAGES, Key, field_comments, keys, yaml_text
from llmmod.config.compose import compose_config
from llmmod.config.register import SCHEMAS, schema_class
from llmmod.config.validate import validated
from llmmod.config.validate.model import FIXED
from llmmod.config.validate.values import tables
from llmmod.config.wording import hints, union_members
from llmmod.errors import ConfigError


@pytest.fixture(scope="module")
def rows():
    """Key -> its rows; a key of several stages or steps may have several."""
    found = {}
    for page in pages():
        for _, group in page.groups:
            for key in group:
                found.setdefault(key.key, []).append(key)
    return found


def typed(path):
    """The prefix of a schema's keys."""
    _, group, *_ = path.split("/")
    return {"root": "", "step": "steps.<name>."}.get(group, f"{group}.")


@pytest.mark.parametrize("path", SCHEMAS)
def test_every_key_of_every_schema_is_there_with_its_sentence_type_default_and_stages(path, rows):
    schema = schema_class(path)
    names = [name for name, hint in hints(schema).items() if not dataclasses.is_dataclass(hint)]
    pages_of_their_own = {"finetune", "training", "steps"} if path == "schema/root" else set()
    missing = [name for name in names if f"{typed(path)}{name}" not in rows and name not in pages_of_their_own]
    assert missing == []
    for key in (key for name in names for key in rows.get(f"{typed(path)}{name}", [])):
        assert len(key.meaning.split()) >= 3, key
        assert not re.match(r"null\b|true\b|false\b", key.meaning, re.IGNORECASE), f"{key.key}: begins with a value, not with what it is"
        assert key.meaning.endswith(".")
        assert key.type != "Any"
        assert all(key.defaults.values())
        assert key.stages or key.unread, key


@pytest.mark.parametrize("path", SCHEMAS)
def test_every_choice_is_listed(path, rows):
    schema = schema_class(path)
    for name, hint in hints(schema).items():
        enums = [member for member in union_members(hint) if isinstance(member, type) and issubclass(member, Enum)]
        choices = [member.value for member in enums[0]] if enums else tables(schema, "CHOICES").get(name, ())
        fixed = path == "schema/finetune/lora" and name in FIXED
        for choice in choices if not fixed else FIXED[name][0]:
            assert any(f"`{yaml_text(choice)}`" in key.allowed for key in rows[f"{typed(path)}{name}"]), (name, choice)


def test_the_nodes_below_a_part_are_there_too(rows):
    for key in ("model.quantization.bits", "model.rope_scaling.type", "dataset.columns.prompt", "dataset.mix.<name>.weight", "hub.offline"):
        assert key in rows


def excluded():
    """Each field with a stage that has it but, according to the reference, doesn't read it."""
    for stage in STAGES:
        schema = schema_class(f"schema/training/{stage}")
        for key in keys(schema, "training", stage=stage):
            if not key.unread and stage not in key.stages:
                yield key.key, stage
    yield from (("dataset.mask_prompt", stage) for stage in ("rm", "kto", "pt"))
    yield from (("dataset.drop_last_block", "sft"), ("training.packing", "sft"), ("training.output_dir", "ppo"))


@pytest.mark.parametrize(("key", "stage"), excluded())
def test_what_a_stage_does_not_read_is_refused_there(key, stage):
    value = {"training.label_smoothing_factor": "0.1", "training.output_dir": "x"}.get(key, "true")
    value = {"training.generation_max_length": "8", "training.generation_num_beams": "2", "training.generation_config": "x"}.get(key, value)
    with pytest.raises(ConfigError) as refused:
        validated(compose_config([f"stage={stage}", f"{key}={value}"]))
    assert key in [problem.key for problem in refused.value.problems]


def test_what_a_stage_reads_is_accepted(rows):
    (mask,) = rows["dataset.mask_prompt"]
    assert mask.stages == ("sft",)
    validated(compose_config(["stage=sft", "dataset.mask_prompt=false"]))
    (last,) = rows["training.dataloader_drop_last"]
    assert last.stages == ("dpo", "kto", "pt", "rm", "sft")
    for stage in last.stages:
        validated(compose_config([f"stage={stage}", "training.dataloader_drop_last=true"]))


def test_rows_known_by_hand(rows):
    """Compared with the documentation of peft and trl, and with conf/stage."""
    (rank,) = rows["finetune.r"]
    assert (rank.type, set(rank.defaults.values()), rank.allowed) == ("int", {"8"}, "1 or more")
    (bits,) = rows["model.quantization.bits"]
    assert (bits.type, bits.allowed) == ("int | null", "`4`, `8`")
    betas = {stage: key for key in rows["training.beta"] for stage in key.stages}
    assert set(betas) == {"dpo", "grpo", "kto"}
    assert (betas["dpo"].defaults["dpo"], betas["grpo"].defaults["grpo"]) == ("0.1", "0.0")
    (rate,) = rows["training.learning_rate"]
    assert rate.defaults["sft"] == "${finetune.learning_rate}"
    assert rate.defaults["dpo"] == "${product:0.1,${finetune.learning_rate}}"
    assert {key.unread for key in rows["training.max_length"]} == {"llmmod does this itself, before the trainer. Set dataset.cutoff_len."}
    (task,) = rows["finetune.task_type"]
    assert task.allowed == "`CAUSAL_LM`"
    (metrics,) = rows["steps.<name>.metrics"]
    assert "rm" not in metrics.stages


def test_notes_say_when_a_key_is_not_read(rows):
    (steps,) = rows["training.eval_steps"]
    assert steps.stages == STAGES
    assert "Only read with eval_strategy=steps." in steps.notes


def test_pages_are_whole_markdown(tmp_path, capsys):
    assert main([str(tmp_path / "reference")]) == 0
    names = {path.stem for path in (tmp_path / "reference").glob("*.md")}
    assert names == {"index", *(page.name for page in pages())}
    index = (tmp_path / "reference" / "index.md").read_text("utf-8")
    assert all(f"({name}.md)" in index for name in names - {"index"})
    dataset = (tmp_path / "reference" / "dataset.md").read_text("utf-8")
    assert "## `dataset.cutoff_len`" in dataset
    assert "dataset.md" not in capsys.readouterr().err


def test_marks_of_markdown_in_a_sentence_are_plain_text():
    key = Key("a.b", "str", {"": "x"}, "A <device> of `x_*` and *y*.", "", STAGES, (), "")
    page = dataclasses.replace(pages()[0], groups=[("", [key])])
    assert "A \\<device\\> of `x_*` and \\*y\\*." in markdown(page)


def test_options_that_differ_in_words_alone_are_one_row():
    alike = Key("a.b", "int", {}, "First words.", "", STAGES, (), "")
    groups = merged(
        {
            "one": [dataclasses.replace(alike, defaults={"one": "1"})],
            "two": [dataclasses.replace(alike, defaults={"two": "2"}, meaning="Other words.")],
            "three": [dataclasses.replace(alike, defaults={"three": "1"}, meaning="Other words.")],
        }
    )
    assert {options: [key.meaning for key in found] for options, found in groups.items()} == {("one", "two", "three"): ["Other words."]}


SOURCE = '''
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Colour(StrEnum):
    """What it looks like."""

    red = "red"


@dataclass
class Base:
    inherited: int = 1  # from the base
    repeated: int = 1  # says the base


@dataclass
class Conf(Base):
    # a title

    # two lines
    # above
    above: int = 1
    # not this one
    behind: int = 1  # but this one
    told: dict[str, Any] = field(  # type: ignore[assignment]
        default_factory=dict  # within
    )
    repeated: int = 2
    colour: Colour = Colour.red
    nothing: int = 1  # type: ignore[assignment]
'''


def test_comments_of_fields(tmp_path, monkeypatch):
    (tmp_path / "commented.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    assert field_comments(importlib.import_module("commented").Conf) == {
        "inherited": "from the base",
        "repeated": "says the base",
        "above": "two lines above",
        "behind": "but this one",
        "told": "within",
        "colour": "What it looks like.",
        "nothing": "",
    }


VALUES = {
    "null": (None, "null"),
    "switch": (True, "true"),
    "text": ("a b", "a b"),
    "empty text": ("", '""'),
    "whole float": (1.0, "1.0"),
    "small float": (5e-5, "5e-05"),
    "nested": ({"a": [1, None]}, "{a: [1, null]}"),
}


@pytest.mark.parametrize(("value", "text"), VALUES.values(), ids=VALUES)
def test_values_as_in_yaml(value, text):
    assert yaml_text(value) == text
