"""The predict step: its files, metrics, comparison, and settings."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import get_peft_model
from toy import ToyRender

from llmmod.config.schema.steps import PredictConf, TrainConf
from llmmod.errors import ConfigError
from llmmod.models.generation.generate import generate
from llmmod.protocols import LoadedModel
from llmmod.render.auto import AutoTemplate
from llmmod.render.conversation import Conversation, Message
from llmmod.steps.predict import completions
from llmmod.steps.predict.step import Predict, generation_settings
from llmmod.steps.train import Train


@pytest.fixture
def session(tmp_path, tiny_llama, tiny_tokenizer, toy_splits, sft_conf, lora_conf, toy_session):
    def make(splits=None, smoke=False, **changes):
        return toy_session(
            tmp_path / "run",
            model=tiny_llama,
            tokenizer=tiny_tokenizer,
            splits=splits or toy_splits,
            training=sft_conf(**changes),
            finetune=lora_conf(),
            smoke=smoke,
        )

    return make


def predict(session, **fields):
    report = Predict(PredictConf(**fields), "predict").run(session)
    text = (session.run_dir / "predict" / "generated_predictions.jsonl").read_text(encoding="utf-8")
    return report, [json.loads(line) for line in text.splitlines()], text


def says(session, text):
    """A `generate` that returns the same text and the end token for every prompt."""
    ids = [*session._tokenizer.encode(text, add_special_tokens=False), session._tokenizer.eos_token_id]
    return lambda model, prompts, **given: enumerate([ids] * len(prompts))


def alone(model, tokenizer, question, *, tokens=8):
    """A greedy answer to one question, without batch, padding and cache."""
    ids = asked = tokenizer(question + "\n", add_special_tokens=False)["input_ids"]
    for _ in range(tokens):
        with torch.no_grad():
            ids = [*ids, model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()]
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[len(asked) :], skip_special_tokens=True).strip()


def test_every_held_out_prompt_in_the_data_s_order(session, tiny_llama, tiny_tokenizer, toy_splits):
    report, lines, text = predict(session(), batch_size=4)
    asked = [(c.messages[0].content, c.messages[1].content) for c in toy_splits.eval_conversations]
    assert lines == [{"prompt": q + "\n", "label": a, "predict": alone(tiny_llama, tiny_tokenizer, q)} for q, a in asked]
    assert "嗷" in text  # as UTF-8, not as \u escapes
    assert report.artifacts == {"predictions": "predict/generated_predictions.jsonl"}
    assert report.summary[0].startswith("predict: 6 answers, rouge-1 ")


def test_what_it_learnt_it_answers(session):
    made = session(num_train_epochs=40.0, learning_rate=2e-2, eval_strategy="no", eval_on_start=False, logging_steps=100.0)
    Train(TrainConf(), "train").run(made)
    made._splits = copy.copy(made._splits)
    made._splits.eval_conversations = [Conversation([Message("user", "The cow says"), Message("assistant", "moo")])]
    report, lines, _ = predict(made)
    assert lines == [{"prompt": "The cow says\n", "label": "moo", "predict": "moo"}]
    assert report.metrics["predict_rouge-1"] == 100.0


METRIC = """
class Counts:
    def __init__(self):
        self.seen = []

    def update(self, predict, label):
        self.seen.append((predict, label))

    def compute(self):
        return {"answers": float(len(self.seen)), "labels": float(len({label for _, label in self.seen}))}
