"""`training.predict_steps` and early stopping: metrics, files, and the training is the same with and without them."""

from __future__ import annotations

import copy
import hashlib
import json
from types import SimpleNamespace

import pytest

from llmmod.config.schema.generation import GenerationConf
from llmmod.config.schema.steps import PredictConf, TrainConf
from llmmod.config.validate.training import MEASURED
from llmmod.errors import ConfigError
from llmmod.steps.train import Train
from llmmod.trainers.callbacks.interrupt import StopWhenNoBetter

ADAPTER = "train/adapter_model.safetensors"
FIELDS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2.0, "eval_strategy": "steps", "eval_steps": 2.0}
# A metric whose values the test sets, one for each prediction.
METRIC = """
import os, signal
VALUES, INTERRUPT_AT = [], []
ANSWERS = []
class Told:
    def update(self, predict, label):
        ANSWERS.append(predict)
        if len(ANSWERS) in INTERRUPT_AT:
            INTERRUPT_AT.clear()
            os.kill(os.getpid(), signal.SIGINT)
    def compute(self):
        return {"told": VALUES.pop(0) if VALUES else 0.0}
"""


@pytest.fixture
def session(tmp_path, tiny_llama, tiny_tokenizer, toy_splits, sft_conf, lora_conf, toy_session):
    """A session for the toy task with dropout, whose answers are sampled: both use random numbers."""

    def make(run="run", *, steps=None, **changes):
        made = toy_session(
            tmp_path / run,
            model=copy.deepcopy(tiny_llama),
            tokenizer=tiny_tokenizer,
            splits=toy_splits,
            training=sft_conf(**{**FIELDS, **changes}),
            finetune=lora_conf(lora_dropout=0.2),
            steps=steps,
        )
        made.root.generation = GenerationConf(do_sample=True, max_new_tokens=8)
        return made

    return make


@pytest.fixture
def told(tmp_path, monkeypatch):
    """A list for the values of the user's own metric, which the test fills, and the step that uses the metric."""
    (tmp_path / "told_metric.py").write_text(METRIC)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LLMMOD_ALLOW", "told_metric")
    import told_metric

    return told_metric.VALUES, {"predict": PredictConf(metrics={"own": {"_target_": "told_metric.Told"}})}


def train(session):
    return Train(TrainConf(), "train").run(session)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def history(session):
    """The log without entries that depend on the clock."""
    log = json.loads((session.run_dir / "train/trainer_state.json").read_text())["log_history"]
    clock = ("runtime", "per_second")
    return [{name: value for name, value in entry.items() if not name.endswith(clock)} for entry in log]


def test_the_weights_are_the_same_bits_with_and_without(session):
    plain, answering = session("plain"), session("answering", predict_steps=3)
    train(plain)
    report = train(answering)
    assert digest(answering.run_dir / ADAPTER) == digest(plain.run_dir / ADAPTER)
    answered = [entry["step"] for entry in history(answering) if "eval_predict_rouge-l" in entry]
    assert answered == [0, 3, 6]
    assert [entry["step"] for entry in history(answering) if "eval_loss" in entry] == [0, 2, 3, 4, 6]
    measured = {name.removeprefix("eval_") for entry in history(answering) for name in entry if name.startswith("eval_")}
    assert {name for name in measured if not name.startswith("predict_")} == set(MEASURED["llmmod.trainers.sft.SftTrainer"])
    assert {"eval_predict_bleu-4", "eval_predict_rouge-l_before"} <= set(report.metrics)
    files = sorted((answering.run_dir / "train/predictions").iterdir())
    assert [file.name for file in files] == ["step-0.jsonl", "step-3.jsonl", "step-6.jsonl"]
    lines = [json.loads(line) for line in files[0].read_text(encoding="utf-8").splitlines()]
    assert [line["label"] for line in lines] == ["woof", "meow", "moo", "quack", "baa", "嗷"]


def test_a_resumed_run_has_the_same_answers_and_the_same_log(session):
    whole, resumed = session("whole", predict_steps=2), session("resumed", predict_steps=2)
    train(whole)
    resumed._parts["training"].resume_from_checkpoint = str(whole.run_dir / "train/checkpoint-2")
    train(resumed)
    assert digest(resumed.run_dir / ADAPTER) == digest(whole.run_dir / ADAPTER)
    assert history(resumed) == history(whole)
    for step in (4, 6):
        name = f"train/predictions/step-{step}.jsonl"
        assert digest(resumed.run_dir / name) == digest(whole.run_dir / name)


