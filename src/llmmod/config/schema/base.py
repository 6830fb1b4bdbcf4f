"""The common parts of the schemas: the enums whose members are the allowed values.

The comment of a field gives its meaning and its unit. `None` means "not set: decide from the rest", and the comment says how. Schemas
leave out `from __future__ import annotations`: OmegaConf asks for the type of each field, and would have to compile a text first.
"""

from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")
# Field of a dataclass -> the strings that it allows (`CHOICES`), or its types where the annotation says less (`ACCEPTED`).
Table = dict[str, tuple[str, ...]]


@dataclass_transform(field_specifiers=(field,))
def wide_dataclass(schema: type[T]) -> type[T]:
    """A dataclass with keyword arguments, defined quickly.

    `dataclass` writes and compiles `__init__`, `__repr__` and `__eq__` for each class: 3 ms where it has the 150 fields of a trainer's
    arguments, and 1 ms where it has ten.
    """

    def init(self: Any, **values: Any) -> None:
        if unknown := values.keys() - {each.name for each in fields(self)}:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        for each in fields(self):
            default = each.default if each.default_factory is MISSING else each.default_factory()
            setattr(self, each.name, values.get(each.name, default))

    def show(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def equal(self: Any, other: object) -> bool:
        return vars(self) == vars(other) if type(self) is type(other) else NotImplemented

    made = dataclass(init=False, repr=False, eq=False)(schema)
    for name, method in {"__init__": init, "__repr__": show, "__eq__": equal, "__hash__": None}.items():
        setattr(made, name, method)
    return made


class Dtype(StrEnum):
    """The dtype of the weights. `auto`: as in the checkpoint."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class TrainableDtype(StrEnum):
    """The dtype of trained weights: `float32`, or that of the loaded `checkpoint`. Adapters are always in float32."""

    float32 = "float32"
    checkpoint = "checkpoint"


class Weights(StrEnum):
    """The source of weights: `pretrained`: a checkpoint; `random`: initialised from the architecture's configuration."""

    pretrained = "pretrained"
    random = "random"


class OnBadRow(StrEnum):
    """The effect of a row that can't be read: an error with its place (`error`), or it is counted and left out (`skip`)."""

    error = "error"
    skip = "skip"


class CutoffPolicy(StrEnum):
    """How an example that is longer than `cutoff_len` is shortened."""

    proportional = "proportional"
    right = "right"
    left = "left"
    drop = "drop"


class Ranked(StrEnum):
    """The pairs that are made of ranked answers, best first: all, neighbours, the best and the worst, the best two."""

    all = "all"
    adjacent = "adjacent"
    ends = "ends"
    first_two = "first_two"


class MixStopping(StrEnum):
    """The end of a mix of datasets: at the end of the first (`first_exhausted`), or once all have been read, some of them again."""

    first_exhausted = "first_exhausted"
    all_exhausted = "all_exhausted"


class TrainOn(StrEnum):
    """Which assistant turns of a conversation are trained."""

    all = "all"
    last = "last"


class Bos(StrEnum):
    """The place of the beginning token, never twice in a row. `auto`: once, if the tokenizer itself starts a text with one."""

    auto = "auto"
    once = "once"
    each_turn = "each_turn"
    never = "never"
