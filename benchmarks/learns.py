"""What each stage learns: metrics on held-out examples of the demonstration data before and after training, with SmolLM2 and LoRA.

    python benchmarks/learns.py --stages sft,rm --seeds 1

Each stage has a function, which does one run of the command line, in minutes, and reads its metrics.json. ppo and grpo start after an epoch
of sft. A seed sets the adapter's initial weights, the order of the examples and the sampled completions; the held-out examples are always
the same. The figures are printed as a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from measure import machine, measure

ONLY_TRAIN = ["training.save_strategy=no", "pipeline=[train]"]
HEAD = "| stage | seed | on held-out examples | before | after | | CPU s |\n|---|---|---|---|---|---|---|"


class Learnt(NamedTuple):
    """What is measured, its value before the first optimizer step and after the last, and further figures."""

    what: str
    before: float
    after: float
    besides: str = ""


def sft(go):
    """The stage's default number of epochs over questions and answers; held-out questions are asked in other words."""
    found = go("stage=sft", *ONLY_TRAIN)
    accuracy = f"tokens right: {found['eval_token_accuracy_before']:.1%}, then {found['eval_token_accuracy']:.1%}"
    return Learnt("loss", found["eval_loss_before"], found["eval_loss"], accuracy)


def rm(go):
    """An epoch over the pairs; held-out questions are asked in other words, and their wrong answers are wrong in other ways."""
    found = go("stage=rm", *ONLY_TRAIN)
    margin = f"margin {found['eval_margin_before']:.2f}, then {found['eval_margin']:.2f}"
    return Learnt("accuracy", found["eval_accuracy_before"], found["eval_accuracy"], margin)


def dpo(go):
    """An epoch over the pairs of `rm`. At first the policy equals its reference, so the margin is 0."""
    found = go("stage=dpo", *ONLY_TRAIN)
    chosen = f"chosen {found['eval_rewards/chosen']:+.2f}, rejected {found['eval_rewards/rejected']:+.2f}"
    loss = f"loss {found['eval_loss_before']:.3f}, then {found['eval_loss']:.3f}"
    right = f"{found['eval_rewards/accuracies']:.1%} right"
    return Learnt("margin", 0.0, found["eval_rewards/margins"], f"{right}; {chosen}; {loss}")


def kto(go):
    """An epoch over the answers of those pairs, each with its own label."""
    found = go("stage=kto", *ONLY_TRAIN)
    chosen = f"chosen {found['eval_rewards/chosen']:+.2f}, rejected {found['eval_rewards/rejected']:+.2f}"
    loss = f"loss {found['eval_loss_before']:.3f}, then {found['eval_loss']:.3f}"
    return Learnt("margin", 0.0, found["eval_rewards/margins"], f"{chosen}; {loss}")


def ppo(go):
    """As in `experiment=rlhf`: after an epoch of `sft`, the reward is the score of the model that the step `rm` has trained."""
    found = go("experiment=rlhf", "pipeline=[sft,rm,ppo]", "steps.ppo.training.num_generations_eval=4")
    return _rewarded("reward: the reward model's score, less the KL penalty", "ppo", "an answer", found)


def grpo(go):
    """After an epoch of `sft`, eight completions for each of two prompts per step; the reward is the overlap with the row's own answer."""
    training = {"gradient_accumulation_steps": 2, "num_generations_eval": 4, "beta": 0.001, "max_steps": 24, "max_completion_length": 24}
    training |= {"eval_strategy": "steps", "eval_steps": 24, "logging_steps": 4, "save_strategy": "no"}
    begun = ["experiment=stages", "pipeline=[first,second]", "stage@steps.second.training=grpo"]
    data = ["dataset=llmmod_qa", "+dataset@steps.second.dataset=llmmod_prompts"]
    found = go(*begun, *data, *(f"++steps.second.training.{key}={value}" for key, value in training.items()))
    return _rewarded("reward: words shared", "second", "a token", found)


def _rewarded(what, step, unit, found):
    errors = f"standard errors {found[f'{step}/eval_reward_se_before']:.3f} and {found[f'{step}/eval_reward_se']:.3f}"
    kl = f"KL {found[f'{step}/eval_kl']:.2f} nats {unit}"
    return Learnt(what, found[f"{step}/eval_reward_before"], found[f"{step}/eval_reward"], f"{errors}; {kl}")


STAGES = {"sft": sft, "rm": rm, "dpo": dpo, "kto": kto, "ppo": ppo, "grpo": grpo}


def learnt(stage, seed, overrides):
    """What a stage learns with a seed, and the CPU seconds of its run."""
    with tempfile.TemporaryDirectory() as place:
        took = []

        def go(*chosen):
            command = [sys.executable, "-m", "llmmod", *chosen, f"seed={seed}", f"output_dir={place}/run", *overrides]
            done = measure(command, env={"HF_HUB_OFFLINE": "1", "LLMMOD_CACHE": f"{place}/cache"})
            if done.code:
                sys.exit(done.output[-3000:])
            took.append(done.cpu_s)
            return json.loads(Path(place, "run", "metrics.json").read_text())

        return STAGES[stage](go), took[0]


def main() -> None:
    """Print a row of the table for each stage and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(STAGES), help="of " + ", ".join(STAGES))
    parser.add_argument("--seeds", default="1")
    parser.add_argument("overrides", nargs="*", help="further overrides of each run")
    args = parser.parse_args()
    stages = args.stages.split(",")
    if strange := [stage for stage in stages if stage not in STAGES]:
        parser.error(f"no stage {', '.join(strange)}; there are {', '.join(STAGES)}")
    print(f"{machine()}\n\n{HEAD}", flush=True)
    for stage in stages:
        for seed in args.seeds.split(","):
            found, cpu_s = learnt(stage, seed, args.overrides)
            numbers = f"{found.before:.3f} | {found.after:.3f} | {found.besides} | {cpu_s:.0f}"
            print(f"| {stage} | {seed} | {found.what} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