def test_a_signal_ends_the_answers_and_a_resumed_run_makes_them_again(session, told):
    import told_metric

    _, steps = told
    whole, ended = session("whole", steps=steps, predict_steps=3), session("ended", steps=steps, predict_steps=3)
    train(whole)
    told_metric.ANSWERS.clear()
    told_metric.INTERRUPT_AT.append(6 + 2)  # during the answers at step 3
    with pytest.raises(KeyboardInterrupt):
        train(ended)
    assert not told_metric.INTERRUPT_AT
    assert len(told_metric.ANSWERS) == 6 + 2
    again = session("ended", steps=steps, predict_steps=3, resume_from_checkpoint=True)
    train(again)
    assert digest(again.run_dir / ADAPTER) == digest(whole.run_dir / ADAPTER)
    assert history(again) == history(whole)
    for step in (0, 3, 6):
        name = f"train/predictions/step-{step}.jsonl"
        assert digest(again.run_dir / name) == digest(whole.run_dir / name)


def test_the_best_model_by_a_metric_of_the_user_s_own(session, told):
    values, steps = told
    values += [0.0, 0.0, 1.0, 5.0, 2.0]  # the first to find its name, then before the training and at steps 2, 4 and 6
    best = {"load_best_model_at_end": True, "metric_for_best_model": "predict_told", "predict_steps": 2}
    made = session("best", steps=steps, **best)
    train(made)
    assert made.get("trainer").state.best_model_checkpoint.endswith("checkpoint-4")
    assert digest(made.run_dir / ADAPTER) == digest(made.run_dir / "train/checkpoint-4/adapter_model.safetensors")


def test_a_metric_that_the_user_s_own_does_not_have_is_refused_before_the_model_is_touched(session, told):
    _, steps = told
    made = session("odd", steps=steps, metric_for_best_model="predict_tolt", predict_steps=2)
    made.base_model = lambda step: pytest.fail("the model was asked for")
    with pytest.raises(ConfigError, match=r"training.metric_for_best_model: predict_tolt, but .*Did you mean 'predict_told'"):
        train(made)


def test_training_stops_where_nothing_gets_better_and_a_resumed_run_takes_no_further_step(session):
    stopping = {"learning_rate": 0.0, "early_stopping_patience": 2, "max_steps": 20}
    made = session("stopped", **stopping)
    train(made)
    assert made.get("trainer").state.global_step == 6  # steps 4 and 6 aren't better than 2
    again = session("again", resume_from_checkpoint=str(made.run_dir / "train/checkpoint-6"), **stopping)
    train(again)
    assert again.get("trainer").state.global_step == 6
    earlier = session("earlier", resume_from_checkpoint=str(made.run_dir / "train/checkpoint-4"), **stopping)
    train(earlier)
    assert earlier.get("trainer").state.global_step == 6


# values of evaluations from the first step on, threshold, whether more is better -> number of evaluations since the last better one
COUNTS = {
    "better each time": ([3.0, 2.0, 1.0], 0.0, False, 0),
    "equal is not better": ([3.0, 3.0], 0.0, False, 1),
    "not by enough": ([3.0, 2.95, 2.9], 0.1, False, 2),
    "more is better": ([1.0, 2.0, 1.5], 0.0, True, 1),
    "not a number": ([1.0, float("nan"), 0.5], 0.0, False, 0),
}


@pytest.mark.parametrize("name", COUNTS)
def test_evaluations_without_progress_are_counted(name):
    values, threshold, greater, count = COUNTS[name]
    args = SimpleNamespace(metric_for_best_model="x", greater_is_better=greater)
    log = [{"step": 0, "eval_x": 0.0}, *({"step": step, "eval_x": value} for step, value in enumerate(values, start=1)), {"step": 9}]
    for patience in (count, count + 1):
        control = SimpleNamespace(should_training_stop=False)
        StopWhenNoBetter(patience, threshold).on_evaluate(args, SimpleNamespace(log_history=log, global_step=9), control)
        assert control.should_training_stop is (patience <= count)
