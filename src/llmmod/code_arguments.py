"""Arguments anywhere in a configuration that run, unpickle or load code.

A checkpoint's own code runs only with `model.trust_remote_code=true`. Only the user who starts the run can set it, on the command line or
with `LLMMOD_TRUST_REMOTE_CODE=1`; a file can't, since it may be somebody else's. Every other argument of the table `HARMLESS` may have only
values that don't run code.

Hydra's own node is checked here too: the variables that a run may set, the classes that its logging may name, and its log files. A variable
can change which code is loaded (`LD_PRELOAD`, `CC`, `NCCL_NET_PLUGIN`) or where downloads come from, and a log file may be one that a shell
runs. So these tables list what is allowed.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from llmmod.errors import ConfigError, Problem
from llmmod.upstream import require_upstream

ENVIRONMENT = "LLMMOD_TRUST_REMOTE_CODE"
_TYPED = "LLMMOD_TRUSTED_KEYS"  # so that processes of the run know the typed keys
# Argument -> the values that don't run code.
HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "trust_remote_code": (False, None),
    "code_revision": (None,),
    "custom_generate": (None,),
    "auto_map": (None,),  # in config.json: the classes that a checkpoint's code defines
    "custom_pipelines": (None,),
    "weights_only": (True, None),  # false: torch.load unpickles anything
    "allow_pickle": (False, None),
    "pickle_module": (None,),
    "use_kernels": (False, None),  # compiled code from the hub
    "allow_all_kernels": (False, None),
    "kernel_config": (None,),
    "import_allowlist": (None,),  # peft: modules that an adapter's file may name
    "auto_mapping": (None,),
    "megatron_core": ("megatron.core", None),  # peft imports it
    "storage_options": (None,),  # fsspec: other file systems, whose files can have templates that run code
}
# Arguments with a path that a component writes to. A run writes in its own directory, and downloads go to hub.cache_dir.
WRITES = frozenset({"cache_dir", "logging_dir", "output_dir", "output_trace_dir", "project_dir", "tensorboard_dir", "working_dir"})
_ATTENTION = re.compile(r"_?(attn|experts|sp_attn)_implementation(_internal)?")  # a name with a / is code on the hub
_OF_MODEL = re.compile(r"(steps\.[^.]+\.)?model\.trust_remote_code")
_TRUST = f"If you trust whoever made it, add {{key}}=true to the command line, or set {ENVIRONMENT}=1"
# The classes in Hydra's logging configurations and in its colorlog plugin; otherwise a logging configuration could call any function.
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


def find_module(name: str, *directories: str) -> ModuleSpec | None:
    """A module's spec, None if it doesn't exist; neither it nor its parents are imported.

    Args:
        name: dotted.
        directories: more directories to search for a top-level module.
    """
    found: ModuleSpec | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        if found is not None and found.submodule_search_locations is None:
            return None
        search = None if found is None else list(found.submodule_search_locations or [])
        part = ".".join(parts[:depth])
        found = getattr(sys.modules.get(part), "__spec__", None)
        if found is None:
            specs = (finder.find_spec(part, search) for finder in sys.meta_path if hasattr(finder, "find_spec"))
            found = next((spec for spec in specs if spec is not None), None)
        if found is None and depth == 1 and directories:
            found = PathFinder.find_spec(part, list(directories))
        if found is None:
            return None
    return found


def trusted_by_environment() -> bool:
    """Whether `LLMMOD_TRUST_REMOTE_CODE` is set; it is the default of `model.trust_remote_code`."""
    return os.environ.get(ENVIRONMENT, "").lower() in ("1", "true", "yes")


def trust_typed(keys: Iterable[str]) -> None:
    """Remember the keys `model.trust_remote_code` that the user typed."""
    typed = {key for key in keys if _OF_MODEL.fullmatch(key)} | _typed()
    if typed:
        os.environ[_TYPED] = ",".join(sorted(typed))


def check_code_arguments(tree: Any, where: str = "") -> list[Problem]:
    """A problem for each argument, at any depth of a configuration, that would run code.

    Args:
        tree: the configuration, or a part of it, as plain containers; interpolations resolved.
        where: the part's key, empty for the root.
    """
    found = [(key, name, value) for key, name, value in _arguments(tree, where) if _runs(name, value)]
    return [problem for key, name, value in found if (problem := _problem(key, name, value)) is not None]


def check_outputs(node: Any, where: str) -> list[Problem]:
    """A problem for each argument of a component that would make it write outside of the run's directory.

    Args:
        node: the component's arguments, as plain containers.
        where: the node's key.
    """
    found = [(key, value) for key, name, value in _arguments(node, where) if name in WRITES and value is not None]
    do = "Leave it out: a run writes to output_dir, and downloads go to hub.cache_dir"
    return [Problem(key, f"{value!r} is outside of the run's directory", do=do) for key, value in found]


def disable_code_prompt() -> None:
    """Make transformers (5.23) refuse a checkpoint's own code unless it is allowed, instead of asking on the terminal for 15 seconds."""
    require_upstream(__name__)
    module: Any = importlib.import_module("transformers.dynamic_module_utils")
    module.TIME_OUT_REMOTE_CODE = 0


