"""Which causal language models of transformers can be fine-tuned by their path (`model=auto`), as a table in Markdown.

    python benchmarks/architectures.py                     all of `ARCHITECTURES`, which don't have an option of `model`
    python benchmarks/architectures.py mamba opt           only these, by model_type

The script writes a tiny checkpoint of each, with transformers' default configuration made smaller and random weights. It trains, evaluates,
exports, reloads and resumes each as benchmarks/matrix.py does. The last column of the table says how the examples of a packed row are kept
from seeing each other, or by how much losses differ if they aren't. tests/e2e/test_auto.py runs a part of it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ARCHITECTURES = (
    "cohere", "cohere2", "deepseek_v3", "ernie4_5", "exaone4", "falcon_h1", "gemma", "gemma2", "gemma4_text", "gpt2", "gpt_bigcode",
    "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "jamba", "llama4_text", "mamba", "mamba2", "mixtral", "mpt", "nemotron", "olmo",
    "olmo2", "opt", "persimmon", "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_next", "recurrent_gemma", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
WAYS = ("full", "freeze", "lora", "qlora")
# Values for default configurations of transformers 5.23 from which a model can't be built.
FIELDS = {"nemotron": {"num_key_value_heads": 8, "head_dim": 128}}
# Weights that a model multiplies itself, without calling the layer, can't be quantized; without this llmmod refuses the run.
QLORA = {"mamba": ("model.quantization.llm_int8_skip_modules=[dt_proj,lm_head]",)}
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"  # noqa: E501
KINDS = {"segments": "each example by itself", "mask": "by a mask"}


def write_checkpoint(model_type: str, directory: Path) -> Path:
    """The directory of a tiny model of an architecture, with a tokenizer that has a chat template."""
    from llmmod.models.families.native import config_class
    from llmmod.models.loading.tiny import random_model, shrink_config, tiny_tokenizer

    tokenizer = tiny_tokenizer(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = TEMPLATE
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = config_class(model_type)(**FIELDS.get(model_type, {}))
    random_model(shrink_config(config, vocab_size=len(tokenizer), special=special), seed=0).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def packing(directory: Path) -> str:
    """How a checkpoint's model keeps the examples of a packed row from seeing each other, or why it can't."""
    import llmmod
    from llmmod.models.packing import measured_support

    found = measured_support(llmmod.load_model(str(directory)))
    return KINDS[found.method] if found.method else str(found.reason).rpartition("Measured on a tiny random one: ")[2]


def main(architectures: list[str]) -> int:
    """Print the table and what failed; returns 1 if something failed."""
    from matrix import run_cell
    from measure import machine

    print(machine(), file=sys.stderr)
    began, failed = time.process_time(), {}
    print(f"| model_type | {' | '.join(WAYS)} | packed rows |\n|---|{'---|' * len(WAYS)}---|")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LLMMOD_CACHE"] = f"{scratch}/cache"
        for model_type in architectures:
            cells = []
            checkpoint = write_checkpoint(model_type, Path(scratch) / model_type / "checkpoint")
            for way in WAYS:
                more = QLORA.get(model_type, ()) if way == "qlora" else ()
                try:
                    path = f"model.pretrained_model_name_or_path={checkpoint}"
                    run_cell("auto", way, Path(scratch) / model_type, overrides=(path, *more))
                    cells.append("✓")
                except Exception as error:
                    failed[model_type, way] = " ".join(f"{type(error).__name__}: {error}".split())[:400]
                    cells.append("✗")
            print(f"| `{model_type}` | {' | '.join(cells)} | {packing(checkpoint)} |", flush=True)
    print(f"\n{len(architectures) * len(WAYS) - len(failed)} of {len(architectures) * len(WAYS)} pairs")
    for (model_type, way), why in failed.items():
        print(f"- {model_type} × {way}: {why}")
    print(f"{time.process_time() - began:.0f} CPU seconds", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Which architectures work with which ways to fine-tune, in Markdown.")
    parser.add_argument("architectures", nargs="*", metavar="MODEL_TYPE", default=list(ARCHITECTURES))
    sys.exit(main(parser.parse_args().architectures))
