"""What may stand in Hydra's own node: variables that a run may set, what its logging may name, and where that writes.

A variable can change which code is loaded (`LD_PRELOAD`, `CC`, `NCCL_NET_PLUGIN`, `TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`) or where downloads
come from, and a log file of any name, in any format, can be one that a shell runs. So these are lists of what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmmod.errors import Problem

# What Hydra's logging configurations name, and its colorlog plugin; a logging configuration can otherwise call anything.
LOGGING = frozenset({
    "colorlog.ColoredFormatter", "ext://sys.stderr", "ext://sys.stdout", "logging.FileHandler", "logging.Formatter", "logging.NullHandler",
    "logging.StreamHandler", "logging.handlers.RotatingFileHandler", "logging.handlers.TimedRotatingFileHandler",
})  # fmt: skip

VARIABLES = frozenset({
    "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES", "DATASETS_VERBOSITY", "HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE",
    "HIP_VISIBLE_DEVICES", "MKL_NUM_THREADS", "NCCL_DEBUG", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "NCCL_SOCKET_IFNAME", "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "ROCR_VISIBLE_DEVICES", "TOKENIZERS_PARALLELISM",
    "TORCH_NCCL_BLOCKING_WAIT", "TQDM_DISABLE", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_VERBOSITY", "WANDB_ENTITY", "WANDB_MODE",
    "WANDB_NAME", "WANDB_PROJECT", "WANDB_RUN_GROUP", "WANDB_TAGS",
})  # fmt: skip

_OWN_DIRECTORY = ("${hydra.runtime.output_dir}/", "${hydra:runtime.output_dir}/")


def check_hydra(node: Any) -> list[Problem]:
    """A problem for each variable that a configuration may not set, and for each log file outside of the run's directory.

    Args:
        node: `hydra.*` as plain containers, interpolations as they are; None: there is none.
    """
    if not isinstance(node, dict):
        return []
    job = node.get("job")
    variables = job.get("env_set") if isinstance(job, dict) else None
    found = "this variable can't be set by a configuration"
    problems = [
        Problem(f"hydra.job.env_set.{name}", found, do="Set it in your shell")
        for name in (variables if isinstance(variables, dict) else {})
        if name not in VARIABLES
    ]
    for part in ("job_logging", "hydra_logging"):
        for key, file in _files(node.get(part), f"hydra.{part}"):
            if not str(file).startswith(_OWN_DIRECTORY) or ".." in str(file):
                problems.append(Problem(key, f"{file!r} is outside of the run's directory", "Allowed: ${hydra.runtime.output_dir}/…"))
    return problems


def _files(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "filename" and value is not None:
                yield f"{key}.{name}", value
            yield from _files(value, f"{key}.{name}")
