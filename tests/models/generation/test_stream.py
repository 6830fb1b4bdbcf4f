"""Streaming writes whole characters only, and the joined pieces are the answer's text without its end token."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from llmmod.models.generation.generate import Pieces, stream_answer
from llmmod.models.generation.settings import Reader
from llmmod.render.template import inner_text


def streamed(tokenizer, ids, *, stop_ids=(0,), at_once=1, **reading):
    """The pieces that arrive when each step generates `at_once` of the `ids`."""
    pieces = []
    streamer = Pieces(Reader(tokenizer, stop_ids, **reading), pieces.append)
    streamer.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for start in range(0, len(ids), at_once):
        streamer.put(torch.tensor(ids[start : start + at_once]))
    streamer.end()
    return pieces


TEXTS = {"en": "The lazy dog.", "zh": "中国的首都是北京。", "emoji": "naïve 🙂 and 👩‍👩‍👧 family", "space": "a\n\n  b\t— c"}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_pieces_are_whole_characters_and_join_to_the_text(tiny_tokenizer, text):
    ids = tiny_tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > 4, "the case must take several tokens"
    pieces = streamed(tiny_tokenizer, ids)
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert not [piece for piece in pieces if "\N{REPLACEMENT CHARACTER}" in piece]


def test_a_chinese_character_comes_when_its_last_byte_has_come(tiny_tokenizer):
    # The tokenizer didn't see 鑫 in training, so it encodes it as three UTF-8 bytes.
    ids = tiny_tokenizer.encode("鑫鑫", add_special_tokens=False)
    assert len(ids) == 6
    written = []
    streamer = Pieces(Reader(tiny_tokenizer, [0]), written.append)
    streamer.put(torch.tensor([[1]]))
    seen = []
    for token in ids:
        streamer.put(torch.tensor([token]))
        seen.append("".join(written))
    assert seen == ["", "", "鑫", "鑫", "鑫", "鑫鑫"]


def test_an_answer_cut_within_a_character_shows_a_replacement_character(tiny_tokenizer):
    ids = tiny_tokenizer.encode("好鑫", add_special_tokens=False)[:-1]
    assert "".join(streamed(tiny_tokenizer, ids)) == tiny_tokenizer.decode(ids)


@given(data=st.data())
def test_pieces_join_to_what_decoding_at_the_end_gives(tiny_tokenizer, data):
    ids = data.draw(st.lists(st.integers(5, len(tiny_tokenizer) - 1), max_size=40))
    at_once = data.draw(st.integers(1, 4))
    assert "".join(streamed(tiny_tokenizer, ids, at_once=at_once)) == Reader(tiny_tokenizer)(ids)


def test_the_answer_ends_before_the_end_token(tiny_tokenizer):
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = [*tiny_tokenizer.encode("The dog", add_special_tokens=False), end, *tiny_tokenizer.encode(" more", add_special_tokens=False)]
    assert "".join(streamed(tiny_tokenizer, ids, stop_ids=[0, end], at_once=len(ids))) == "The dog"


FRAMES = {"a space and a line's end": (" ", "\n"), "no thoughts": ("<think>\n\n</think>\n\n", ""), "words": ("A: ", "!</a>")}


@pytest.mark.parametrize(("before", "after"), FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("said", ["The dog\n\nbarks", "<think>\nHm.\n</think>\n\nIt barks! <", "A", "<", ""])
def test_only_what_the_render_writes_around_an_answer_is_left_out(tiny_tokenizer, before, after, said):
    """An answer that looks like the start of such text is shown; the model's own thoughts are part of its answer."""
    inner = functools.partial(inner_text, before=before, after=after)
    ids = tiny_tokenizer.encode(f"{before}{said}{after}", add_special_tokens=False)
    pieces = streamed(tiny_tokenizer, ids, inner=inner)
    assert "".join(pieces) == Reader(tiny_tokenizer, [0], inner)(ids) == said


@pytest.fixture
def config(tiny_tokenizer):
    return GenerationConfig(do_sample=False, max_new_tokens=24, eos_token_id=[tiny_tokenizer.eos_token_id], pad_token_id=4)


def test_the_streamed_answer_is_what_generate_gives(tiny_llama, tiny_tokenizer, config):
    prompt = tiny_tokenizer.encode("What is a render?")
    pieces = []
    answer = stream_answer(tiny_llama, prompt, Reader(tiny_tokenizer, config.eos_token_id), config=config, write=pieces.append)
    generated = tiny_llama.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()
    assert answer.text == "".join(pieces) == tiny_tokenizer.decode(generated, skip_special_tokens=True).strip()
    assert answer.tokens == len(generated)
    assert not answer.interrupted


def test_it_stops_at_a_stop_word_that_is_not_eos(tiny_llama, tiny_tokenizer, config):
    prompt = tiny_tokenizer.encode("What is a render?")
    generated = tiny_llama.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()
    stop = next(token for place, token in enumerate(generated) if place >= 3 and token not in generated[:place])
    config.eos_token_id = [tiny_tokenizer.eos_token_id, stop]
    answer = stream_answer(tiny_llama, prompt, Reader(tiny_tokenizer, config.eos_token_id), config=config, write=lambda piece: None)
    place = generated.index(stop)
    assert answer.tokens == place + 1
    assert answer.text == tiny_tokenizer.decode(generated[:place], skip_special_tokens=True).strip()


def test_ctrl_c_keeps_what_was_said(tiny_llama, tiny_tokenizer, config):
    pieces = []

    def write(piece):
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    answer = stream_answer(tiny_llama, tiny_tokenizer.encode("Hi"), Reader(tiny_tokenizer), config=config, write=write)
    assert answer.interrupted
    assert answer.text == "".join(pieces) != ""
    assert answer.tokens < config.max_new_tokens


def test_beam_search_comes_in_one_piece(tiny_llama, tiny_tokenizer, config):
    config.num_beams = 3
    prompt = tiny_tokenizer.encode("What is a render?")
    pieces = []
    answer = stream_answer(tiny_llama, prompt, Reader(tiny_tokenizer, config.eos_token_id), config=config, write=pieces.append)
    generated = tiny_llama.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()
    assert pieces == [answer.text] == [tiny_tokenizer.decode(generated, skip_special_tokens=True).strip()]
