"""Keys that the user set and the chosen options never read: they would change nothing, and the user expects something of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llmmod.errors import Problem
from llmmod.schema.names import PARTS, split_key
from llmmod.schema.step import ANYTHING
from llmmod.schema.step.predict import PredictConf
from llmmod.schema.training import CONTINUES, SCORES
from llmmod.schema.validate.context import Context, label
from llmmod.schema.validate.contradictions import without_dropout
from llmmod.schema.validate.data_kinds import only
from llmmod.schema.validate.unread_training import OF_TRAINING, Condition, has

Rule = tuple[str, tuple[str, ...], Condition, str]

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty", "diversity_penalty", "num_beam_groups")
_QUANTIZATION = (
    "type", "double_quant", "compute_dtype", "quant_storage", "llm_int8_threshold", "llm_int8_has_fp16_weight", "llm_int8_skip_modules",
)  # fmt: skip
_NO_ANSWERS = "only answers to prompts are measured and compared, and predict gives none in this stage|Leave it out"
_AUTO_RENDER = (
    "prefix", "empty_prefix", "prompt", "response", "sep", "system_in_query", "strip", "bos", "first_round", "efficient_eos",
)  # fmt: skip


def _without_answers(context: Context, key: str, node: dict[str, Any]) -> bool:
    """Whether all that goes by a step `predict` writes documents on or gives scores; a class of the user's own may read anything."""
    step = key.split(".")[1]
    if context.step_type(step) is not PredictConf:
        return False
    readers = [name for name in context.steps if name == step or key in context.reads(name)]
    return all(context.get(f"{context.part(name, 'training')}.predict._target_") in (CONTINUES, SCORES) for name in readers)


# what the node is called, its fields, when they are not read, why and what to do
RULES: tuple[Rule, ...] = (
    ("generation", _SAMPLING, has("do_sample", False), "not read with generation.do_sample=false|Use generation=sample"),
    ("generation", _BEAMS, has("num_beams", 1), "not read with generation.num_beams=1|Set generation.num_beams"),
    ("dataset", ("buffer_size",), has("streaming", False), "not read with streaming=false"),
    ("dataset", ("num_proc", "cache", "cache_max_gb"), has("streaming", True), "not read with streaming=true"),
    ("dataset", ("cache_max_gb",), has("cache", False), "not read with cache=false"),
    ("dataset", ("seed",), lambda c, k, n: not n.get("val_size") and not n.get("streaming"),
     "only the split by val_size reads it|Set val_size, or seed at the root"),
    ("dataset", ("mask_prompt",), lambda c, k, n: only(c, k, "document", "preference", "judgement", "prompt"),
     "not read: of this stage's rows it is known what is trained"),
    ("dataset", ("ranked",), lambda c, k, n: only(c, k, "conversation", "document", "prompt"),
     "only answers that are compared or judged can be ranked|Leave it out, or use stage=rm, dpo or kto"),
    ("dataset", ("cutoff_policy", "system"), lambda c, k, n: only(c, k, "document"), "a document is a text, and goes on in the next row"),
    ("dataset", ("drop_last_block",),
     lambda c, k, n: bool(n.get("packing")) or only(c, k, "conversation", "preference", "judgement", "prompt"),
     "only documents that are joined into blocks have a last one|Use stage=pt with dataset.packing=false"),
    ("dataset", ("mix_stopping",), lambda c, k, n: not n.get("mix"), "only read with dataset.mix"),
    ("model", ("architecture",), lambda c, k, n: not c.smoke, "only a rehearsal reads it|Set smoke=true, or model.config"),
    ("model.quantization", _QUANTIZATION, has("bits", None), "not read, since bits is null|Set bits to 4 or 8"),
    ("model.quantization", ("type", "double_quant", "quant_storage"), has("bits", 8), "only read with bits=4"),
    ("model.quantization", ("llm_int8_threshold", "llm_int8_has_fp16_weight"), has("bits", 4), "only read with bits=8"),
    ("model", ("shift_attn_group_size",), has("shift_attn", False), "not read with shift_attn=false|Set model.shift_attn=true"),
    ("model.rope_scaling", ("factor",), has("type", None), "not read, since type is null|Set model.rope_scaling.type"),
    ("render", _AUTO_RENDER, has("_target_", "llmmod.render.auto.AutoTemplate"), "render=auto writes what the chat template says|"
     "Choose another render"),
    ("render", ("template",), has("_target_", "llmmod.render.template.Template"), "only render=auto reads it|Set render=auto"),
    *(("training", *rule) for rule in OF_TRAINING),
    ("step", ("metrics",), _without_answers, _NO_ANSWERS),
    ("step", ("compare_with_base",), lambda c, k, n: bool(n.get("compare_with_base")) and _without_answers(c, k, n), _NO_ANSWERS),
    ("finetune", ("lora_dropout",), lambda c, k, n: bool(n.get("lora_dropout")) and without_dropout(c, k),
     "not read with training.disable_dropout=true|Set training.disable_dropout=false"),
    ("finetune", ("loftq_config",), lambda c, k, n: n.get("init_lora_weights") != "loftq", "only read with init_lora_weights=loftq"),
)  # fmt: skip


def check_unread(context: Context) -> Iterator[Problem]:
    """A problem for each key that the user set and nothing reads."""
    for key in sorted(context.user_keys, key=_order(context)):
        parts = split_key(key)
        if problem := _of_no_step(context, key, parts) or _by_rule(context, key, parts):
            yield problem


def _order(context: Context) -> Callable[[str], tuple[int, str]]:
    """The order of a configuration's parts, so that problems come in a stable one."""
    names = list(context.plain)
    return lambda key: (names.index(split_key(key)[0]) if split_key(key)[0] in names else len(names), key)


def _of_no_step(context: Context, key: str, parts: list[str]) -> Problem | None:
    """A key of a step that isn't in the pipeline, or of a part that none of its steps reads."""
    pipeline = f"[{','.join(map(str, context.get('pipeline') or []))}]"
    reads = {step: context.reads(step) for step in context.steps}
    if parts[0] == "steps" and len(parts) > 2:
        if parts[1] not in reads and not any(f"steps.{parts[1]}" in names for names in reads.values()):
            return Problem(key, f"not read, since {parts[1]} is not in the pipeline {pipeline}", do="Add it, or leave the key out")
        if parts[1] in reads and parts[2] in PARTS and not _reads(reads[parts[1]], ".".join(parts[2:])):
            return Problem(key, f"the step {parts[1]} doesn't read it", do="Leave it out")
        return None
    readers = [step for step in reads if not _has_own(context, step, parts[0]) and _reads(reads[step], key)]
    if parts[0] in ANYTHING and context.steps and not readers:
        return Problem(key, f"nothing in the pipeline {pipeline} reads it", do="Leave it out")
    return None


def _has_own(context: Context, step: str, part: str) -> bool:
    return context.part(step, part) != part


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
