"""An engine's settings in the libraries' format, and the launcher with real processes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import nullcontext, suppress
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from llmmod.config.schema.distributed import DeepspeedConf, DistributedConf, FsdpConf
from llmmod.errors import ConfigError
from llmmod.signals import handlers_kept
from llmmod.trainers.arguments import deepspeed_config, engine_arguments
from llmmod.trainers.checkpoints import check_processes
from llmmod.trainers.distributed import PLACEHOLDER, processes_of, run_processes, shared_dataloader


def test_one_process_and_ddp_need_no_arguments():
    assert engine_arguments(DistributedConf()) == engine_arguments(DistributedConf(name="ddp")) == {}


def test_offloading_from_the_cpu_is_refused():
    conf = DistributedConf(name="fsdp", processes=2, fsdp=FsdpConf(cpu_offload=True))
    with pytest.raises(ConfigError, match=r"^distributed\.fsdp\.cpu_offload: true, but the training is on the CPU, .* Set it to false\."):
        processes_of(conf, use_cpu=True)
    assert processes_of(DistributedConf(name="fsdp", processes=2), use_cpu=True) == 2


def test_transformers_reads_the_fsdp_settings(tmp_path):
    conf = DistributedConf(name="fsdp", fsdp=FsdpConf(cpu_offload=True, reshard_after_forward=False, transformer_layer_cls_to_wrap=["A"]))
    args = TrainingArguments(output_dir=str(tmp_path), **engine_arguments(conf))
    plugin = args.fsdp_plugin_args
    assert plugin["fsdp_version"] == 2
    assert plugin["cpu_offload"] is True
    assert plugin["reshard_after_forward"] is False
    assert plugin["transformer_cls_names_to_wrap"] == "A"
    assert (plugin["auto_wrap_policy"], plugin["state_dict_type"]) == ("TRANSFORMER_BASED_WRAP", "FULL_STATE_DICT")


@pytest.mark.parametrize(
    ("stage", "conf", "offloads"),
    [
        (2, DeepspeedConf(), set()),
        (2, DeepspeedConf(offload_optimizer="cpu", offload_param="cpu"), {"cpu"}),
        (3, DeepspeedConf(offload_param="nvme", nvme_path="/nvme"), {"nvme"}),
    ],
)
def test_deepspeed_takes_the_configuration(stage, conf, offloads):
    composed = deepspeed_config(conf, stage=stage)
    theirs = HfDeepSpeedConfig(json.loads(json.dumps(composed)))  # accelerate's reader of DeepSpeed's file
    assert (theirs.is_zero2(), theirs.is_zero3()) == (stage == 2, stage == 3)
    assert theirs.is_offload() == bool(offloads)
    zero = composed["zero_optimization"]
    assert ("allgather_bucket_size" in zero, "sub_group_size" in zero) == (stage == 2, stage == 3)
    assert {part["device"] for part in zero.values() if isinstance(part, dict)} == offloads
    assert composed["train_micro_batch_size_per_gpu"] == "auto"


def test_further_keys_of_deepspeed_win(tmp_path):
    extra = {"zero_optimization": {"overlap_comm": False, "zero_quantized_weights": True}, "wall_clock_breakdown": True}
    composed = deepspeed_config(DeepspeedConf(extra=extra), stage=3)
    assert composed["zero_optimization"]["stage"] == 3
    assert (composed["zero_optimization"]["overlap_comm"], composed["zero_optimization"]["zero_quantized_weights"]) == (False, True)
    assert composed["wall_clock_breakdown"] is True


SCRIPT = """
import os, sys, time
rank = int(os.environ["RANK"])
open(f"{sys.argv[1]}/{rank}-of-{os.environ['WORLD_SIZE']}", "w").close()
if rank == 1 and sys.argv[2] != "0":
    sys.exit(int(sys.argv[2]))
time.sleep(0 if sys.argv[2] == "0" else 60)
"""


@pytest.mark.parametrize("code", [0, 7])
def test_processes_are_started_and_the_first_that_fails_ends_all(tmp_path, code):
    ended = run_processes(["-c", SCRIPT, str(tmp_path), str(code)], conf=DistributedConf(name="ddp"), count=2, directory=str(tmp_path))
    assert {path.name for path in tmp_path.glob("*-of-2")} == {"0-of-2", "1-of-2"}
    assert ended.signal is None
    assert dict(ended.failures).get(1, 0) == code


SAVES = """
import os, signal, sys, time
from pathlib import Path
def save(number, frame):
    Path(sys.argv[1], "saved-" + os.environ["RANK"]).touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
