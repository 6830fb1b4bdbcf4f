"""Checkpoints to load: a tiny llama saved as a directory, and as a GGUF file."""

from __future__ import annotations

import pytest
from written_gguf import write_gguf


@pytest.fixture
def llama_directory(tiny_llama, tiny_tokenizer, tmp_path):
    """The tiny Llama and its tokenizer, as save_pretrained writes them."""
    directory = tmp_path / "tiny-llama"
    tiny_llama.save_pretrained(directory)
    tiny_tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def ids():
    """Token ids of a tiny model, [batch=2, seq=9]."""
    import torch

    return torch.arange(5, 23).reshape(2, 9)


@pytest.fixture
def logits():
    """model, ids -> its logits [batch, seq, vocabulary], without gradients."""
    import torch

    def compute(model, input_ids):
        with torch.no_grad():
            return model.eval()(input_ids=input_ids).logits

    return compute


@pytest.fixture
def no_network(monkeypatch):
    """Each request to the hub fails as it does without a network; the fixture is the list of requested addresses."""
    import huggingface_hub

    asked = []

    def refuse(url, **arguments):
        asked.append(url)
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return asked


@pytest.fixture
def gguf_directory(tiny_llama, tiny_tokenizer, tmp_path):
    """A directory with the tiny model as a GGUF file, `tiny.gguf`."""
    write_gguf(tmp_path / "tiny.gguf", tiny_llama, tiny_tokenizer)
    return tmp_path
