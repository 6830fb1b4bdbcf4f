"""stage=pt as a rehearsal, from scratch and with each way to fine-tune: perplexity, and continued held-out documents."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from cells import matrix

from llmmod import compose, run

DATA = Path(__file__).parents[2] / "data"


def test_from_scratch_it_continues_held_out_documents(tmp_path):
    chosen = [
        "stage=pt",
        "smoke=true",
        "model.weights=random",
        "finetune=full",
        "steps.predict.max_samples=3",
        "generation.max_new_tokens=4",
    ]
    metrics = run(compose([*chosen, f"output_dir={tmp_path}"]))
    assert metrics["eval_perplexity"] > 1
    assert not any(name.startswith("predict_") for name in metrics)
    assert (tmp_path / "export" / "model.safetensors").is_file()
    lines = [json.loads(line) for line in (tmp_path / "predict" / "generated_predictions.jsonl").read_text("utf-8").splitlines()]
    config = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert next(step for step in config["steps"] if step["name"] == "predict")["artifacts"] == {
        "predictions": "predict/generated_predictions.jsonl"
    }
    texts = [json.loads(line)["text"] for line in (DATA / "llmmod_text_heldout.jsonl").read_text("utf-8").splitlines()]
    assert [line["prompt"] + line["label"] for line in lines] == texts[:3]
    assert all(line["prompt"] and line["label"] for line in lines)


@pytest.mark.parametrize(("model", "way"), [("bloom", "lora"), ("chatglm2", "qlora"), ("falcon", "freeze"), ("baichuan_13b", "full")])
def test_cell(model, way, tmp_path):
    assert matrix.run_cell(model, way, tmp_path, stage="pt") <= matrix.MAX_LOSS_DIFFERENCE[way]


def test_from_scratch_by_a_config_alone(tmp_path):
    """A real run: a model from a directory without weights, which model.config.* changes, learns from the demonstration texts."""
    from llmmod.models.loading.tiny import tiny_tokenizer

    directory, tokenizer = tmp_path / "architecture", tiny_tokenizer()
    tokenizer.save_pretrained(directory)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen3", "vocab_size": 512, "head_dim": 8, **sizes}))
    choices = [f"model.pretrained_model_name_or_path={directory}", "model.weights=random", "+model.config.num_hidden_layers=1"]
    vocabulary, length = f"+model.config.vocab_size={len(tokenizer)}", "dataset.cutoff_len=64"
    training = [
        "training.max_steps=4",
        "training.learning_rate=1e-2",
        "finetune=full",
        "pipeline=[train]",
        f"output_dir={tmp_path / 'run'}",
    ]
    metrics = run(compose(["stage=pt", "model=qwen3", *choices, vocabulary, length, *training, f"output_dir={tmp_path / 'run'}"]))
    assert metrics["eval_loss_before"] == pytest.approx(math.log(len(tokenizer)), rel=0.05)
    assert metrics["eval_loss"] < metrics["eval_loss_before"] - 0.2
    saved = json.loads((tmp_path / "run" / "train" / "config.json").read_text())
    assert (saved["num_hidden_layers"], saved["hidden_size"], saved["vocab_size"]) == (1, 32, len(tokenizer))
