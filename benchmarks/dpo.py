"""Pairs a CPU second and peak memory of direct preference optimization, beside trl's own trainer with the same model and pairs.

    python benchmarks/dpo.py

LoRA of rank 8 on all linear layers of a SmolLM2-135M in float32, with random weights, which take the time of trained ones. Prompts are as
long as answers, of alpaca's lengths: in the median 150 tokens each, at most 300. Batches of 2 pairs, the reference with each batch by the
adapter off. Each trains in a process of its own, in turn; counted are the CPU seconds from the end of the first optimizer step to the end
of the last. All get ids; trl's trainer pads them and computes the loss in its own way. `unshared` is llmmod's trainer with each answer
behind a prompt of its own in the same kind of row, unpadded: what is between it and `llmmod` is what the shared prompt alone saves.
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
from training import VOCABULARY, model

STEPS, BATCH, ROUNDS = 8, 2, 2
MEDIAN, LONGEST = 150, 300


def pairs():
    """Prompts, chosen and rejected answers of like lengths, each drawn on its own."""
    from datasets import Dataset

    draw = random.Random(1)

    def ids():
        length = min(LONGEST, max(20, int(draw.lognormvariate(0, 0.5) * MEDIAN)))
        return [draw.randrange(5, VOCABULARY) for _ in range(length)]

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_list([{name: ids() for name in names} for _ in range(BATCH * (STEPS + 1))])


def clock():
    """A callback that counts the CPU seconds of the steps after the first."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            self.first = getattr(self, "first", time.process_time())
            self.last = time.process_time()

        def pairs_per_cpu_s(self):
            return BATCH * (STEPS - 1) / (self.last - self.first)

    return Clock()


def ours(directory, counted):
    """llmmod's trainer, as `stage=dpo` builds it."""
    from llmmod.config.schema.preference_training import DpoConf
    from llmmod.models.loading.tiny import tiny_tokenizer
    from llmmod.trainers.arguments import training_arguments
    from llmmod.trainers.build import trainer_from

    conf = DpoConf(
        stage="dpo",
        trainer={"_target_": "llmmod.trainers.preference.dpo.DpoTrainer"},
        collator={"_target_": "llmmod.data.preference_collators.PrefixSharingCollator"},
        **arguments(),
    )
    args = training_arguments(conf, output_dir=Path(directory), seed=42, smoke=False, has_eval=False)
    return trainer_from(conf, model=model(), args=args, train=pairs(), evaluation=None, tokenizer=tiny_tokenizer(), callbacks=[counted])


def unshared(directory, counted):
    """The same trainer, where each answer has a prompt of its own."""
    trainer = ours(directory, counted)
    shared = trainer.data_collator

    def rows(examples):
        import torch

        from llmmod.data.collators import segment_boundaries

        texts = [(e["prompt_ids"], e[name]) for e in examples for name in ("chosen_ids", "rejected_ids")]
        lengths = [len(prompt) + len(answer) - 1 for prompt, answer in texts]
        labels = [[-100] * (len(prompt) - 1) + answer for prompt, answer in texts]
        return shared(examples) | {
            "input_ids": torch.tensor([[token for prompt, answer in texts for token in [*prompt, *answer[:-1]]]]),
            "shift_labels": torch.tensor([[token for row in labels for token in row]]),
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
            **segment_boundaries(lengths),
        }

    trainer.data_collator = rows
    return trainer


def theirs(directory, counted):
    """trl's trainer with its own collator, on ids as they are; with a `peft_config` its reference is the model without the adapter too."""
    from trl import DPOConfig, DPOTrainer

    from llmmod.models.loading.tiny import tiny_tokenizer

    class OnIds(DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    adapted = model()
    given = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "max_length": None, "remove_unused_columns": False}
    args = DPOConfig(directory, **given, **arguments())
    lora = adapted.peft_config["default"]
    return OnIds(
        adapted.unload(), args=args, train_dataset=pairs(), processing_class=tiny_tokenizer(), callbacks=[counted], peft_config=lora
    )


def arguments():
    """What both trainers are given."""
    return {
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-4,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
    }


TRAINERS = {"llmmod": ours, "unshared": unshared, "trl": theirs}


def one(name):
    """Train, and print what it took as JSON."""
    counted = clock()
    with tempfile.TemporaryDirectory() as directory:
        trainer = TRAINERS[name](directory, counted)
        trainer.train()
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print("\n" + json.dumps({"pairs_per_cpu_s": counted.pairs_per_cpu_s(), "peak_gb": peak_gb}))


def main() -> None:
    """Print a line for each trainer and each round, then how many times as fast, in the mean of the rounds."""
    print(machine())
    ratios: dict[str, list[float]] = {"unshared": [], "trl": []}
    for _ in range(ROUNDS):
        speed = {}
        for name in TRAINERS:
            done = measure([sys.executable, __file__, name], env={"HF_HUB_OFFLINE": "1", "CI": "1", "OMP_NUM_THREADS": "1"})
            if done.code:
                sys.exit(done.output[-3000:])
            found = json.loads(next(line for line in reversed(done.output.splitlines()) if line.startswith('{"pairs_per_cpu_s"')))
            speed[name] = found["pairs_per_cpu_s"]
            print(f"{name:8} {speed[name]:.3f} pairs a CPU second, peak RSS {found['peak_gb']:.2f} GB", flush=True)
        for name, times in ratios.items():
            times.append(speed["llmmod"] / speed[name])
    for name, times in ratios.items():
        print(f"llmmod is {sum(times) / len(times):.2f} times as fast as {name}")


if __name__ == "__main__":
    one(sys.argv[1]) if len(sys.argv) > 1 else main()
