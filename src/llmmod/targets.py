"""The dotted paths that a configuration may name: the rules, and the check of the paths as text.

A configuration can come from anywhere, and a `_target_` in it is a call. So it may name our own components, the components of torch,
transformers, trl, peft, datasets and accelerate that runs use, and modules that the user allows outside of the configuration, with
`--allow` or `LLMMOD_ALLOW`. Every other path is refused here by its text, before an import; `instantiate` checks the object at a path
again, since an alias can have any name.

Left out on purpose: what an allowed class does with its arguments. Hydra 1.3.8 lists what it refuses; this module lists what is allowed,
so that unknown functions are refused.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmmod.code_arguments import LOGGING, check_hydra, find_module
from llmmod.errors import Problem

ENVIRONMENT = "LLMMOD_ALLOW"
# They create or run code from data, and can't be allowed: Python's own modules, and the picklers of the packages below.
NEVER = frozenset(sys.stdlib_module_names) | {"builtins", "cloudpickle", "dill", "joblib", "multiprocess"}
_FRAMEWORK = frozenset({"hydra", "hydra_plugins", "omegaconf"})
# Modules that are programs, anywhere in a package of the table.
_RUN = frozenset({"__main__", "cli", "commands", "launch", "launchers", "run", "scripts", "test_utils", "testing_utils"})
_HYDRA_PARTS = (
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra.experimental.callbacks.LogJobReturnCallback",
    "hydra_plugins.llmmod.OptunaSweeper",  # ours, under the name that Hydra requires
    "hydra_plugins.llmmod.RayLauncher",
)
_HYDRA_PLUGINS = "hydra_plugins"  # of installed plugins, which Hydra always imports


@dataclass(frozen=True)
class Package:
    """The parts of a package that may be named, by the module that defines them; a prefix ends at a dot.

    Args:
        classes: modules whose classes, and class methods `from_…`, may be named.
        functions: modules, or single functions.
        refused: below the two above, or reachable otherwise; the user can't allow them either.
    """

    classes: tuple[str, ...]
    functions: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


PACKAGES: dict[str, Package] = {
    "llmmod": Package(
        classes=(
            "llmmod.data.collators", "llmmod.metrics", "llmmod.render.auto.AutoTemplate",
            "llmmod.render.template.Template", "llmmod.rewards", "llmmod.trainers.online.grpo.GrpoArguments",
            "llmmod.trainers.ppo.trainer.PpoArguments", "llmmod.trainers.preference.trainers.DpoTrainer",
            "llmmod.trainers.preference.trainers.KtoTrainer", "llmmod.trainers.online.grpo.GrpoTrainer",
            "llmmod.trainers.ppo.trainer.PpoTrainer", "llmmod.trainers.rm.RmTrainer",
            "llmmod.trainers.sft.SftTrainer", "llmmod.steps.chat.Chat", "llmmod.steps.compare.Compare",
            "llmmod.steps.evaluate.Evaluate", "llmmod.steps.export.Export",
            "llmmod.steps.predict.step.Predict", "llmmod.steps.predict.completions.PredictAnswers",
            "llmmod.steps.predict.completions.PredictDocuments", "llmmod.steps.predict.step.PredictRewards",
            "llmmod.steps.plan.step.Plan", "llmmod.steps.preview.step.Preview", "llmmod.steps.train.Train",
        ),
        functions=(
            "llmmod.data.formats", "llmmod.data.dataset.load.load_splits", "llmmod.metrics", "llmmod.models.adapters.setup.setup_lora",
            "llmmod.models.adapters.setup.setup_full", "llmmod.models.adapters.setup.setup_freeze",
            "llmmod.models.adapters.reward_models.load_reward_model", "llmmod.models.loading.load.load_model",
            "llmmod.models.loading.tokenizer.load_tokenizer", "llmmod.rewards",
        ),
    ),
    "torch": Package(
        classes=("torch.nn", "torch.optim", "torch.utils.data", "torch.distributions", "torch.device", "torch._C.Generator"),
        functions=("torch.nn.functional", "torch.nn.init", "torch._C._nn"),
        # These read pickles, compile or run code, load libraries, start processes or write to any path.
        refused=(
            "torch.load", "torch.save", "torch.serialization", "torch.storage", "torch.hub", "torch.jit", "torch.package", "torch.ops",
            "torch.classes", "torch.multiprocessing", "torch.distributed", "torch.fx", "torch.compile", "torch.compiler", "torch.export",
            "torch.onnx", "torch.library", "torch.testing", "torch.test", "torch.bin", "torch.profiler", "torch.monitor", "torch.futures",
            "torch.overrides", "torch.autograd", "torch.nativert", "torch.utils.cpp_extension", "torch.utils.cpp_backtrace",
            "torch.utils.benchmark", "torch.utils.bottleneck", "torch.utils.bundled_inputs", "torch.utils.collect_env",
            "torch.utils.data.datapipes", "torch.utils.file_baton", "torch.utils.hipify", "torch.utils.mobile_optimizer",
            "torch.utils.model_dump", "torch.utils.model_zoo", "torch.utils.tensorboard", "torch.utils.viz",
        ),
    ),
    "transformers": Package(
        classes=(
            "transformers.activations", "transformers.cache_utils", "transformers.configuration_utils", "transformers.data",
            "transformers.feature_extraction_sequence_utils", "transformers.feature_extraction_utils", "transformers.generation",
            "transformers.image_processing_backends", "transformers.image_processing_utils", "transformers.integrations.integration_utils",
            "transformers.loss", "transformers.modeling_layers", "transformers.modeling_utils", "transformers.models",
            "transformers.optimization", "transformers.processing_utils", "transformers.pytorch_utils", "transformers.quantizers",
            "transformers.tokenization_python", "transformers.tokenization_utils_base", "transformers.tokenization_utils_sentencepiece",
            "transformers.tokenization_utils_tokenizers", "transformers.trainer", "transformers.trainer_callback",
            "transformers.trainer_pt_utils", "transformers.trainer_seq2seq", "transformers.trainer_utils", "transformers.training_args",
            "transformers.training_args_seq2seq", "transformers.utils.notebook", "transformers.utils.quantization_config",
        ),
        functions=("transformers.activations.get_activation", "transformers.data", "transformers.loss", "transformers.optimization"),
        refused=(
            "transformers.cli", "transformers.commands", "transformers.dynamic_module_utils", "transformers.exporters",
            "transformers.generation.continuous_batching", "transformers.integrations.executorch", "transformers.integrations.hub_kernels",
            "transformers.model_debugging_utils", "transformers.models.rag", "transformers.monkey_patching", "transformers.pipelines",
            "transformers.testing_utils", "transformers.utils.hub", "transformers.utils.import_utils", "transformers.utils.kernel_config",
        ),
    ),
    "trl": Package(
        classes=("trl.experimental", "trl.models", "trl.rewards", "trl.trainer"),
        functions=("trl.data_utils", "trl.rewards"),
        refused=("trl.cli", "trl.experimental.openreward", "trl.extras", "trl.generation", "trl.scripts"),
    ),
    "peft": Package(
        classes=("peft.auto", "peft.config", "peft.mixed_model", "peft.optimizers", "peft.peft_model", "peft.tuners"),
        functions=(
            "peft.mapping.inject_adapter_in_model", "peft.mapping_func.get_peft_model", "peft.optimizers",
            "peft.utils.other.prepare_model_for_kbit_training",
        ),
        refused=("peft.utils.save_and_load",),
    ),
    "datasets": Package(
        classes=(
            "datasets.arrow_dataset", "datasets.dataset_dict", "datasets.download.download_config", "datasets.features",
            "datasets.iterable_dataset", "datasets.splits", "datasets.utils.info_utils", "datasets.utils.version",
        ),
        functions=("datasets.combine", "datasets.load.load_dataset", "datasets.load.load_from_disk"),
        refused=(
            "datasets.Dataset.from_sql", "datasets.arrow_dataset.Dataset.from_sql", "datasets.commands",
            "datasets.packaged_modules", "datasets.parallel", "datasets.utils.py_utils",
        ),
    ),
    "accelerate": Package(
        classes=(
            "accelerate.accelerator", "accelerate.data_loader", "accelerate.hooks", "accelerate.optimizer", "accelerate.parallelism_config",
            "accelerate.scheduler", "accelerate.state", "accelerate.utils.dataclasses",
        ),
        refused=(
            "accelerate.commands", "accelerate.debug_launcher", "accelerate.launchers", "accelerate.notebook_launcher",
            "accelerate.test_utils", "accelerate.utils.environment", "accelerate.utils.launch", "accelerate.utils.load",
            "accelerate.utils.operations", "accelerate.utils.other", "accelerate.utils.save",
        ),
    ),
}


def within(path: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a dotted path is one of the prefixes or below one."""
    return any(path == prefix or path.startswith(prefix + ".") for prefix in prefixes)


