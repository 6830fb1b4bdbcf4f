"""The checkpoint that `training.resume_from_checkpoint` selects."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import zipfile
from types import SimpleNamespace

import pytest
import torch
from changed_bits import flip
from safetensors.torch import save_file

from llmmod.errors import ConfigError
from llmmod.trainers.callbacks.resume import (
    ASIDE,
    MANIFEST,
    checkpoints,
    checksum_of,
    checksums_of_share,
    damage,
    find_checkpoint,
    passed_over,
    put_in_place,
    rotate,
    settle,
)
from llmmod.trainers.checkpoints import ResumableTrainer, _device_states


def written(path, *, weights="adapter_model.safetensors", state="{}"):
    """A checkpoint with the files that a trainer writes."""
    path.mkdir(parents=True)
    save_file({"a": torch.ones(100), "b": torch.ones(3, 5)}, path / weights, metadata={"format": "pt"})
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"state": torch.ones(100)}, path / name)
    (path / "adapter_config.json").write_text('{"r": 8}')
    (path / "README.md").write_text("")
    (path / "trainer_state.json").write_text(state)
    return path


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints of steps 2 and 10, an unfinished one of step 12, and its final model in the same directory."""
    train = tmp_path / "run" / "train"
    for step in (2, 10):
        written(train / f"checkpoint-{step}")
    written(train / "checkpoint-12", state='{"epoch": 1.')
    (train / "trainer_state.json").write_text("{}")
    return tmp_path / "run"


def test_checkpoints_are_ordered_by_number_and_complete(run):
    assert [path.name for path in checkpoints(run / "train")] == ["checkpoint-2", "checkpoint-10"]


def test_no_directory_no_checkpoints(tmp_path):
    assert checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize("wanted", [None, False, "false", "null", ""])
def test_none_is_wanted(run, wanted):
    assert find_checkpoint(wanted, train_dir=run / "train") is None


@pytest.mark.parametrize("wanted", [True, "true", "True"])
def test_true_is_the_newest_of_this_run(run, wanted):
    assert find_checkpoint(wanted, train_dir=run / "train") == run / "train" / "checkpoint-10"


@pytest.mark.parametrize("inside", ["train/checkpoint-2", "train", ""], ids=["a checkpoint", "a train directory", "a run"])
def test_a_path(run, tmp_path, inside):
    expected = "checkpoint-2" if "checkpoint" in inside else "checkpoint-10"
    assert find_checkpoint(str(run / inside), train_dir=tmp_path) == run / "train" / expected


def refused(wanted, train_dir):
    with pytest.raises(ConfigError) as caught:
        find_checkpoint(wanted, train_dir=train_dir)
    message = str(caught.value)
    assert message.startswith("training.resume_from_checkpoint: ")
    return message


def test_a_missing_checkpoint(run, tmp_path):
    assert "/nowhere/checkpoint-7 is not a directory" in refused("/nowhere/checkpoint-7", tmp_path)
    assert f"Choose one of {run}/train/checkpoint-10, {run}/train/checkpoint-2." in refused(f"{run}/train/checkpoint-7", tmp_path)


def test_true_where_nothing_was_saved_is_the_beginning(run, tmp_path):
    assert find_checkpoint(True, train_dir=tmp_path / "nowhere") is None
    for step in (2, 10):
        cut(run / "train" / f"checkpoint-{step}" / "optimizer.pt")
    assert find_checkpoint(True, train_dir=run / "train") is None
    assert list(passed_over(run / "train", None)) == [run / "train" / f"checkpoint-{step}" for step in (2, 10, 12)]


def test_a_directory_that_is_something_else(tmp_path):
    assert "is not a checkpoint and doesn't contain one" in refused(str(tmp_path), tmp_path / "train")


def test_an_unfinished_checkpoint(run, tmp_path):
    assert "is damaged" in refused(f"{run}/train/checkpoint-12", tmp_path)