@contextmanager
def code_refused(key: str, name: str) -> Iterator[None]:
    """A context in which a checkpoint whose code isn't allowed raises a ConfigError; arguments as in `code_problem`."""
    try:
        yield
    except ValueError as error:
        if problem := code_problem(error, key, name):
            raise ConfigError(problem) from error
        raise


def code_problem(error: Exception, key: str, name: str) -> Problem | None:
    """The problem of a checkpoint whose own code transformers refused to run; None for another error.

    Args:
        error: raised by transformers.
        key: of the checkpoint; the path of the component if it isn't the model's.
        name: of the checkpoint.
    """
    if not isinstance(error, ValueError) or "trust_remote_code" not in str(error):
        return None
    of_model = key.endswith("pretrained_model_name_or_path")
    only = "Only a model's own code can be allowed, with model.trust_remote_code"
    do = _TRUST.format(key="model.trust_remote_code") if of_model else only
    return Problem(key, f"'{name}' needs its own Python code", do=do)


def _problem(key: str, name: str, value: Any) -> Problem | None:
    if _ATTENTION.fullmatch(name):
        found = "code on the hub, which must not run"
        return Problem(key, f"'{value}' is {found}", "Allowed: sdpa, eager, flash_attention_2, flex_attention, null")
    if not _OF_MODEL.fullmatch(key):
        do = "For a model, use model.trust_remote_code on the command line" if name == "trust_remote_code" else ""
        allowed = " or ".join("null" if v is None else str(v).lower() for v in HARMLESS[name])
        return Problem(key, f"{value!r} could run code", f"Allowed: {allowed}", do)
    if value is True and (key in _typed() or trusted_by_environment()):
        return None
    return Problem(key, f"{value!r}, but not on the command line", "Allowed in a file: false", _TRUST.format(key=key))


def _arguments(node: Any, key: str) -> Iterator[tuple[str, str, Any]]:
    """Each argument at any depth: its key, its name and its value."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            place = f"{key}.{name}" if key else str(name)
            yield place, str(name), value
            yield from _arguments(value, place)
    elif isinstance(node, (list, tuple)):
        for number, value in enumerate(node):
            yield from _arguments(value, f"{key}.{number}")


def _runs(name: str, value: Any) -> bool:
    if _ATTENTION.fullmatch(name):
        texts = value.values() if isinstance(value, Mapping) else [value]
        return any(isinstance(text, str) and ("/" in text or ":" in text) for text in texts)
    return name in HARMLESS and value not in (*HARMLESS[name], {}, [])


def _typed() -> set[str]:
    return set(filter(None, os.environ.get(_TYPED, "").split(",")))


def check_hydra(node: Any) -> list[Problem]:
    """A problem for each variable that a configuration must not set, and for each log file outside of the run's directory.

    Args:
        node: `hydra.*` as plain containers, with interpolations; or None.
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
