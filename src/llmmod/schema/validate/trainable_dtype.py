"""`finetune.trainable_dtype=checkpoint` where it would destroy the weights, or change nothing; known from names and from config.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmmod.errors import Problem
from llmmod.instantiate import import_own
from llmmod.schema.validate.context import Context


def check_trainable_dtype(context: Context) -> Iterator[Problem]:
    """A problem for each such `finetune`; weights whose type nothing says yet are looked at once they are loaded."""
    for step in (step for step in context.steps if context.trains(step)):
        place, model = context.part(step, "finetune"), context.part(step, "model")
        conf, key = context.get(place) or {}, f"{place}.trainable_dtype"
        if conf.get("trainable_dtype") != "checkpoint":
            continue
        dtype = _dtype(context, context.get(model) or {})
        if context.get(f"{model}.quantization.bits") is not None:
            yield _without_effect(key, "what isn't quantized is of float32")
        elif "r" in conf and not conf.get("modules_to_save") and conf.get("bias") in (None, "none"):
            yield _without_effect(key, "adapters alone are trained, which are of float32 in any case")
        elif dtype == "float32":
            yield _without_effect(key, "the weights are of float32")
        elif dtype == "float16":
            yield Problem(
                key,
                "checkpoint, and the weights are of float16, in which Adam's epsilon is 0 and steps become huge",
                do=f"Use {key}=float32, or {model}.dtype=bfloat16",
            )


def _without_effect(key: str, why: str) -> Problem:
    return Problem(key, f"checkpoint, and {why}", do="Leave it out")


def _dtype(context: Context, model: dict[str, Any]) -> str | None:
    """The type that a model's weights are loaded in, None where nothing says it yet."""
    chosen, path = str(model.get("dtype")), model.get("pretrained_model_name_or_path")
    if chosen != "auto" or context.smoke or not isinstance(path, str):
        return chosen
    found: str | None = import_own("llmmod.models.checkpoint.stated_dtype")(path, model.get("gguf_file"))
    return found
