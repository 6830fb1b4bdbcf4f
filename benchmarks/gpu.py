"""Tokens per second, model FLOPs utilisation, peak memory, and how often the host waits for the GPU, compared with trl's trainers.

    python benchmarks/gpu.py               every cell, each in a process of its own; without a GPU it says so
    python benchmarks/gpu.py rehearsal     two small cells on the CPU, which only show that the script runs

The cells are SFT on packed rows of 4,096 tokens and DPO on batches of pairs, with models of the shapes of SmolLM2-135M and Llama-3.2-1B and
random weights, which are as fast as trained ones. In full fine-tuning, weights are float32 and the computation is bfloat16 (autocast); with
LoRA of rank 16 on all linear layers, frozen weights are bfloat16. trl packs rows and pads pairs in its own way.

Model FLOPs utilisation (MFU) counts the products with weights that the examples need: per weight and token 2 FLOPs forward, 2 backward for
activations, and 2 backward for weights that are trained; the head for labelled tokens only; a pair as two texts, and one more forward pass
for the reference. Attention isn't counted, and it makes no difference what a trainer computes twice or not at all. The peak is the vendor's
figure for dense bfloat16. Padding isn't counted as tokens.

The host waits wherever torch's sync debug mode warns. This is counted over the last steps, which aren't timed.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

from measure import machine, measure

ROW, LONGEST, PAIRS = 4096, 1024, 8
WARM_UP, TIMED, WATCHED = 3, 12, 3
PEAK_FLOPS = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}  # dense bfloat16; of several versions, the SXM one
_LLAMA = {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "max_position_embeddings": 8192, "tie_word_embeddings": True}
SHAPES = {
    "135M": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    | {"num_key_value_heads": 3},
    "1B": {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "head_dim": 64},
    "tiny": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"num_key_value_heads": 2},
}
CELLS = [(stage, shape, way) for stage in ("sft", "dpo") for shape in ("135M", "1B") for way in ("full", "lora")]


def model(shape, way):
    """A model as it is at the start of a training."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], **_LLAMA))
    if way == "full":
        return plain
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(plain.to(torch.bfloat16), lora, autocast_adapter_dtype=True)


