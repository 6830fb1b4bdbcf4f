"""The step `plan` on models with only a config.json: its values by arithmetic, without reading weights."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

import llmmod
from llmmod.config.compose import to_root
from llmmod.config.schema.steps import PlanConf
from llmmod.errors import ConfigError
from llmmod.pipeline.launch import run_configured
from llmmod.pipeline.session import Session
from llmmod.steps.plan.devices import Device, parse_bytes, per_device
from llmmod.steps.plan.figures import SAID
from llmmod.steps.plan.step import Plan, plan_training, warn_if_too_large
from llmmod.steps.preview.step import Preview

TINY = Path(llmmod.__file__).parent / "models" / "loading" / "tiny_tokenizer"
SMALL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096, "tie_word_embeddings": False, "dtype": "float32",
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    """A directory with a config.json and a tokenizer, without weights."""

    def make(**changes):
        directory = tmp_path / "checkpoint"
        directory.mkdir(exist_ok=True)
        for file in TINY.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
        (directory / "config.json").write_text(json.dumps(SMALL | changes))
        return directory

    return make


def planned(directory, *overrides, tmp_path):
    base = [
        f"model.pretrained_model_name_or_path={directory}",
        "model.gguf_file=null",
        "model.dtype=auto",
        "render=vanilla",
        f"output_dir={tmp_path}/run",
    ]
    quick = ["pipeline=[plan]", "steps.plan.measure_speed=false", "steps.plan.largest=false", "dataset.max_samples=16"]
    root = to_root(llmmod.compose([*base, *quick, *overrides]))
    return plan_training(Session(root, tmp_path / "run"), "plan", root.steps["plan"])


def weights_of(config):
    """A Llama's number of parameters from its configuration: embeddings and head; each layer's attention, MLP and norms; the last norm."""
    h, i, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = h * config["num_key_value_heads"] // config["num_attention_heads"]
    return 2 * v * h + config["num_hidden_layers"] * (2 * h * h + 2 * h * keys + 3 * h * i + 2 * h) + h


def test_a_full_training_in_float32_takes_16_bytes_a_weight_beside_activations(checkpoint, tmp_path):
    """4 for the weight, 4 for its gradient, 8 for Adam's two states."""
    figures = planned(checkpoint(), "finetune=full", "training.per_device_train_batch_size=1", tmp_path=tmp_path)
    count = weights_of(SMALL)
    assert figures.parameters == figures.trained == count
    assert figures.memory["weights"] == pytest.approx(4 * count, rel=1e-3)
    assert figures.memory["optimizer"] == pytest.approx(8 * count, rel=1e-3)
    assert figures.total == sum(figures.memory.values())
    assert figures.metrics()["plan_memory_bytes"] == figures.total


def test_lora_holds_states_of_the_adapters_alone(checkpoint, tmp_path):
    figures = planned(checkpoint(), "finetune=lora", "finetune.r=4", tmp_path=tmp_path)
    h, i, keys = 64, 128, 32
    each = 4 * ((h + h) * 2 + (h + keys) * 2 + (h + i) * 3)  # r (in + out) of the seven linear layers
    assert figures.trained == SMALL["num_hidden_layers"] * each
    assert figures.parameters == weights_of(SMALL) + figures.trained
    assert figures.memory["optimizer"] == pytest.approx(8 * figures.trained, rel=0.01)


def test_the_steps_and_flops_are_those_of_the_data(checkpoint, tmp_path):
    figures = planned(
        checkpoint(), "finetune=full", "training.num_train_epochs=3", "training.per_device_train_batch_size=4", tmp_path=tmp_path
    )
    assert figures.steps == 12  # 16 examples, 4 per step, 3 epochs
    # 6 FLOPs per weight and token (Kaplan et al. 2020, table 1), but only labelled tokens reach the head, and embeddings don't multiply
    body = weights_of(SMALL) - 2 * 4096 * 64
    assert 6 * body * figures.tokens < figures.flops < 6 * (body + 4096 * 64) * figures.tokens * 1.2


@pytest.mark.parametrize(
    ("way", "parts"),
    [
        ("ddp", {"weights": 800, "gradients": 400, "optimizer": 1600, "activations": 100, "gathered": 400}),
        ("deepspeed_zero2", {"weights": 800, "gradients": 100, "optimizer": 400, "activations": 100}),
        ("deepspeed_zero3", {"weights": 200, "gradients": 100, "optimizer": 400, "activations": 100, "gathered": 30}),
        ("fsdp", {"weights": 200, "gradients": 100, "optimizer": 400, "activations": 100, "gathered": 30}),
    ],
)
def test_what_four_processes_share(way, parts):
    whole = Counter(weights=800, gradients=400, optimizer=1600, activations=100)
    assert dict(per_device(whole, way, 4, layer=10, trained=400)) == parts


