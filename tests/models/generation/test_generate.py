"""Completions of many prompts at once are the same as for one prompt at a time."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from llmmod.errors import ConfigError
from llmmod.models.generation.generate import generate, generate_in_order, padded_left
from llmmod.models.generation.settings import Ends


@pytest.fixture
def greedy(tiny_tokenizer):
    return GenerationConfig(
        do_sample=False, max_new_tokens=12, eos_token_id=[17, 43], pad_token_id=tiny_tokenizer.pad_token_id, use_cache=True
    )


PROMPTS = [[5, 9, 14], [100], list(range(40, 70)), [7] * 9, [200, 201, 202, 203], [310, 12]]


def test_left_padding_by_hand():
    ids, mask = padded_left([[5, 6], [7]], pad_id=0)
    assert ids.tolist() == [[5, 6], [0, 7]]
    assert mask.tolist() == [[1, 1], [0, 1]]


def naive_greedy(model, prompt, stops, longest):
    """The likeliest token again and again, each computed from scratch, without a batch, padding or a cache."""
    ids = list(prompt)
    while len(ids) - len(prompt) < longest:
        with torch.no_grad():
            ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_greedy_answers_whatever_the_batch(tiny_llama, greedy, batch_size):
    expected = {number: naive_greedy(tiny_llama, prompt, [17, 43], 12) for number, prompt in enumerate(PROMPTS)}
    got = dict(generate(tiny_llama, PROMPTS, config=greedy, batch_size=batch_size))
    assert got == expected


def test_answers_end_at_different_places(tiny_llama, greedy):
    """Otherwise the test above would not cover the padding after an end."""
    ends = naive_greedy(tiny_llama, PROMPTS[0], [], 12)
    greedy.eos_token_id = [ends[4]]
    got = dict(generate(tiny_llama, PROMPTS, config=greedy, batch_size=6))
    assert got[0] == ends[: ends.index(ends[4]) + 1]
    assert len({len(answer) for answer in got.values()}) > 1


def test_a_pad_token_that_ends_answers(tiny_llama, greedy):
    """Where pad and eos are the same token, an answer ends at the first one."""
    first = naive_greedy(tiny_llama, PROMPTS[0], [], 12)
    greedy.eos_token_id, greedy.pad_token_id = [first[3]], first[3]
    expected = naive_greedy(tiny_llama, PROMPTS[0], [first[3]], 12)
    got = dict(generate(tiny_llama, PROMPTS, config=greedy, batch_size=6))
    assert got[0] == expected


def test_the_longest_prompts_come_first(tiny_llama, greedy):
    greedy.num_beams = 2
    done = [number for number, _ in generate(tiny_llama, PROMPTS, config=greedy, batch_size=2)]
    assert done == [2, 3, 4, 0, 5, 1]


def test_nothing_is_generated_ahead(tiny_llama, greedy, monkeypatch):
    calls = []
    real = tiny_llama.generate
    monkeypatch.setattr(tiny_llama, "generate", lambda **kwargs: calls.append(len(kwargs["input_ids"])) or real(**kwargs))
    greedy.repetition_penalty = 1.5
    next(generate(tiny_llama, PROMPTS, config=greedy, batch_size=4))
    assert calls == [4]


def alone_and_together(model, config, tokenizer=None):
    """The answers one prompt at a time, and all at once."""
    return [generate_in_order(model, PROMPTS, config=config, batch_size=size, tokenizer=tokenizer) for size in (1, len(PROMPTS))]


@pytest.mark.parametrize("pads_with_its_end", [False, True])
def test_an_answer_that_a_string_ended_has_nothing_behind_it(tiny_llama, tiny_tokenizer, greedy, pads_with_its_end):
    greedy.pad_token_id = 17 if pads_with_its_end else greedy.pad_token_id
    plain, _ = alone_and_together(tiny_llama, greedy)
    greedy.stop_strings = tiny_tokenizer.decode(plain[0][4:6])
    alone, together = alone_and_together(tiny_llama, greedy, tiny_tokenizer)
    assert together == alone
    assert [greedy.stop_strings in tiny_tokenizer.decode(answer) for answer in together] == [True, *[False] * 5]
    assert len(together[0]) < max(map(len, together))
    ends = Ends(greedy, tiny_tokenizer)
    assert ends.ended(PROMPTS[0], together[0])
    assert not ends.ended(PROMPTS[0], together[0][:-1])
    greedy.num_beams = 2
    alone, together = alone_and_together(tiny_llama, greedy, tiny_tokenizer)
    assert together == alone


def test_a_length_counts_no_padding(tiny_llama, greedy):
    """`max_length` limits prompt and answer together; transformers' generate counts a prompt's padding, too."""
    greedy.max_length, greedy.max_new_tokens = 34, None
    alone, together = alone_and_together(tiny_llama, greedy)
    assert together == alone
    assert max(map(len, together)) > 34 - len(PROMPTS[2])
    greedy.max_length = 30
    with pytest.raises(ConfigError, match=r"generation\.max_length: 30 tokens with the prompt, but one of the prompts alone has 30"):
        alone_and_together(tiny_llama, greedy)
