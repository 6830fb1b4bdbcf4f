"""Keys that are never read: a schema doesn't have them, or the chosen options don't use them.

A key outside every schema comes from `+`, or from a file that doesn't start from its schema. If the user sets a key that the chosen options
don't read, it has no effect, although the user expects one; `RULES` lists these keys and their conditions.

Two more checks are about a value's source. In a stage's file, `learning_rate: ${finetune.learning_rate}` refers to the root. A step
whose own `finetune` trains all weights would therefore train them at the rate of an adapter. And a text of the command line may have
bytes that are not UTF-8, which a tokenizer and the files of a run can't store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf

from llmmod.config.schema.distributed import DeepspeedConf, FsdpConf
from llmmod.config.schema.steps import ANYTHING, PredictConf
from llmmod.config.schema.training import CONTINUES, SCORES
from llmmod.config.step_parts import Context, label
from llmmod.config.validate.data import has_kind
from llmmod.config.validate.training import without_dropout
from llmmod.config.validate.unread_training import OF_TRAINING, Condition, has, nor
from llmmod.config.wording import PARTS, hints, no_such_field, shown, split_key
from llmmod.errors import Problem

_SPECIAL = frozenset({"_args_", "_convert_", "_partial_", "_recursive_"})
_SCHEMA_LINES = {"finetune": "/schema/finetune/lora@_here_", "training": "/schema/training/sft@_here_"}
Rule = tuple[str, tuple[str, ...], Condition, str]
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty", "diversity_penalty", "num_beam_groups")
_QUANTIZATION = (
    "type", "double_quant", "compute_dtype", "quant_storage", "llm_int8_threshold", "llm_int8_has_fp16_weight", "llm_int8_skip_modules",
)  # fmt: skip
_NO_ANSWERS = "predict doesn't generate answers in this stage, so it can't measure or compare them|Leave it out"
_AUTO_RENDER = (
    "prefix", "empty_prefix", "prompt", "response", "sep", "system_in_query", "strip", "bos", "first_round", "efficient_eos",
)  # fmt: skip
_ZERO2 = ("allgather_bucket_size", "round_robin_gradients")
_ZERO3 = (
    "offload_param", "sub_group_size", "zero_hpz_partition_size", *(name for name in hints(DeepspeedConf) if name.startswith("stage3_")),
)  # fmt: skip
_FROM_ROOT = re.compile(r"\$\{((model|finetune)\.[\w.]+)\}")


def check_keys(context: Context) -> Iterator[Problem]:
    """A problem for each key that its node's dataclass doesn't have, and for each part without a dataclass."""
    yield from _untyped(context)
    for key, schema in context.nodes.items():
        node = context.get(key)
        if not isinstance(node, dict) or _is_the_users_own(node, schema):
            continue
        for name in node:
            if name not in hints(schema) and name not in _SPECIAL:
                yield no_such_field(f"{key}.{name}" if key else str(name), context.config, context.choices)


def _untyped(context: Context) -> Iterator[Problem]:
    for part, line in _SCHEMA_LINES.items():
        if part not in context.nodes and isinstance(context.get(part), dict):
            option = context.choices.get({"training": "stage"}.get(part, part))
            yield Problem(part, f"the option {option} doesn't start from a schema", do=f"Begin its defaults with '- {line}'")
    steps = context.get("steps")
    for name, step in steps.items() if isinstance(steps, dict) else []:
        if f"steps.{name}" not in context.nodes:
            found = "doesn't start from a schema" if isinstance(step, dict) else f"found {shown(step)}"
            do = f"Start from a step's: +step@steps.{name}=train steps.{name}._target_=…"
            yield Problem(f"steps.{name}", found, do=do)


def _is_the_users_own(node: dict[str, object], schema: type) -> bool:
    """Whether the node is for a user's own class, which may read keys that ours doesn't."""
    default = next((field.default for field in fields(schema) if field.name == "_target_"), None)
    return node.get("_target_") not in (None, default) and not str(node["_target_"]).startswith("llmmod.")


def _without_answers(context: Context, key: str, node: dict[str, Any]) -> bool:
    """Whether every stage that uses a step `predict` continues documents or writes scores; a user's own class may read any key."""
    step = key.split(".")[1]
    if context.step_type(step) is not PredictConf:
        return False
    readers = [name for name in context.steps if name == step or key in context.reads(name)]
    return all(context.get(f"{context.part(name, 'training')}.predict._target_") in (CONTINUES, SCORES) for name in readers)


