"""Whole runs on a GPU: quantized weights, resuming, greedy answers, several devices, two processes on one card."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from by_two import by_two
from checkpoint import checkpoint, overrides_of, write_rows
from comparison import STAGES, overrides, work
from on_gpu import ON_GPU, needs_card
from safetensors.torch import load_file

import llmmod

__all__ = ["checkpoint", "work"]


@pytest.fixture
def run(checkpoint, tmp_path):
    """The metrics of a run on eight small rows."""
    chosen = [text for text in overrides_of(checkpoint, write_rows(tmp_path / "rows.jsonl")) if text != "finetune.r=2"]
    return lambda name, *more: llmmod.run(llmmod.compose([*chosen, f"output_dir={tmp_path / name}", "reuse=false", *more]))


LEARNING = ["training.max_steps=8", "training.learning_rate=1e-2", "training.lr_scheduler_type=constant"]


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_learn_and_export_to_what_was_evaluated(run, tmp_path, bits):
    chosen = ["finetune=qlora", f"model.quantization.bits={bits}", *LEARNING, "pipeline=[train,evaluate,predict,export]"]
    metrics = run("quantized", *chosen)
    assert metrics["eval_loss"] < metrics["eval_loss_before"] - 0.1
    exported = f"model.pretrained_model_name_or_path={tmp_path}/quantized/export"
    again = run("exported", exported, "finetune=lora", "pipeline=[evaluate]", "training.use_cpu=true")
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], abs=0.05)  # bfloat16 and 8-bit activations against float32


@pytest.fixture
def deterministic():
    """Undoes what training.full_determinism sets, which would otherwise stay in the process."""
    yield ["training.full_determinism=true"]
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


RESUMED = [*((stage, "lora", "false") for stage in STAGES), ("sft", "full", "false"), ("sft", "lora", "true"), ("dpo", "lora", "true")]


@pytest.mark.parametrize(("stage", "way", "bf16"), RESUMED, ids=lambda value: {"true": "bf16", "false": "float32"}.get(value, value))
def test_a_resumed_run_has_the_bits_of_the_whole_one(work, tmp_path, monkeypatch, deterministic, stage, way, bf16):
    monkeypatch.setenv("LLMMOD_ALLOW", "observed")
    chosen = [text for text in overrides(work, stage, "float32") if "observer" not in text and "save_strategy" not in text]
    chosen = [text for text in chosen if "max_steps" not in text] + deterministic
    chosen += [f"finetune={way}", f"training.bf16={bf16}", "training.max_steps=4", "training.save_strategy=steps", "training.save_steps=2"]
    if way == "lora" and stage not in ("ppo", "grpo"):  # so that the card's random numbers matter
        chosen += ["finetune.lora_dropout=0.2", *(["training.disable_dropout=false"] if stage in ("rm", "dpo", "kto") else [])]

    def weights(name, *more):
        llmmod.run(llmmod.compose([*chosen, "pipeline=[train]", f"output_dir={tmp_path / name}", *more]))
        file = "adapter_model.safetensors" if way == "lora" else "model.safetensors"
        return load_file(tmp_path / name / "train" / "checkpoint-4" / file)

    whole = weights("whole")
    resumed = weights("resumed", f"training.resume_from_checkpoint={tmp_path}/whole/train/checkpoint-2")
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_greedy_answers_are_those_of_the_cpu(run, tmp_path):
    """With training.use_cpu=true, nothing is allocated on the card."""
    chosen = ["pipeline=[predict]", "generation=greedy", "generation.min_new_tokens=24", "generation.max_new_tokens=24", "finetune=lora"]
    found = []
    for where in ("true", "false"):
        before = torch.cuda.memory_stats().get("allocation.all.allocated", 0) if ON_GPU else 0
        run(where, *chosen, f"training.use_cpu={where}")
        after = torch.cuda.memory_stats().get("allocation.all.allocated", 0) if ON_GPU else 0
        assert (after > before) == (ON_GPU and where == "false")
        found.append((tmp_path / where / "predict" / "generated_predictions.jsonl").read_text())
    assert found[0] == found[1]
    assert len({json.loads(line)["predict"] for line in found[0].splitlines()}) > 1


SPREAD = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.layers.0"), 0)
SPREAD |= dict.fromkeys(("model.layers.1", "model.norm", "lm_head"), "cpu")


@needs_card
@pytest.mark.parametrize("stage", ["sft", "rm", "dpo", "kto"])
def test_a_model_on_card_and_cpu_evaluates_as_on_one(run, checkpoint, tmp_path, stage):
    spread = ",".join(f"{name}:{where}" for name, where in SPREAD.items() if stage != "rm" or name != "lm_head")
    spread += ",score:cpu" if stage == "rm" else ""
    kinds = {"kto": ["dataset=llmmod_demo_kto"]}
    chosen = [f"stage={stage}", "finetune=lora", "pipeline=[evaluate]", "training.bf16=false", *kinds.get(stage, [])]
    whole = run("whole", *chosen)
    parts = run("parts", *chosen, f"+model.device_map={{{spread}}}")
    for name in ("eval_loss",):
        assert parts[name] == pytest.approx(whole[name], abs=1e-4)


@needs_card
def test_two_processes_on_one_card_measure_as_one_does(checkpoint, tmp_path):
    model = [key for key in overrides_of(checkpoint, write_rows(tmp_path / "rows.jsonl")) if key.startswith(("model.", "render="))]
    settings = ["training.max_steps=2", "training.train_sampling_strategy=sequential", "training.per_device_eval_batch_size=3"]
    settings += ["training.bf16=false", "finetune=full", "pipeline=[train]", "dataset.max_samples=12", "reuse=false"]
    stages = ("sft", "rm", "dpo")

    def chosen(stage, where, size, *more):
        own = [f"stage={stage}", f"output_dir={tmp_path / where / stage}", f"training.per_device_train_batch_size={size}"]
        return [*own, *model, *settings, *more]

    by_two([chosen(stage, "two", 1, "training.ddp_backend=gloo") for stage in stages], tmp_path / "cache", [sys.executable])
    for stage in stages:
        alone = llmmod.run(llmmod.compose(chosen(stage, "one", 2)))
        together = json.loads((tmp_path / "two" / stage / "metrics.json").read_text())
        expected = {name: value for name, value in alone.items() if name.startswith("eval_")}
        assert {name: together[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-4), stage
