"""The train step on the toy task: learning, files, and resuming."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainerCallback

from llmmod.config.schema.distributed import DistributedConf, FsdpConf
from llmmod.config.schema.model import FullConf
from llmmod.config.schema.steps import TrainConf
from llmmod.data.dataset.packing import PackedDataset
from llmmod.errors import ConfigError, RunError
from llmmod.steps.train import Train
from llmmod.trainers.callbacks.resume import ASIDE, checkpoints
from llmmod.trainers.sft import SftTrainer


@pytest.fixture
def session(tmp_path, tiny_llama, tiny_tokenizer, toy_splits, sft_conf, lora_conf, toy_session):
    """A function that creates a session for the toy task, with a new copy of the same model each time."""

    def make(run="run", *, finetune=None, splits=None, smoke=False, **changes):
        return toy_session(
            tmp_path / run,
            model=copy.deepcopy(tiny_llama),
            tokenizer=tiny_tokenizer,
            splits=splits or toy_splits,
            training=sft_conf(**changes),
            finetune=finetune or lora_conf(),
            smoke=smoke,
        )

    return make


def train(session):
    return Train(TrainConf(), "train").run(session)


ADAPTER = "train/adapter_model.safetensors"


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_learns_and_held_out_questions_too(session):
    made = session(num_train_epochs=12.0, lr_scheduler_type="cosine")
    report = train(made)
    losses = [entry["loss"] for entry in made.get("trainer").state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert report.metrics["eval_loss"] < 0.8 * report.metrics["eval_loss_before"]


@pytest.mark.curves
def test_what_it_reports(session):
    made = session()
    report = train(made)
    measured = {"train_loss", "train_runtime", "train_steps_per_second", "train_tokens_per_second"}
    held_out = {"eval_loss", "eval_loss_before", "eval_perplexity", "eval_token_accuracy", "eval_token_accuracy_before"}
    assert set(report.metrics) == measured | held_out
    assert all(isinstance(value, float) for value in report.metrics.values())
    assert report.artifacts == {"adapter": "train", "trainer_state": "train/trainer_state.json", "training_loss": "train/training_loss.png"}
    before, after = report.metrics["eval_loss_before"], report.metrics["eval_loss"]
    assert f"loss on held-out examples {before:.4f} before, {after:.4f} after" in report.summary[0]
    assert str(made.run_dir / "train" / "training_loss.png") in report.summary[1]


def test_a_trainer_that_mixes_packed_examples_is_refused_before_a_model_is_loaded(session, toy_splits, monkeypatch):
    packed = SimpleNamespace(train=PackedDataset(toy_splits.train, 64), eval=None)
    made = session(splits=packed, trainer={"_target_": "trl.SFTTrainer"})
    monkeypatch.setattr(made, "base_model", lambda step: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError) as error:
        train(made)
    assert str(error.value) == (
        "training.trainer._target_: trl.SFTTrainer doesn't keep the examples of a row apart, and dataset.packing is true. "
        "Derive it from llmmod.trainers.base.StageTrainer, or set dataset.packing=false."
    )


@pytest.mark.curves
def test_what_it_leaves_on_the_disk(session, tiny_tokenizer):
    made = session(save_strategy="epoch", save_total_limit=1)
    train(made)
    directory = made.run_dir / "train"
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in directory.iterdir()} == adapter | {
        "chat_template.jinja",
        "checkpoint-10",
        "stage.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
        "training_loss.png",
    }
    assert json.loads((directory / "trainer_state.json").read_text())["global_step"] == 10
    assert AutoTokenizer.from_pretrained(directory).chat_template == made.render("train").chat_template()
    assert tiny_tokenizer.chat_template is None  # the session's own doesn't change


def test_what_it_leaves_in_memory(session):
    made = session()
    train(made)
    current, trainer = made.current, made.get("trainer")
    assert (current.kind, current.trained, current.path) == ("adapter", True, made.run_dir / "train")
    assert current.model is trainer.model
    assert not current.model.training
    assert all(p.grad is None for p in current.model.parameters())
    assert trainer.optimizer is None
    assert current.model.config.use_cache is True
    assert made.result("train") is current


def test_evaluating_changes_nothing_about_training(session, lora_conf):
    train(session("often", finetune=lora_conf(lora_dropout=0.2), eval_strategy="steps", eval_steps=1.0))
    train(session("never", finetune=lora_conf(lora_dropout=0.2), eval_strategy="no", eval_on_start=False))
    assert digest(session("often").run_dir / ADAPTER) == digest(session("never").run_dir / ADAPTER)


def test_without_held_out_examples(session, toy_splits):
    splits = copy.copy(toy_splits)
    splits.eval, splits.eval_conversations = None, []
    report = train(session(splits=splits))
    assert not any(name.startswith("eval_") for name in report.metrics)
    assert "held-out" not in report.summary[0]


def test_smoke_takes_two_steps(session):
    made = session(smoke=True, save_strategy="epoch", num_train_epochs=50.0)
    train(made)
    assert made.get("trainer").state.global_step == 2
    assert (made.run_dir / "train" / "checkpoint-2").is_dir()


def test_the_same_seed_gives_the_same_bits(session, lora_conf):
    for run in ("one", "two"):
        torch.rand(3)  # earlier random numbers don't matter
        train(session(run, finetune=lora_conf(lora_dropout=0.1)))
    assert digest(session("one").run_dir / ADAPTER) == digest(session("two").run_dir / ADAPTER)


def test_another_seed_gives_others(session):
    train(session("one"))
    train(session("two", seed=5))
    assert digest(session("one").run_dir / ADAPTER) != digest(session("two").run_dir / ADAPTER)


# 18 examples, batches of 4, 2 accumulated: 5 batches and 3 optimizer steps per epoch. Step 4 is in the middle of the second, 6 its end.
RESUMED = {
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 3.0,
    "save_strategy": "steps",
    "save_steps": 2.0,
    "lr_scheduler_type": "cosine",
}


@pytest.mark.parametrize(
    ("step", "order"), [(4, "random"), (6, "random"), (4, "group_by_length")], ids=["mid-epoch", "between epochs", "by length"]
)
def test_resume_gives_the_bits_of_the_uninterrupted_run(session, lora_conf, step, order):
    fields = {**RESUMED, "train_sampling_strategy": order}
    whole = session("whole", finetune=lora_conf(lora_dropout=0.2), **fields)
    report = train(whole)
    checkpoint = whole.run_dir / "train" / f"checkpoint-{step}"
    resumed = session("resumed", finetune=lora_conf(lora_dropout=0.2), resume_from_checkpoint=str(checkpoint), **fields)
    again = train(resumed)
    assert digest(resumed.run_dir / ADAPTER) == digest(whole.run_dir / ADAPTER)
    assert again.metrics["eval_loss"] == report.metrics["eval_loss"]
    assert again.metrics["eval_loss_before"] == report.metrics["eval_loss_before"]
    last = [json.loads((made.run_dir / "train/trainer_state.json").read_text())["log_history"] for made in (whole, resumed)]
    losses = [[entry["loss"] for entry in history if "loss" in entry] for history in last]
    assert losses[0] == losses[1]


@pytest.fixture
def full_conf():
    return FullConf(name="full")


def test_full_fine_tuning_leaves_a_complete_model(session, full_conf, tiny_tokenizer):
    made = session(finetune=full_conf, num_train_epochs=1.0)
    report = train(made)
    directory = made.run_dir / "train"
    assert report.artifacts["model"] == "train"
    assert made.current.kind == "full"
    loaded = AutoModelForCausalLM.from_pretrained(directory).eval()
    assert (loaded.config.use_cache, loaded.generation_config.eos_token_id) == (True, [tiny_tokenizer.eos_token_id])
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded(input_ids=ids).logits, made.current.model(input_ids=ids).logits)


def test_full_fine_tuning_resumes_to_the_same_bits(session, full_conf):
    whole = session("whole", finetune=full_conf, **RESUMED)
    train(whole)
    checkpoint = whole.run_dir / "train" / "checkpoint-4"
    train(session("resumed", finetune=full_conf, resume_from_checkpoint=str(checkpoint), **RESUMED))
    name = "train/model.safetensors"
    assert digest(session("resumed").run_dir / name) == digest(whole.run_dir / name)


def test_settings_of_a_checkpoint_that_can_t_be_saved_are_mended_first(session, full_conf):
    """Many checkpoints have do_sample=false with a temperature, and transformers refuses to save them."""
    made = session(finetune=full_conf, max_steps=1, save_strategy="steps", save_steps=1.0)
    made._model.generation_config = GenerationConfig(do_sample=False, temperature=0.6)
    train(made)
    assert (made.run_dir / "train" / "checkpoint-1" / "generation_config.json").is_file()


@pytest.mark.parametrize("fields", [{"num_train_epochs": 2.0}, {"max_steps": 4}], ids=["epochs", "steps"])
def test_nothing_left_to_train_changes_nothing(session, fields):
    whole = session("whole", save_strategy="steps", save_steps=2.0, **fields)
    report = train(whole)
    before = digest(whole.run_dir / ADAPTER)
    again = train(session("whole", save_strategy="steps", save_steps=2.0, resume_from_checkpoint=True, **fields))
    assert digest(whole.run_dir / ADAPTER) == before
    times = {name for name in report.metrics if "runtime" in name or "per_second" in name}
    assert {n: v for n, v in again.metrics.items() if n not in times} == {n: v for n, v in report.metrics.items() if n not in times}


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.pt"], ids=["weights", "optimizer"])
def test_a_damaged_checkpoint_is_passed_over(session, file, caplog):
    fields = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2.0, "resume_from_checkpoint": True}
    train(session("whole", **fields | {"resume_from_checkpoint": None}))
    made = session("whole", **fields)
    before = digest(made.run_dir / ADAPTER)
    newest = made.run_dir / "train" / "checkpoint-4"
    caplog.set_level("INFO")
    (newest / file).write_bytes((newest / file).read_bytes()[:100])
    train(made)
    assert f"{newest} is skipped: {file} is cut off or can't be read" in caplog.text
    assert f"resuming from {newest.parent / 'checkpoint-2'}" in caplog.text
    assert json.loads((made.run_dir / "train/trainer_state.json").read_text())["global_step"] == 4
    assert digest(made.run_dir / ADAPTER) == before
    load_file(newest / "adapter_model.safetensors")  # written again


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.pt", "training_state_0.pt", "trainer_state.json"])
def test_a_full_disk_leaves_the_last_checkpoint_and_a_run_that_goes_on(session, lora_conf, monkeypatch, file):
    """A file of the second checkpoint is written to /dev/full, which fails like a full disk; for the weights, the test raises the error."""
    fields = {**RESUMED, "max_steps": 4, "save_total_limit": 1}
    train(session("whole", finetune=lora_conf(lora_dropout=0.2), **fields))
    made = session("full", finetune=lora_conf(lora_dropout=0.2), **fields)
    directory = made.run_dir / "train"
    with monkeypatch.context() as patch:
        save, usage = SftTrainer._save, shutil.disk_usage

        def on_a_full_disk(trainer, output_dir=None, state_dict=None):
            if trainer.state.global_step == 4:
                Path(output_dir).mkdir(parents=True)
                if file == "adapter_model.safetensors":  # its library would replace the link instead of writing to it
                    (Path(output_dir) / file).write_bytes(b"half of it")
                    raise OSError(errno.ENOSPC, "No space left on device")
                (Path(output_dir) / file).symlink_to("/dev/full")
                patch.setattr("shutil.disk_usage", lambda path: usage(path)._replace(free=0))
            save(trainer, output_dir, state_dict)

        patch.setattr(SftTrainer, "_save", on_a_full_disk)
        with pytest.raises(Exception, match="No space left on device"):
            train(made)
    assert [path.name for path in checkpoints(directory)] == ["checkpoint-2"]
    assert not (directory / ASIDE).exists()
    train(session("full", finetune=lora_conf(lora_dropout=0.2), resume_from_checkpoint=True, **fields))
    assert digest(made.run_dir / ADAPTER) == digest(session("whole").run_dir / ADAPTER)
    assert [path.name for path in checkpoints(directory)] == ["checkpoint-4"]


class InterruptAt(TrainerCallback):
    """Ctrl-C during an optimizer step, once."""

    step: int | None = None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            InterruptAt.step = None
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.curves
@pytest.mark.parametrize("step", [3, 5], ids=["mid-epoch", "last of an epoch"])
def test_an_interrupted_run_goes_on_to_the_same_bits(session, lora_conf, monkeypatch, step, capfd):
    fields = {**RESUMED, "save_strategy": "no"}
    train(session("whole", finetune=lora_conf(lora_dropout=0.2), **fields))
    monkeypatch.setattr("llmmod.trainers.build.build", with_callback(InterruptAt()))
    InterruptAt.step = step
    stopped = session("stopped", finetune=lora_conf(lora_dropout=0.2), **fields)
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    directory = stopped.run_dir / "train"
    assert (directory / f"checkpoint-{step + 1}").is_dir()
    assert (directory / "training_loss.png").is_file()
    train(session("stopped", finetune=lora_conf(lora_dropout=0.2), resume_from_checkpoint=True, **fields))
    assert digest(stopped.run_dir / ADAPTER) == digest(session("whole").run_dir / ADAPTER)


class InterruptEvaluation(TrainerCallback):
    """SIGTERM during the evaluation after a step, once."""

    step: int | None = None

    def on_prediction_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            InterruptEvaluation.step = None
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("step", [4, 6], ids=["mid-epoch", "the last step"])
def test_a_resumed_run_repeats_an_evaluation_that_a_signal_ended(session, lora_conf, monkeypatch, step):
    def log(made):
        entries = json.loads((made.run_dir / "train/trainer_state.json").read_text())["log_history"]
        return [{name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name} for entry in entries]

    fields = {**RESUMED, "max_steps": 6, "eval_strategy": "steps", "eval_steps": 2.0, "logging_steps": 3.0}
    whole = session("whole", finetune=lora_conf(lora_dropout=0.2), **fields)
    train(whole)
    monkeypatch.setattr("llmmod.trainers.build.build", with_callback(InterruptEvaluation()))
    monkeypatch.setattr(InterruptEvaluation, "step", step)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    stopped = session("stopped", finetune=lora_conf(lora_dropout=0.2), **fields)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    finally:
        signal.signal(signal.SIGTERM, before)
    train(session("stopped", finetune=lora_conf(lora_dropout=0.2), resume_from_checkpoint=True, **fields))
    assert digest(stopped.run_dir / ADAPTER) == digest(whole.run_dir / ADAPTER)
    assert log(stopped) == log(whole)


def with_callback(callback):
    from llmmod.instantiate import build

    def building(node, /, **runtime):
        if "callbacks" in runtime:
            runtime["callbacks"].append(callback)
        return build(node, **runtime)

    return building


def test_nan_stops_with_the_last_checkpoint_kept(session):
    made = session(learning_rate=1e30, max_grad_norm=0.0, save_strategy="steps", save_steps=1.0)
    with pytest.raises(RunError, match=r"at optimizer step \d+.*checkpoint-\d+, is from before"):
        train(made)
    assert json.loads((made.run_dir / "train/trainer_state.json").read_text())["log_history"], "the report has its curves from it"
    kept = sorted((made.run_dir / "train").glob("checkpoint-*"))
    assert all(torch.isfinite(weight).all() for weight in load_file(kept[-1] / "adapter_model.safetensors").values())


def test_streamed_examples_need_a_number_of_steps(session, toy_splits):
    splits = copy.copy(toy_splits)
    splits.train = toy_splits.train.to_iterable_dataset()
    with pytest.raises(ConfigError, match=r"training\.max_steps: the length of a streamed dataset is unknown"):
        train(session(splits=splits))
    made = session("long enough", splits=splits, max_steps=3)
    train(made)
    assert made.get("trainer").state.global_step == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume_from_checkpoint": "nowhere"}, "training.resume_from_checkpoint: nowhere is not a directory"),
        ({"packing": True}, "training.packing: "),
    ],
    ids=["resume", "packing"],
)
def test_wrong_arguments_are_refused_before_the_model_is_loaded(session, monkeypatch, changes, message):
    made = session(**changes)
    monkeypatch.setattr(made, "base_model", lambda name: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match=message):
        train(made)


def test_a_reporter_that_is_not_installed(session):
    with pytest.raises(ConfigError, match=r"training\.report_to: .*requires wandb to be installed"):
        train(session(report_to="wandb"))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_are_readable_by_whom_the_umask_allows(session, umask, mode):
    before = os.umask(umask)
    try:
        made = session(max_steps=1, save_strategy="steps", save_steps=1, eval_strategy="no", eval_on_start=False)
        train(made)
    finally:
        os.umask(before)
    files = [path for path in made.run_dir.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json", ".pt"}
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {path.name: oct(mode) for path in files}


def test_offloading_from_the_cpu_is_refused_under_torchrun_too(session):
    """torchrun has already started the processes, and only the step knows which device it trains on."""
    made = session()
    made.root.distributed = DistributedConf(name="fsdp", fsdp=FsdpConf(cpu_offload=True))
    with pytest.raises(ConfigError, match=r"^distributed\.fsdp\.cpu_offload: true, but the training is on the CPU"):
        train(made)