# the node's name, its fields, the condition under which they are not read, why and what to do
RULES: tuple[Rule, ...] = (
    ("generation", _SAMPLING, has("do_sample", False), "not read with generation.do_sample=false|Use generation=sample"),
    ("generation", _BEAMS, has("num_beams", 1), "not read with generation.num_beams=1|Set generation.num_beams"),
    ("dataset", ("buffer_size",), has("streaming", False), "not read with streaming=false"),
    ("dataset", ("num_proc", "cache", "cache_max_gb"), has("streaming", True), "not read with streaming=true"),
    ("dataset", ("cache_max_gb",), has("cache", False), "not read with cache=false"),
    ("dataset", ("seed",), lambda c, k, n: not n.get("val_size") and not n.get("streaming"),
     "only the split by val_size reads it|Set val_size, or seed at the root"),
    ("dataset", ("mask_prompt",), lambda c, k, n: has_kind(c, k, "document", "preference", "judgement", "prompt"),
     "not read: this stage fixes which tokens are trained"),
    ("dataset", ("ranked",), lambda c, k, n: has_kind(c, k, "conversation", "document", "prompt"),
     "rankings are for stages that compare or judge answers|Leave it out, or use stage=rm, dpo or kto"),
    ("dataset", ("cutoff_policy", "system"), lambda c, k, n: has_kind(c, k, "document"),
     "a document is plain text, and continues in the next row"),
    ("dataset", ("drop_last_block",),
     lambda c, k, n: bool(n.get("packing")) or has_kind(c, k, "conversation", "preference", "judgement", "prompt"),
     "the last block exists only if documents are joined into blocks|Use stage=pt with dataset.packing=false"),
    ("dataset", ("mix_stopping",), lambda c, k, n: not n.get("mix"), "only read with dataset.mix"),
    ("model", ("architecture",), lambda c, k, n: not c.smoke, "only a rehearsal reads it|Set smoke=true, or model.config"),
    ("model.quantization", _QUANTIZATION, has("bits", None), "not read, since bits is null|Set bits to 4 or 8"),
    ("model.quantization", ("type", "double_quant", "quant_storage"), has("bits", 8), "only read with bits=4"),
    ("model.quantization", ("llm_int8_threshold", "llm_int8_has_fp16_weight"), has("bits", 4), "only read with bits=8"),
    ("model", ("shift_attn_group_size",), has("shift_attn", False), "not read with shift_attn=false|Set model.shift_attn=true"),
    ("model.rope_scaling", ("factor",), has("type", None), "not read, since type is null|Set model.rope_scaling.type"),
    ("render", _AUTO_RENDER, has("_target_", "llmmod.render.auto.AutoTemplate"), "render=auto uses the chat template|"
     "Choose another render"),
    ("render", ("template",), has("_target_", "llmmod.render.template.Template"), "only render=auto reads it|Set render=auto"),
    *(("training", *rule) for rule in OF_TRAINING),
    ("distributed", ("processes", "nodes", "rank", "address"), has("name", "none"), "not read with distributed=none|Set distributed=ddp"),
    ("distributed", ("address",), has("nodes", 1), "only read with distributed.nodes=2 or more"),
    ("distributed.fsdp", tuple(hints(FsdpConf)), lambda c, k, n: c.get("distributed.name") != "fsdp", "only read with distributed=fsdp"),
    ("distributed.fsdp", ("min_num_params",), nor(has("auto_wrap_policy", "SIZE_BASED_WRAP")),
     "only read with distributed.fsdp.auto_wrap_policy=SIZE_BASED_WRAP"),
    ("distributed.fsdp", ("transformer_layer_cls_to_wrap",), nor(has("auto_wrap_policy", "TRANSFORMER_BASED_WRAP")),
     "only read with distributed.fsdp.auto_wrap_policy=TRANSFORMER_BASED_WRAP"),
    ("distributed.deepspeed", tuple(hints(DeepspeedConf)), lambda c, k, n: not str(c.get("distributed.name")).startswith("deepspeed"),
     "only read with distributed=deepspeed_zero2 or deepspeed_zero3"),
    ("distributed.deepspeed", _ZERO2, lambda c, k, n: c.get("distributed.name") == "deepspeed_zero3",
     "only read with distributed=deepspeed_zero2"),
    ("distributed.deepspeed", _ZERO3, lambda c, k, n: c.get("distributed.name") == "deepspeed_zero2",
     "only read with distributed=deepspeed_zero3"),
    ("step", ("metrics",), _without_answers, _NO_ANSWERS),
    ("step", ("compare_with_base",), lambda c, k, n: bool(n.get("compare_with_base")) and _without_answers(c, k, n), _NO_ANSWERS),
    ("finetune", ("lora_dropout",), lambda c, k, n: bool(n.get("lora_dropout")) and without_dropout(c, k),
     "not read with training.disable_dropout=true|Set training.disable_dropout=false"),
    ("finetune", ("loftq_config",), lambda c, k, n: n.get("init_lora_weights") != "loftq", "only read with init_lora_weights=loftq"),
)  # fmt: skip