def test_a_checkpoint_of_weights_alone(run, tmp_path):
    (run / "train" / "checkpoint-10" / "optimizer.pt").unlink()
    assert "doesn't have an optimizer state" in refused(f"{run}/train/checkpoint-10", tmp_path)


def cut(file):
    file.write_bytes(file.read_bytes()[:100])


DAMAGE = {
    "weights cut": (lambda c: cut(c / "adapter_model.safetensors"), "adapter_model.safetensors is cut off or can't be read"),
    "weights one byte short": (
        lambda c: (c / "adapter_model.safetensors").write_bytes((c / "adapter_model.safetensors").read_bytes()[:-1]),
        "adapter_model.safetensors is cut off or can't be read",
    ),
    "weights empty": (lambda c: (c / "adapter_model.safetensors").write_bytes(b""), "adapter_model.safetensors is cut off"),
    "weights zeros": (lambda c: (c / "adapter_model.safetensors").write_bytes(bytes(1000)), "adapter_model.safetensors is cut off"),
    "weights missing": (lambda c: (c / "adapter_model.safetensors").unlink(), "the file of its weights is missing"),
    "optimizer cut": (lambda c: cut(c / "optimizer.pt"), "optimizer.pt is cut off or can't be read"),
    "optimizer empty": (lambda c: (c / "optimizer.pt").write_bytes(b""), "optimizer.pt is cut off or can't be read"),
    "optimizer zeros": (lambda c: (c / "optimizer.pt").write_bytes(bytes(1000)), "optimizer.pt is cut off or can't be read"),
    "schedule cut": (lambda c: cut(c / "scheduler.pt"), "scheduler.pt is cut off"),
    "random state cut": (lambda c: cut(c / "rng_state.pth"), "rng_state.pth is cut off"),
    "config cut": (lambda c: (c / "adapter_config.json").write_text('{"r": '), "adapter_config.json is cut off"),
    "below": (lambda c: (c.joinpath("below").mkdir(), (c / "below" / "x.safetensors").write_bytes(b"1")), "below/x.safetensors"),
    "shard missing": (
        lambda c: (c / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})),
        "model-00001-of-00002.safetensors is missing",
    ),
    "state missing": (lambda c: (c / "trainer_state.json").unlink(), "trainer_state.json is missing or can't be read"),
}  # fmt: skip


