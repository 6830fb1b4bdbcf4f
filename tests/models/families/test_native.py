"""Differences between a native class and the original code are reported only where they matter."""

from __future__ import annotations

import pytest
import torch

from llmmod.config.schema.model import FreezeConf, FullConf, LoraConf
from llmmod.models.adapters.setup import setup_freeze, setup_full, setup_lora

TRAINED = "the original code divides each row of the head by its length in every step"
LONG = "is longer than the 16 that this model was trained on"


@pytest.mark.parametrize(
    ("name", "train", "said"),
    [
        pytest.param("baichuan2_7b", lambda m: setup_full(m, FullConf(name="full")), True, id="full"),
        pytest.param("baichuan_7b", lambda m: setup_full(m, FullConf(name="full")), False, id="full, with a head that isn't normalised"),
        pytest.param("baichuan2_7b", lambda m: setup_freeze(m, FreezeConf(name="f", num_layers_trainable=1)), False, id="freeze"),
        pytest.param(
            "baichuan2_7b",
            lambda m: setup_freeze(m, FreezeConf(name="f", num_layers_trainable=1, extra_trainable=["lm_head"])),
            True,
            id="freeze with the head",
        ),
        pytest.param("baichuan2_7b", lambda m: setup_lora(m, LoraConf(name="lora", target_modules=["q_proj"])), False, id="lora"),
        pytest.param(
            "baichuan2_7b",
            lambda m: setup_lora(m, LoraConf(name="lora", target_modules=["q_proj"], modules_to_save=["lm_head"])),
            True,
            id="lora with the head",
        ),
    ],
)
def test_training_a_normalised_head(load, caplog, name, train, said):
    train(load(name))
    assert (TRAINED in caplog.text) == said


@pytest.fixture
def short_qwen(load, copied):
    """A Qwen that was trained on 16 tokens."""
    return load(copied("qwen", seq_length=16))


def test_qwen_beyond_its_length(short_qwen, caplog):
    with torch.no_grad():
        short_qwen(torch.arange(3, 19)[None])
    assert LONG not in caplog.text
    with torch.no_grad():
        short_qwen(torch.arange(3, 20)[None])
        short_qwen(torch.arange(3, 20)[None])
    assert caplog.text.count(f"a text of 17 tokens {LONG}") == 1, "once"


def test_qwen_that_generates_beyond_its_length(short_qwen, caplog):
    short_qwen.generate(torch.arange(3, 17)[None], max_new_tokens=8, do_sample=False)
    assert caplog.text.count(LONG) == 1


def test_qwen_on_short_texts_in_one_row(short_qwen, caplog):
    ids = torch.arange(3, 36)[None]
    for lengths, said in (((16, 1, 16), False), ((16, 17), True)):
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        with torch.no_grad():
            short_qwen(ids, position_ids=positions)
        assert (f"a text of 17 tokens {LONG}" in caplog.text) is said


def test_qwen_in_training(short_qwen, caplog):
    short_qwen.train()(torch.arange(3, 30)[None])
    assert LONG not in caplog.text, "off in training in the original code too"


def test_qwen_without_the_switches(load, copied, caplog):
    with torch.no_grad():
        load(copied("qwen", seq_length=16, use_dynamic_ntk=False, use_logn_attn=False))(torch.arange(3, 30)[None])
    assert LONG not in caplog.text


def test_a_qwen_that_is_saved_and_loaded_natively_still_says_so(short_qwen, load, caplog, tmp_path):
    short_qwen.save_pretrained(tmp_path / "native")
    with torch.no_grad():
        load(tmp_path / "native")(torch.arange(3, 20)[None])
    assert caplog.text.count(LONG) == 1


def test_qwen_under_an_adapter(short_qwen, caplog):
    adapted = setup_lora(short_qwen, LoraConf(name="lora", target_modules=["c_attn"])).eval()
    with torch.no_grad():
        adapted(torch.arange(3, 20)[None])
    assert caplog.text.count(LONG) == 1
