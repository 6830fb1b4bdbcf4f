"""The evaluate step: the same metrics after training, without training, and from training's own evaluation."""

from __future__ import annotations

import copy

import pytest
import torch

from llmmod.config.schema.steps import EvaluateConf, TrainConf
from llmmod.errors import ConfigError
from llmmod.steps.evaluate import Evaluate
from llmmod.steps.train import Train


@pytest.fixture
def session(tmp_path, tiny_llama, tiny_tokenizer, toy_splits, sft_conf, lora_conf, toy_session):
    def make(splits=None, **changes):
        return toy_session(
            tmp_path / "run",
            model=tiny_llama,
            tokenizer=tiny_tokenizer,
            splits=splits or toy_splits,
            training=sft_conf(**changes),
            finetune=lora_conf(),
        )

    return make


def evaluate(session):
    return Evaluate(EvaluateConf(), "evaluate").run(session)


def naive(model, examples):
    """The mean loss over all labelled tokens, one example at a time, in float64."""
    loss, tokens = 0.0, 0
    for example in examples:
        labels = torch.tensor(example["labels"])[1:]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0, :-1].double()
        loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        tokens += (labels != -100).sum().item()
    return loss / tokens


def test_without_a_training_before(session, tiny_llama, toy_splits):
    report = evaluate(session())
    assert set(report.metrics) == {"eval_loss", "eval_perplexity", "eval_token_accuracy"}
    assert report.metrics["eval_loss"] == pytest.approx(naive(tiny_llama, toy_splits.eval), abs=1e-5)
    assert f"loss {report.metrics['eval_loss']:.4f}" in report.summary[0]
    assert report.summary[0].endswith("on 6 held-out examples")


@pytest.mark.parametrize("strategy", ["epoch", "no"])
def test_after_a_training(session, toy_splits, strategy):
    made = session(eval_strategy=strategy)
    trained = Train(TrainConf(), "train").run(made)
    report = evaluate(made)
    assert report.metrics["eval_loss"] == pytest.approx(naive(made.current.model, toy_splits.eval), abs=1e-5)
    assert {name: trained.metrics[name] for name in report.metrics} == report.metrics


def test_an_evaluation_by_the_training_is_not_repeated(session, monkeypatch):
    made = session()
    Train(TrainConf(), "train").run(made)
    monkeypatch.setattr("llmmod.steps.evaluate.trainer_from", lambda *args, **kwargs: pytest.fail("evaluated again"))
    assert "eval_loss" in evaluate(made).metrics


def test_other_held_out_examples_than_the_training_s(session, toy_splits):
    made = session()
    Train(TrainConf(), "train").run(made)
    other = copy.copy(toy_splits)
    other.eval = toy_splits.train.select(range(5))
    made._splits = other
    assert evaluate(made).metrics["eval_loss"] == pytest.approx(naive(made.current.model, other.eval), abs=1e-5)


def test_the_model_is_given_back_as_it_was(session, tiny_llama):
    evaluate(session())
    assert "forward" not in vars(tiny_llama)
    assert tiny_llama.config.use_cache is True
    assert not tiny_llama.training


def test_a_copy_of_a_trained_model_computes_with_its_own_weights(session):
    """A copy of trl's patched forward would still use the original's weights."""
    made = session()
    Train(TrainConf(), "train").run(made)
    copied = copy.deepcopy(made.current.model)
    for parameter in copied.parameters():
        torch.nn.init.zeros_(parameter)
    assert copied(input_ids=torch.tensor([[5, 6, 7]])).logits.abs().max() == 0


def test_nothing_held_out(session, toy_splits):
    splits = copy.copy(toy_splits)
    splits.eval, splits.eval_conversations = None, []
    with pytest.raises(ConfigError, match=r"dataset\.val_size: examples are not held out.*dataset\.val_files"):
        evaluate(session(splits=splits))


def test_streamed_held_out_examples(session, tiny_llama, toy_splits):
    splits = copy.copy(toy_splits)
    splits.eval = toy_splits.eval.to_iterable_dataset()
    assert evaluate(session(splits=splits)).metrics["eval_loss"] == pytest.approx(naive(tiny_llama, toy_splits.eval), abs=1e-5)


def test_predict_with_generate(session):
    report = evaluate(session(predict_with_generate=True))
    assert {"eval_loss", "predict_rouge-l", "predict_bleu-4"} <= set(report.metrics)
    assert report.artifacts == {"predictions": "evaluate/generated_predictions.jsonl"}
