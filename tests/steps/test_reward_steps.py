"""The steps with a reward model: scores of each held-out pair, and an export that works with transformers alone."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llmmod.config.schema.steps import EvaluateConf, ExportConf, PredictConf, TrainConf
from llmmod.errors import ConfigError
from llmmod.models.adapters.reward_models import load_reward_model
from llmmod.models.reward import score, with_reward_head
from llmmod.steps.evaluate import Evaluate
from llmmod.steps.export import Export
from llmmod.steps.predict.step import Predict
from llmmod.steps.train import Train


@pytest.fixture
def session(tmp_path, tiny_llama, tiny_tokenizer, toy_pairs, rm_conf, lora_conf, toy_session):
    """A function: changes of `training.*` -> a session with the toy preferences."""

    def make(evaluation=toy_pairs.eval, **changes):
        made = toy_session(
            tmp_path / "run",
            model=tiny_llama,
            tokenizer=tiny_tokenizer,
            splits=SimpleNamespace(train=toy_pairs.train, eval=evaluation, eval_conversations=[]),
            training=rm_conf(**changes),
            finetune=lora_conf(task_type="CAUSAL_LM"),
        )
        made.root.pipeline = ["train"]
        return made

    return make


@pytest.fixture
def trained(session, lora_conf):
    """A session whose model was trained a little with all weights."""
    from llmmod.config.schema.model import FullConf

    made = session(num_train_epochs=1.0, eval_strategy="no", eval_on_start=False)
    made._parts["finetune"] = FullConf(name="full")
    Train(TrainConf(), "train").run(made)
    return made


def lines(session):
    return [json.loads(line) for line in (session.run_dir / "predict" / "scores.jsonl").read_text().splitlines()]


def test_predict_writes_both_scores_of_each_pair_in_the_datas_order(trained, toy_pairs, tiny_tokenizer):
    report = Predict(PredictConf(batch_size=7), "predict").run(trained)
    written = lines(trained)
    assert len(written) == len(toy_pairs.eval) == 30
    model = trained.current.model.eval()
    for line, pair in zip(written, toy_pairs.eval, strict=True):
        for name in ("chosen", "rejected"):
            alone = score(model, torch.tensor([pair["prompt_ids"] + pair[f"{name}_ids"]]))
            assert line[f"{name}_score"] == pytest.approx(alone.item(), abs=1e-5)
            text = tiny_tokenizer.decode(pair["prompt_ids"] + pair[f"{name}_ids"], skip_special_tokens=True)
            assert line["prompt"] + line[name] == text
    right = sum(line["chosen_score"] > line["rejected_score"] for line in written)
    assert f"in {right} of 30 held-out pairs" in report.summary[0]


def test_evaluate_and_predict_agree(trained):
    metrics = Evaluate(EvaluateConf(), "evaluate").run(trained).metrics
    Predict(PredictConf(max_samples=None), "predict").run(trained)
    written = lines(trained)
    margins = [line["chosen_score"] - line["rejected_score"] for line in written]
    assert metrics["eval_accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / 30)
    assert metrics["eval_margin"] == pytest.approx(sum(margins) / 30, abs=1e-5)


def test_predict_takes_the_first_pairs(trained):
    Predict(PredictConf(max_samples=4), "predict").run(trained)
    assert len(lines(trained)) == 4


def test_nothing_held_out_is_refused(session):
    with pytest.raises(ConfigError, match="examples are not held out"):
        Predict(PredictConf(), "predict").run(session(evaluation=None))


def test_what_is_trained_is_saved_with_its_head(trained):
    path = trained.run_dir / "train"
    assert not (path / "generation_config.json").exists()
    ids = torch.arange(5, 23).reshape(2, 9)
    assert torch.equal(score(load_reward_model(str(path)), ids), score(trained.current.model.eval(), ids))


def test_the_export_scores_with_transformers_alone(trained, tiny_tokenizer, tmp_path):
    """Texts of different lengths, padded by the exported tokenizer, whose padding token isn't the end token."""
    tiny_tokenizer_pad = tiny_tokenizer.pad_token
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token
    try:
        Export(ExportConf(model_card=False), "export").run(trained)
    finally:
        tiny_tokenizer.pad_token = tiny_tokenizer_pad
    directory = trained.run_dir / "export"
    assert not (directory / "generation_config.json").exists()
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModelForSequenceClassification.from_pretrained(directory).eval()
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    texts = [f"What says the dog?\nwoof{tokenizer.eos_token}", f"The cow says\nquack quack{tokenizer.eos_token}"]
    batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    own = score(trained.current.model.eval(), batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(found, own, rtol=0, atol=1e-6)
    assert not torch.allclose(own[0], own[1])


def test_no_layout_of_2023_has_a_place_for_the_head(trained):
    with pytest.raises(ConfigError, match=r"steps.export.layout: original, but a layout of 2023 doesn't have a reward head"):
        Export(ExportConf(layout="original"), "export").run(trained)


def test_the_base_stays_a_language_model(tiny_llama):
    """The language model under the head still works when the head isn't used."""
    before = tiny_llama(input_ids=torch.arange(5, 23).reshape(2, 9)).logits
    with_reward_head(tiny_llama)
    assert torch.equal(tiny_llama(input_ids=torch.arange(5, 23).reshape(2, 9)).logits, before)
