"""The cores that a process may use, and how many processes a configuration will have."""

from __future__ import annotations

import os

import pytest

import llmmod.distributed
from llmmod.distributed import cores, expected_processes, limit_threads

V1 = "4:memory:/docker/ab\n3:cpu,cpuacct:{group}\n"
QUOTA, PERIOD = "sys/fs/cgroup/cpu/{}cpu.cfs_quota_us", "sys/fs/cgroup/cpu/{}cpu.cfs_period_us"


@pytest.fixture
def has_64_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


# Files of a Linux machine with 64 cores, as with `docker run --cpus=2` and similar commands.
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, 64, id="without control groups"),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2, id="a container, v2"),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64, id="a container without a quota, v2"),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2, id="one and a half"),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 100000\n"}, 1, id="less than one"),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9600000 100000\n"}, 64, id="more than the machine has"),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "400000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"},
            4,
            id="the parent group has a quota, v2",
        ),
        pytest.param(
            {"proc/self/cgroup": V1.format(group="/docker/ab"), QUOTA.format(""): "200000\n", PERIOD.format(""): "100000\n"},
            2,
            id="a container whose group has the host's path, v1",
        ),
        pytest.param(
            {"proc/self/cgroup": V1.format(group="/a"), QUOTA.format("a/"): "300000\n", PERIOD.format("a/"): "100000\n"},
            3,
            id="a group, v1",
        ),
        pytest.param(
            {"proc/self/cgroup": V1.format(group="/"), QUOTA.format(""): "-1\n", PERIOD.format(""): "100000\n"}, 64, id="no quota, v1"
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("has_64_cores")
def test_a_quota_of_cpu_time_limits_the_cores(files, expected, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores(tmp_path) == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_CPUS_PER_TASK": "8", "SLURM_CPUS_ON_NODE": "16"}, 8),
        ({"SLURM_CPUS_ON_NODE": "16"}, 16),
        ({"SLURM_CPUS_PER_TASK": "128"}, 64),
        ({}, 64),
    ],
    ids=["of the task", "of the machine", "more than the machine has", "without Slurm"],
)
@pytest.mark.usefixtures("has_64_cores")
def test_slurm_limits_the_cores_and_the_threads(variables, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(llmmod.distributed, "_quotas", lambda root: iter(()))
    assert cores(tmp_path) == expected
    limit_threads()
    assert os.environ.get("OMP_NUM_THREADS") == (None if expected == 64 else str(expected))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone says which cores a process may use")
def test_this_machine_has_at_least_one_core_and_not_more_than_it_may_use():
    assert 1 <= cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("conf", "use_cpu", "expected"),
    [
        ({"name": "none"}, False, 1),
        ({"name": "ddp"}, False, 4),
        ({"name": "fsdp", "nodes": 2}, False, 8),
        ({"name": "ddp"}, True, 1),
        ({"name": "fsdp", "nodes": 2}, True, 2),
        ({"name": "ddp", "processes": 3}, True, 3),
        ({"name": "ddp", "processes": 3}, False, 3),
    ],
)
def test_gpus_are_counted_unless_the_training_is_on_the_cpu(conf, use_cpu, expected, monkeypatch):
    monkeypatch.setattr(llmmod.distributed, "gpus", lambda: 4)
    assert expected_processes(conf, use_cpu=use_cpu) == expected
