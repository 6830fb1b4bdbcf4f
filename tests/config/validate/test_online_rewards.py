"""Rewards that can't score are refused before heavy imports; the full messages."""

from __future__ import annotations

import pytest

HOW = "Allowed: {path: a reward model's directory}, {step: an earlier step}, {_target_: a function}, or several of these by name."


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["training.reward.path=./nowhere"],
            "training.reward.path: ./nowhere is not a directory. Give the output of stage=rm: <run>/train.",
        ),
        (
            ["training.reward.path=empty"],
            "training.reward.path: empty contains neither a model nor an adapter. Give the output of stage=rm: <run>/train.",
        ),
        (
            ["training.reward.path=sft"],
            "training.reward.path: 'sft' is an adapter with a language head: it generates text and doesn't give scores. "
            "Give one trained by stage=rm.",
        ),
        (
            ["training.reward.step=rm"],
            "training.reward.step: 'rm' is not a training step before train. Put a step with stage=rm before it, or give "
            "training.reward.path.",
        ),
        (["training.reward.path=org/rm", "training.reward.step=rm"], f"training.reward: found {{'path': 'org/rm', 'step': 'rm'}}. {HOW}"),
        (["+training.reward.mine.weight=2"], f"training.reward.mine: found {{'weight': 2}}. {HOW}"),
        (["+training.reward.mine=3"], f"training.reward: found {{'mine': 3}}. {HOW}"),
        (
            ["+training.reward.mine=null"],
            f"training.reward: every reward is null, so all answers score the same. {HOW}",
        ),
        (["+training.reward_weights.overlp=2"], "training.reward_weights.overlp: not a reward. Did you mean 'overlap'?"),
        (["training.kl_estimator=k2"], "training.kl_estimator: found 'k2'. Allowed: k1, k3."),
        (["training.lam=1.5"], "training.lam: found 1.5. Allowed: from 0 to 1."),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_refused(told, tmp_path, overrides, line):
    (tmp_path / "empty").mkdir()
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM"}')
    assert told("stage=ppo", *overrides) == [line]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["training.reward.path=org/rm"],
        ["training.reward.path=rm"],
        ["training.reward.path=./nowhere", "smoke=true"],
        ["+training.reward.overlap._target_=llmmod.rewards.overlap", "+training.reward_weights.overlap=2"],
    ],
    ids=str,
)
def test_right(told, tmp_path, overrides):
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "adapter_config.json").write_text("{}")
    assert told("stage=ppo", *overrides) == []


SOURCE = """
async def waits(completions, **columns): ...

def logs(completions, log_extra, *, log_metric, **columns): ...

class Waits:
    async def __call__(self, completions, **columns): ...

def right(completions, log_extra=None, **columns): ...

@decorated
async def unknown(completions, **columns): ...
"""
AWAITED = "is an async def, and a reward is called and not awaited. Make it a plain function."


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("waits", "", AWAITED),
        ("Waits", "", AWAITED),
        (
            "logs",
            "",
            "can't do without log_extra and log_metric, which trl's own trainer hands in and this one doesn't. "
            "Give it a default: log_extra=None, log_metric=None.",
        ),
        (
            "logs",
            ", log_extra: 1",
            "can't do without log_metric, which trl's own trainer hands in and this one doesn't. Give it a default: log_metric=None.",
        ),
        ("right", "", None),
        ("unknown", "", None),
    ],
)
def test_functions_by_their_source(told, tmp_path, monkeypatch, stage, name, more, said):
    (tmp_path / "own_rewards.py").write_text(SOURCE + "\nraise SystemExit('imported')\n")
    monkeypatch.setenv("LLMMOD_ALLOW", "own_rewards")
    found = told(f"stage={stage}", f"+training.reward.mine={{_target_: own_rewards.{name}{more}}}")
    assert found == ([] if said is None else [f"training.reward.mine._target_: own_rewards.{name} {said}"])