def examples(stage, shape):
    """Examples of alpaca's lengths, three quarters of each labelled; for dpo a prompt and two completions of such lengths."""
    from datasets import Dataset

    draw = random.Random(1)

    def ids():
        length = min(LONGEST, max(30, int(draw.lognormvariate(5.3, 0.6))))
        return [draw.randrange(5, SHAPES[shape]["vocab_size"]) for _ in range(length)]

    steps = WARM_UP + TIMED + WATCHED
    if stage == "dpo":
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        return Dataset.from_list([{name: ids() for name in names} for _ in range(PAIRS * (steps + 1))])
    rows = [ids() for _ in range((steps + 1) * ROW // 150)]
    return Dataset.from_list([{"input_ids": row, "labels": [-100] * (len(row) // 4) + row[len(row) // 4 :]} for row in rows])


def clock():
    """A callback that times the steps in the middle and turns on torch's sync debug mode for the last ones."""
    import torch
    from transformers import TrainerCallback

    on_gpu = torch.cuda.is_available()

    class Clock(TrainerCallback):
        seconds = waits = 0

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step in (WARM_UP, WARM_UP + TIMED):
                if on_gpu:
                    torch.cuda.synchronize()
                    torch.cuda.set_sync_debug_mode("warn" if state.global_step > WARM_UP else "default")
                self.seconds = time.perf_counter() - self.seconds  # the start, then the time since

        def on_train_end(self, args, state, control, **kwargs):
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")

    return Clock()


def arguments(stage):
    """The arguments that both trainers get."""
    return {
        "max_steps": WARM_UP + TIMED + WATCHED, "per_device_train_batch_size": PAIRS if stage == "dpo" else 1, "learning_rate": 1e-5,
        "gradient_checkpointing": False, "save_strategy": "no", "logging_steps": 1000, "report_to": "none",
        "train_sampling_strategy": "sequential",
    }  # fmt: skip


def ours(stage, shape, way, directory, counted):
    """llmmod's trainer, as the stage builds it."""
    from llmmod.config.schema.training import DpoConf, SftConf
    from llmmod.data.dataset.packing import PackedDataset
    from llmmod.models.loading.tiny import tiny_tokenizer
    from llmmod.trainers.arguments import training_arguments
    from llmmod.trainers.build import trainer_from

    schema, trainer, collator = {
        "sft": (SftConf, "llmmod.trainers.sft.SftTrainer", "llmmod.data.collators.FlatteningCollator"),
        "dpo": (DpoConf, "llmmod.trainers.preference.trainers.DpoTrainer", "llmmod.data.collators.PrefixSharingCollator"),
    }[stage]
    conf = schema(stage=stage, trainer={"_target_": trainer}, collator={"_target_": collator}, **arguments(stage))
    train = examples(stage, shape)
    train = PackedDataset(train, ROW) if stage == "sft" else train
    args = training_arguments(conf, output_dir=Path(directory), seed=1, smoke=False, has_eval=False)
    return trainer_from(
        conf, model=model(shape, way), args=args, train=train, evaluation=None, tokenizer=tiny_tokenizer(), callbacks=[counted]
    )


def theirs(stage, shape, way, directory, counted):
    """trl's trainer with its own collator; for dpo, on ids."""
    import torch
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from llmmod.models.loading.tiny import tiny_tokenizer

    class OnIds(DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    given = {"bf16": torch.cuda.is_available(), "use_cpu": not torch.cuda.is_available(), "disable_tqdm": True, **arguments(stage)}
    parts = {"train_dataset": examples(stage, shape), "processing_class": tiny_tokenizer(), "callbacks": [counted]}
    trained = model(shape, way)
    if stage == "sft":
        return SFTTrainer(trained, SFTConfig(directory, packing=True, max_length=ROW, **given), **parts)
    if way == "lora":  # with a `peft_config`, its reference is the model without the adapter, as llmmod's is
        parts["peft_config"] = trained.peft_config["default"]
        trained = trained.unload()
    return OnIds(trained, args=DPOConfig(directory, max_length=None, remove_unused_columns=False, **given), **parts)


def weights(shape):
    """The number of weights of the linear layers without the head, and of the head."""
    from torch import nn

    linear = {name: module.weight.numel() for name, module in model(shape, "full").named_modules() if isinstance(module, nn.Linear)}
    head = linear.pop("lm_head")
    return sum(linear.values()), head


def one(stage, shape, way, name):
    """Train, and print the figures as JSON."""
    import torch

    counted = clock()
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = {"llmmod": ours, "trl": theirs}[name](stage, shape, way, directory, counted)
        needed = []  # real tokens and labelled ones of each batch
        collate = trainer.data_collator

        def watched(rows):
            if stage == "dpo":
                answers = [len(row[key]) for row in rows for key in ("chosen_ids", "rejected_ids")]
                needed.append((sum(2 * len(row["prompt_ids"]) for row in rows) + sum(answers), sum(answers)))
                return collate(rows)
            batch = collate(rows)
            labels = batch["labels"]
            mask = batch.get("attention_mask")
            needed.append((labels.numel() if mask is None else int(mask.sum()), int((labels != -100).sum())))
            return batch

        trainer.data_collator = watched
        trainer.train()
    tokens, labelled = (sum(column) for column in zip(*needed[WARM_UP : WARM_UP + TIMED], strict=True))
    layers, head = weights(shape)
    passes = (6 if way == "full" else 4) + (2 if stage == "dpo" else 0)
    flops = passes * (layers * tokens + head * labelled)
    on_gpu = torch.cuda.is_available()
    card = torch.cuda.get_device_name() if on_gpu else "CPU"
    peak = next((value for part, value in PEAK_FLOPS.items() if part in card), None)
    found = {
        "card": card,
        "tokens_per_s": tokens / counted.seconds,
        "mfu": None if peak is None else flops / counted.seconds / peak,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
        "waits_a_step": sum("synchronizing CUDA" in str(warning.message) for warning in caught) / WATCHED if on_gpu else None,
    }
    print("\n" + json.dumps(found))


def main(cells) -> None:
    """Print a line for each cell and trainer."""
    print(machine())
    for cell in cells:
        for name in ("llmmod", "trl"):
            done = measure([sys.executable, __file__, *cell, name], env={"HF_HUB_OFFLINE": "1", "CI": "1"})
            if done.code:
                print(f"{' '.join(cell):14} {name:7} failed: {done.output[-1500:]}")
                continue
            found = json.loads(next(line for line in reversed(done.output.splitlines()) if line.startswith('{"card"')))
            shown = f"{found['tokens_per_s']:9,.0f} tokens/s"
            if found["peak_gb"] is not None:
                mfu = "unknown" if found["mfu"] is None else f"{found['mfu']:.1%}"
                shown += f", MFU {mfu}, peak {found['peak_gb']:.1f} GB, {found['waits_a_step']:.1f} waits a step"
            print(f"{' '.join(cell):14} {name:7} {shown} ({found['card']})", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 5:
        one(*sys.argv[1:])
    elif sys.argv[1:] == ["rehearsal"]:
        main([("sft", "tiny", "lora"), ("dpo", "tiny", "lora")])
    else:
        import torch

        main(CELLS) if torch.cuda.is_available() else print(f"torch {torch.__version__} sees no CUDA device: nothing is measured")
