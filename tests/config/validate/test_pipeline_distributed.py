"""Settings for several processes that don't work are refused before heavy imports; the full messages."""

from __future__ import annotations

import pytest

from llmmod.config.validate import compose_validated
from llmmod.errors import ConfigError

NODES = ["distributed=ddp", "distributed.nodes=2", "distributed.address=first:29500", "output_dir=shared"]


def problems(*overrides):
    with pytest.raises(ConfigError) as raised:
        compose_validated(["smoke=true", "pipeline=[train]", *overrides])
    return str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["distributed=dpp"], "distributed=dpp: no such option. Did you mean 'ddp'?"),
        (["distributed.processes=2"], "distributed.processes: not read with distributed=none. Set distributed=ddp."),
        (["distributed=ddp", "distributed.processes=0"], "distributed.processes: found 0. Allowed: 1 or more."),
        (["distributed=ddp", "distributed.fsdp.cpu_offload=true"], "distributed.fsdp.cpu_offload: only read with distributed=fsdp."),
        (
            ["distributed=fsdp", "distributed.fsdp.auto_wrap_policy=layers"],
            "distributed.fsdp.auto_wrap_policy: found 'layers'. Allowed: TRANSFORMER_BASED_WRAP, SIZE_BASED_WRAP, NO_WRAP.",
        ),
        (
            ["distributed=fsdp", "distributed.fsdp.min_num_params=9"],
            "distributed.fsdp.min_num_params: only read with distributed.fsdp.auto_wrap_policy=SIZE_BASED_WRAP.",
        ),
        (
            ["distributed=ddp", "training.fsdp=full_shard"],
            "training.fsdp: set, but distributed=ddp sets the engine. Leave it out; its settings are distributed.fsdp.*.",
        ),
        (
            ["distributed=ddp", "pipeline=[train,chat]"],
            "pipeline: has chat, but the processes of distributed=ddp can't read the terminal. Run chat in a separate command, with "
            "distributed=none.",
        ),
        (
            [*NODES, "distributed.address=first"],
            "distributed.address: found 'first', but 2 machines have to connect. Allowed: host:port of the machine with "
            "distributed.rank=0.",
        ),
        ([*NODES, "distributed.rank=2"], "distributed.rank: found 2. Allowed: 0 to 1, a different one on each machine."),
        (
            NODES[:-1],
            "output_dir: not set, so each of 2 machines would name a directory after its own clock. Set it to a directory that all of them "
            "share.",
        ),
        (
            ["distributed=ddp", "distributed.address=first:29500"],
            "distributed.address: only read with distributed.nodes=2 or more.",
        ),
        (
            ["distributed=fsdp", "stage=ppo"],
            "distributed: fsdp, which shards the model, but stage=ppo samples completions with the whole model. Allowed: ddp, "
            "deepspeed_zero2. Set distributed=ddp.",
        ),
        (
            ["distributed=fsdp", "experiment=rlhf", "pipeline=[sft,rm,ppo]"],
            "distributed: fsdp, which shards the model, but stage=ppo samples completions with the whole model. Allowed: ddp, "
            "deepspeed_zero2. Set distributed=ddp.",
        ),
        (
            ["distributed=ddp", "distributed.processes=2", "stage=grpo", "training.generation_batch_size=8"],
            "training.generation_batch_size: 8 answers, in micro-batches of 16. Allowed: multiples of 16.",
        ),
    ],
)  # fmt: skip
def test_it_is_refused(overrides, text):
    assert problems(*overrides) == text


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("llmmod.config.validate.pipeline.find_module", lambda name: None)
    text = "distributed: deepspeed_zero3, but deepspeed isn't installed. Install it: pip install deepspeed."
    assert problems("distributed=deepspeed_zero3") == text


def test_what_one_engine_reads_another_refuses(monkeypatch):
    monkeypatch.setattr("llmmod.config.validate.pipeline.find_module", lambda name: object())
    compose_validated(["distributed=deepspeed_zero3", "distributed.deepspeed.offload_param=cpu"])
    text = problems("distributed=deepspeed_zero2", "distributed.deepspeed.offload_param=cpu")
    assert text == "distributed.deepspeed.offload_param: only read with distributed=deepspeed_zero3."
    text = problems("distributed=deepspeed_zero2", "distributed.deepspeed.offload_optimizer=nvme")
    assert text.startswith("distributed.deepspeed.nvme_path: is not set, but states are offloaded to nvme.")


def test_consistent_settings_of_two_machines_are_accepted():
    composed = compose_validated([*NODES, "distributed.rank=1", "smoke=true"])
    assert composed.config.distributed.rank == 1


def test_a_launcher_that_started_another_number_of_processes_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    text = problems("distributed=ddp", "distributed.processes=2")
    assert text == "distributed.processes: 2, but 3 processes were started. Leave it out: torchrun and accelerate set the number."
