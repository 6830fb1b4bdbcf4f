"""Real tokens per CPU second and peak memory of supervised fine-tuning, compared with trl's trainer and LLaMA-Factory on the same rows.

    python benchmarks/training.py [--llamafactory /another/environment/bin/python] [--only 'LoRA, packed'] [--steps 6]

The model is SmolLM2-135M in float32 with random weights, which are as fast as trained ones. All weights are trained, or LoRA of rank 8 on
all linear layers. Examples have alpaca's lengths, at most 512 tokens, and the last three quarters of each are trained, as in instruction
data. They are in batches of 4, or packed into rows of 1,024, one row per batch, in which examples do not see each other. Each trainer pads
and packs in its own way, and gets the rows in the same order. Compiled cells set `torch_compile`, which llmmod applies to layers and the
others to the whole model.

Each cell of the table is a process of its own, in turn. Padding is not counted as tokens. The CPU seconds are those from the end of the
first optimizer step to the end of the last; if layers are compiled, from the end of the third, since shapes that vary are compiled twice.
LLaMA-Factory (0.9.5) needs other versions of transformers and trl: install it in another environment, `pip install llamafactory==0.9.5`.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from measure import machine, measure

BATCH, LONGEST = 4, 512
ROW = 1024
VOCABULARY, FIRST = 49152, 5  # ids below the first are padding
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
}  # fmt: skip
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
UNPACKED, PACKED = f"batches of {BATCH}", f"packed rows of {ROW:,}"
TRAINERS = ("llmmod", "trl", "LLaMA-Factory")
TOKENIZER = Path(__file__).parent.parent / "src" / "llmmod" / "models" / "loading" / "tiny_tokenizer"


class Cell(NamedTuple):
    """What is measured; `steps`: optimizer steps, including those that aren't counted."""

    trainer: str
    lora: bool
    packed: bool
    compiled: bool
    steps: int

    @property
    def uncounted(self):
        """Optimizer steps before those that count."""
        return 3 if self.compiled else 1