def test_processes_that_share_the_model_are_planned_by_one(checkpoint, tmp_path, monkeypatch):
    """Each process has a fourth of weights and states; the command plans without starting processes."""
    monkeypatch.setattr("llmmod.pipeline.launch.run_pipeline", lambda root, run_dir, **given: root.distributed.processes)
    shared = ["finetune=full", "distributed=fsdp", "distributed.processes=4", "steps.plan.device_memory=9GB"]
    figures = planned(checkpoint(), *shared, tmp_path=tmp_path)
    assert figures.memory["weights"] == pytest.approx(weights_of(SMALL), rel=1e-3)
    assert figures.memory["optimizer"] == pytest.approx(2 * weights_of(SMALL), rel=1e-3)
    root = to_root(llmmod.compose(["pipeline=[plan]", *shared[1:], f"output_dir={tmp_path}/other"]))
    assert run_configured(root, tmp_path / "other") == 4


def test_a_device_that_is_too_small_gets_advice_that_fits(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("llmmod.steps.plan.step._MOST_ADVICE", 1)
    directory = checkpoint(num_hidden_layers=1)
    gpu = ["finetune=full", "dataset.val_files=null", "training.per_device_train_batch_size=16"]
    much = planned(directory, *gpu, "steps.plan.device_memory=9GB", tmp_path=tmp_path)
    assert much.fits
    small = [*gpu, f"steps.plan.device_memory={much.total - much.memory['activations'] // 5}"]
    figures = planned(directory, *small, tmp_path=tmp_path)
    assert not figures.fits, figures
    assert figures.advice == ["training.per_device_train_batch_size=8 training.gradient_accumulation_steps=2"]
    assert "to make it fit: training.per_device_train_batch_size=8" in "\n".join(figures.lines())
    assert planned(directory, *small, *figures.advice[0].split(), tmp_path=tmp_path).fits


def test_if_the_evaluation_is_too_large_a_smaller_one_is_advised(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("llmmod.steps.plan.step._MOST_ADVICE", 1)
    directory, overrides = checkpoint(num_hidden_layers=1), ["training.per_device_train_batch_size=1"]
    much = planned(directory, *overrides, "steps.plan.device_memory=9GB", tmp_path=tmp_path)
    memory = f"steps.plan.device_memory={int(600e6 + 0.7 * (much.total - 600e6))}"
    (line,) = planned(directory, *overrides, memory, tmp_path=tmp_path).advice
    assert re.fullmatch(r"training\.per_device_eval_batch_size=[124]", line)
    assert planned(directory, *overrides, memory, *line.split(), tmp_path=tmp_path).fits


def test_the_largest_micro_batch_fits_and_one_more_does_not(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("llmmod.steps.plan.step._MOST_ADVICE", 0)
    directory, rows = checkpoint(num_hidden_layers=1), tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "What is it?", "response": "It is what it is, and not another thing."}\n' * 16)
    columns = ["dataset.columns.prompt=prompt", "dataset.columns.response=response"]
    chosen = ["dataset=json", f"dataset.data_files={rows}", *columns, "dataset.val_size=0", "finetune=lora"]
    chosen += ["training.num_train_epochs=2", "steps.plan.device_memory=620MB", "training.per_device_train_batch_size=2"]
    figures = planned(directory, *chosen, "steps.plan.largest=true", tmp_path=tmp_path)
    assert 2 < figures.micro_batch < 16
    length = figures.tokens / 16 / 2  # rows, epochs
    assert figures.micro_batch - 0.5 < 2 * figures.cutoff_len / length < figures.micro_batch + 1  # two examples at a time take as much
    for more in (0, 1):
        size = f"training.per_device_train_batch_size={figures.micro_batch + more}"
        assert planned(directory, *chosen, size, tmp_path=tmp_path).fits == (not more)


def test_the_steps_are_those_of_all_processes(checkpoint, tmp_path):
    chosen = [checkpoint(num_hidden_layers=1), "training.per_device_train_batch_size=2"]
    alone = planned(*chosen, tmp_path=tmp_path)
    assert planned(*chosen, "distributed=ddp", "distributed.processes=4", tmp_path=tmp_path).steps == alone.steps / 4


def test_advice_for_several_processes_keeps_the_number_of_examples_per_step(checkpoint, tmp_path):
    directory = checkpoint(num_hidden_layers=1)
    chosen = ["finetune=qlora", "dataset.val_files=null", "training.per_device_train_batch_size=4"]
    much = planned(directory, *chosen, "steps.plan.device_memory=9GB", tmp_path=tmp_path)
    memory = f"steps.plan.device_memory={int(600e6 + 0.6 * (much.total - 600e6))}"
    (line,) = (text for text in planned(directory, *chosen, memory, tmp_path=tmp_path).advice if "fsdp" in text)
    assert line.startswith("distributed=fsdp distributed.processes=2 training.per_device_train_batch_size=")
    shared = planned(directory, *chosen, memory, *line.split(), tmp_path=tmp_path)
    assert (shared.fits, shared.processes, shared.steps) == (True, 2, much.steps)


@pytest.mark.parametrize(("text", "size"), [("24GB", 24 * 10**9), ("24GiB", 24 * 2**30), ("1.5 gb", 1_500_000_000), (5000, 5000)])
def test_amounts_of_memory(text, size):
    assert parse_bytes(text) == size


def test_an_amount_of_memory_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"steps.plan.device_memory: 'much' is not an amount of memory\. Allowed: 24GB"):
        parse_bytes("much")


@pytest.fixture
def too_large(checkpoint, tmp_path):
    """The session of a training that doesn't fit a GPU, and that GPU: with half of the micro-batch it would fit."""
    root = to_root(llmmod.compose([
        f"model.pretrained_model_name_or_path={checkpoint(num_hidden_layers=1)}", "model.gguf_file=null", "render=vanilla", "finetune=full",
        f"output_dir={tmp_path}/run", "dataset.max_samples=16", "pipeline=[plan]",
    ]))  # fmt: skip
    return Session(root, tmp_path / "run"), Device("cuda", "a small GPU", 645_000_000, 600_000_000, here=False)


def test_before_a_training_that_will_not_fit_there_is_a_warning(too_large, caplog):
    session, device = too_large
    figures = warn_if_too_large(session, "plan", device=device)
    assert figures is not None
    assert not figures.fits
    assert "this training will probably not fit" in caplog.text
    smaller = "training.per_device_train_batch_size=4 training.gradient_accumulation_steps=2"
    assert f"to make it fit: {smaller} ('pipeline=[plan]' shows other ways)" in caplog.messages
    assert session.get(SAID).endswith("on a small GPU, which has 645 MB: it does NOT fit")


def test_the_first_of_several_processes_plans_in_a_process_of_its_own(too_large, caplog, monkeypatch, warm_executable):
    monkeypatch.setattr(sys, "executable", warm_executable)
    session, device = too_large
    alone = plan_training(session, "plan", PlanConf(), quick=True, device=replace(device, bytes=10**12))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    figures = warn_if_too_large(session, "plan", bf16=True, device=replace(device, here=True))
    assert figures is not None
    assert (figures.way, figures.processes, figures.fits) == ("ddp", 2, False)
    gathered = 4 * alone.parameters  # a second copy of the float32 gradients
    assert figures.memory == {**alone.memory, "gathered": gathered, "fragments": figures.memory["fragments"]}
    assert figures.steps == alone.steps // 2
    assert "this training will probably not fit" in caplog.text
    assert session.get(SAID) == figures.verdict
    monkeypatch.setattr("llmmod.steps.plan.step._LONGEST_S", 0.01)
    caplog.set_level("INFO")
    assert warn_if_too_large(session, "plan", device=device) is None
    assert "this training can't be planned and starts without a plan" in caplog.text
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("llmmod.steps.plan.step.subprocess", None)
    caplog.clear()
    assert warn_if_too_large(session, "plan", device=device) is None
    assert caplog.text == ""


def test_the_step_leaves_numbers_and_a_picture_which_the_preview_shows(checkpoint, tmp_path):
    root = to_root(llmmod.compose([
        f"model.pretrained_model_name_or_path={checkpoint()}", "model.gguf_file=null", "render=vanilla", "dataset.max_samples=16",
        f"output_dir={tmp_path}/run", "pipeline=[plan,preview]", "steps.plan.measure_speed=false",
    ]))  # fmt: skip
    session = Session(root, tmp_path / "run")
    report = Plan(root.steps["plan"], "plan").run(session)
    numbers = json.loads((tmp_path / "run" / "plan" / "plan.json").read_text())
    assert report.metrics["plan_memory_bytes"] == numbers["total"] == sum(numbers["memory"].values())
    assert report.metrics["plan_largest_micro_batch"] > 8, "a tiny model fits many"
    picture = ElementTree.parse(tmp_path / "run" / "plan" / "plan.svg").getroot()
    bars = [float(part.get("width")) for part in picture.iter("{http://www.w3.org/2000/svg}rect") if part.get("height") == "26"]
    assert len(bars) == sum(size > 0 for size in numbers["memory"].values())
    assert sum(bars) <= 700
    Preview(root.steps["preview"], "preview").run(session)
    assert "data:image/svg+xml;base64," in (tmp_path / "run" / "preview" / "preview.html").read_text()
