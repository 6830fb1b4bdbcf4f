"""The fingerprint of a training: every input that affects its result, and nothing else.

It leaves out the output directory, what is logged, reported and saved during training, and the later steps. It includes the content of
data, checkpoint and adapters, the weights of earlier steps, the source of every named class, ours too, and the versions of the libraries.
As with data, dates are not trusted and files are read completely; loading a model reads them anyway. A repository of the hub is identified
by its commit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from llmmod.cache.content import NoIdentityError, digest, file_digest, render_identity, source_identity, tokenizer_identity
from llmmod.config.schema.model import HubConf, ModelConf
from llmmod.config.schema.steps import StepConf
from llmmod.config.schema.training import reward_nodes
from llmmod.distributed import world_size
from llmmod.files.checkpoint import hub_arguments, set_proxies
from llmmod.files.paths import resolve_path
from llmmod.models.loading.build import model_checkpoint, model_path
from llmmod.models.loading.stage_file import read_stage_file
from llmmod.upstream import installed

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 8.0
_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "tokenizers")
# Fields of `training` that don't affect the weights or the metrics.
_OUTPUT = frozenset({
    "output_dir", "resume_from_checkpoint", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level",
    "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "save_only_model", "save_on_each_node", "save_total_limit", "enable_jit_checkpoint", "push_to_hub",
    "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    "predict", "predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config",
})  # fmt: skip
_SAVING = frozenset({"save_strategy", "save_steps"})  # they decide which checkpoints the best one is selected from
# Fields of `model` that a training doesn't read, or that are in `finetune` and `training` by then.
_ELSEWHERE = frozenset({"name", "install", "sizes", "architecture", "print_structure", "lora_targets", "lora_learning_rate"})


def checkpoint_identity(conf: ModelConf, hub: HubConf) -> Any:
    """The identity of the checkpoint that `model.*` names.

    Raises:
        NoIdentityError: its commit on the hub is unknown.
        ConfigError: it doesn't exist.
    """
    checkpoint = model_checkpoint(conf)
    if not checkpoint.local:
        content: Any = _commit(checkpoint.path, conf.revision, hub)
    elif checkpoint.gguf_file is not None:
        content = file_digest(Path(checkpoint.path) / checkpoint.gguf_file)
    else:
        content = _files(Path(checkpoint.path))
    return {"path": model_path(conf), "content": content}  # the path as typed is saved with the trained model


def directory_identity(path: str, hub: HubConf) -> Any:
    """The identity of an adapter or a model, with its base.

    Args:
        path: a directory, or a hub id.
        hub: settings of the hub.

    Raises:
        NoIdentityError: its commit on the hub is unknown.
    """
    place = resolve_path(path)
    if not isinstance(place, Path):
        return {"path": path, "content": _commit(path, None, hub)}
    left = read_stage_file(place)
    below = [left.base, *left.merged] if left is not None else [_adapter_base(place)]
    found = [resolved for name in below if name and (resolved := _directory_named(place, name)) is not None]
    return {"path": str(place.absolute()), "content": _files(place), "on": [directory_identity(str(each), hub) for each in found]}


def _directory_named(place: Path, name: str) -> Path | None:
    """The directory that a name in a file of `place` refers to; None if it isn't on this disk."""
    sibling = place / name
    located = sibling if name.startswith("..") else resolve_path(name)
    return located.resolve() if isinstance(located, Path) and located.is_dir() and located.resolve() != place.resolve() else None


