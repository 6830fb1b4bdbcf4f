"""`pipeline=[preview]`: its files contain the train split's examples, and its page is escaped, complete and self-contained."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import pytest
from html_page import Page

from llmmod.config.compose import compose_config, to_root
from llmmod.config.validate import validated
from llmmod.data.examples.tokenize import Counts
from llmmod.errors import ConfigError
from llmmod.pipeline.session import Session
from llmmod.render.findings import Finding
from llmmod.steps.preview.step import Preview, spread, verdict

ROWS = [
    {"instruction": "<script>alert(1)</script> & <|im_end|> {{ 7*7 }}", "output": '</div><script src="http://evil.example/x.js"></script>'},
    {"instruction": "什么是渲染?", "output": "对话的书写形式。😀"},
    {"instruction": "Say\x1b[31m it", "output": "ok"},
    {"instruction": "What is a render?", "output": "How a conversation is written. " * 20},
]


@pytest.fixture
def session(tmp_path, tiny_tokenizer, monkeypatch):
    """A function: overrides as a user types them -> a session for the rows above with the tiny tokenizer."""
    monkeypatch.setenv("LLMMOD_CACHE", str(tmp_path / "cache"))
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")

    def make(*overrides):
        typed = [
            "pipeline=[preview]",
            "dataset=json",
            f"dataset.data_files={data}",
            "dataset.val_size=0",
            "dataset.cutoff_len=160",
            f"model.pretrained_model_name_or_path={tmp_path / 'model'}",
            "model.gguf_file=null",
            "render=chatml",
            "render.system=''",
            f"output_dir={tmp_path / 'run'}",
            *overrides,
        ]
        composed = compose_config(typed)
        validated(composed)
        return Session(to_root(composed.config), tmp_path / "run")

    return make


def previewed(session):
    report = Preview(session.root.steps["preview"], "preview").run(session)
    directory = session.run_dir / "preview"
    lines = [json.loads(line) for line in (directory / "preview.jsonl").read_text(encoding="utf-8").splitlines()]
    return report, lines, (directory / "preview.html").read_text(encoding="utf-8")


def with_packs(session, monkeypatch, capacity):
    splits = session.splits("preview").packed(capacity)
    monkeypatch.setattr(session, "splits", lambda step: splits)
    return session


@pytest.mark.parametrize("changes", [[], ["dataset.cutoff_policy=right"]], ids=["proportional", "right"])
def test_the_lines_are_the_train_split(session, changes, tiny_tokenizer):
    made = session(*changes)
    _, lines, _ = previewed(made)
    assert [{"input_ids": line["input_ids"], "labels": line["labels"]} for line in lines] == list(made.splits("preview").train)
    asked = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n什么是渲染?<|im_end|>\n<|im_start|>assistant\n"
    assert lines[1]["text"] == f"{asked}对话的书写形式。😀<|im_end|>"
    trained = [label for label in lines[1]["labels"] if label != -100]
    assert tiny_tokenizer.decode(trained) == "对话的书写形式。😀<|im_end|>"


def test_the_page_is_whole_and_links_nowhere(session):
    _, _, html = previewed(session())
    page = Page(html)
    assert {"link", "img", "iframe", "object", "a"} & set(page.tags) == set()
    assert not [name for name, _ in page.attributes if name in ("src", "href", "srcset", "data", "action") or name.startswith("on")]
    for outside in ("@import", "url(", "fetch(", "XMLHttpRequest"):
        assert outside not in html
    style_and_script = re.sub(r"<body>.*?<script>", "", html, flags=re.DOTALL)
    assert "http" not in style_and_script


def test_what_rows_say_is_escaped(session):
    _, _, html = previewed(session())
    assert html.count("<script") == html.count("</script>") == 1  # the page's own
    page = Page(html)
    shown = page.said("text").replace("↵\n", "\n")
    assert f"{ROWS[0]['instruction']}<|im_end|>\n" in shown
    assert ROWS[0]["output"] in shown
    assert "\x1b" not in html


def test_what_is_coloured_is_what_is_trained(session):
    _, _, html = previewed(session("dataset.cutoff_len=1024"))
    page = Page(html)
    answers = "".join(row["output"] + "<|im_end|>" for row in ROWS)
    legend = "trained"
    assert page.said("on") == legend + answers


def test_the_table_has_every_id_with_its_text_and_label(session, tiny_tokenizer):
    _, lines, html = previewed(session())
    cells = [data for tags, _, data in Page(html).texts if tags[-1:] == ("td",)]
    table = [(cells[n], cells[n + 1], cells[n + 4]) for n in range(0, len(cells), 5)]
    pairs = [enumerate(zip(line["input_ids"], line["labels"], strict=True)) for line in lines]
    assert table == [(str(at), str(token), str(label)) for pair in pairs for at, (token, label) in pair]
    texts = {(int(cells[n + 1]), cells[n + 3]) for n in range(0, len(cells), 5) if "Ġ" in cells[n + 2]}
    assert texts == {(token, tiny_tokenizer.decode([token])) for token, _ in texts}
    assert any(text.startswith(" ") for _, text in texts)


def test_a_token_s_hint_has_its_id_and_name(session, tiny_tokenizer):
    _, _, html = previewed(session())
    hints = [value for name, value in Page(html).attributes if name == "title"]
    assert f"{tiny_tokenizer.convert_tokens_to_ids('<|im_start|>')} <|im_start|> · position 0" in hints


def test_the_figures(session):
    report, lines, html = previewed(session("training.num_train_epochs=3", "training.per_device_train_batch_size=2"))
    tokens = sum(len(line["input_ids"]) for line in lines)
    trained = sum(label != -100 for line in lines for label in line["labels"])
    text = Page(html).text
    assert f"Tokens {tokens:,} {trained / tokens:.0%} of them trained: {trained:,}" in text
    assert "Examples to train on 4 from 4 rows; 0 held out" in text
    assert "Examples cut 1 longer than cutoff_len=160" in text
    assert "Optimizer steps 6 3 epochs 2 rows a step" in text
    assert f"Tokens in the whole run {3 * tokens:,}" in text
    assert "rows.jsonl, read as alpaca (found by the columns): prompt=instruction, response=output" in text
    assert "render chatml" in text
    assert "Certified" in text
    assert report.summary[0].endswith("6 optimizer steps")
    assert report.artifacts == {"page": "preview/preview.html", "examples": "preview/preview.jsonl"}


def test_packs(session, monkeypatch):
    made = session()
    unpacked = list(made.splits("preview").train)
    _, lines, html = previewed(with_packs(made, monkeypatch, 400))
    assert [line["labels"] for line in lines] == [row["labels"] for row in unpacked]
    tokens = sum(len(line["input_ids"]) for line in lines)
    text = Page(html).text
    rows = -(-tokens // 400)
    assert f"Packs are full to {tokens / (400 * rows):.1%}" in text
    assert f"All {rows} packed rows" in text
    assert "A line is a row of 400 tokens" in text


def test_a_stream(session, monkeypatch):
    made = session("training.max_steps=5", "training.per_device_train_batch_size=2")
    splits = made.splits("preview")
    train, report = list(splits.train), replace(splits.report, train=Counts(), rows=0)
    streamed = replace(splits, train=splits.train.to_iterable_dataset(), report=report)
    monkeypatch.setattr(made, "splits", lambda step: streamed)
    report, lines, html = previewed(made)
    assert [line["input_ids"] for line in lines] == [row["input_ids"] for row in train]
    text = Page(html).text
    mean = sum(map(len, (line["input_ids"] for line in lines))) / 4
    assert "Examples to train on a stream 0 held out" in text
    assert "Optimizer steps 5 2 rows a step" in text
    assert f"Tokens in the whole run {5 * 2 * mean:,.0f}" in text
    assert "Examples cut" not in text
    assert "4 of the first 4 examples of a stream" in text
    assert report.summary[0].startswith("preview: the first 4 examples")


def test_the_steps_limits_for_file_page_and_terminal(session):
    _, lines, html = previewed(session("steps.preview.max_samples=3", "steps.preview.on_page=2", "steps.preview.in_terminal=0"))
    assert len(lines) == 3
    assert "2 of 4 examples, evenly spread" in Page(html).text
    assert html.count("<article") == 2


def test_no_model_is_loaded(session, monkeypatch):
    made, asked = session(), []
    monkeypatch.setattr(made, "base_model", asked.append)
    previewed(made)
    assert asked == []


def test_piped_it_prints_brackets(session, capsys):
    previewed(session("dataset.cutoff_len=1024"))
    out = capsys.readouterr().out
    assert "Example 2: " in out
    assert "⟦对话的书写形式。😀‹<|im_end|>›⟧" in out
    assert "✓ Certified" in out
    assert "\x1b" not in out


BROKEN = ["render.response=['{{response}}']"]  # without a terminator


def test_a_render_that_cannot_be_certified_stops_the_run(session):
    with pytest.raises(ConfigError) as error:
        previewed(session(*BROKEN))
    assert error.value.exit_code == 2


def test_without_the_proof_the_findings_are_shown(session, capsys):
    _, _, html = previewed(session(*BROKEN, "render.verify=false"))
    page = Page(html)
    assert "Not certified" in page.text
    assert "where generation doesn't stop" in page.text
    assert "✗ Not certified" in capsys.readouterr().out


def test_the_verdict_says_what_was_looked_at():
    assert "and the first 8 rows of the data" in verdict([], rows=8).explanation
    assert "of the data" not in verdict([], rows=0).explanation
    assert "dataset.mask_prompt=false" in verdict([], rows=1, mask_prompt=False).explanation
    noted = verdict([Finding("own", "the tokenizer's own template differs", fatal=False)], rows=1)
    assert not noted.refused
    assert len(noted.findings) == 1


def test_examples_are_spread():
    assert spread("abcdefgh", 4) == [(1, "a"), (3, "c"), (5, "e"), (7, "g")]
    assert spread("ab", 4) == [(1, "a"), (2, "b")]
    assert spread("ab", 0) == []


def test_only_the_first_process_writes(session, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    made = session()
    Preview(made.root.steps["preview"], "preview").run(made)
    assert not (made.run_dir / "preview").exists()


def test_neither_a_trainer_nor_peft_is_imported():
    import subprocess

    heavy = ["peft", "transformers.trainer", "transformers.modeling_utils", "trl.trainer.sft_trainer"]
    code = f"import sys, llmmod.steps.preview.step; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


PAIRS = [{"prompt": f"Question {n}?", "chosen": f"Right {n}.", "rejected": f"Wrong, {n}!"} for n in range(1, 7)]


def of_kind(session, monkeypatch, kind, rows, *overrides):
    """A session for rows of another kind; its stage is sft with this `data_kind`."""
    made = session("dataset.cutoff_len=64", *overrides)
    data = made.run_dir.parent / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made.root.training.data_kind = kind
    return made


def test_a_pair_is_shown_with_each_answer(session, monkeypatch, tiny_tokenizer, capsys):
    made = of_kind(session, monkeypatch, "preference", PAIRS, "steps.preview.in_terminal=1")
    train = made.splits("preview").train
    report, lines, html = previewed(made)
    assert [line["part"] for line in lines] == ["chosen", "rejected"] * 6
    for row, chosen, rejected in zip(train, lines[::2], lines[1::2], strict=True):
        for line, name in ((chosen, "chosen_ids"), (rejected, "rejected_ids")):
            assert line["input_ids"] == row["prompt_ids"] + row[name]
            assert line["labels"] == [-100] * len(row["prompt_ids"]) + row[name]
    page = Page(html)
    assert "Example 6, rejected" in page.text
    assert "All 6 examples" in page.text
    answers = sum(len(row[name]) for row in train for name in ("chosen_ids", "rejected_ids"))
    tokens = answers + sum(len(row["prompt_ids"]) for row in train)
    assert f"Tokens {tokens:,} {answers / tokens:.0%} of them trained: {answers:,}" in page.text
    assert "Optimizer steps" in page.text
    assert "Checked on made-up conversations and the first 6 rows of the data" in page.text
    out = capsys.readouterr().out
    assert "Example 1, chosen" in out
    assert "⟦Right 1.‹<|im_end|>›⟧" in out
    assert "⟦Wrong, 1!‹<|im_end|>›⟧" in out
    assert len(set(re.findall(r'id="(example-\d+)"', html))) == 12
    assert report.summary[0].startswith(f"preview: 6 examples, {tokens:,} tokens")


def test_prompts_are_shown_without_answers(session, monkeypatch, capsys):
    rows = [{"prompt": f"Question {n}?", "answer": f"Secret {n}."} for n in range(1, 5)]
    _, lines, html = previewed(of_kind(session, monkeypatch, "prompt", rows))
    assert {line["part"] for line in lines} == {"prompt"}
    assert all(set(line["labels"]) == {-100} and "Secret" not in line["text"] for line in lines)
    text = Page(html).text
    assert "of prompts; the model writes completions while it trains" in text
    assert "Secret" not in html + capsys.readouterr().out


def test_documents_are_shown_in_blocks_with_their_own_certificate(session, monkeypatch):
    rows = [{"text": f"Document {n} tells something."} for n in range(1, 9)]
    _, lines, html = previewed(of_kind(session, monkeypatch, "document", rows))
    assert all(line["labels"] == line["input_ids"] for line in lines)
    assert "".join(line["text"] for line in lines) == "".join(f"{row['text']}<|endoftext|>" for row in rows)
    assert "Certified: training sees each text as the tokenizer writes it" in Page(html).text


def test_the_certificate_looks_at_each_dataset_of_a_mix(session, monkeypatch, tmp_path):
    made = session()
    (tmp_path / "more.jsonl").write_text(json.dumps({"instruction": "Hi", "output": "Hello"}) + "\n")
    files = {"a": str(tmp_path / "rows.jsonl"), "b": str(tmp_path / "more.jsonl")}
    made.root.dataset.data_files = None
    made.root.dataset.mix = {name: {"path": path} for name, path in files.items()}
    _, _, html = previewed(made)
    assert f"the first {len(ROWS) + 1} rows of the data" in Page(html).text
