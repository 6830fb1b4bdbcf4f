"""How the memory of an evaluation, or of predictions, grows with the number of examples: MB for 250 and for 2,000.

    python benchmarks/growth.py

The model is a tiny Llama with a vocabulary of 16,384. Its logits take a megabyte per example, so keeping them would take 250 MB and 2 GB.
Each stage has a process of its own, with examples mapped from the disk. Before the two evaluations that count, it evaluates 64 examples.
The script reads the process's own memory (RssAnon) every 5 ms and takes the peak.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

from measure import machine, measure

FEW, MANY, TOKENS, VOCABULARY = 250, 2000, 16, 16384
PREFERENCE, JUDGEMENT = ("prompt_ids", "chosen_ids", "rejected_ids"), ("prompt_ids", "completion_ids")
# stage -> its trainer, its collator, and columns of ids
STAGES = {
    "sft": ("llmmod.trainers.sft.SftTrainer", "llmmod.data.collators.FlatteningCollator", ("input_ids", "labels")),
    "rm": ("llmmod.trainers.rm.RmTrainer", "llmmod.data.collators.PrefixSharingRewardCollator", PREFERENCE),
    "dpo": ("llmmod.trainers.preference.trainers.DpoTrainer", "llmmod.data.collators.PrefixSharingCollator", PREFERENCE),
    "kto": ("llmmod.trainers.preference.trainers.KtoTrainer", "llmmod.data.collators.KTOCollator", JUDGEMENT),
    "ppo": ("llmmod.trainers.ppo.trainer.PpoTrainer", None, ("prompt_ids",)),
    "grpo": ("llmmod.trainers.online.grpo.GrpoTrainer", None, ("prompt_ids",)),
}
# Further arguments of stages that sample completions: short ones, with a reward for being short.
ANSWERING = {"max_completion_length": 2, "reward": {"brevity": {"_target_": "llmmod.rewards.brevity"}}}
PREDICTIONS = {"sft, answers": "sft", "rm, scores": "rm"}


class Peak:
    """A context that measures this process's own memory, in MB: `start`, and `most` until its end."""

    def __enter__(self):
        self.start = self.most = _anonymous_mb()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *raised):
        self._over.set()
        self._thread.join()

    def _look(self):
        while not self._over.is_set():
            self.most = max(self.most, _anonymous_mb())
            time.sleep(0.005)


def _anonymous_mb():
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1000


def examples(stage, count, directory):
    """Random ids, mapped from the disk."""
    from datasets import Dataset, load_from_disk

    draw = random.Random(count)
    columns = STAGES[stage][2]
    rows = [{name: [draw.randrange(5, VOCABULARY) for _ in range(TOKENS)] for name in columns} for _ in range(count)]
    for number, row in enumerate(rows):
        if stage == "kto":
            row["label"] = number % 2 == 0
    Dataset.from_list(rows).save_to_disk(f"{directory}/{count}")
    return load_from_disk(f"{directory}/{count}")


def trainer(stage, directory):
    """The trainer as the stage builds it, for a model with an adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmmod.models.loading.tiny import tiny_tokenizer
    from llmmod.models.reward import with_reward_head
    from llmmod.trainers.arguments import training_arguments
    from llmmod.trainers.build import trainer_from

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes))
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS" if stage == "rm" else "CAUSAL_LM")
    model = get_peft_model(with_reward_head(model) if stage == "rm" else model, lora)
    from llmmod.config.register import schema_class

    schema = schema_class(f"schema/training/{stage}")
    made_by, collated_by, columns = STAGES[stage]
    parts = {"trainer": {"_target_": made_by}}
    parts |= ANSWERING if columns == ("prompt_ids",) else {"collator": {"_target_": collated_by}}
    conf = schema(stage=stage, **parts, report_to="none", gradient_checkpointing=False)
    args = training_arguments(conf, output_dir=Path(directory), seed=42, smoke=False)
    some = examples(stage, 64, directory)
    return trainer_from(conf, model=model, args=args, train=examples(stage, 65, directory), evaluation=some, tokenizer=tiny_tokenizer())


def predict(stage, made, data):
    """Compute what the step `predict` computes, without keeping any batch."""
    if stage == "rm":
        from llmmod.trainers.rm import pair_rewards

        batches = pair_rewards(made.model.eval(), data, collator=made.data_collator, batch_size=8)
    else:
        from transformers import GenerationConfig

        from llmmod.models.generation.generate import generate

        config = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=0, eos_token_id=1)
        batches = generate(made.model.eval(), data["input_ids"], config=config, batch_size=8)
    for _ in batches:
        pass


def one(name):
    """Measure, and print as JSON the memory that FEW and MANY examples take."""
    stage, found = PREDICTIONS.get(name, name), {}
    with tempfile.TemporaryDirectory() as directory:
        made = trainer(stage, directory)
        for count in (64, FEW, MANY):
            data = made.eval_dataset if count == 64 else examples(stage, count, directory)
            with Peak() as peak:
                predict(stage, made, data) if name in PREDICTIONS else made.evaluate(data)
            found[str(count)] = peak.most - peak.start
    print("\n" + json.dumps(found))


def main() -> None:
    """Print a line for each stage."""
    print(machine())
    print(f"| | MB at {FEW} | MB at {MANY} |\n|---|---|---|")
    for name in [*STAGES, *PREDICTIONS]:
        done = measure([sys.executable, __file__, name], env={"HF_HUB_OFFLINE": "1", "CI": "1", "OMP_NUM_THREADS": "1"})
        if done.code:
            sys.exit(done.output[-3000:])
        found = json.loads(next(line for line in reversed(done.output.splitlines()) if line.startswith('{"64"')))
        print(f"| {name} | {found[str(FEW)]:.1f} | {found[str(MANY)]:.1f} |", flush=True)


if __name__ == "__main__":
    one(sys.argv[1]) if len(sys.argv) > 1 else main()
