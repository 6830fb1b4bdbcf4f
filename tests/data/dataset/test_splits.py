from __future__ import annotations

import pytest

from llmmod.data.dataset.splits import validation_indices
from llmmod.errors import ConfigError


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(100, 0.1, 10), (11, 0.1, 2), (3, 0.01, 1), (10, 4, 4), (10, 9, 9), (2, 1, 1), (2, 0.5, 1)],
)  # a fraction's number of rows is rounded up
def test_the_size_is_a_fraction_or_a_number(count, size, expected):
    held = validation_indices(count, size, seed=0)
    assert len(held) == expected
    assert held <= set(range(count))


def test_the_same_seed_holds_out_the_same_rows_and_another_one_others():
    assert validation_indices(1000, 50, seed=7) == validation_indices(1000, 50, seed=7)
    assert validation_indices(1000, 50, seed=7) != validation_indices(1000, 50, seed=8)


def test_the_draw_is_the_same_on_every_machine():
    import random  # random.sample's draw for a seed is part of Python's promise of reproducibility

    assert validation_indices(20, 3, seed=1) == set(random.Random(1).sample(range(20), 3))


@pytest.mark.parametrize(
    ("count", "size", "message"),
    [
        (10, 10, "dataset.val_size: 10 of 10 rows leaves 0 to train on and 10 to validate with. At least one is needed on each side."),
        (10, 500, "dataset.val_size: 500 of 10 rows leaves 0 to train on and 500 to validate with. At least one is needed on each side."),
        (1, 0.1, "dataset.val_size: 0.1 of 1 rows leaves 0 to train on and 1 to validate with. At least one is needed on each side."),
        (10, -1, "dataset.val_size: -1. Allowed: a fraction such as 0.1, or a whole number of examples."),
        (10, 2.5, "dataset.val_size: 2.5. Allowed: a fraction such as 0.1, or a whole number of examples."),
    ],
)
def test_a_size_that_leaves_a_side_empty_is_refused(count, size, message):
    with pytest.raises(ConfigError) as error:
        validation_indices(count, size, seed=0)
    assert str(error.value) == message
