"""Trainings that are split, interrupted and resumed."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from typed import write_lines

STEPWISE = ("training.warmup_steps=0", "training.logging_steps=1", "training.save_strategy=steps", "training.save_total_limit=null")


def state(run):
    return json.loads(Path(run, "train", "trainer_state.json").read_text())


# The checkpoint's batch size replaced the new one, and the run took four times as many steps (huggingface/transformers 43708).
def test_resumed_with_other_batches_of_as_many_examples_a_step(go):
    rows = [{"instruction": f"What is {n} plus {n * n}?", "output": f"It is {n + n * n}{'.' * (n % 5)}"} for n in range(32)]
    write_lines("rows.jsonl", rows)
    common = ("finetune=full", "training.num_train_epochs=1", "training.learning_rate=1e-3", *STEPWISE, "training.save_steps=4")
    one_by_one = ("training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=4")
    assert go("rows.jsonl", *common, *one_by_one, output="whole").code == 0
    four = ("training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=1")
    resume = "training.resume_from_checkpoint=whole/train/checkpoint-4"
    assert go("rows.jsonl", *common, *four, resume, output="resumed").code == 0
    whole, resumed = state("whole"), state("resumed")
    assert whole["global_step"] == resumed["global_step"] == resumed["max_steps"] == 8
    assert resumed["epoch"] == pytest.approx(1)
    assert resumed["num_input_tokens_seen"] == whole["num_input_tokens_seen"]
    one, other = ({entry["step"]: entry for entry in of["log_history"] if "loss" in entry} for of in (whole, resumed))
    for step in range(5, 9):
        assert other[step]["learning_rate"] == pytest.approx(one[step]["learning_rate"], rel=1e-6, abs=1e-12)
        assert other[step]["loss"] == pytest.approx(one[step]["loss"], rel=2e-3)


# "The resulting train set will be empty": the error came after the model was loaded (LLaMA-Factory 3119), and named an argument that the
# user hadn't typed (alpaca-lora 470).
SPLITS = {
    "a tenth of one row": (1, ("dataset.val_size=0.1",), (r"\b1\b",)),
    "more than there are": (78, ("dataset.val_size=2000",), (r"\b2000\b", r"\b78\b")),
    "all": (78, ("dataset.val_size=78",), (r"\b78\b",)),
    "in a rehearsal": (78, ("dataset.val_size=2000", "smoke=true"), (r"\b78\b",)),
}


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_that_leaves_nothing_is_refused_by_its_key(go, split):
    count, overrides, numbers = SPLITS[split]
    write_lines("rows.jsonl", [{"instruction": f"What comes after {n}?", "output": f"{n + 1}"} for n in range(count)])
    done = go("rows.jsonl", "training.max_steps=1", *overrides)
    assert done.code == 2
    assert "val_size" in done.said
    assert all(re.search(number, done.said) for number in numbers)
    assert not [*Path("run").glob("train/*.safetensors")]


def test_one_row_without_anything_held_out_is_trained(go):
    write_lines("rows.jsonl", [{"instruction": "What comes after 1?", "output": "2"}])
    assert go("rows.jsonl", "training.max_steps=1").code == 0
    assert [*Path("run").glob("train/*.safetensors")]


# A pair was cut at one end, which removed all of a short answer paired with a long one: its mean was 0/0 (trl 3382, 3339, 6548).
LENGTHY = f"Certainly, and at length: {'one could say a great deal about this. ' * 10}"
DPO = ("stage=dpo", "finetune=lora", "training.max_steps=2", "training.per_device_train_batch_size=4", "training.logging_steps=1")
DPO += ("training.warmup_steps=0", "training.save_strategy=no")


def pairs(*answers):
    names = ("prompt", "chosen", "rejected")
    return [dict(zip(names, (f"Is {n} a number?", *both), strict=True)) for n, both in enumerate(answers)]


@pytest.mark.parametrize("loss", ["ipo", "sigmoid,sft"])
@pytest.mark.parametrize("policy", ["left", "right"])
def test_both_answers_of_an_uneven_pair_are_kept(go, policy, loss):
    write_lines("rows.jsonl", pairs(*[(LENGTHY, "No."), ("Yes.", LENGTHY)] * 4))
    cut = ("dataset.cutoff_len=160", f"dataset.cutoff_policy={policy}")
    done = go("rows.jsonl", *DPO, *cut, f"training.loss_type=[{loss}]")
    assert done.code == 0
    assert "cutoff_len" in done.said
    numbers = [value for entry in state("run")["log_history"] for value in entry.values() if isinstance(value, float)]
    assert numbers
    assert all(map(math.isfinite, numbers))


@pytest.mark.parametrize("rejected", ["", "Yes."])
def test_a_pair_without_a_difference_is_refused_by_its_row(go, rejected):
    write_lines("rows.jsonl", pairs(("Yes.", "No."), ("Yes.", rejected), ("Of course.", "Never.")))
    done = go("rows.jsonl", *DPO)
    assert done.code == 2
    assert re.search(r"rows\.jsonl.*row 2\b", done.said)
    assert re.search("rejected|chosen", done.said)


# The job was killed while a checkpoint was written (huggingface/transformers 35782, 35525); the power failed (diffusion-pipe 159).
DAMAGE = {"killed": "trainer_state.json", "weights": "adapter_model.safetensors", "optimizer": "optimizer.pt", "bit": "optimizer.pt"}
SHORT = ("training.per_device_train_batch_size=2", *STEPWISE, "training.save_steps=2")


@pytest.fixture(scope="module")
def _good():
    """The directory of a training of four steps, after the first test has run it."""
    return {}


@pytest.fixture
def damaged(go, tmp_path, tmp_path_factory, _good):
    """A function that copies a run with checkpoints of steps 2 and 4 to `run`, and damages the newer one there."""
    write_lines("rows.jsonl", [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(1, n + 1)))} for n in range(1, 17)])
    if not _good:
        _good["run"] = tmp_path_factory.mktemp("good") / "run"
        assert go("rows.jsonl", *SHORT, "training.max_steps=4", output=_good["run"]).code == 0

    def damage(kind):
        shutil.copytree(_good["run"], "run")
        file = Path("run", "train", "checkpoint-4", DAMAGE[kind])
        if kind == "killed":
            file.unlink()
        elif kind == "bit":
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        else:
            file.write_bytes(file.read_bytes()[:100])

    return damage


@pytest.mark.parametrize("kind", DAMAGE)
def test_resuming_skips_a_damaged_checkpoint_with_a_message(go, damaged, kind):
    damaged(kind)
    done = go("rows.jsonl", *SHORT, "training.max_steps=6", "training.resume_from_checkpoint=true")
    assert done.code == 0
    assert "checkpoint-2" in done.said
    assert state("run")["global_step"] == 6


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_that_is_named_is_refused_by_its_name(go, damaged, kind):
    damaged(kind)
    resume = "training.resume_from_checkpoint=run/train/checkpoint-4"
    done = go("rows.jsonl", *SHORT, "training.max_steps=6", resume, output="fresh")
    assert done.code == 2
    assert "checkpoint-4" in done.said
