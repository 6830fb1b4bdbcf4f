"""The demonstration data: well-formed, without leaks, small enough, and true."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from llmmod.errors import EXIT_CONFIG, EXIT_FAILED

TRAIN = "llmmod_qa.jsonl"
HELD_OUT = "llmmod_qa_heldout.jsonl"
FIELDS = {"topic", "instruction", "output"}


def read(name: str) -> list[dict[str, str]]:
    text = resources.files("llmmod.demo").joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def normal(question: str) -> str:
    """The question without case, punctuation, symbols and white space."""
    folded = unicodedata.normalize("NFKC", question).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LN")


def is_chinese(text: str) -> bool:
    return any("一" <= c <= "鿿" for c in text)


def options(group: str) -> set[str]:
    folder = resources.files("llmmod.conf").joinpath(group)
    return {Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml")}


def answer(topic: str) -> str:
    return next(row["output"] for row in read(TRAIN) if row["topic"] == topic)


def listed(sentence: str) -> set[str]:
    """The names in `The x are a, b and c.`"""
    return set(sentence.rstrip(".").split(" are ")[1].replace(" and ", ", ").split(", "))


@pytest.mark.parametrize("name", [TRAIN, HELD_OUT])
def test_every_row_has_its_fields_and_nothing_else(name: str) -> None:
    for number, row in enumerate(read(name), start=1):
        assert set(row) == FIELDS, f"{name}, row {number}"
        for field, value in row.items():
            assert isinstance(value, str), f"{name}, row {number}, {field}"
            assert value == value.strip() != "", f"{name}, row {number}, {field}"


@pytest.mark.parametrize("name", [TRAIN, HELD_OUT])
def test_files_end_in_a_newline_and_have_no_carriage_return(name: str) -> None:
    raw = resources.files("llmmod.demo").joinpath(name).read_bytes()
    assert raw.endswith(b"}\n")
    assert b"\r" not in raw


def test_no_question_occurs_twice() -> None:
    counts = Counter(normal(row["instruction"]) for row in read(TRAIN) + read(HELD_OUT))
    assert [question for question, count in counts.items() if count > 1] == []


def test_normal_forgets_case_punctuation_and_width() -> None:
    assert normal("What IS  exit-code 2?") == normal("what is exit code ２？") == "whatisexitcode2"


def test_a_topic_has_one_answer_six_questions_and_one_held_out() -> None:
    train, held_out = read(TRAIN), read(HELD_OUT)
    assert set(Counter(row["topic"] for row in train).values()) == {6}
    assert sorted(row["topic"] for row in held_out) == sorted({row["topic"] for row in train})
    answers = {row["topic"]: row["output"] for row in train}
    assert len(set(answers.values())) == len(answers)
    assert all(row["output"] == answers[row["topic"]] for row in train + held_out)


def test_topics_in_chinese_are_marked_and_about_a_quarter() -> None:
    train = read(TRAIN)
    for row in train + read(HELD_OUT):
        assert is_chinese(row["output"]) == row["topic"].endswith("_zh"), row
        if row["topic"].endswith("_zh"):
            assert is_chinese(row["instruction"]), row
        else:
            assert not is_chinese(row["instruction"]), row
    assert 0.2 <= sum(is_chinese(row["output"]) for row in train) / len(train) <= 0.3


def test_the_training_file_stays_within_its_budget() -> None:
    """No more than 14,000 tokens: an upper estimate of 2.5 ASCII characters for each token, and 2.5 tokens for each other character."""
    rows = read(TRAIN)
    text = "".join(row["instruction"] + row["output"] for row in rows)
    narrow = sum(c.isascii() for c in text)
    assert narrow / 2.5 + (len(text) - narrow) * 2.5 <= 14_000
    assert 240 <= len(rows) <= 320
    assert all(len(row["output"]) <= 100 for row in rows)


@pytest.mark.parametrize(("topic", "group"), [("finetune_options", "finetune"), ("steps", "step")])
def test_answers_that_list_a_group_list_all_of_it(topic: str, group: str) -> None:
    assert listed(answer(topic)) == options(group)


def test_the_chinese_list_of_finetune_options_is_the_english_one() -> None:
    chinese = answer("finetune_options_zh").removeprefix("有 ").removesuffix(" 四种。")
    assert set(chinese.replace(" 和 ", "、").split("、")) == listed(answer("finetune_options"))


def test_exit_codes_are_those_of_the_errors() -> None:
    assert (EXIT_FAILED, EXIT_CONFIG) == (1, 2)
    assert answer("exit_codes") == "Exit code 0: done; 1: failed while running; 2: configuration, data or path is wrong."


def test_defaults_are_those_of_the_configuration() -> None:
    conf = resources.files("llmmod.conf")
    config = OmegaConf.to_container(OmegaConf.create(conf.joinpath("config.yaml").read_text(encoding="utf-8")))
    assert isinstance(config, dict)
    chosen = {group: option for entry in config["defaults"] if isinstance(entry, dict) for group, option in entry.items()}
    assert chosen["finetune"] == "lora"
    assert "finetune=lora" in answer("default_finetune")
    assert chosen["model"] == "smollm2"
    assert "SmolLM2-135M-Instruct" in conf.joinpath("model", "smollm2.yaml").read_text(encoding="utf-8")
    assert config["output_dir"].startswith("outputs/${training.stage}-${model.name}-${finetune.name}/${")
    assert "outputs/<stage>-<model>-<finetune>/<date>_<time>" in answer("output_dir")
