"""Tokenizers of original checkpoints: directories with a config.json and the vocabulary, and the original code's ids.

`*_tiny` are small SentencePiece models made for these tests. The files of the real ones belong to their authors: tests read them where the
development machine has them and are skipped elsewhere. All ids were computed with the original tokenizer code
and transformers 4.33; LLaMA-2's with sentencepiece itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARED = HERE.parents[3] / "shared" / "oracles" / "tokenizers"
SENTENCEPIECE = HERE.parents[1] / "render" / "sentencepiece"
# name -> model_type in config.json, vocabulary file
ORIGINALS = {
    "chatglm2_tiny": ("chatglm", "tokenizer.model"),
    "baichuan2_tiny": ("baichuan", "tokenizer.model"),
    "internlm": ("internlm", "tokenizer.model"),
    "qwen": ("qwen", "qwen.tiktoken"),
    "llama2": ("llama", "tokenizer.model"),
}


@pytest.fixture(scope="session")
def vocabulary():
    """A function: name -> its vocabulary file; skips the test where it isn't on this machine."""

    def find(name):
        path = SENTENCEPIECE / f"{name}.model" if name.endswith("_tiny") else SHARED / name / ORIGINALS[name][1]
        if not path.is_file():
            pytest.skip(f"{name}'s own tokenizer is not on this machine")
        return path

    return find


@pytest.fixture(scope="session")
def oracle(vocabulary):
    """A function: name -> texts with the ids that the original gives."""

    def read(name):
        path = HERE / f"{name}.json" if name.endswith("_tiny") else vocabulary(name).with_name("ids.json")
        return json.loads(path.read_text(encoding="utf-8"))

    return read


@pytest.fixture(scope="session")
def directory(vocabulary, tmp_path_factory):
    """A function: name, content of tokenizer_config.json, other files -> an original checkpoint's directory without weights."""

    def make(name, tokenizer_config=None, **files):
        path, (model_type, file) = tmp_path_factory.mktemp(name), ORIGINALS[name]
        (path / file).symlink_to(vocabulary(name))
        (path / "config.json").write_text(json.dumps({"model_type": model_type}))
        if tokenizer_config is not None:
            files["tokenizer_config"] = tokenizer_config
        for stem, content in files.items():
            (path / f"{stem}.json").write_text(json.dumps(content))
        return path

    return make


@pytest.fixture(scope="session")
def loaded(directory):
    """A function: name -> the tokenizer of its original checkpoint, built once."""
    from llmmod import load_tokenizer

    made = {}

    def load(name):
        if name not in made:
            made[name] = load_tokenizer(str(directory(name)))
        return made[name]

    return load
