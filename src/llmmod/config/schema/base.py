"""What every schema shares: the enums whose members are the allowed values.

The comment of a field gives its meaning and its unit. `None` means "not set: decide from the rest", and the comment says how. Schemas
leave out `from __future__ import annotations`: OmegaConf asks for the type of each field, and would have to compile a text first.
"""

from enum import StrEnum


class Dtype(StrEnum):
    """In which type weights are held. `auto`: as the checkpoint was saved."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class TrainableDtype(StrEnum):
    """In which type what is trained is held: `float32`, or as the `checkpoint` was loaded. Adapters are of float32 either way."""

    float32 = "float32"
    checkpoint = "checkpoint"


class Weights(StrEnum):
    """Where weights come from: `pretrained`: a checkpoint; `random`: initialised from the architecture's configuration."""

    pretrained = "pretrained"
    random = "random"


class OnBadRow(StrEnum):
    """What a row that can't be read does: stop the run with its place (`error`), or be counted and left out (`skip`)."""

    error = "error"
    skip = "skip"


class CutoffPolicy(StrEnum):
    """What gives way where an example is longer than `cutoff_len`."""

    proportional = "proportional"
    right = "right"
    left = "left"
    drop = "drop"


class Ranked(StrEnum):
    """Which pairs are made of answers that are ranked, best first: every one, neighbours, the best and the worst, the best two."""

    all = "all"
    adjacent = "adjacent"
    ends = "ends"
    first_two = "first_two"


class MixStopping(StrEnum):
    """When a mix of datasets ends: where one has no more (`first_exhausted`), or once all have been read, some of them again."""

    first_exhausted = "first_exhausted"
    all_exhausted = "all_exhausted"


class TrainOn(StrEnum):
    """Which assistant turns of a conversation are trained."""

    all = "all"
    last = "last"


class Bos(StrEnum):
    """Where the beginning token stands, never twice in a row. `auto`: once, where the tokenizer itself starts a text with one."""

    auto = "auto"
    once = "once"
    each_turn = "each_turn"
    never = "never"