def allowed_prefixes() -> tuple[str, ...]:
    """The module prefixes in `LLMMOD_ALLOW`, separated by commas there, without those that can't be allowed."""
    return tuple(p for p in _asked_prefixes() if not refused_prefix(p))


def check_prefixes() -> list[Problem]:
    """A problem for each prefix in `LLMMOD_ALLOW` that can't be allowed."""
    return [Problem(f"{ENVIRONMENT}={p}", reason) for p in _asked_prefixes() if (reason := refused_prefix(p))]


def refused_prefix(prefix: str) -> str:
    """Why the user can't allow a prefix; empty if they can."""
    parts = prefix.split(".")
    if not all(_is_name(part) for part in parts):
        return "not the name of a module"
    if parts[0] in NEVER or parts[0] in _FRAMEWORK:
        return f"{parts[0]} runs code, so it can't be allowed"
    if prefix in PACKAGES or parts[0] == "llmmod" or within(prefix, PACKAGES.get(parts[0], Package(())).refused):
        return "the parts of this package that a configuration may name are fixed"
    return ""


def refusal(path: Any, *, hydra: bool = False) -> str:
    """Why a configuration must not name a dotted path, by its text; empty if it may.

    Args:
        path: the value of a `_target_`.
        hydra: whether it is in the `hydra` node. There only Hydra's own launcher and sweeper are allowed, and a run's components are not,
            since Hydra builds that node without `instantiate`.
    """
    if not isinstance(path, str) or not path:
        return f"{path!r} is not a dotted path"
    parts = path.split(".")
    if hydra and (path in _HYDRA_PARTS or _is_of_plugin(parts)):
        return ""
    if hydra and parts[0] in PACKAGES:
        return f"'{path}' is not a part of Hydra"
    if not all(_is_name(part) for part in parts):
        return f"'{path}' is not a dotted path"
    if any(part.startswith("_") for part in parts):
        return f"'{path}' is private"
    if parts[0] in NEVER or len(parts) < 2:
        return f"a configuration must not name '{path}'"
    if parts[0] in PACKAGES:
        return refusal_in_package(path)
    return "" if within(path, allowed_prefixes()) else f"a configuration must not name '{path}'"


