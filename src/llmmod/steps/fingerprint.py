"""The fingerprint of a training: made of all that decides what it leaves, and of nothing else.

Not in it: where the run is written, what is logged, reported and kept on the way, and the steps that come afterwards. What a training
doesn't know of itself comes as it is found: the content of data, checkpoint and adapters, the weights that earlier steps left, the source
of every class that is named, ours too, and the versions of the libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from llmmod.data.cache.identity import (
    NoIdentityError,
    digest,
    file_digest,
    render_identity,
    source_identity,
    tokenizer_identity,
)
from llmmod.models.identity import checkpoint_identity, directory_identity
from llmmod.ranks import world_size
from llmmod.schema.reward import reward_nodes
from llmmod.versions import installed

_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "tokenizers")
# Fields of `training` that no weight and no measure depends on.
_OUTPUT = frozenset({
    "output_dir", "resume_from_checkpoint", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level",
    "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "save_only_model", "save_on_each_node", "save_total_limit", "enable_jit_checkpoint", "push_to_hub",
    "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    "predict", "predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config",
})  # fmt: skip
_SAVING = frozenset({"save_strategy", "save_steps"})  # decide which checkpoints there are to choose the best of
# Of `model`: what others than the training read, or what stands in `finetune` and `training` by then.
_ELSEWHERE = frozenset({"name", "install", "sizes", "architecture", "print_structure", "lora_targets", "lora_learning_rate"})


def parts(session: Any, step: str, *, args: Any, data: str | None) -> dict[str, str]:
    """What decides a training, by name, 32 hex digits each; the fingerprint is the digest of them all.

    Args:
        session: of the run.
        step: that trains.
        args: its trainer's arguments, in which everything is decided.
        data: the identity of its examples.

    Raises:
        NoIdentityError: something can't be told apart from what it may become, and what.
    """
    if data is None:
        raise NoIdentityError("its examples can't be told apart from others")
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
        "files that training names": _named_files(training),
        "data": data,
        "render": render_identity(session.render(step)),
        "tokenizer": tokenizer_identity(session.tokenizer(step)),
        "what it begins with": session.begins_with(step),
        "checkpoint" if earlier is None else f"what {earlier} left":
            checkpoint_identity(model, hub) if earlier is None else _left_by(session, earlier),
        "adapters": [directory_identity(path, hub) for path in finetune.adapters],
        "llmmod's code": _own_code(),
        "versions of libraries": {name: installed(name) or "" for name in _LIBRARIES},
        "code that is named": source_identity(nodes),
    }  # fmt: skip
    return {name: digest(value) for name, value in found.items()}


def weights_identity(directory: Path, fingerprint: str) -> str:
    """What a training left, by which those that stand on it know it again: what decided it, and the weights that came of it.

    A training that is repeated needn't give the same bits; what was trained on the first ones doesn't fit the second.
    """
    files = [path for pattern in ("*.safetensors", "*.bin") for path in sorted(directory.glob(pattern))]
    return digest([fingerprint, {path.name: file_digest(path) for path in files}])


def _kept(fields: Mapping[str, Any], without: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in without}


def _left_by(session: Any, step: str) -> str:
    identity: str | None = session.result(step).identity
    if identity is None:
        raise NoIdentityError(f"it stands on {step}, which later runs can't know again")
    return identity


def _reward(session: Any, node: Mapping[str, Any]) -> Any:
    if "step" in node:
        return {**node, "left": _left_by(session, node["step"])}
    return directory_identity(str(node["path"]), session.root.hub) if "path" in node else dict(node)


def _named_files(training: Mapping[str, Any]) -> dict[str, str]:
    """The content of files that arguments name: a deepspeed or fsdp configuration, say."""
    named = {name: Path(value) for name, value in training.items() if isinstance(value, str) and value.endswith(".json")}
    return {name: file_digest(path) for name, path in named.items() if path.is_file()}


@cache
def _own_code() -> str:
    """Of llmmod's source; its version alone doesn't tell what was changed in a checkout."""
    package = Path(__file__).parents[1]
    return digest({str(path.relative_to(package)): file_digest(path) for path in sorted(package.rglob("*.py"))})
