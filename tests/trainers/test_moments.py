"""llmmod.trainers.means gives numpy's values for all numbers at once. Tolerance: 1e-10."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmmod.trainers.means import RunningMoments


@pytest.mark.parametrize("seed", range(6))
def test_they_are_those_of_all_numbers(seed):
    random = np.random.default_rng(seed)
    batches = [random.normal(100, 3, size=random.integers(0, 6)) for _ in range(8)]
    moments = RunningMoments()
    for batch in batches:
        moments.update(torch.tensor(batch))
    everything = np.concatenate(batches)
    assert moments.count == len(everything)
    found = [moments.mean, moments.std, moments.standard_error]
    expected = [everything.mean(), everything.std(ddof=1), everything.std(ddof=1) / np.sqrt(len(everything))]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("numbers", [[], [3.0]])
def test_fewer_than_two_numbers_have_no_spread(numbers):
    moments = RunningMoments()
    moments.update(torch.tensor(numbers))
    assert (moments.std, moments.standard_error) == (0.0, 0.0)
