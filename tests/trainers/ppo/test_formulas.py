"""llmmod.trainers.ppo.math against slow formulas in numpy and float64, on random answers of 1 to 9 tokens.

The oracles are loops over answers and tokens, written from the papers, not from the code. Tolerance: 1e-9 in float64, 2e-5 in float32.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmmod.trainers.ppo.math import (
    KlCoefficient,
    ScoreScale,
    advantages_and_returns,
    apply_missing_eos_penalty,
    explained_variance,
    masked_moments,
    policy_losses,
    token_kl,
    token_rewards,
    value_losses,
    whitened,
)

TYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)], ids=["float64", "float32"])
SEEDS = pytest.mark.parametrize("seed", range(6))


class Answers:
    """Random numbers for a batch of answers. The padding has random numbers, too, which must not make a difference."""

    def __init__(self, seed, dtype, lengths=None):
        self.random, self.dtype = np.random.default_rng(seed), dtype
        self.lengths = self.random.integers(1, 10, size=self.random.integers(1, 7)) if lengths is None else np.array(lengths)
        self.mask = np.arange(self.lengths.max())[None] < self.lengths[:, None]

    def numbers(self, scale=1.0, shape=None):
        """float64 numpy, and the same as a tensor of the type under test."""
        values = self.random.normal(scale=scale, size=self.mask.shape if shape is None else shape)
        tensor = torch.tensor(values, dtype=self.dtype)
        return tensor.double().numpy(), tensor

    @property
    def torch_mask(self):
        return torch.tensor(self.mask)


def assert_close(found, expected, tolerance):
    np.testing.assert_allclose(np.asarray(found, dtype=np.float64), expected, rtol=tolerance, atol=tolerance)


@TYPES
@SEEDS
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae_is_the_sum_of_its_definition(seed, dtype, tolerance, gamma, lam):
    """Schulman et al. 2016, eq. 16: A_t = sum over l of (gamma lambda)^l delta_{t+l}, with V = 0 after the answer's last token."""
    answers = Answers(seed, dtype)
    (rewards, r), (values, v) = answers.numbers(), answers.numbers()
    advantages, returns = advantages_and_returns(r, v, answers.torch_mask, gamma=gamma, lam=lam)
    expected = np.zeros_like(values)
    for row, length in enumerate(answers.lengths):
        after = [*values[row, 1:length], 0.0]
        delta = [rewards[row, t] + gamma * after[t] - values[row, t] for t in range(length)]
        for t in range(length):
            expected[row, t] = sum((gamma * lam) ** k * delta[t + k] for k in range(length - t))
    assert_close(advantages, expected, tolerance * 10)
    assert_close(returns, np.where(answers.mask, expected + values, 0.0), tolerance * 10)


def test_gae_of_an_answer_of_one_token():
    """By hand: reward 2, value 0.5, nothing after the token."""
    one = torch.tensor([[2.0]]), torch.tensor([[0.5]]), torch.tensor([[True]])
    advantages, returns = advantages_and_returns(*one, gamma=0.9, lam=0.9)
    assert (advantages.item(), returns.item()) == (1.5, 2.0)


@TYPES
@SEEDS
@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_over_the_mask(seed, dtype, tolerance, shift_mean):
    answers = Answers(seed, dtype)
    values, v = answers.numbers(3.0)
    real = [values[row, t] for row, length in enumerate(answers.lengths) for t in range(length)]
    mean = sum(real) / len(real)
    variance = sum((x - mean) ** 2 for x in real) / len(real)
    expected = np.where(answers.mask, (values - mean) / np.sqrt(variance + 1e-8) + (0 if shift_mean else mean), 0.0)
    found = whitened(v, answers.torch_mask, shift_mean=shift_mean)
    assert_close(found, expected, tolerance * (1 if len(real) > 1 else 1e4))
    if len(real) > 1 and shift_mean:
        assert_close(masked_moments(found.double(), answers.torch_mask), (0.0, 1.0), 1e-4)


