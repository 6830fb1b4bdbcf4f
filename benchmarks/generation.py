"""Generation beside transformers' own loop: tokens a CPU second, of predictions, of rollouts and of one stream.

    python benchmarks/generation.py [--rounds 3]

LoRA of rank 8 on all linear layers of a SmolLM2-135M in float32, with random weights, which take the time of trained ones. Prompts of 24 to
40 tokens; each completion has as many tokens as the table says, so that both generate the same number. transformers' loop answers
predictions in batches of 8, padded on the left, and a rollout at once. Each measurement is a process of its own, in turn; what counts is
the CPU time of the generation, without imports and the making of the model, as the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from measure import machine, measure, median
from training import model

# name -> prompts, completions of each, new tokens, sampled, transformers' batch
CASES = {
    "predict, 40 prompts": (40, 1, 64, False, 8),
    "ppo, a rollout of 16 prompts": (16, 1, 48, True, 16),
    "grpo, 4 prompts with 8 completions each": (4, 8, 48, True, 32),
    "one stream": (1, 1, 64, False, 1),
}
LOOPS = ("llmmod", "transformers")


def prompts(count, each):
    """Ids of so many prompts, each as often as it is asked for a completion."""
    draw = random.Random(1)
    asked = [[draw.randrange(5, 900) for _ in range(draw.randint(24, 40))] for _ in range(count)]
    return [ids for ids in asked for _ in range(each)]


def one(name, loop):
    """Generate, and print the CPU seconds it takes as JSON."""
    import torch
    from transformers import GenerationConfig

    from llmmod.models.generation.generate import _by_transformers, generate, why_not_decoded
    from llmmod.models.matmul import onednn_products

    count, each, new, sampled, batch = CASES[name]
    policy = model().eval()
    torch.manual_seed(0)
    config = GenerationConfig(do_sample=sampled, max_new_tokens=new, min_new_tokens=new, eos_token_id=[2], pad_token_id=2, use_cache=True)
    config.max_length = None
    assert why_not_decoded(policy, config) is None
    asked = prompts(count, each)
    generate_all = generate if loop == "llmmod" else _by_transformers
    given = {"config": config, "batch_size": None if loop == "llmmod" else batch, "tokenizer": None}
    with onednn_products() if loop == "llmmod" else nullcontext():  # as a run has it
        list(generate_all(policy, asked[:1], **given))  # what is made once
        before = resource.getrusage(resource.RUSAGE_SELF)
        found = list(generate_all(policy, asked, **given))
        after = resource.getrusage(resource.RUSAGE_SELF)
    assert sum(len(ids) for _, ids in found) == count * each * new
    print(json.dumps({"cpu_s": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(machine())
    with tempfile.TemporaryDirectory() as directory:
        for name, (count, each, new, *_) in CASES.items():
            cost = {loop: [] for loop in LOOPS}
            for _ in range(rounds):
                for loop in LOOPS:
                    done = measure([sys.executable, __file__, name, loop], cwd=Path(directory), env={"HF_HUB_OFFLINE": "1"})
                    assert done.code == 0, done.output
                    line = next(line for line in done.output.splitlines() if line.startswith('{"cpu_s"'))
                    cost[loop].append(json.loads(line)["cpu_s"])
            ours, theirs = (count * each * new / median(cost[loop]) for loop in LOOPS)
            print(f"{name}, {new} tokens: {ours:.1f} tokens a CPU s, transformers {theirs:.1f}: {ours / theirs:.2f} times")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in CASES:
        one(*sys.argv[1:])
    else:
        main()
