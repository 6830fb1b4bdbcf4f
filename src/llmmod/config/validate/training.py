"""Values that are right each for itself and don't go together.

Arguments of a training that need a package which isn't installed: the libraries (transformers 5.23) say so once a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llmmod.code_arguments import find_module
from llmmod.config.schema.steps import ChatConf
from llmmod.config.validate.context import Context
from llmmod.config.validate.pipeline import holds_out
from llmmod.config.validate.values import CHOICES
from llmmod.config.wording import shown
from llmmod.errors import Problem

_HUB = {"cache_dir": "hub.cache_dir", "token": "hub.token", "proxies": "hub.proxies", "local_files_only": "hub.offline"}
_CODE = {"revision": "model.revision", "trust_remote_code": "model.trust_remote_code"}
# Arguments of from_pretrained that have a key of their own, which from_pretrained is given too.
OWN_KEYS: Mapping[str, Mapping[str, str]] = {
    "model": _HUB | _CODE | {
        "dtype": "model.dtype", "torch_dtype": "model.dtype", "device_map": "model.device_map", "gguf_file": "model.gguf_file",
        "attn_implementation": "model.attn_implementation", "quantization_config": "model.quantization.bits",
        "load_in_4bit": "model.quantization.bits=4", "load_in_8bit": "model.quantization.bits=8",
    },
    "tokenizer": _HUB | _CODE | {"gguf_file": "model.gguf_file"},
}  # fmt: skip


def check_contradictions(context: Context) -> Iterator[Problem]:
    """A problem for each contradiction."""
    for step in context.steps:
        if context.trains(step):
            yield from _quantized(context, step)
            yield from _shifted(context, step)
        elif context.step_type(step) is ChatConf:
            yield from _speechless(context, step)
    for part, own in OWN_KEYS.items():
        for place in context.places(part):
            given = context.get(f"{place}.kwargs") or {}
            yield from (Problem(f"{place}.kwargs.{name}", "has a key of its own", do=f"Set {own[name]}") for name in given if name in own)
    for place in context.places("model"):
        yield from _rope(context, place)
    for place in context.places("finetune"):
        yield from _adapters(context, place)
    for place in context.places("training"):
        yield from _training(context, place)
    for place in context.places("dataset"):
        yield from _dataset(context, place)
    yield from _generation(context)


def _quantized(context: Context, step: str) -> Iterator[Problem]:
    model, finetune = context.part(step, "model"), context.part(step, "finetune")
    bits, name = context.get(f"{model}.quantization.bits"), context.get(f"{finetune}.name")
    if name == "qlora" and bits is None:
        found = "null with finetune=qlora, which trains adapters on quantized weights"
        yield Problem(f"{model}.quantization.bits", found, "Allowed: 4, 8", "For weights as they are: finetune=lora")
    elif bits is not None and name in ("full", "freeze"):
        found = f"{bits} with finetune={name}, and quantized weights can't be trained"
        yield Problem(f"{model}.quantization.bits", found, do="Use finetune=qlora, or set it to null")


def _speechless(context: Context, step: str) -> Iterator[Problem]:
    training = context.part(step, "training")
    if context.get(f"{training}.head") == "reward":
        found = f"{step}, and {training}.stage={context.get(f'{training}.stage')} has a model that scores and doesn't write"
        yield Problem("pipeline", found, do="Leave it out; predict writes the scores")


def _shifted(context: Context, step: str) -> Iterator[Problem]:
    model, dataset = context.part(step, "model"), context.part(step, "dataset")
    attention = context.get(f"{model}.attn_implementation")
    if not context.get(f"{model}.shift_attn"):
        return
    if context.get(f"{dataset}.packing"):
        found = f"true with {model}.shift_attn=true, whose groups are those of a row and not of the examples in it"
        yield Problem(f"{dataset}.packing", found, do="Set one of them to false")
    if attention not in (None, "sdpa"):
        found = f"{attention} with {model}.shift_attn=true"
        yield Problem(f"{model}.attn_implementation", found, "Allowed: sdpa, null")


def _rope(context: Context, place: str) -> Iterator[Problem]:
    scaling = context.get(f"{place}.rope_scaling") or {}
    known = scaling.get("type") in CHOICES["model.rope_scaling", "type"]
    if known and not scaling.get("factor") and not context.get(f"{place}.model_max_length"):
        do = f"Set it, or {place}.model_max_length, from which it is worked out"
        yield Problem(f"{place}.rope_scaling.factor", f"not set, and {place}.rope_scaling.type is {scaling['type']}", do=do)


def _adapters(context: Context, place: str) -> Iterator[Problem]:
    if context.get(f"{place}.resume_adapter") and not context.get(f"{place}.adapters"):
        do = f"Name it: '{place}.adapters=[path]'"
        yield Problem(f"{place}.resume_adapter", "true, and there is no adapter to go on with", do=do)


def _training(context: Context, place: str) -> Iterator[Problem]:
    training = context.get(place) or {}
    evaluates, saves = training.get("eval_strategy"), training.get("save_strategy")
    if training.get("bf16") and training.get("fp16"):
        yield Problem(f"{place}.fp16", f"true, and {place}.bf16 too", do="Keep one of them")
    if training.get("load_best_model_at_end"):
        if evaluates == "no":
            found = f"true with {place}.eval_strategy=no"
            yield Problem(f"{place}.load_best_model_at_end", found, do="Set eval_strategy to steps or epoch")
        elif saves not in ("best", evaluates):
            found = f"true, and {place}.save_strategy={saves} is not {place}.eval_strategy={evaluates}"
            yield Problem(f"{place}.load_best_model_at_end", found, do=f"Set save_strategy={evaluates}")


def _dataset(context: Context, place: str) -> Iterator[Problem]:
    dataset = context.get(place) or {}
    ways = [name for name in ("val_size", "val_files", "val_split") if dataset.get(name)]
    if len(ways) > 1:
        own = next((name for name in ways if context.user_set(f"{place}.{name}")), ways[0])
        others = " and ".join(f"{place}.{name}={shown(dataset[name])}" for name in ways if name != own)
        neutral = ", ".join(f"{name}={'0' if name == 'val_size' else 'null'}" for name in ways if name != own)
        yield Problem(f"{place}.{own}", f"set, and {others} holds examples out as well", do=f"Keep one of them: {neutral}")
    if dataset.get("streaming") and isinstance(dataset.get("val_size"), float) and 0 < dataset["val_size"] < 1:
        found = f"{dataset['val_size']:g}, but a streamed dataset has no known length to take a fraction of"
        yield Problem(f"{place}.val_size", found, do="Give a number of examples, or val_files")
    if dataset.get("streaming"):
        yield from _endless(context, place)


def _endless(context: Context, place: str) -> Iterator[Problem]:
    for step in context.steps:
        training = context.part(step, "training")
        trains = context.trains(step) and context.part(step, "dataset") == place
        if trains and (context.get(f"{training}.max_steps") or -1) < 1:
            found = "not set, and a streamed dataset has no known length, so a number of epochs says nothing"
            yield Problem(f"{training}.max_steps", found, do="Set it")


def _generation(context: Context) -> Iterator[Problem]:
    generation = context.get("generation") or {}
    least, most = generation.get("min_new_tokens"), generation.get("max_new_tokens")
    if least is not None and most is not None and least > most:
        yield Problem("generation.min_new_tokens", f"{least} is more than generation.max_new_tokens={most}")


def without_dropout(context: Context, finetune: str) -> bool:
    """Whether every training that goes by a node `finetune` takes all dropout out of the model, as trl does for preferences."""
    trainings = [
        context.part(step, "training") for step in context.steps if context.trains(step) and context.part(step, "finetune") == finetune
    ]
    return bool(trainings) and all(context.get(f"{training}.disable_dropout") for training in trainings)


def evaluates_nothing(context: Context, training: str) -> bool:
    """Whether every training step with these arguments has no held-out examples to evaluate on."""
    steps = [s for s in context.steps if context.trains(s) and context.part(s, "training") == training]
    return bool(steps) and not any(holds_out(context, context.part(step, "dataset")) for step in steps)


# field -> the module that it needs, and the package that has it
_FIELDS: Mapping[str, tuple[str, str]] = {
    "use_liger_kernel": ("liger_kernel", "liger-kernel"),
    "deepspeed": ("deepspeed", "deepspeed"),
}
# optimizers -> likewise
_OPTIMIZERS: Mapping[tuple[str, ...], tuple[str, str]] = {
    ("adamw_torch_xla",): ("torch_xla", "torch-xla"),
    ("adamw_torch_npu_fused",): ("torch_npu", "torch-npu"),
    ("adamw_anyprecision",): ("torchdistx", "torchdistx"),
    ("adamw_torch_4bit", "adamw_torch_8bit"): ("torchao", "torchao"),
    (
        "ademamix", "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit", "paged_adamw_8bit",
        "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit",
        "rmsprop_bnb_32bit",
    ): ("bitsandbytes", "bitsandbytes"),
    (
        "galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise",
        "galore_adafactor_layerwise",
    ): ("galore_torch", "galore-torch"),
    ("apollo_adamw", "apollo_adamw_layerwise"): ("apollo_torch", "apollo-torch"),
    ("lomo", "adalomo"): ("lomo_optim", "lomo-optim"),
    ("grokadamw",): ("grokadamw", "grokadamw"),
    ("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"): ("schedulefree", "schedulefree"),
    ("stable_adamw",): ("optimi", "torch-optimi"),
}  # fmt: skip


def check_packages(context: Context) -> Iterator[Problem]:
    """A problem for each argument of a training step whose package isn't there."""
    for place in dict.fromkeys(context.part(step, "training") for step in context.steps if context.trains(step)):
        training = context.get(place) or {}
        needed = [(name, package) for name, package in _FIELDS.items() if training.get(name)]
        of_optimizer = [("optim", package) for names, package in _OPTIMIZERS.items() if training.get("optim") in names]
        for name, (module, package) in [*needed, *of_optimizer]:
            if find_module(module) is None:
                value = "true" if training[name] is True else training[name]
                found = f"{value if isinstance(value, str) else 'set'}, and {package} isn't installed"
                yield Problem(f"{place}.{name}", found, do=f"Install it: pip install {package}")
