"""A run's report works with any contents of its directory, is complete and self-contained, and shows the run's texts as text."""

from __future__ import annotations

import json
import logging

import pytest
from html_page import Page
from written_runs import put, write_run

from llmmod.config.compose import compose_config
from llmmod.runs import report as module
from llmmod.runs.report import write_report

HOSTILE = """</script><script>alert(1)</script><img src=x onerror="alert(2)">'"{{ 7*7 }}{% raw %}\u202e\x1b[31m"""


def page_of(directory):
    assert write_report(directory) == directory / "report.html"
    return Page((directory / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def finished(tmp_path):
    return write_run(tmp_path)


def test_it_says_what_was_asked_and_what_came_out(finished):
    page = page_of(finished)
    for text in ("Completed after 70.0 s", "0.69315", "2.5 before the training", "什么是渲染?", "不知道", "对话的书写形式。😀", "问答"):
        assert text in page.text
    assert "1:02:05" in page.text  # 3725 s of CPU
    assert "llmmod finetune.r=3 'hub.token=***' seed=7" in page.text
    titles = [text for tags, _, text in page.texts if tags[-2:] == ("figure", "h3")]
    assert titles == ["loss", "predict_rouge-l", "learning_rate", "grad_norm"]
    assert ("href", "train/trainer_state.json") in page.attributes


def test_differences_from_the_defaults_are_those_of_the_configuration(finished):
    rows = [text.strip() for tags, _, text in page_of(finished).texts if "td" in tags]
    at = rows.index("finetune.r")
    default = str(compose_config([]).config.finetune.r)
    assert rows[at + 1 : at + 3] == [default, "3"]
    assert rows[rows.index("seed") + 2] == "7"
    assert rows[rows.index("model") + 2] == "qwen3"
    assert "1 values that came with the options" in page_of(finished).text  # the model, which isn't typed here
    assert "finetune.r" in page_of(finished).said("typed")
    assert "hf_secret" not in (finished / "report.html").read_text(encoding="utf-8")
    assert "finetune.lora_alpha" not in rows


def test_the_page_loads_nothing_and_links_to_files_of_the_run_alone(finished):
    page = page_of(finished)
    assert {"link", "img", "iframe", "object"} & set(page.tags) == set()
    assert not [name for name, _ in page.attributes if name in ("src", "srcset", "action") or name.startswith("on")]
    assert all((finished / target).exists() for name, target in page.attributes if name == "href")


def test_a_directory_without_anything_has_a_report(tmp_path):
    assert "The run has not recorded a step." in page_of(tmp_path).text


@pytest.mark.parametrize("broken", ["", "[]", "{", "null", '{"steps": 3, "data": {"a": 1}, "versions": null}', '{"log_history": 1}'])
def test_files_that_are_torn_or_odd_are_passed_over(finished, broken):
    for path in list(finished.rglob("*.json")) + list(finished.rglob("*.yaml")):
        path.write_text(broken)
    page = page_of(finished)
    linked = {target for name, target in page.attributes if name == "href"}
    assert "run.json" in linked
    assert all((finished / target).exists() for target in linked)


def test_what_a_run_says_is_text_and_never_markup(finished):
    run = json.loads((finished / "run.json").read_text(encoding="utf-8"))
    odd = {"step": HOSTILE, "name": HOSTILE, "render": HOSTILE, "certified": True, "findings": [HOSTILE], "lines": [HOSTILE]}
    step = {"name": HOSTILE, "status": HOSTILE, "artifacts": {HOSTILE: HOSTILE}, "reused_from": HOSTILE}
    said = {"status": "failed", "error": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    put(finished, "run.json", {**run, **said, "data": [odd], "steps": [step, *run["steps"]]})
    put(finished, "metrics.json", {HOSTILE: 1.0, "text": HOSTILE})
    put(finished, "run.log", HOSTILE)
    put(finished, "predict/comparison.json", [{"question": HOSTILE, "label": HOSTILE, "base": HOSTILE, "tuned": HOSTILE}])
    put(finished, "train/trainer_state.json", {"log_history": [{"step": 1, HOSTILE: 2.0}]})
    put(finished, ".hydra/overrides.yaml", json.dumps([f"model.name={HOSTILE}"]))
    page = page_of(finished)
    html = (finished / "report.html").read_text(encoding="utf-8")
    assert html.count("<script") == html.count("</script>") == 1
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.said("answer").count(HOSTILE) == 4
    assert "49" not in page.said("answer")


def test_a_run_without_an_end_shows_the_log_of_its_newest_checkpoint(finished):
    (finished / "train/trainer_state.json").unlink()
    put(finished, "train/checkpoint-9/trainer_state.json", {"log_history": [{"step": 9, "loss": 1.0}]})
    put(finished, "train/checkpoint-10/trainer_state.json", {"log_history": [{"step": 10, "loss": 0.123}]})
    put(finished, "run.json", {"status": "interrupted", "error": "stopped by SIGTERM"})
    put(finished, "run.log", "a line\nthe last line\n")
    page = page_of(finished)
    for text in ("Interrupted", "stopped by SIGTERM", "the last line", "training: 0.123"):
        assert text in page.text


def test_answers_of_a_training_are_shown_before_and_after(finished):
    (finished / "predict/comparison.json").unlink()
    for step, answer in ((0, "nothing yet"), (20, "the last answer"), (3, "in between")):
        put(finished, f"train/predictions/step-{step}.jsonl", json.dumps({"prompt": "问?", "label": "答", "predict": answer}) + "\n")
    page = page_of(finished)
    assert [text in page.said("answer") for text in ("nothing yet", "the last answer", "in between")] == [True, True, False]


def test_a_long_history_makes_no_long_page(finished):
    short = len((page_of(finished), (finished / "report.html").read_bytes())[1])
    names = ("loss", "learning_rate", "grad_norm")
    history = [{"step": step, **dict.fromkeys(names, 1 + step % 100)} for step in range(20_000)]
    put(finished, "train/trainer_state.json", {"log_history": history})
    page_of(finished)
    assert len((finished / "report.html").read_bytes()) < short + 100_000


def test_a_report_that_cannot_be_made_is_a_line_in_the_log(finished, monkeypatch, caplog):
    monkeypatch.setattr(module, "page", lambda *args, **contents: 1 / 0)
    with caplog.at_level(logging.WARNING):
        assert write_report(finished) is None
    assert "report.html can't be written: ZeroDivisionError" in caplog.text


def test_what_a_plan_drew_is_on_the_page_as_an_image_that_runs_nothing(finished):
    put(finished, "train/plan.svg", "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    write_report(finished)
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert '<img src="data:image/svg+xml;base64,PHN2Zy' in text
    assert "alert(1)</script></svg>" not in text
