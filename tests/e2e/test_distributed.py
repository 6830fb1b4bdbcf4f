"""Two processes train, measure, save and resume like one: gradients of every stage, DDP and FSDP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import resources

import psutil
import pytest
import torch
from by_two import by_two
from changed_bits import flip
from checkpoint import checkpoint, overrides_of, rows
from comparison import relative
from safetensors.torch import load_file
from typed import typed

import llmmod
from llmmod.trainers.callbacks.resume import damage

__all__ = ["checkpoint", "rows"]


def metrics_of(run_dir):
    return json.loads((run_dir / "metrics.json").read_text())


# Stage -> its held-out file in data/.
HELD_OUT = {"pt": "text", "sft": "qa", "rm": "pairs", "dpo": "pairs", "kto": "judged", "ppo": "qa", "grpo": "qa"}
# One process gets three of the five batches of held-out examples, and the other two (of kto's and grpo's nine: five and four); none may
# count twice or be left out. Of the three examples to train on, the second micro-batch of a step has one for two processes.
REWARD = "+training.reward.varied._target_=by_two.varied"
STAGES = {
    "pt": [],
    "sft": [],
    "rm": [],
    "dpo": ["training.loss_type=[sigmoid,sft]"],
    "kto": ["training.loss_type=apo_zero_unpaired"],
    "ppo": ["training.num_mini_batches=1", "training.num_ppo_epochs=1", "training.max_completion_length=4", REWARD],
    "grpo": ["training.num_generations=2", "training.max_completion_length=4", REWARD],
}
UNEQUAL = ("train_", "eval_kl")  # in trl, the former are only the first process's; the latter depends on the batch
RATE = 0.1
FSDP = ["distributed=fsdp"]
# kto is here for its evaluation: all processes gather weights for the same number of batches, so a tenth doesn't count.
SHARDED = [(stage, way) for stage in ("pt", "sft", "dpo") for way in ("full", "lora")] + [("kto", "full")]
HALVES = [("sft", "full"), ("sft", "lora"), ("dpo", "full"), ("pt", "lora")]
ANSWERING = {"sft": ["training.predict_steps=1", "generation.max_new_tokens=4"]}


def held_out(stage, directory):
    """The override for a file with the first of the stage's held-out examples."""
    name = f"llmmod_{HELD_OUT[stage]}_heldout.jsonl"
    lines = (resources.files("llmmod.demo") / name).read_text(encoding="utf-8").splitlines(keepends=True)
    (directory / name).write_text("".join(lines[: 18 if stage == "kto" else 9]), encoding="utf-8")
    return f"dataset.val_files={directory / name}"


def exported(stage):
    """The overrides of a run that exports, with the same generation_config.json."""
    return ["pipeline=[train,export]", *(["generation.max_new_tokens=4"] if stage == "sft" else [])]


@pytest.mark.slow
def test_two_train_measure_and_resume_as_one_does(checkpoint, rows, tmp_path, monkeypatch, warm_python):
    monkeypatch.setenv("LLMMOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLMMOD_ALLOW", "by_two,gradients")
    model = [key for key in overrides_of(checkpoint, rows) if key.startswith(("model.", "render="))]
    settings = ["training.max_steps=2", "training.train_sampling_strategy=sequential", "dataset.max_samples=3", "pipeline=[train]"]
    sgd = ["training.optim=sgd", f"training.learning_rate={RATE}", "training.lr_scheduler_type=constant", "training.warmup_steps=0"]
    sgd += ["training.max_grad_norm=0", "+training.callbacks.gradients._target_=gradients.Gradients"]

    first = {stage: held_out(stage, tmp_path) for stage in STAGES}

    def overrides(stage, where, processes, *more, finetune="full"):
        # grpo samples two completions of each prompt, so its batches hold pairs.
        sizes = [f"training.per_device_train_batch_size={2 // processes}", f"training.per_device_eval_batch_size={4 // processes}"]
        sizes += ["training.gradient_accumulation_steps=2"]
        own = [*STAGES[stage], *sizes, first[stage], f"finetune={finetune}", f"output_dir={tmp_path / where}"]
        return [f"stage={stage}", *own, *model, *settings, *sgd, *more]

    def weights(where):
        (file,) = (tmp_path / where / "train").glob("*model.safetensors")
        return load_file(file)

    def apart(where, other):
        one, two = weights(where), weights(other)
        assert one.keys() == two.keys()
        return max(float((one[name] - two[name]).abs().max()) for name in one)

    def assert_same_training(where, other):
        """The first step's gradients differ by a millionth of their norm, the trained weights by the rounding of a weight around one."""
        one, two = (torch.load(tmp_path / run / "train" / "gradients.pt") for run in (where, other))
        assert relative(two, one) < 1e-6, other
        assert apart(where, other) < 2e-7, other

    saved = ["training.save_strategy=steps", "training.save_steps=1", "training.optim=adamw_torch"]
    saved += ["training.eval_strategy=no", "training.eval_on_start=false"]  # their weights are compared
    resumed = [*saved, f"training.resume_from_checkpoint={tmp_path / 'whole' / 'train' / 'checkpoint-1'}"]
    together = [overrides(stage, f"two/{stage}", 2, *ANSWERING.get(stage, [])) for stage in STAGES]
    together += [overrides("sft", "whole", 2, *saved), overrides("sft", "resumed", 2, *resumed)]
    together += [overrides(stage, f"sharded/{stage}/{way}", 2, *FSDP, *exported(stage), finetune=way) for stage, way in SHARDED]
    for stage, way in HALVES:
        engine = [*FSDP, *(["distributed.fsdp.state_dict_type=SHARDED_STATE_DICT"] if (stage, way) == ("sft", "full") else [])]
        on = f"training.resume_from_checkpoint={tmp_path / 'halves' / stage / way / 'train' / 'checkpoint-1'}"
        together += [overrides(stage, f"halves/{stage}/{way}", 2, *saved, *engine, finetune=way)]
        together += [overrides(stage, f"halves/{stage}/{way} resumed", 2, *saved, *engine, on, finetune=way)]
    by_two(together, tmp_path / "cache", warm_python, curves=False)
    for stage, way in dict.fromkeys([(stage, "full") for stage in STAGES] + SHARDED):
        own = [*ANSWERING.get(stage, []), *(exported(stage) if (stage, way) in SHARDED else [])]
        alone = llmmod.run(llmmod.compose(overrides(stage, f"one/{stage}/{way}", 1, *own, finetune=way)))
        if way == "full":
            assert_measured(tmp_path / "two" / stage, alone)
            assert_same_training(f"one/{stage}/{way}", f"two/{stage}")
        if (stage, way) in SHARDED:
            assert_measured(tmp_path / "sharded" / stage / way, {name: alone[name] for name in alone if "predict" not in name})
            assert_same_training(f"one/{stage}/{way}", f"sharded/{stage}/{way}")
            for step in ("train", "export"):
                assert files_of(tmp_path / "one" / stage / way / step) == files_of(tmp_path / "sharded" / stage / way / step)
    assert apart("whole", "resumed") == 0.0
    for stage, way in HALVES:
        assert apart(f"halves/{stage}/{way}", f"halves/{stage}/{way} resumed") == 0.0
    parts = tmp_path / "halves" / "sft" / "full" / "train" / "checkpoint-2"
    assert damage(parts, content=True) == ""
    changed = max(parts.rglob("*.distcp"), key=lambda file: file.stat().st_size)
    flip(changed, bit=4 * changed.stat().st_size)
    assert damage(parts, content=True) == f"{changed.relative_to(parts)} has changed since it was saved"