def test_whitening_of_equal_numbers_and_of_none():
    same = torch.full((2, 3), 7.0)
    assert whitened(same, torch.ones(2, 3, dtype=torch.bool)).tolist() == [[0.0] * 3] * 2
    assert whitened(same, torch.zeros(2, 3, dtype=torch.bool)).tolist() == [[0.0] * 3] * 2


def test_moments_of_two_processes_are_those_of_all_their_tokens():
    """A process adds the other's sums to its own; here the test passes them by hand."""
    mine, other = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([8.0, 16.0])
    both = torch.cat([mine, other])
    shares = iter([torch.tensor(2.0), other.sum(), (other - both.mean()).square().sum()])
    mean, variance = masked_moments(mine, torch.ones(3, dtype=torch.bool), lambda value: value + next(shares))
    assert mean.item() == pytest.approx(both.mean().item())
    assert variance.item() == pytest.approx(both.var(unbiased=False).item())


@TYPES
@SEEDS
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_of_tokens(seed, dtype, tolerance, estimator):
    answers = Answers(seed, dtype)
    (log_p, p), (log_q, q) = answers.numbers(), answers.numbers()
    expected = log_p - log_q if estimator == "k1" else np.exp(log_q) / np.exp(log_p) - 1 - (log_q - log_p)
    assert_close(token_kl(p, q, estimator=estimator), expected, tolerance * 100)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_both_estimators_have_the_kl_as_their_mean(estimator):
    """The exact expectation over a distribution of five tokens: the sum of p times the estimate at each token."""
    random = np.random.default_rng(0)
    p, q = random.dirichlet(np.ones(5)), random.dirichlet(np.ones(5))
    estimates = token_kl(torch.tensor(np.log(p)), torch.tensor(np.log(q)), estimator=estimator).numpy()
    assert (p * estimates).sum() == pytest.approx((p * np.log(p / q)).sum(), abs=1e-12)


def test_the_adaptive_coefficient_by_hand():
    """Ziegler et al. 2019: target 6, horizon 10000. Twice the target is an error of 1, clipped to 0.2: 1 + 0.2 * 64 / 10000."""
    coefficient = KlCoefficient(0.2, target=6.0, horizon=10_000)
    coefficient.update(12.0, 64)
    assert coefficient.value == pytest.approx(0.2 * 1.00128)
    coefficient.update(5.4, 100)  # 10 % below the target
    assert coefficient.value == pytest.approx(0.2 * 1.00128 * 0.999)
    coefficient.update(0.0, 100)
    assert coefficient.value == pytest.approx(0.2 * 1.00128 * 0.999 * 0.998)
    fixed = KlCoefficient(0.2)
    fixed.update(100.0, 64)
    assert fixed.value == 0.2


@TYPES
@SEEDS
def test_rewards_of_tokens(seed, dtype, tolerance):
    answers = Answers(seed, dtype)
    (kl, k), (scores, s) = answers.numbers(), answers.numbers(shape=len(answers.lengths))
    expected = np.zeros_like(kl)
    for row, length in enumerate(answers.lengths):
        for t in range(length):
            expected[row, t] = -0.3 * kl[row, t] + (scores[row] if t == length - 1 else 0.0)
    assert_close(token_rewards(s, k, answers.torch_mask, kl_coef=0.3), expected, tolerance)


def test_an_answer_that_was_cut_off_pays():
    found = apply_missing_eos_penalty(torch.tensor([1.0, 1.0]), torch.tensor([True, False]), 0.25)
    assert found.tolist() == [1.0, 0.75]
    assert apply_missing_eos_penalty(torch.tensor([1.0]), torch.tensor([False]), None).tolist() == [1.0]