def check_unread(context: Context) -> Iterator[Problem]:
    """A problem for each key that the user set and that is not read."""
    for key in sorted(context.user_keys, key=_order(context)):
        parts = split_key(key)
        if problem := _of_no_step(context, key, parts) or _by_rule(context, key, parts):
            yield problem


def _order(context: Context) -> Callable[[str], tuple[int, str]]:
    """A sort key: the order of a configuration's parts, so that the order of problems is stable."""
    names = list(context.plain)
    return lambda key: (names.index(split_key(key)[0]) if split_key(key)[0] in names else len(names), key)


def _of_no_step(context: Context, key: str, parts: list[str]) -> Problem | None:
    """The problem of a key of a step that isn't in the pipeline, or of a part that its steps don't read."""
    pipeline = f"[{','.join(map(str, context.get('pipeline') or []))}]"
    reads = {step: context.reads(step) for step in context.steps}
    if parts[0] == "steps" and len(parts) > 2:
        if parts[1] not in reads and not any(f"steps.{parts[1]}" in names for names in reads.values()):
            return Problem(key, f"not read, since {parts[1]} is not in the pipeline {pipeline}", do="Add it, or leave the key out")
        if parts[1] in reads and parts[2] in PARTS and not _reads(reads[parts[1]], ".".join(parts[2:])):
            return Problem(key, f"the step {parts[1]} doesn't read it", do="Leave it out")
        return None
    readers = [step for step in reads if context.part(step, parts[0]) == parts[0] and _reads(reads[step], key)]
    if parts[0] in ANYTHING and context.steps and not readers:
        return Problem(key, f"the steps of the pipeline {pipeline} don't read it", do="Leave it out")
    return None


def _reads(names: tuple[str, ...], key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in names)


def _by_rule(context: Context, key: str, parts: list[str]) -> Problem | None:
    for depth in range(len(parts) - 1, 0, -1):
        node_key = ".".join(parts[:depth])
        node = context.get(node_key)
        for place, names, unread, why in RULES:
            if isinstance(node, dict) and place == label(node_key) and parts[depth] in names and unread(context, node_key, node):
                found, _, do = why.partition("|")
                return Problem(key, found, do=do)
    return None


def check_taken_over(context: Context) -> Iterator[Problem]:
    """A problem for each value that a training step takes from the root although the step's own part has another."""
    for step in context.steps:
        if not context.trains(step):
            continue
        for part in ("training", "finetune"):
            key = context.part(step, part)
            for name, (source, referred) in _root_references(context, key).items():
                own = context.part(step, referred) + source.removeprefix(referred)
                if own != source and context.get(own) != context.get(source):
                    found = f"comes from {source}={shown(context.get(source))} of the root, but {own} is {shown(context.get(own))}"
                    yield Problem(f"{key}.{name}", found, do="Set it")


def _root_references(context: Context, key: str) -> dict[str, tuple[str, str]]:
    """Field -> the key at the root that it refers to, and that key's part."""
    node: Any = OmegaConf.select(context.config, key)
    raw = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_dict(node) else {}
    found = {str(name): _FROM_ROOT.search(value) for name, value in dict(raw).items() if isinstance(value, str)}  # type: ignore[arg-type]
    return {name: (match[1], match[2]) for name, match in found.items() if match}


def check_text(context: Context) -> Iterator[Problem]:
    """A problem for each value, or name of a key, that is not UTF-8: a tokenizer and the files of a run can't store it."""
    for key, text in _texts("", context.plain):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            is_byte = 0xDC80 <= code <= 0xDCFF
            what = f"the byte 0x{code - 0xDC00:02x}, which is not UTF-8" if is_byte else f"\\u{code:x}, half of a character"
            yield Problem(_shown(key), f"found {what}, in '{_shown(text)}'", do="Write it in UTF-8")


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """The key and the text of each text in a configuration, names of keys included."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            place = f"{key}.{name}" if key else str(name)
            yield place, str(name)
            yield from _texts(place, item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(f"{key}[{number}]", item)


def _shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
