"""PPO beside supervised fine-tuning of the same lengths: peak memory and CPU seconds. What its rollouts take: generation.py.

    python benchmarks/ppo.py

LoRA of rank 8 on all linear layers of a SmolLM2-135M in float32, with random weights, which take the time of trained ones. Batches of 8
prompts of 24 to 40 tokens, with 32 new tokens each. PPO's reward is the share of even token ids, so that no reward model's memory is
counted; policy, reference and value head are one model. Each runs in a process of its own, in turn; peak memory is the process's peak RSS,
libraries included.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from measure import machine, measure
from training import model

STEPS, BATCH, NEW = 4, 8, 32
KINDS = ("sft", "ppo")


def prompts(count):
    """Ids of so many prompts."""
    draw = random.Random(1)
    return [[draw.randrange(5, 900) for _ in range(draw.randint(24, 40))] for _ in range(count)]


def sft(directory):
    """SFT on prompts with answers of 32 tokens."""
    from datasets import Dataset

    from llmmod.config.schema.training import SftConf

    draw = random.Random(2)
    answers = [[draw.randrange(5, 900) for _ in range(NEW)] for _ in range(BATCH * STEPS)]
    rows = [
        {"input_ids": asked + said, "labels": [-100] * len(asked) + said}
        for asked, said in zip(prompts(BATCH * STEPS), answers, strict=True)
    ]
    trainer = {"_target_": "llmmod.trainers.sft.SftTrainer"}
    conf = SftConf(stage="sft", trainer=trainer, collator={"_target_": "llmmod.data.collators.FlatteningCollator"}, **arguments())
    trainer_of(conf, Dataset.from_list(rows), directory).train()


def ppo(directory):
    """As many optimizer steps of PPO: two rollouts of 8 prompts, two passes over each; all completions are 32 tokens long."""
    import torch
    from datasets import Dataset

    from llmmod.config.schema.online_training import PpoConf
    from llmmod.trainers.online.rewards import Rewards

    ppo = {"num_ppo_epochs": 2, "max_completion_length": NEW, "generation_kwargs": {"min_new_tokens": NEW}}
    conf = PpoConf(stage="ppo", trainer={"_target_": "llmmod.trainers.ppo.trainer.PpoTrainer"}, **ppo, **arguments())
    trainer = trainer_of(conf, Dataset.from_list([{"prompt_ids": ids} for ids in prompts(BATCH * STEPS)]), directory)
    even = {"even": lambda completions: torch.tensor([sum(token % 2 == 0 for token in ids) / len(ids) for ids in completions.ids])}
    trainer.rewards = Rewards(even)
    trainer.train()


def trainer_of(conf, train, directory):
    """The trainer of a stage, as `stage=…` builds it."""
    from llmmod.models.loading.tiny import tiny_tokenizer
    from llmmod.trainers.arguments import training_arguments
    from llmmod.trainers.build import trainer_from

    policy, tokenizer = model(), tiny_tokenizer()
    policy.generation_config.eos_token_id, policy.generation_config.pad_token_id = [tokenizer.eos_token_id], tokenizer.pad_token_id
    args = training_arguments(conf, output_dir=Path(directory), seed=1, smoke=False, has_eval=False)
    return trainer_from(conf, model=policy, args=args, train=train, evaluation=None, tokenizer=tokenizer)


def arguments():
    """What both stages are given."""
    return {
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1000,
        "report_to": "none",
    }


def one(kind):
    """Do one of them, and print what it took as JSON."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as directory:
        {"sft": sft, "ppo": ppo}[kind](directory)
        took = time.process_time() - began
    print("\n" + json.dumps({"cpu_s": took, "peak_gb": peak_gb()}))


def peak_gb():
    """The process's peak RSS so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Print a line for each, and the two ratios."""
    print(machine())
    found = {}
    for kind in KINDS:
        done = measure([sys.executable, __file__, kind], env={"HF_HUB_OFFLINE": "1", "CI": "1"})
        if done.code:
            sys.exit(done.output[-3000:])
        line = next(line for line in reversed(done.output.splitlines()) if line.startswith('{"cpu_s"'))
        took = found[kind] = json.loads(line)
        print(f"{kind:20} {took['cpu_s']:7.1f} CPU s, peak RSS {took['peak_gb']:.2f} GB")
    print(f"PPO's peak is {found['ppo']['peak_gb'] / found['sft']['peak_gb']:.2f} times SFT's")


if __name__ == "__main__":
    one(sys.argv[1]) if len(sys.argv) > 1 else main()
