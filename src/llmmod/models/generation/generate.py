"""Completions of prompts: of many at once, and of one while it is written.

`Decoder` generates them wherever it knows the model's attention and all settings. transformers' own loop does the rest (beams, penalties,
models that compute attention themselves), in batches of like length, padded on the left; the log says so and why. Greedy completions are
the same either way. Each is handed on as it is done and then forgotten: what is held doesn't grow with the number of prompts.

A character can take several tokens, a Chinese one up to three bytes, an emoji up to four and more. A stream therefore hands on what the
tokens so far decode to up to its first unfinished character; transformers' own TextStreamer holds text back until a space or a line's end
besides, and prints the token that ends the completion.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from llmmod.errors import ConfigError, Problem
from llmmod.models.attention.rope import depends_on_length
from llmmod.models.attention.varlen import PackingMethod
from llmmod.models.generation.decoder import Decoder
from llmmod.models.generation.settings import Ends, Reader, unread
from llmmod.models.packing import packing_support
from llmmod.upstream import require_upstream

require_upstream(__name__)

log = logging.getLogger("llmmod")
_MOST_SLOTS = {"cpu": 64}  # beyond it a step takes as much longer as it has more rows
_MOST_SLOTS_ELSEWHERE = 256
_MEMORY_SHARE = 0.25  # of what is free


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    config: GenerationConfig,
    batch_size: int | None = None,
    tokenizer: Any = None,
    first: int = 0,
) -> Iterator[tuple[int, list[int]]]:
    """(number of the prompt, ids of its completion), in the order in which they are done.

    A completion ends with what ended it, or where it became too long. It is the same in any batch: neither the prompts beside its own nor
    what pads them have a part in it. Sampled by the decoder it has random numbers of its own, made of torch's seed and of its number.

    Args:
        model: in evaluation mode.
        prompts: ids, from the beginning of the conversation to where the completion begins.
        config: as from `settings.generation_config`; its `pad_token_id` pads.
        batch_size: completions generated together; None: as many as a quarter of the free memory holds, at most 64 on a CPU.
        tokenizer: needed where `config.stop_strings` is set.
        first: the number of the first prompt: of several processes with the same seed, each samples what one process would.

    Raises:
        ConfigError: a prompt leaves no room within `config.max_length`.
    """
    if not prompts:
        return
    longest = max(map(len, prompts))
    if config.max_new_tokens is None and config.max_length is not None and longest >= config.max_length:
        found = f"{config.max_length} tokens with the prompt, and one of the prompts alone has {longest}"
        raise ConfigError(Problem("generation.max_length", found, do="Set generation.max_new_tokens instead"))
    size = batch_size or _slots(model, config.max_length or longest + (config.max_new_tokens or 0))
    if reason := why_not_decoded(model, config):
        _say_once(reason)
        if first and config.do_sample:
            torch.manual_seed(_drawn_seed(config) + first)  # not what the process samples that has the first prompts
        yield from _by_transformers(model, prompts, config=config, batch_size=size, tokenizer=tokenizer)
        return
    seed = _drawn_seed(config)
    branches = packing_support(model).branches
    yield from Decoder(model, config, slots=size, tokenizer=tokenizer, seed=seed, first=first, branches=branches).run(prompts)


@cache
def _say_once(reason: str) -> None:
    """Say why the decoder doesn't generate, at the first of many calls."""
    log.info("transformers' own loop generates: %s", reason)


def _drawn_seed(config: GenerationConfig) -> int:
    """The seed of sampled completions, drawn from torch's generator; greedy ones draw nothing."""
    return int(torch.randint(2**62, (1,))) if config.do_sample else 0


def generate_in_order(model: Any, prompts: Sequence[Sequence[int]], **given: Any) -> list[list[int]]:
    """The completion of each prompt, in the order of the prompts; the arguments are those of `generate`."""
    found: list[list[int]] = [[] for _ in prompts]
    for number, completion in generate(model, prompts, **given):
        found[number] = completion
    return found


def why_not_decoded(model: Any, config: GenerationConfig) -> str | None:
    """Why `Decoder` can't generate by this model with these settings; None where it can.

    Args:
        model: a PreTrainedModel or PeftModel.
        config: as from `settings.generation_config`.
    """
    if names := unread(config):
        return f"generation.{names[0]} is set"
    if config.max_new_tokens is None and config.max_length is None:
        return "neither generation.max_new_tokens nor generation.max_length is set"
    attention = model.config._attn_implementation
    if attention != "sdpa" or packing_support(model).method is not PackingMethod.segments:
        return f"{type(model).__name__} computes attention in a way of its own ({attention})"
    if depends_on_length(model):
        return "the model's positions depend on how long a text is"
    return None


def _slots(model: Any, tokens: int) -> int:
    """How many completions of so many tokens, their prompts included, a share of the free memory holds."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    channels = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = torch.finfo(model.dtype).bits // 8
    each = 2 * text.num_hidden_layers * heads * channels * size * tokens + 12 * text.vocab_size  # keys and values; logits in float32
    device = model.device.type
    free = torch.cuda.mem_get_info(model.device)[0] if device == "cuda" else psutil.virtual_memory().available
    return max(1, min(_MOST_SLOTS.get(device, _MOST_SLOTS_ELSEWHERE), int(free * _MEMORY_SHARE / each)))


def _by_transformers(
    model: Any, prompts: Sequence[Sequence[int]], *, config: GenerationConfig, batch_size: int, tokenizer: Any
) -> Iterator[tuple[int, list[int]]]:
    """As `generate`, by `GenerationMixin.generate`; the longest prompts come first: a batch too large for the memory fails first."""
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
            )  # [batch, prompt + completion]
        found = ends.answers(output, ids.shape[1])
        yield from ((number, ids[:most]) for number, ids, most in zip(numbers, found, room, strict=True))


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
    """Settings for a batch, and how many tokens each completion may have: `max_length` counts what pads a prompt as part of it."""
    if config.max_new_tokens is not None or config.max_length is None:
        return config, [None] * len(prompts)
    room = [config.max_length - len(prompt) for prompt in prompts]
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
    room = config.max_new_tokens is not None or config.max_length is None or len(prompt_ids) < config.max_length
    try:
        if room and why_not_decoded(model, config) is None:
            decoder = Decoder(model, config, slots=1, tokenizer=reader.tokenizer, seed=_drawn_seed(config))
            pieces.put(ids)
            list(decoder.run([prompt_ids], on_token=lambda token: pieces.put(torch.tensor([token]))))
            pieces.end()
            return Answer(pieces.text, len(pieces.ids))
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