def test_scaled_normed_and_clipped_scores_by_hand():
    """Scores 1, 3, 5: mean 3, standard deviation 2."""
    scores = torch.tensor([1.0, 3.0, 5.0])
    assert ScoreScale()(scores).tolist() == [1.0, 3.0, 5.0]
    assert ScoreScale(scale=True)(scores).tolist() == [0.5, 1.5, 2.5]
    assert ScoreScale(scale=True, norm=True)(scores).tolist() == [-1.0, 0.0, 1.0]
    assert ScoreScale(scale=True, clip=1.0)(scores).tolist() == [0.5, 1.0, 1.0]
    mine = ScoreScale(scale=True, norm=True)(scores[:1], all_scores=scores)
    assert mine.tolist() == [-1.0]


def test_scores_that_never_vary_are_left_as_they_are():
    assert ScoreScale(scale=True)(torch.full((4,), 2.0)).tolist() == [2.0] * 4
    assert ScoreScale(scale=True, norm=True)(torch.full((4,), 2.0)).tolist() == [0.0] * 4
    assert ScoreScale(scale=True)(torch.tensor([2.0])).tolist() == [2.0]


@TYPES
@SEEDS
def test_policy_loss_and_its_gradient(seed, dtype, tolerance):
    """Schulman et al. 2017, eq. 7; the gradient of a clipped token is 0, otherwise -A * ratio."""
    answers = Answers(seed, dtype)
    (new, n), (old, o), (gain, a) = answers.numbers(0.3), answers.numbers(0.3), answers.numbers()
    n.requires_grad_(True)
    losses, clipped = policy_losses(n, o, a, cliprange=0.2)
    losses.sum().backward()
    expected, slope, cut = np.zeros_like(new), np.zeros_like(new), np.zeros_like(new, dtype=bool)
    for at in np.ndindex(*new.shape):
        ratio = np.exp(new[at] - old[at])
        bounded = min(max(ratio, 0.8), 1.2)
        expected[at] = -min(ratio * gain[at], bounded * gain[at])
        cut[at] = bounded * gain[at] < ratio * gain[at]
        slope[at] = 0.0 if cut[at] else -gain[at] * ratio
    assert_close(losses.detach(), expected, tolerance)
    assert_close(n.grad, slope, tolerance)
    assert (clipped.numpy() == cut).all()


@TYPES
@SEEDS
@pytest.mark.parametrize("cliprange", [0.2, None])
def test_value_loss_and_its_gradient(seed, dtype, tolerance, cliprange):
    answers = Answers(seed, dtype)
    (new, n), (old, o), (goal, g) = answers.numbers(), answers.numbers(), answers.numbers()
    n.requires_grad_(True)
    losses, clipped = value_losses(n, o, g, cliprange_value=cliprange)
    losses.sum().backward()
    expected, slope, cut = np.zeros_like(new), np.zeros_like(new), np.zeros_like(new, dtype=bool)
    for at in np.ndindex(*new.shape):
        near = new[at] if cliprange is None else min(max(new[at], old[at] - cliprange), old[at] + cliprange)
        cut[at] = (near - goal[at]) ** 2 > (new[at] - goal[at]) ** 2
        expected[at] = 0.5 * max((new[at] - goal[at]) ** 2, (near - goal[at]) ** 2)
        slope[at] = 0.0 if cut[at] else new[at] - goal[at]
    assert_close(losses.detach(), expected, tolerance)
    assert_close(n.grad, slope, tolerance)
    assert (clipped.numpy() == cut).all()


@TYPES
@SEEDS
def test_how_far_an_update_went(seed, dtype, tolerance):
    answers = Answers(seed, dtype)
    (new, n), (old, o) = answers.numbers(), answers.numbers()
    expected = np.exp(new - old) - 1 - (new - old)
    assert_close(token_kl(o, n, estimator="k3"), expected, tolerance * 100)
    assert (expected >= 0).all()


def test_explained_variance_by_hand():
    returns, values = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0, 5.0])
    assert explained_variance(np.var(returns - values), np.var(returns)) == pytest.approx(1 - 0.1875 / 1.25)
    assert explained_variance(0.0, 2.0) == 1.0
    assert explained_variance(2.0, 2.0) == 0.0
    assert explained_variance(0.5, 0.0) == 0.0
