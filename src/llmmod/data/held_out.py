"""Which rows are held out for validation."""

from __future__ import annotations

import math
import random

from llmmod.errors import ConfigError, Problem


def held_out(count: int, val_size: float, *, seed: int) -> frozenset[int]:
    """Indices of the held-out rows, the same for the same count, size and seed, on any machine.

    Args:
        count: rows there are.
        val_size: a fraction below 1, rounded up as scikit-learn and `datasets` do, or a number of rows from 1 on.
        seed: of the draw; Python's Mersenne twister, whose `sample` is specified to stay.

    Raises:
        ConfigError: a size that is none, or one that leaves either side empty.
    """
    if val_size < 0 or (val_size > 1 and val_size != int(val_size)):
        allowed = "Allowed: a fraction such as 0.1, or a whole number of examples"
        raise ConfigError(Problem("dataset.val_size", f"{val_size:g}", allowed))
    size = math.ceil(count * val_size) if val_size < 1 else int(val_size)
    if not 0 < size < count:
        found = f"{val_size:g} of {count} rows leaves {max(count - size, 0)} to train on and {size} to validate with"
        raise ConfigError(Problem("dataset.val_size", found, "At least one is needed on each side"))
    return frozenset(random.Random(seed).sample(range(count), size))