def examples():
    """Examples of alpaca's lengths, with a median of about 200 tokens."""
    from datasets import Dataset

    draw = random.Random(1)
    lengths = [min(LONGEST, max(30, int(draw.lognormvariate(5.3, 0.6)))) for _ in range(BATCH * 26)]
    rows = [[draw.randrange(FIRST, VOCABULARY) for _ in range(length)] for length in lengths]
    return Dataset.from_list([{"input_ids": ids, "labels": [-100] * (len(ids) // 4) + ids[len(ids) // 4 :]} for ids in rows])


def model(*, lora=True):
    """A random model of SmolLM2-135M's architecture, with or without an adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(**SHAPE))
    return get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **LORA)) if lora else plain


def clock(uncounted):
    """A callback that counts the CPU seconds of the steps after the first ones, and the real tokens in their batches."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
            loader = getattr(train_dataloader, "base_dataloader", train_dataloader)
            self.collate, self.tokens, self.ends = loader.collate_fn, [], []
            loader.collate_fn = self.counted  # a loader makes a batch before it is needed, but in order

        def counted(self, rows):
            batch = self.collate(rows)
            self.tokens.append(int((batch["input_ids"] >= FIRST).sum()))
            return batch

        def on_step_end(self, args, state, control, **kwargs):
            self.ends.append(time.process_time())

        def on_train_end(self, args, state, control, **kwargs):
            tokens, cpu_s = sum(self.tokens[uncounted : len(self.ends)]), self.ends[-1] - self.ends[uncounted - 1]
            peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
            print("\n" + json.dumps({"tokens_per_cpu_s": tokens / cpu_s, "peak_gb": peak_gb}))

    return Clock()


def llmmod(cell, directory):
    """llmmod's trainer, as `stage=sft` builds it."""
    from llmmod.config.schema.training import SftConf
    from llmmod.data.dataset.packing import PackedDataset
    from llmmod.models.loading.tiny import tiny_tokenizer
    from llmmod.models.matmul import onednn_products
    from llmmod.trainers.arguments import training_arguments
    from llmmod.trainers.build import trainer_from

    conf = SftConf(
        stage="sft",
        trainer={"_target_": "llmmod.trainers.sft.SftTrainer"},
        collator={"_target_": "llmmod.data.collators.FlatteningCollator"},
        **arguments(cell),
    )
    train = PackedDataset(examples(), ROW) if cell.packed else examples()
    args = training_arguments(conf, output_dir=Path(directory), seed=1, smoke=False, has_eval=False)
    parts = {"args": args, "train": train, "evaluation": None, "tokenizer": tiny_tokenizer(), "callbacks": [clock(cell.uncounted)]}
    with onednn_products():  # as in a run of llmmod
        trainer_from(conf, model=model(lora=cell.lora), **parts).train()


def trl(cell, directory):
    """trl's trainer with its own collator and packing."""
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    packing = {"packing": True, "max_length": ROW} if cell.packed else {"max_length": LONGEST}
    args = SFTConfig(directory, use_cpu=True, bf16=False, disable_tqdm=True, **packing, **arguments(cell))
    tokenizer, counted = AutoTokenizer.from_pretrained(TOKENIZER), clock(cell.uncounted)
    SFTTrainer(model(lora=cell.lora), args, train_dataset=examples(), processing_class=tokenizer, callbacks=[counted]).train()


def llamafactory(cell, directory):
    """LLaMA-Factory's command `train`, on ids that its own code packs so that examples don't see each other (`neat_packing`)."""
    from datasets import Dataset
    from llamafactory.data.processor import supervised
    from llamafactory.train.tuner import run_exp
    from transformers import AutoTokenizer, LlamaConfig

    class OnIds:
        def _encode_data_example(self, prompt, response, **others):
            return list(prompt[0]), list(response[0])

    plain, packing = supervised.SupervisedDatasetProcessor, supervised.PackedSupervisedDatasetProcessor
    encoder = type("Encoder", (OnIds, packing if cell.packed else plain), {})
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    settings = SimpleNamespace(cutoff_len=ROW - 1, neat_packing=True)  # a token of padding follows each row
    rows, path = examples(), Path(directory)
    columns = {"_prompt": [[ids] for ids in rows["input_ids"]], "_response": [[ids] for ids in rows["labels"]]}
    columns |= {name: [None] * len(rows) for name in ("_system", "_tools", "_images", "_videos", "_audios")}
    encoded = encoder(template=None, tokenizer=tokenizer, processor=None, data_args=settings).preprocess_dataset(columns)
    Dataset.from_dict(dict(encoded)).save_to_disk(path / "rows")
    shutil.copytree(TOKENIZER, path / "model")
    LlamaConfig(**SHAPE, architectures=["LlamaForCausalLM"]).save_pretrained(path / "model")
    given = arguments(cell) | {"disable_gradient_checkpointing": True, "disable_shuffling": True, "neat_packing": cell.packed}
    del given["gradient_checkpointing"], given["train_sampling_strategy"]
    lora = {"finetuning_type": "lora", "lora_rank": LORA["r"], "lora_alpha": LORA["lora_alpha"], "lora_target": "all"}
    given |= lora if cell.lora else {"finetuning_type": "full"}
    given |= {"model_name_or_path": str(path / "model"), "train_from_scratch": True, "template": "empty", "dataset": "rows"}
    given |= {"tokenized_path": str(path / "rows"), "output_dir": str(path / "output"), "stage": "sft", "do_train": True}
    run_exp(given, [clock(cell.uncounted)])


# For every measured training, by transformers' names: nothing is saved, logged or computed twice, and rows keep their order.
TRAINING = {
    "learning_rate": 1e-4,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "logging_steps": 1000,
    "report_to": "none",
    "train_sampling_strategy": "sequential",
}


def arguments(cell):
    """The arguments that all trainers get."""
    return TRAINING | {
        "max_steps": cell.steps,
        "per_device_train_batch_size": 1 if cell.packed else BATCH,
        "torch_compile": cell.compiled,
    }


def one(cell):
    """Train; the clock prints the figures as JSON."""
    with tempfile.TemporaryDirectory() as directory:
        dict(zip(TRAINERS, (llmmod, trl, llamafactory), strict=True))[cell.trainer](cell, directory)


def measured(cell, python):
    """The figures that a cell's process printed; None if its trainer fails, and then its last lines are printed."""
    done = measure([python, __file__, "--cell", json.dumps(cell)], env={"HF_HUB_OFFLINE": "1", "CI": "1"})
    lines = done.output.splitlines()
    found = next((json.loads(line) for line in reversed(lines) if line.startswith('{"tokens_per_cpu_s"')), None)
    if found is None:
        if cell.trainer == "llmmod":
            sys.exit(done.output[-3000:])
        print("\n".join(lines[-3:]))
    return found


def main():
    """Print the figures of each cell, and then the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--llamafactory", metavar="PYTHON", help="the Python of an environment that has LLaMA-Factory")
    parser.add_argument("--only", default="", help="parts of the names of rows, separated by commas")
    parser.add_argument("--trainers", default=",".join(TRAINERS), help="separated by commas")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps; the first isn't counted")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        one(Cell(*json.loads(given.cell)))
        return
    pythons = dict(zip(TRAINERS, (sys.executable, sys.executable, given.llamafactory), strict=True))
    pythons = {name: python for name, python in pythons.items() if python and name in given.trainers.split(",")}
    print(machine(), flush=True)
    table = [f"| | {' | '.join(pythons)} |", "|---" * (1 + len(pythons)) + "|"]
    for lora, compiled, packed in product((True, False), (False, True), (False, True)):
        name = f"{'LoRA' if lora else 'full'}, {PACKED if packed else UNPACKED}{', compiled' if compiled else ''}"
        if not all(part.strip() in name for part in given.only.split(",")):
            continue
        shown = []
        for trainer, python in pythons.items():
            found = measured(Cell(trainer, lora, packed, compiled, given.steps + 2 * compiled), python)
            shown.append("–" if found is None else f"{found['tokens_per_cpu_s']:.1f}; {found['peak_gb']:.2f} GB")
            print(f"{name}: {trainer} {shown[-1]}", flush=True)
        table.append(f"| {name} | {' | '.join(shown)} |")
    print("\n" + "\n".join(table))


if __name__ == "__main__":
    main()
