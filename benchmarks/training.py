"""Real tokens a CPU second and peak memory of supervised fine-tuning, beside trl's own trainer with the same model and examples.

    python benchmarks/training.py

LoRA of rank 8 on all linear layers of a SmolLM2-135M in float32, with random weights, which take the time of trained ones. Examples of
alpaca's lengths, the last three quarters of each trained, as in instruction data: in batches of 4, at most 512 tokens long, and packed into
rows of 1,024, one a batch.
trl pads and packs as it does by itself; compiled is `training.torch_compile`, whose compilation is not counted. Each trains in a process
of its own, in turn; counted are the CPU seconds from the end of the first optimizer step to the end of the last, and real tokens alone.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from measure import machine, measure

STEPS = 12
BATCH, LONGEST = 4, 512
ROW = 1024
VOCABULARY = 49152


KINDS = ("batches of 4", "packed rows", "packed rows, compiled")


def examples():
    """Lengths as of alpaca: median about 200 tokens."""
    from datasets import Dataset

    draw = random.Random(1)
    lengths = [min(LONGEST, max(30, int(draw.lognormvariate(5.3, 0.6)))) for _ in range(BATCH * (STEPS + 1) * 2)]
    rows = [[draw.randrange(5, VOCABULARY) for _ in range(length)] for length in lengths]
    return Dataset.from_list([{"input_ids": ids, "labels": [-100] * (len(ids) // 4) + ids[len(ids) // 4 :]} for ids in rows])


def model():
    """SmolLM2-135M's architecture with an adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(LlamaForCausalLM(config), lora)


def clock():
    """A callback that counts the CPU seconds of the steps after the first, and the tokens that the trainer says were in them."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            now = time.process_time(), state.num_input_tokens_seen
            self.first = getattr(self, "first", now)
            self.last = now

        def tokens_per_cpu_s(self):
            return (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])

    return Clock()


def ours(packed, directory, counted, compiled=False):
    """llmmod's trainer, as `stage=sft` builds it."""
    from llmmod.config.schema.training import SftConf
    from llmmod.data.dataset.packing import PackedDataset
    from llmmod.models.loading.tiny import tiny_tokenizer
    from llmmod.trainers.arguments import training_arguments
    from llmmod.trainers.build import trainer_from

    conf = SftConf(
        stage="sft",
        trainer={"_target_": "llmmod.trainers.sft.SftTrainer"},
        collator={"_target_": "llmmod.data.collators.FlatteningCollator"},
        **arguments(packed),
        torch_compile=compiled,
    )
    train = PackedDataset(examples(), ROW) if packed else examples()
    args = training_arguments(conf, output_dir=Path(directory), seed=1, smoke=False, has_eval=False)
    return trainer_from(conf, model=model(), args=args, train=train, evaluation=None, tokenizer=tiny_tokenizer(), callbacks=[counted])


def theirs(packed, directory, counted):
    """trl's trainer with its own collator."""
    from trl import SFTConfig, SFTTrainer

    from llmmod.models.loading.tiny import tiny_tokenizer

    packing = {"packing": True, "max_length": ROW} if packed else {"max_length": LONGEST}
    args = SFTConfig(directory, use_cpu=True, bf16=False, disable_tqdm=True, **packing, **arguments(packed))
    return SFTTrainer(model(), args, train_dataset=examples(), processing_class=tiny_tokenizer(), callbacks=[counted])


def arguments(packed):
    """What both trainers are given."""
    return {
        "max_steps": STEPS,
        "per_device_train_batch_size": 1 if packed else BATCH,
        "learning_rate": 1e-4,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1000,
        "include_num_input_tokens_seen": "non_padding",
        "report_to": "none",
    }


def one(name, kind):
    """Train, and print what it took as JSON."""
    from llmmod.models.matmul import onednn_products

    counted, compiled = clock(), {"compiled": True} if kind == KINDS[2] else {}
    products = onednn_products() if name == "llmmod" else nullcontext()  # as a run of llmmod has them
    with products, tempfile.TemporaryDirectory() as directory:
        {"llmmod": ours, "trl": theirs}[name](kind != KINDS[0], directory, counted, **compiled).train()
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print("\n" + json.dumps({"tokens_per_cpu_s": counted.tokens_per_cpu_s(), "peak_gb": peak_gb}))


def main() -> None:
    """Print a line for each trainer and each kind of batch."""
    print(machine())
    for kind in KINDS:
        for name in ("llmmod", "trl") if kind != KINDS[2] else ("llmmod",):
            done = measure([sys.executable, __file__, name, kind], env={"HF_HUB_OFFLINE": "1", "CI": "1"})
            if done.code:
                sys.exit(done.output[-3000:])
            line = next(line for line in reversed(done.output.splitlines()) if line.startswith('{"tokens_per_cpu_s"'))
            found = json.loads(line)
            print(f"{kind:21} {name:7} {found['tokens_per_cpu_s']:6.1f} real tokens a CPU second, peak RSS {found['peak_gb']:.2f} GB")


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) > 1 else main()