def advice(path: Any, *, hydra: bool = False) -> tuple[str, str]:
    """The allowed alternatives to a refused path, and what to do."""
    allowed = f"Allowed: components of {', '.join(PACKAGES)}"
    allowed = "Allowed: Hydra's own launcher and sweeper, and those of its installed plugins" if hydra else allowed
    root = path.split(".")[0] if isinstance(path, str) else ""
    if not _is_name(root) or root in NEVER or root in PACKAGES or root in _FRAMEWORK or "._" in path:
        return allowed, ""
    return allowed, f"If you trust that module, add --allow {root}, or set {ENVIRONMENT}={root}"


def check_targets(tree: Any, where: str = "") -> list[Problem]:
    """A problem for each dotted path, at any depth of a configuration, that it must not name; without imports.

    Args:
        tree: the configuration, or a part of it, as plain containers; interpolations resolved.
        where: the part's key, empty for the root. Below `hydra`, the callables of its logging are checked too.
    """
    found = []
    for key, value, kind in _named(tree, where):
        if kind == "logging":
            if value not in LOGGING:
                refused = f"a logging configuration must not name {value!r}"
                found.append(Problem(key, refused, f"Allowed: {', '.join(sorted(LOGGING))}"))
        elif reason := refusal(value, hydra=kind == "hydra"):
            found.append(Problem(key, reason, *advice(value, hydra=kind == "hydra")))
    return found + check_hydra(tree if where == "hydra" else tree.get("hydra") if not where and isinstance(tree, dict) else None)


def refusal_in_package(path: str) -> str:
    """Why a path in one of the packages is always refused; empty if it isn't, or isn't in one of the packages."""
    parts = path.split(".")
    if (package := PACKAGES.get(parts[0])) is None:
        return ""
    for depth, part in enumerate(parts[1:-1], start=2):
        if part in sys.stdlib_module_names and find_module(".".join(parts[:depth])) is None:
            return f"'{path}' leads to Python's own module {part}"
    if within(path, package.refused) or (parts[0] != "llmmod" and not _RUN.isdisjoint(parts)):
        return f"'{path}' is refused: it runs programs or code, reads pickles, or writes to any path"
    if parts[0] == "llmmod" and not within(path, package.classes + package.functions):
        return f"'{path}' is not a component of a run"
    return ""


def _is_of_plugin(parts: list[str]) -> bool:
    """Whether a path names a class in a module of an installed plugin of Hydra's."""
    named = parts[0] == _HYDRA_PLUGINS and all(map(_is_name, parts)) and parts[-1][0].isupper()
    return named and find_module(".".join(parts[:-1])) is not None


def _asked_prefixes() -> list[str]:
    return [p.strip() for p in os.environ.get(ENVIRONMENT, "").split(",") if p.strip()]


def _is_name(part: str) -> bool:
    return part.isidentifier() and part.isascii()


def _named(node: Any, key: str) -> Iterator[tuple[str, Any, str]]:
    """Each entry of a tree that names an object: its key, the value, and `target`, `hydra` or `logging`."""
    in_hydra = key.split(".")[0] == "hydra"
    in_logging = within(key, ("hydra.job_logging", "hydra.hydra_logging"))
    if isinstance(node, dict):
        for name, value in node.items():
            place = f"{key}.{name}" if key else str(name)
            if name == "_target_" and value != "???":
                yield place, value, "hydra" if in_hydra else "target"
            elif in_logging and name in ("()", "class") and value is not None:
                yield place, value, "logging"
            yield from _named(value, place)
    elif isinstance(node, (list, tuple)):
        for number, value in enumerate(node):
            yield from _named(value, f"{key}.{number}")
    elif in_logging and isinstance(node, str) and node.startswith("ext://"):
        yield key, node, "logging"
