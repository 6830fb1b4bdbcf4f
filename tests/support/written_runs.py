"""Files of runs and of sweeps, written by hand."""

from __future__ import annotations

import json
import random

import yaml

from llmmod.config.compose import compose_config
from llmmod.sweep.results import read_jobs


def write(directory, **files):
    """Files of a run by their paths, with `__` for a slash; what isn't text becomes JSON."""
    for name, content in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")


def put(directory, path, content):
    write(directory, **{path.replace("/", "__"): content})


def write_run(directory):
    """A run with all files, written by hand; its texts are Chinese where possible."""
    from omegaconf import OmegaConf

    overrides = ["finetune.r=3", "hub.token=hf_secret", "seed=7"]
    put(directory, ".hydra/overrides.yaml", json.dumps(overrides))
    put(directory, ".hydra/config.yaml", OmegaConf.to_yaml(compose_config(overrides).config))
    choices = {"model": "qwen3", "stage": "sft", "hydra/output": "default"}
    put(directory, ".hydra/hydra.yaml", json.dumps({"hydra": {"runtime": {"choices": choices}}}))
    measured = {"seconds": 61.5, "cpu_seconds": 3725.0, "peak_rss_bytes": 2e9}
    steps = [{"name": "train", "status": "completed", "artifacts": {"adapter": "train"}, **measured}]
    data = [{"step": "train", "name": "问答", "render": "chatml", "certified": True, "findings": [], "lines": ["2 rows"], "content": {}}]
    versions = {"llmmod": "0.1.0", "torch": "2.13.0"}
    steps += [{"name": "predict", "status": "completed"}]
    put(directory, "run.json", {"status": "completed", "seconds": 70.0, "versions": versions, "steps": steps, "data": data, "error": None})
    put(directory, "metrics.json", {"train_loss": 0.5, "eval_loss": 0.693147, "eval_loss_before": 2.5})
    history = [{"step": 0, "eval_loss": 2.5}, {"step": 1, "loss": 2.0, "learning_rate": 1e-4, "grad_norm": 3.0}]
    put(directory, "train/trainer_state.json", {"log_history": [*history, {"step": 2, "loss": 1.0, "eval_predict_rouge-l": 50.0}]})
    answers = {"question": "什么是渲染?", "label": "对话", "base": "不知道", "tuned": "对话的书写形式。😀"}
    put(directory, "predict/comparison.json", [answers])
    return directory


def write_job(directory, overrides, status, loss, *, steps=20):
    (directory / ".hydra").mkdir(parents=True)
    (directory / "train").mkdir()
    (directory / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (directory / "run.json").write_text(json.dumps({"status": status, "error": None if status == "completed" else "<b>it broke</b>"}))
    (directory / "run.log").write_text("")
    (directory / "metrics.json").write_text(json.dumps({} if loss is None else {"eval_loss": loss, "train_loss": loss * 2}))
    logs = [{"step": step, "loss": 4 / step + (loss or 9)} for step in range(1, steps)]
    logs += [{"step": step, "eval_loss": 3 / step + (loss or 9)} for step in range(5, steps, 5)]
    (directory / "train" / "trainer_state.json").write_text(json.dumps({"log_history": logs}))


def write_sweep(directory, count):
    """Jobs whose loss depends on the learning rate, a little on the rank, and not on the seed; every seventh fails."""
    draw = random.Random(0)
    for number in range(count):
        exponent, r = draw.uniform(-5, -2), draw.choice([4, 8, 16])
        overrides = [f"finetune.learning_rate={10**exponent:.3g}", f"finetune.r={r}", f"seed={draw.randrange(4)}", "stage=sft"]
        failed = number % 7 == 2
        write_job(
            directory / str(number), overrides, "failed" if failed else "completed", None if failed else (exponent + 3.5) ** 2 + 1 / r
        )
    return read_jobs(directory)
