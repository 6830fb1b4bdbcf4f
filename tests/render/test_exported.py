"""A saved ChatGLM2 has a chat template and a tokenizer that give programs which only use text the ids of its training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llmmod import load_tokenizer
from llmmod.models.tokenizers.originals import SentencePieceTokenizer
from llmmod.render.certificate import certify
from llmmod.render.conversation import Conversation, Message
from llmmod.render.encode import encode_prompt
from llmmod.render.export import exported, with_template
from llmmod.render.template import Template

HERE = Path(__file__).parent
TEXTS = json.loads((HERE.parent / "models" / "tokenizers" / "chatglm2_tiny.json").read_text(encoding="utf-8"))
MESSAGES = [Message("user", "people gossop\n 你好  sop"), Message("assistant", "eop! 你好！"), Message("user", "1+1=?")]


@pytest.fixture(scope="module")
def chatglm2(tmp_path_factory):
    """The tokenizer of an original checkpoint."""
    directory = tmp_path_factory.mktemp("chatglm2")
    shutil.copy(HERE / "sentencepiece" / "chatglm2_tiny.model", directory / "tokenizer.model")
    (directory / "config.json").write_text('{"model_type": "chatglm"}')
    return load_tokenizer(str(directory))


@pytest.fixture
def render(chatglm2, shipped):
    return Template(tokenizer=chatglm2, **shipped("chatglm2"))


@pytest.fixture
def stock(chatglm2, render, tmp_path):
    """The saved tokenizer as transformers alone loads it."""
    tokenizer, tokenizer.chat_template = exported(render, chatglm2)
    tokenizer.save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("system", [[], [Message("system", "Be brief.")]], ids=["", "system"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_the_prompt_has_the_ids_of_the_render(chatglm2, render, stock, system, rounds):
    messages = [*system, *MESSAGES[-rounds:]]
    ids = stock.apply_chat_template([{"role": m.role, "content": m.content} for m in messages], add_generation_prompt=True)["input_ids"]
    assert ids == encode_prompt(render.prompt(Conversation(messages)), chatglm2)
    assert ids[:2] == [3001, 3003]  # 3,000 pieces, [MASK], [gMASK], [sMASK], sop


def test_other_texts_have_the_ids_of_the_original(chatglm2, stock):
    spelt = ("</s>", "<unk>", "[gMASK]", "[MASK]")  # encoded as special tokens, as in any recent tokenizer
    for row in TEXTS:
        if not any(token in row["text"] for token in spelt):
            assert stock(row["text"]).input_ids == row["ids"]
    assert len(stock) == len(chatglm2)
    assert (stock.eos_token_id, stock.pad_token_id, stock.padding_side) == (chatglm2.eos_token_id, chatglm2.pad_token_id, "left")


def test_the_certificate_does_not_have_findings(chatglm2, render):
    assert certify(render, chatglm2) == []


def test_what_was_saved_is_trained_on_again(chatglm2, render, stock, shipped, tmp_path):
    """The render finds the token `sop` under its original name, and a text that spells a token stays a text."""
    tokenizer = load_tokenizer(str(tmp_path))
    again = Template(tokenizer=tokenizer, **shipped("chatglm2"))
    asked = Conversation([*MESSAGES[:2], Message("user", "[gMASK]<sop> people sop </s>")])
    assert encode_prompt(again.prompt(asked), tokenizer) == encode_prompt(render.prompt(asked), chatglm2)
    assert certify(again, tokenizer) == []


def test_any_other_tokenizer_is_itself(byte_level, shipped):
    render = Template(tokenizer=byte_level, **shipped("chatml"))
    assert exported(render, byte_level) == (byte_level, render.chat_template())


@pytest.mark.parametrize("fast", [True, False])
def test_a_copy_with_another_template_changes_nothing_of_the_original(byte_level, fast):
    tokenizer = byte_level if fast else SentencePieceTokenizer(vocab_file=str(HERE / "sentencepiece" / "chatglm2_tiny.model"))
    before = tokenizer.chat_template, tokenizer.padding_side, dict(tokenizer.init_kwargs), dict(tokenizer.special_tokens_map)
    copied = with_template(tokenizer, "{{ messages }}")
    assert (copied.is_fast, copied.chat_template) == (fast, "{{ messages }}")
    copied.pad_token, copied.padding_side, copied.init_kwargs["padding_side"] = copied.convert_ids_to_tokens(5), "left", "left"
    assert (tokenizer.chat_template, tokenizer.padding_side, dict(tokenizer.init_kwargs), dict(tokenizer.special_tokens_map)) == before
    assert copied("people").input_ids == tokenizer("people").input_ids
