"""Answers to many prompts: batches of like length, padded on the left, with a cache.

Prompts of like length together waste least on padding, and the longest come first, so that a batch too large for the memory is known
at the start. Each batch is handed on as it is done and then forgotten: what is held doesn't grow with the number of prompts.

An answer handed on while it is generated, in whole characters.

A character can take several tokens, a Chinese one up to three bytes, an emoji up to four and more. What the tokens so far decode to is
therefore handed on up to its first unfinished character. transformers' own TextStreamer holds text back until a space or a line's end
besides, and prints the token that ends the answer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from llmmod.errors import ConfigError, Problem
from llmmod.models.generation.settings import Ends, Reader


def answers(
    model: Any, prompts: Sequence[Sequence[int]], *, config: GenerationConfig, batch_size: int, tokenizer: Any = None
) -> Iterator[list[tuple[int, list[int]]]]:
    """Batches of (number of the prompt, ids of its answer); an answer ends with what ended it, or where it became too long.

    An answer is the same in any batch: neither the prompts beside its own nor what pads them have a part in it.

    Args:
        model: in evaluation mode.
        prompts: ids, from the beginning of the conversation to where the answer begins.
        config: as from `llmmod.models.generation.settings.generation_config`; its `pad_token_id` pads.
        batch_size: prompts generated together.
        tokenizer: needed where `config.stop_strings` is set.

    Raises:
        ConfigError: a prompt leaves no room within `config.max_length`.
    """
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    ends = Ends(config, tokenizer)
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        asked = [prompts[number] for number in numbers]
        ids, mask = padded_left(asked, pad_id=config.pad_token_id, device=model.device)
        settings, room = _room(config, asked)
        with torch.no_grad():
            output = model.generate(
                input_ids=ids, attention_mask=mask, generation_config=settings, tokenizer=tokenizer if config.stop_strings else None
            )  # [batch, prompt + answer]
        found = ends.answers(output, ids.shape[1])
        yield [(number, answer[:most]) for number, answer, most in zip(numbers, found, room, strict=True)]


def answers_in_order(model: Any, prompts: Sequence[Sequence[int]], **given: Any) -> list[list[int]]:
    """The answer of each prompt, in the order of the prompts; the arguments are those of `answers`."""
    found: list[list[int]] = [[] for _ in prompts]
    for batch in answers(model, prompts, **given):
        for number, answer in batch:
            found[number] = answer
    return found


def padded_left(prompts: Sequence[Sequence[int]], *, pad_id: int, device: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, int64 [batch, longest]; the real tokens end at the right, where generation goes on."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _room(config: GenerationConfig, prompts: Sequence[Sequence[int]]) -> tuple[GenerationConfig, Sequence[int | None]]:
    """Settings for a batch, and how many tokens each answer may have: `max_length` counts what pads a prompt as part of it."""
    if config.max_new_tokens is not None or config.max_length is None:
        return config, [None] * len(prompts)
    room = [config.max_length - len(prompt) for prompt in prompts]
    if min(room) < 1:
        found = f"{config.max_length} tokens with the prompt, and one of the prompts alone has {config.max_length - min(room)}"
        raise ConfigError(Problem("generation.max_length", found, do="Set generation.max_new_tokens instead"))
    config = copy.deepcopy(config)
    config.max_length, config.max_new_tokens = None, max(room)
    return config, room


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Args:
        text: as `models.generation.Reader` reads it.
        tokens: generated, the one that ended it included.
        interrupted: whether Ctrl-C cut it short.
    """

    text: str
    tokens: int
    interrupted: bool = False


class Pieces(BaseStreamer):  # type: ignore[misc]
    """A streamer for `generate` that calls `write` with each new piece of text; the pieces joined are the completion's text.

    Args:
        reader: reads the completion.
        write: takes each piece, never an empty one.
    """

    def __init__(self, reader: Reader, write: Callable[[str], object]) -> None:
        self.text = ""
        self.ids: list[int] = []
        self._reader, self._write = reader, write
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt first, which is no part of the answer, then one or more new token ids a call."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        self._hand_on(self._reader.begun(self.ids))

    def end(self) -> None:
        """Hand on what was held back: more could have changed it."""
        self._hand_on(self._reader(self.ids))

    def _hand_on(self, text: str) -> None:
        piece = text[len(self.text) :]
        if piece:
            self.text = text
            self._write(piece)


def stream_answer(
    model: Any, prompt_ids: Sequence[int], reader: Reader, *, config: GenerationConfig, write: Callable[[str], object]
) -> Answer:
    """Generate one answer, calling `write` with each piece as it comes; Ctrl-C ends the answer and keeps what there is.

    Generation runs in the caller's thread, so that Ctrl-C stops it at once. Beam search knows its answer only at the end: one piece.

    Args:
        model: on the device where it is to run, in evaluation mode.
        prompt_ids: up to where the answer begins.
        reader: reads the completion; its tokenizer knows the stop strings.
        config: as from `generation_config`; its `eos_token_id` is a list and ends the answer.
        write: takes each piece.
    """
    pieces = Pieces(reader, write)
    ids = torch.tensor([list(prompt_ids)], device=model.device)
    beams = (config.num_beams or 1) > 1
    try:
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            streamer=None if beams else pieces,
            tokenizer=reader.tokenizer if config.stop_strings else None,
        )
    except KeyboardInterrupt:
        pieces.end()
        return Answer(pieces.text, len(pieces.ids), interrupted=True)
    if beams:
        (generated,) = Ends(config, reader.tokenizer).answers(output[:1], ids.shape[1])
        text = reader(generated)
        write(text)
        return Answer(text, len(generated))
    return Answer(pieces.text, len(pieces.ids))
