"""Arguments of a training that need a package which isn't installed: the libraries (transformers 5.23) say so once a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llmmod.errors import Problem
from llmmod.modules import find_module
from llmmod.schema.validate.context import Context

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
