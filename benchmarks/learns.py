"""What each stage learns: measured on held-out examples of the demonstration data before and after, with SmolLM2 and LoRA.

    python benchmarks/learns.py ppo

A function a stage; each is one run of llmmod, in minutes, and prints what its metrics.json says.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from measure import machine, measure

OFTEN = ["training.logging_steps=4", "training.eval_strategy=steps", "training.save_strategy=no", "pipeline=[train]"]


def ppo(directory):
    """Six rollouts of 16 prompts; the reward is how short an answer is, of 16 tokens at most."""
    reward = ["+training.reward.brevity._target_=llmmod.rewards.brevity.brevity", "+training.reward.brevity.limit=16"]
    size = ["training.num_mini_batches=2", "training.num_ppo_epochs=2", "training.gradient_accumulation_steps=1"]
    rest = ["training.max_steps=24", "training.eval_steps=24", "training.max_completion_length=16", "training.kl_coef=0.01"]
    metrics = run(directory, "stage=ppo", *reward, *size, *rest, "training.learning_rate=5e-4", *OFTEN)
    kl = f"at a KL of {metrics['eval_kl']:.2f} nats an answer"
    return f"ppo: reward on held-out prompts {metrics['eval_reward_before']:.3f} before, {metrics['eval_reward']:.3f} after, {kl}"


def grpo(directory):
    """Four answers to each of four prompts a step; the reward is how short an answer is, of 32 tokens at most."""
    reward = ["+training.reward.brevity._target_=llmmod.rewards.brevity.brevity", "+training.reward.brevity.limit=32"]
    size = ["training.num_generations=4", "training.gradient_accumulation_steps=2", "training.max_completion_length=32"]
    rest = ["training.max_steps=16", "training.eval_steps=16", "training.beta=0.001", "training.learning_rate=1e-3"]
    metrics = run(directory, "stage=grpo", *reward, *size, *rest, *OFTEN)
    kl = f"at a KL of {metrics['eval_kl']:.2f} nats a token"
    return f"grpo: reward on held-out prompts {metrics['eval_reward_before']:.3f} before, {metrics['eval_reward']:.3f} after, {kl}"


def dpo(directory):
    """An epoch over the pairs; what is held out is asked in other words and answered wrongly in other ways."""
    metrics = run(directory, "stage=dpo", "training.save_strategy=no", "pipeline=[train]")
    margin, right = metrics["eval_rewards/margins"], metrics["eval_rewards/accuracies"]
    loss = f"loss {metrics['eval_loss_before']:.3f} before, {metrics['eval_loss']:.3f} after"
    return f"dpo: margin on held-out pairs 0 before, {margin:.2f} after; {right:.1%} of them right; {loss}"


def run(directory, *overrides):
    """The metrics of a run."""
    done = measure([str(Path(sys.executable).parent / "llmmod"), *overrides, f"output_dir={directory}"], env={"HF_HUB_OFFLINE": "1"})
    if done.code:
        sys.exit(done.output[-3000:])
    print(f"{done.cpu_s:.0f} CPU s")
    return json.loads((Path(directory) / "metrics.json").read_text())


STAGES = {"ppo": ppo, "grpo": grpo, "dpo": dpo}


def main(*stages) -> None:
    """Print a line for each stage."""
    print(machine())
    for stage in stages or STAGES:
        with tempfile.TemporaryDirectory() as directory:
            print(STAGES[stage](f"{directory}/run"))


if __name__ == "__main__":
    main(*sys.argv[1:])