Path(sys.argv[1], "ready-" + os.environ["RANK"]).touch()
time.sleep(60)
"""


@pytest.mark.parametrize("queued_again", [True, False])
def test_a_queue_gets_its_signal_when_the_processes_have_saved(tmp_path, queued_again):
    saved = []

    def tell_queue(number, frame):  # like submitit
        saved.append(len([*tmp_path.glob("saved-*")]))
        if not queued_again:
            raise RuntimeError("timed-out too many times")
        os.kill(os.getpid(), signal.SIGTERM)  # by Slurm, to a job that is queued again
        raise SystemExit(-1)

    def log_signal(number, frame):  # as logging does, it loses an error that another handler raises meanwhile
        with suppress(Exception):
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.1)

    def stop_when_ready():
        while len([*tmp_path.glob("ready-*")]) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGCONT)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGUSR2)

    with handlers_kept(("SIGUSR2", "SIGTERM", "SIGUSR1", "SIGCONT")):
        signal.signal(signal.SIGUSR2, tell_queue)
        signal.signal(signal.SIGCONT, log_signal)
        threading.Thread(target=stop_when_ready, daemon=True).start()
        with pytest.raises(SystemExit) if queued_again else nullcontext():
            ended = run_processes(["-c", SAVES, str(tmp_path)], conf=DistributedConf(name="ddp"), count=2, directory=str(tmp_path))
            assert ended.signal == signal.SIGTERM
    assert saved == [2]


@pytest.mark.parametrize(
    ("examples", "size", "processes"), [(3, 1, 2), (7, 2, 2), (8, 2, 2), (5, 2, 3), (1, 4, 2)], ids=lambda number: str(number)
)
def test_no_example_of_an_epoch_is_taken_twice(examples, size, processes):
    """accelerate repeats the first examples where too few are left."""

    class Trainer:
        accelerator = SimpleNamespace(num_processes=processes)
        args = SimpleNamespace(dataloader_drop_last=False)
        data_collator = staticmethod(lambda rows: {"input_ids": torch.tensor(rows)})

    def batches(process):
        def make(dataset):
            loader = DataLoader(dataset, batch_size=size, collate_fn=Trainer.data_collator)
            return prepare_data_loader(loader, num_processes=processes, process_index=process, put_on_device=False)

        return list(shared_dataloader(Trainer, list(range(examples)), make))

    shares = [batches(process) for process in range(processes)]
    taken = [row for batch in chain(*shares) if PLACEHOLDER not in batch for row in batch["input_ids"].tolist()]
    assert sorted(taken) == list(range(examples))
    assert len({len(share) for share in shares}) == 1
    assert all(len(batch["input_ids"]) == 1 for batch in chain(*shares) if PLACEHOLDER in batch)


@pytest.mark.parametrize(
    ("before", "now", "size", "samples", "refused"),
    [
        (2, 2, 1, True, None),
        (2, 1, 8, False, None),
        (1, 2, 2, False, None),
        (2, 1, 4, False, "is of 2 processes, and now there is 1: 2 times 4 examples, and 1 times 4, so it would continue with other "
         "examples. Set training.per_device_train_batch_size=8."),
        (1, 3, 4, False, "is of 1 process, and now there are 3: 1 times 4 examples, and 3 times 4, so it would continue with other "
         "examples. Start 1."),
        (2, 1, 8, True, "is of 2 processes, and now there is 1, each with its own completions. Start 2, or train its weights anew."),
    ],
)  # fmt: skip
def test_a_checkpoint_of_other_processes_goes_on_with_the_same_examples_or_is_refused(tmp_path, before, now, size, samples, refused):
    for number in range(before):
        (tmp_path / ("rng_state.pth" if before == 1 else f"rng_state_{number}.pth")).touch()
    (tmp_path / "trainer_state.json").write_text(json.dumps({"train_batch_size": 4}))
    with nullcontext() if refused is None else pytest.raises(ConfigError) as raised:
        args = SimpleNamespace(world_size=now, train_batch_size=size, fsdp=False, deepspeed=None)
        check_processes(tmp_path, args, samples=samples)
    assert refused is None or str(raised.value) == f"training.resume_from_checkpoint: {tmp_path} {refused}"


FSDP, SHARDED = "distributed=fsdp", "distributed=fsdp distributed.fsdp.state_dict_type=SHARDED_STATE_DICT"
ENGINES = {"distributed=none": "optimizer.pt", FSDP: "pytorch_model_fsdp.bin", SHARDED: "pytorch_model_fsdp_0"}
ENGINES["distributed=deepspeed_…"] = "latest"


@pytest.mark.parametrize("now", ENGINES)
@pytest.mark.parametrize("written", ENGINES)
def test_an_engine_goes_on_from_checkpoints_that_it_can_read(tmp_path, written, now):
    (tmp_path / ENGINES[written]).touch()
    (tmp_path / "rng_state.pth").touch()
    conf = DistributedConf(name="fsdp", fsdp=FsdpConf(state_dict_type="SHARDED_STATE_DICT" if now == SHARDED else "FULL_STATE_DICT"))
    arguments = engine_arguments(conf) if "fsdp" in now else {}
    args = TrainingArguments(output_dir=str(tmp_path), **arguments)
    args.deepspeed = "a configuration" if "deepspeed" in now else None
    with nullcontext() if written == now else pytest.raises(ConfigError) as raised:
        check_processes(tmp_path, args, samples=False)
    said = f"has weights and optimizer as {written} writes them, and this run has {now}. Set {written}, or train its weights anew."
    assert written == now or str(raised.value) == f"training.resume_from_checkpoint: {tmp_path} {said}"