@pytest.mark.parametrize(("do", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_refused_by_its_name(run, tmp_path, do, said):
    train = run / "train"
    do(train / "checkpoint-10")
    assert find_checkpoint(True, train_dir=train) == train / "checkpoint-2"
    over = passed_over(train, train / "checkpoint-2")
    assert list(over) == [train / "checkpoint-10", train / "checkpoint-12"]
    assert over[train / "checkpoint-10"].startswith(said)
    message = refused(f"{train}/checkpoint-10", tmp_path)
    assert f"{train}/checkpoint-10 is damaged: {said}" in message
    assert message.endswith(f"Choose another: {train}/checkpoint-2.")


def test_where_all_are_damaged_the_newest_of_a_directory_is_named(run, tmp_path):
    for step in (2, 10):
        cut(run / "train" / f"checkpoint-{step}" / "optimizer.pt")
    assert f"{run}/train/checkpoint-12 is damaged: trainer_state.json is missing or can't be read" in refused(str(run), tmp_path)


def test_whole_checkpoints_of_other_kinds_pass(tmp_path):
    assert damage(written(tmp_path / "full", weights="model.safetensors")) == ""
    assert damage(written(tmp_path / "shards", weights="model-00001-of-00001.safetensors")) == ""
    zero = written(tmp_path / "zero")
    (zero / "adapter_model.safetensors").unlink()
    (zero / "global_step4").mkdir()
    torch.save({"state": torch.ones(5)}, zero / "global_step4" / "mp_rank_00_model_states.pt")
    assert damage(zero) == ""
    old = written(tmp_path / "old")
    torch.save({"state": torch.ones(5)}, old / "optimizer.pt", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(old / "optimizer.pt")
    assert damage(old) == ""
    assert passed_over(tmp_path, old) == {}


def put(train, step, **kinds):
    """A checkpoint that was written to a temporary directory and moved into place."""
    made = written(train / ASIDE / f"checkpoint-{step}", **kinds)
    put_in_place(made, train / made.name)
    return train / made.name


MISSING = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_config.json", "adapter_model.safetensors")


@pytest.mark.parametrize("name", MISSING)
def test_its_manifest_tells_what_is_missing_and_what_is_cut(tmp_path, name):
    place = put(tmp_path, 3)
    assert damage(place) == ""
    whole = (place / name).read_bytes()
    (place / name).write_bytes(whole[:-1])
    assert damage(place) == f"{name} is cut off or can't be read"
    (place / name).unlink()
    assert damage(place) == f"{name} is missing"
    (place / name).write_bytes(whole)
    assert damage(place) == ""
    cut_manifest = (place / "manifest.json").read_text()[:20]
    (place / "manifest.json").write_text(cut_manifest)
    assert damage(place) == "manifest.json is cut off or can't be read"


@pytest.mark.parametrize("name", [*MISSING, "trainer_state.json"])
def test_a_changed_bit_is_found_in_any_file_and_the_checkpoint_before_is_taken(tmp_path, name):
    train = tmp_path / "train"
    before, newest = put(train, 3), put(train, 5)
    assert damage(newest, content=True) == ""
    for bit in (0, 8 * (newest / name).stat().st_size - 1):
        flip(newest / name, bit=bit)
        assert find_checkpoint(True, train_dir=train) == before
        assert re.match(rf"{re.escape(name)} has changed since it was saved|.*{re.escape(name)}", passed_over(train, before)[newest])
        assert f"{newest} is damaged: " in refused(str(newest), tmp_path)
        flip(newest / name, bit=bit)
        assert find_checkpoint(True, train_dir=train) == newest


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "adapter_config.json"])
def test_a_changed_bit_of_what_describes_a_file_is_damage_rather_than_an_error(tmp_path, name):
    place = put(tmp_path, 3)
    size = 8 * (place / name).stat().st_size
    for bit in (*range(0, min(size, 2000), 61), *range(max(0, size - 2000), size, 61)):
        flip(place / name, bit=bit)
        assert damage(place) in ("", f"{name} is cut off or can't be read")
        assert damage(place, content=True) == f"{name} has changed since it was saved"
        flip(place / name, bit=bit)


def test_a_manifest_of_sizes_alone_has_no_checksums(tmp_path):
    place = put(tmp_path, 3)
    sizes = {file.name: file.stat().st_size for file in place.iterdir() if file.name != MANIFEST}
    (place / MANIFEST).write_text(json.dumps(sizes))
    assert damage(place, content=True) == ""


def test_of_a_sharded_checkpoint_each_process_reads_a_share(tmp_path):
    made = written(tmp_path / ASIDE / "checkpoint-5")
    (made / "optimizer_0").mkdir()
    for number in range(3):
        (made / "optimizer_0" / f"__{number}_0.distcp").write_bytes(bytes([number]) * 100)
    shares = [checksums_of_share(made, process=number, processes=3) for number in range(3)]
    files = [file.relative_to(made).as_posix() for file in made.rglob("*") if file.is_file()]
    assert sorted(name for share in shares for name in share) == sorted(files)
    put_in_place(made, place := tmp_path / made.name, checksums={name: checksum for share in shares for name, checksum in share.items()})
    assert damage(place, content=True) == ""
    flip(place / "optimizer_0" / "__2_0.distcp", bit=11)
    assert damage(place) == ""
    assert damage(place, content=True) == "optimizer_0/__2_0.distcp has changed since it was saved"


def test_the_checksum_is_that_of_gzip_and_zip(tmp_path):
    (tmp_path / "check").write_bytes(b"123456789")
    assert checksum_of(tmp_path / "check") == "cbf43926"  # the check value of CRC-32/ISO-HDLC in the catalogue of CRC algorithms


def test_the_oldest_go_and_damaged_ones_first(tmp_path):
    places = [put(tmp_path, step) for step in (2, 4, 6, 8)]
    for age, place in enumerate(reversed(places)):
        os.utime(place, (1e9 - age, 1e9 - age))
    cut(places[1] / "optimizer.pt")
    rotate(tmp_path, None, newest=places[3], best=None)
    assert checkpoints(tmp_path) == [places[0], places[2], places[3]]
    rotate(tmp_path, 3, newest=places[3], best=None)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-6", "checkpoint-8"]
    rotate(tmp_path, 1, newest=places[3], best=places[0])
    assert checkpoints(tmp_path) == [places[0], places[3]]


# The audit events of calls that write, move or remove files (docs.python.org, audit events table).
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


@pytest.mark.parametrize("again", [False, True], ids=["a new step", "a step that exists already"])
def test_a_kill_between_any_two_file_operations_leaves_a_whole_checkpoint(tmp_path, again):
    """A process saves step 4 next to step 2 with a limit of one checkpoint, and is killed before its first file operation, its second, …"""

    def begun(name):
        put(tmp_path / name, 2)
        if again:
            put(tmp_path / name, 4, state='{"earlier": 1}')
        return tmp_path / name

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def save(train):
        put(train, 4)
        rotate(train, 1, newest=train / "checkpoint-4", best=None)

    alone, killed = begun("alone"), begun("killed")
    assert ended_by(lambda: save(alone), before_each=lambda number: shutil.copytree(alone, tmp_path / str(number)), inside=alone) == 0
    assert ended_by(lambda: save(killed), before_each=lambda number: kill() if number == 15 else None, inside=killed) == -signal.SIGKILL
    assert contents(killed) == contents(tmp_path / "15")  # a kill leaves the files as they are
    count = len([path for path in tmp_path.iterdir() if path.name.isdigit()])
    assert count > 20
    for train in (tmp_path / str(number) for number in range(count)):
        left = find_checkpoint(True, train_dir=train)
        assert left is not None, f"nothing is left after a kill before file operation {train.name}"
        settle(train)
        after = find_checkpoint(True, train_dir=train)
        assert after == train / "checkpoint-4" or after == left
        assert {path.name for path in train.iterdir()} <= {"checkpoint-2", "checkpoint-4"}
    assert checkpoints(alone) == [alone / "checkpoint-4"]
    assert json.loads((alone / "checkpoint-4" / "trainer_state.json").read_text()) == {}


def ended_by(do, *, before_each, inside):
    """The exit code of a process that runs `do`, and calls `before_each` with a number before each file operation in `inside`."""
    process = os.fork()
    if not process:
        count, busy = 0, False

        def hook(event, args):
            nonlocal count, busy
            if event in FILE_EVENTS and str(inside) in str(args[0]) and not busy:
                busy = True
                before_each(count)
                count, busy = count + 1, False

        code = 1
        try:
            sys.addaudithook(hook)
            do()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def contents(directory):
    """Path -> bytes of the files in a directory."""
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_checkpoint_has_the_random_state_of_every_device(monkeypatch):
    """transformers saves the state of one GPU. Here the machine has two."""
    states, given = [torch.arange(3), torch.arange(4)], {}
    module = SimpleNamespace(get_rng_state_all=lambda: states, set_rng_state=lambda state, number: given.update({number: state}))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr("llmmod.trainers.checkpoints._device_module", lambda: module)

    class Library:
        def _load_rng_state(self, checkpoint):
            pass

    class Trainer(ResumableTrainer, Library):
        pass

    resumed = Trainer()
    resumed._devices = _device_states(SimpleNamespace(world_size=1))
    resumed._load_rng_state("checkpoint-1")
    assert given == {0: states[0], 1: states[1]}
    assert _device_states(SimpleNamespace(world_size=2)) == []  # each process has its own device, whose state transformers saves