def _adapter_base(place: Path) -> str | None:
    with suppress(OSError, ValueError, AttributeError):
        named = json.loads((place / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
        return None if named is None else str(named)
    return None


def _files(directory: Path) -> Any:
    """The files directly in a directory; its folders are not read."""
    if not directory.is_dir():
        return file_digest(directory)
    return {path.name: file_digest(path) for path in sorted(directory.iterdir()) if path.is_file() and not path.name.startswith(".")}


def _commit(repo: str, revision: str | None, hub: HubConf) -> str:
    """The current commit of a revision; offline, or if the hub doesn't answer, the one in the cache."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    if not hub.offline and not constants.is_offline_mode():
        set_proxies(hub.proxies)
        with suppress(Exception):  # any error of the network; from_pretrained uses the cache then too
            found = HfApi(token=hub.token).model_info(repo, revision=revision, timeout=_TIMEOUT_S).sha
            if found:
                return str(found)
    cached = try_to_load_from_cache(repo, "config.json", cache_dir=hub_arguments(hub).get("cache_dir"), revision=revision)
    if isinstance(cached, str) and (commits := [part for part in Path(cached).parts if _COMMIT.fullmatch(part)]):
        return commits[-1]
    raise NoIdentityError(f"the commit of {repo} is unknown")


def parts(session: Any, step: str, *, args: Any, data: str | None) -> dict[str, str]:
    """The inputs of a training, name -> 32 hex digits; the fingerprint is the digest of them all.

    Args:
        session: of the run.
        step: that trains.
        args: its trainer's arguments, complete.
        data: the identity of its examples.

    Raises:
        NoIdentityError: an input may change unnoticed; the error names it.
    """
    if data is None:
        raise NoIdentityError("its examples can't be identified")
    hub, model, finetune = session.root.hub, session.conf(step, "model"), session.conf(step, "finetune")
    training = _kept(asdict(session.conf(step, "training")), _OUTPUT)
    if not args.load_best_model_at_end:
        training = _kept(training, _SAVING)
    if "reward" in training:
        training["reward"] = {name: _reward(session, node) for name, node in reward_nodes(training["reward"]).items()}
    nodes = {"training": training, "finetune": asdict(finetune), "model": _kept(asdict(model), _ELSEWHERE)}
    nodes["finetune"].pop("learning_rate", None)  # `training.learning_rate` has it
    nodes |= {"render": asdict(session.conf(step, "render")), "tokenizer": asdict(session.root.tokenizer)}
    earlier = session.from_step(step)
    found = {f"{name}.{field}": value for name, node in nodes.items() for field, value in node.items()} | {
        "seed": args.seed,
        "device": [args.device.type, args.bf16, args.fp16],
        "number of processes": world_size(),
        "how prompts are answered while it trains": _answer_settings(session, step),
        "files that training names": _named_files(training),
        "data": data,
        "render": render_identity(session.render(step)),
        "tokenizer": tokenizer_identity(session.tokenizer(step)),
        "its initial model": session.training_lineage(step),
        "checkpoint" if earlier is None else f"the model of {earlier}":
            checkpoint_identity(model, hub) if earlier is None else _step_identity(session, earlier),
        "adapters": [directory_identity(path, hub) for path in finetune.adapters],
        "llmmod's code": _own_code(),
        "versions of libraries": {name: installed(name) or "" for name in _LIBRARIES},
        "code that the configuration names": source_identity(nodes),
    }  # fmt: skip
    return {name: digest(value) for name, value in found.items()}


def weights_identity(directory: Path, fingerprint: str) -> str:
    """The identity of a training's result, for trainings that build on it: its inputs and its weights.

    A repeated training may give other bits, and a model trained on the first weights doesn't fit the second.
    """
    files = [path for pattern in ("*.safetensors", "*.bin") for path in sorted(directory.glob(pattern))]
    return digest([fingerprint, {path.name: file_digest(path) for path in files}])


def _answer_settings(session: Any, step: str) -> Any:
    """The inputs of the answers' metrics, if a training answers prompts; else None."""
    if session.conf(step, "training").predict_steps is None:
        return None
    predict = session.root.steps.get("predict")
    return [asdict(session.root.generation), asdict(predict) if isinstance(predict, StepConf) else None]


def _kept(fields: Mapping[str, Any], without: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in without}


def _step_identity(session: Any, step: str) -> str:
    identity: str | None = session.result(step).identity
    if identity is None:
        raise NoIdentityError(f"it builds on {step}, which can't be identified")
    return identity


def _reward(session: Any, node: Mapping[str, Any]) -> Any:
    if "step" in node:
        return {**node, "left": _step_identity(session, node["step"])}
    return directory_identity(str(node["path"]), session.root.hub) if "path" in node else dict(node)


def _named_files(training: Mapping[str, Any]) -> dict[str, str]:
    """The content of files that arguments name, such as a deepspeed or fsdp configuration."""
    named = {name: Path(value) for name, value in training.items() if isinstance(value, str) and value.endswith(".json")}
    return {name: file_digest(path) for name, path in named.items() if path.is_file()}


@cache
def _own_code() -> str:
    """The digest of llmmod's source; the version alone doesn't show changes in a checkout."""
    package = Path(__file__).parents[1]
    return digest({str(path.relative_to(package)): file_digest(path) for path in sorted(package.rglob("*.py"))})