def assert_measured(directory, alone):
    """A run of two processes must measure what one process did."""
    found = metrics_of(directory)
    expected = {name: value for name, value in alone.items() if not name.startswith(UNEQUAL)}
    assert {name: found.get(name) for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5), directory


def files_of(directory):
    """File name -> content, if it is JSON; sorted, since an adapter's modules are a set. trainer_state.json has a process's batch size."""
    found = {path.name: json.loads(path.read_text()) if path.suffix == ".json" else {} for path in directory.iterdir() if path.is_file()}
    found.pop("trainer_state.json", None)
    return {name: {key: sorted(map(str, v)) if isinstance(v, list) else v for key, v in said.items()} for name, said in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to", "code", "said"),
    [
        pytest.param(signal.SIGKILL, "one process", 137, "killed by SIGKILL", id="a process is killed"),
        pytest.param(signal.SIGTERM, "the parent", 143, "interrupted", id="the parent gets SIGTERM"),
    ],
)
def test_a_signal_to_one_process_ends_all(checkpoint, rows, tmp_path, warm_python, warm_executable, number, to, code, said):
    chosen = [*overrides_of(checkpoint, rows), "pipeline=[train]", "training.max_steps=100000", "training.logging_steps=1"]
    chosen += ["training.eval_strategy=no", "training.eval_on_start=false", "training.save_strategy=no", f"output_dir={tmp_path / 'run'}"]
    start = "import os, sys; print(os.getpid(), file=sys.stderr, flush=True); sys.argv[0] = 'llmmod'; "
    start += f"sys.executable = {warm_executable!r}; from llmmod.app import main; main()"
    command = [*warm_python, "-c", start, *chosen, "distributed=ddp", "distributed.processes=2"]
    environment = {**os.environ, "LLMMOD_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment) as parent:
        told = []
        for line in parent.stderr:
            told.append(line)
            if line.startswith("step 2/"):
                processes = psutil.Process(int(told[0])).children()
                began = time.monotonic()
                os.kill(parent.pid if to == "the parent" else processes[1].pid, number)
        assert parent.wait(timeout=120) == code, "".join(told[-20:])
    assert time.monotonic() - began < 30
    assert len(processes) == 2
    assert said in "".join(told)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["status"], run["exit_code"]) == ("failed" if number == signal.SIGKILL else "interrupted", code)
    kept = list((tmp_path / "run" / "train").glob("checkpoint-*"))
    assert len(kept) == (number == signal.SIGTERM)


@pytest.mark.slow
def test_a_killed_process_ends_only_its_own_job_of_a_sweep(tmp_path, monkeypatch, warm_executable):
    monkeypatch.setattr(sys, "executable", warm_executable)
    monkeypatch.setenv("LLMMOD_ALLOW", "by_two")
    monkeypatch.chdir(tmp_path)
    step = ["pipeline=[preview]", "steps.preview._target_=by_two.OneDies"]
    ended = typed("-m", "seed=2,1", *step, "distributed=ddp", "distributed.processes=2", "hydra.sweep.dir=sweep")
    assert ended.code == 137
    assert "rank 1: killed by SIGKILL" in ended.said
    killed, done = (json.loads((tmp_path / "sweep" / job / "run.json").read_text()) for job in "01")
    assert (killed["status"], killed["exit_code"], done["status"]) == ("failed", 137, "completed")
    assert metrics_of(tmp_path / "sweep" / "1")["processes"] == 2