"""


def test_metrics_are_those_named_one_of_the_user_s_own_too(session, tmp_path, monkeypatch):
    (tmp_path / "own_metrics.py").write_text(METRIC)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LLMMOD_ALLOW", "own_metrics")
    report, _, _ = predict(session(), metrics={"own": {"_target_": "own_metrics.Counts"}, "bleu": None})
    assert report.metrics == {"predict_answers": 6.0, "predict_labels": 6.0}


def test_a_prompt_without_an_answer_is_answered_and_not_measured(session, toy_splits):
    splits = copy.copy(toy_splits)
    splits.eval_conversations = [*toy_splits.eval_conversations[:2], Conversation([Message("user", "What says the fox?")])]
    _, lines, _ = predict(session(splits=splits))
    assert [line["label"] for line in lines] == ["woof", "meow", ""]


def test_max_samples(session):
    assert [line["label"] for line in predict(session(), max_samples=2)[1]] == ["woof", "meow"]


def test_compare_with_base(session, tiny_lora, tiny_tokenizer, toy_splits):
    made = session()
    made.current = LoadedModel(tiny_lora, kind="adapter", trained=True)
    report, lines, _ = predict(made, compare_with_base=2)
    compared = json.loads((made.run_dir / "predict" / "comparison.json").read_text(encoding="utf-8"))
    chosen = [toy_splits.eval_conversations[0], toy_splits.eval_conversations[3]]  # evenly spread over the six
    with tiny_lora.disable_adapter():
        base = [alone(tiny_lora, tiny_tokenizer, c.messages[0].content) for c in chosen]
    expected = [
        {"question": c.messages[0].content, "label": c.messages[1].content, "base": b, "tuned": lines[n]["predict"]}
        for c, b, n in zip(chosen, base, (0, 3), strict=True)
    ]
    assert compared == expected
    assert [item["base"] != item["tuned"] for item in compared] == [True, True]
    assert report.summary[1:4] == [
        f"Q:     {chosen[0].messages[0].content}",
        f"  base:  {' '.join(base[0].split())}",
        f"  tuned: {' '.join(lines[0]['predict'].split())}",
    ]
    assert report.artifacts["comparison"] == "predict/comparison.json"


def test_nothing_to_compare_without_an_adapter(session):
    report, _, _ = predict(session(), compare_with_base=2)
    assert len(report.summary) == 1
    assert "comparison" not in report.artifacts


def test_an_interruption_loses_no_answer(session, monkeypatch):
    made = session()

    def interrupted(*args, **given):
        for count, completion in enumerate(generate(*args, **given)):
            if count == 4:
                raise KeyboardInterrupt
            yield completion

    monkeypatch.setattr(completions, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(made, batch_size=2)
    written = (made.run_dir / "predict" / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len([json.loads(line) for line in written]) == 4


def test_nothing_held_out(session, toy_splits):
    splits = copy.copy(toy_splits)
    splits.eval, splits.eval_conversations = None, []
    with pytest.raises(ConfigError, match=r"dataset\.val_size: examples are not held out"):
        predict(session(splits=splits))


def test_settings_are_those_of_generation(session, tiny_llama, tiny_tokenizer):
    config = generation_settings(session(), "predict", tiny_llama)
    assert (config.max_new_tokens, config.do_sample, config.use_cache) == (8, False, True)
    assert (config.eos_token_id, config.pad_token_id) == ([tiny_tokenizer.eos_token_id], tiny_tokenizer.pad_token_id)


def test_seq2seq_s_settings_win(session, tiny_llama):
    config = generation_settings(session(generation_max_length=30, generation_num_beams=3), "predict", tiny_llama)
    assert (config.max_length, config.max_new_tokens, config.num_beams) == (30, None, 3)
    config = generation_settings(session(generation_config={"max_new_tokens": 3}), "predict", tiny_llama)
    assert config.max_new_tokens == 3


def test_smoke_answers_are_short(session, tiny_llama):
    made = session(smoke=True)
    made.root.generation.max_new_tokens = 500
    assert generation_settings(made, "predict", tiny_llama).max_new_tokens == 16


def test_sampled_answers_are_the_same_each_time(session, tiny_llama, lora_conf):
    made = session()
    made.root.generation.do_sample = True
    made.current = LoadedModel(get_peft_model(tiny_llama, lora_conf()), kind="adapter")
    first = predict(made)[1]
    torch.rand(1)
    assert predict(made)[1] == first


SCORES = """
from llmmod.protocols import StepReport
class Scores:
    def __init__(self, conf, name, *, decimals):
        self.conf, self.name, self.decimals = conf, name, decimals

    def run(self, session):
        return StepReport({"predict_score": round(0.1234, self.decimals)}, summary=[f"{self.name}: {self.conf.max_samples}"])
"""


def test_a_stage_may_do_something_else(session, tmp_path, monkeypatch):
    (tmp_path / "own_scores.py").write_text(SCORES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LLMMOD_ALLOW", "own_scores")
    report = Predict(PredictConf(max_samples=3), "p").run(session(predict={"_target_": "own_scores.Scores", "decimals": 2}))
    assert (report.metrics, report.summary) == ({"predict_score": 0.12}, ["p: 3"])


def test_answers_and_labels_are_read_as_the_render_says(session, monkeypatch, toy_splits):
    """Chat and rewards use the same function: what the render writes around an answer doesn't count in either."""
    monkeypatch.setattr(ToyRender, "read_answer", lambda self, text, *, ended=True: text.strip().strip("#"))
    made = session()
    splits = copy.copy(toy_splits)
    splits.eval_conversations = [Conversation([Message("user", "The cow says"), Message("assistant", "##moo#")])]
    made._splits = splits
    monkeypatch.setattr(completions, "generate", says(made, " ##moo#"))
    report, lines, _ = predict(made)
    assert [(line["label"], line["predict"]) for line in lines] == [("moo", "moo")]
    assert report.metrics["predict_rouge-1"] == 100.0


REASONED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_thoughts_that_the_data_has_are_part_of_the_label_as_they_are_of_the_answer(session, monkeypatch, tiny_tokenizer, toy_splits):
    made = session()
    render = AutoTemplate(tokenizer=tiny_tokenizer, name="auto", template=REASONED)
    monkeypatch.setattr(made, "render", lambda step: render, raising=False)
    made._splits = copy.copy(toy_splits)
    made._splits.eval_conversations = [
        Conversation([Message("user", "The cow says"), Message("assistant", "moo", reasoning="It is a cow.")]),
        Conversation([Message("user", "The cow says"), Message("assistant", "moo")]),
    ]
    monkeypatch.setattr(completions, "generate", says(made, "<think>It is a cow.</think>moo"))
    _, (with_thoughts, without), _ = predict(made)
    assert with_thoughts["label"] == with_thoughts["predict"] == "<think>It is a cow.</think>moo"
    assert (without["label"], without["predict"]) == ("moo", "<think>It is a cow.</think>moo")
