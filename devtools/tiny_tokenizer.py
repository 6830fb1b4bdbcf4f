"""Makes `models/loading/tiny_tokenizer/`, the tokenizer of a rehearsal (`smoke=true`) if the model's own is not on this machine.

    python -m devtools.tiny_tokenizer            write
    python -m devtools.tiny_tokenizer --check    compare, and exit with 1 where the committed files differ

Byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) of the demonstration data: any text goes in and comes out the same, and the
questions and answers in `data/` take about as many tokens as a model's real tokenizer makes of them. Run it again when that data changes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

FOLDER = Path(__file__).resolve().parents[1] / "src" / "llmmod" / "models" / "loading" / "tiny_tokenizer"
VOCABULARY = 1000  # tokens, 256 bytes and three special tokens among them
BOS, EOS, PAD = "<s>", "</s>", "<pad>"  # ids 0, 1 and 2

# For render=auto: ChatML's shape, with the tokenizer's special tokens.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ bos_token + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token + 'assistant\\n' }}{% endif %}"
)


def demonstration_texts() -> list[str]:
    """The questions and answers of the demonstration's training file."""
    lines = resources.files("llmmod.demo").joinpath("llmmod_qa.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row[field] for row in rows for field in ("instruction", "output")]


def train(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `VOCABULARY` tokens; the same texts give the same one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def files() -> dict[str, str]:
    """File name -> text of everything in the tokenizer's folder."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    return {
        "tokenizer.json": train(demonstration_texts()).to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the files; the exit code: 1 where a check found a difference."""
    parser = argparse.ArgumentParser(prog="python -m devtools.tiny_tokenizer", description="make the tokenizer of rehearsals")
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    check = parser.parse_args(arguments).check
    changed = {name: text for name, text in files().items() if not _is_on_disk(name, text)}
    for name, text in changed.items():
        if not check:
            FOLDER.mkdir(exist_ok=True)
            (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{FOLDER.name}/{name}: {'differs from what the data gives' if check else 'written'}")
    return int(check and bool(changed))


def _is_on_disk(name: str, text: str) -> bool:
    path = FOLDER / name
    return path.is_file() and path.read_bytes() == text.encode()


if __name__ == "__main__":
    sys.exit(main())
