"""Completions of prompts: many at once, or one as a stream of text.

`Decoder` generates them if it supports the model's attention and all settings. Otherwise transformers' own loop does (beams, penalties,
models that compute attention themselves), in batches of similar length, padded on the left; the log says why. Greedy completions are the
same with both. Each is yielded when it is finished and not stored: memory doesn't grow with the number of prompts.

A character may have several tokens: a Chinese one up to three bytes, an emoji four or more. So a stream yields the decoded text up to the
first unfinished character; transformers' own TextStreamer also holds text back until a space or the end of a line, and prints the end
token.
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
_MOST_SLOTS = {"cpu": 64}  # beyond it, a step's time is proportional to its rows
_MOST_SLOTS_ELSEWHERE = 256
_MEMORY_SHARE = 0.25  # of the free memory


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    config: GenerationConfig,
    batch_size: int | None = None,
    tokenizer: Any = None,
    first: int = 0,
) -> Iterator[tuple[int, list[int]]]:
    """(number of the prompt, ids of its completion), in the order in which they finish.

    A completion ends with its end token, or at its maximum length. It is the same in any batch: other prompts and padding don't affect it.
    Sampled by the decoder, it has its own random numbers, from torch's seed and its number.

    Args:
        model: in evaluation mode.
        prompts: ids, from the beginning of the conversation to the start of the completion.
        config: from `settings.generation_config`; its `pad_token_id` pads.
        batch_size: completions generated together; None: as many as fit in a quarter of the free memory, at most 64 on a CPU.
        tokenizer: needed if `config.stop_strings` is set.
        first: the number of the first prompt, so that several processes with the same seed sample the same as one process.

    Raises:
        ConfigError: a prompt doesn't leave room within `config.max_length`.
    """
    if not prompts:
        return
    longest = max(map(len, prompts))
    if config.max_new_tokens is None and config.max_length is not None and longest >= config.max_length:
        found = f"{config.max_length} tokens with the prompt, but one of the prompts alone has {longest}"
        raise ConfigError(Problem("generation.max_length", found, do="Set generation.max_new_tokens instead"))
    size = batch_size or _slots(model, config.max_length or longest + (config.max_new_tokens or 0))
    if reason := why_not_decoded(model, config):
        _say_once(reason)
        if first and config.do_sample:
            torch.manual_seed(_drawn_seed(config) + first)  # other samples than those of the process with the first prompts
        yield from _by_transformers(model, prompts, config=config, batch_size=size, tokenizer=tokenizer)
        return
    seed = _drawn_seed(config)
    branches = packing_support(model).branches
    yield from Decoder(model, config, slots=size, tokenizer=tokenizer, seed=seed, first=first, branches=branches).run(prompts)


@cache
def _say_once(reason: str) -> None:
    """Log once why the decoder doesn't generate."""
    log.info("transformers' own loop generates: %s", reason)


def _drawn_seed(config: GenerationConfig) -> int:
    """The seed of sampled completions, drawn from torch's generator; greedy ones don't draw."""
    return int(torch.randint(2**62, (1,))) if config.do_sample else 0


def generate_in_order(model: Any, prompts: Sequence[Sequence[int]], **given: Any) -> list[list[int]]:
    """The completion of each prompt, in the order of the prompts; arguments as in `generate`."""
    found: list[list[int]] = [[] for _ in prompts]
    for number, completion in generate(model, prompts, **given):
        found[number] = completion
    return found


def why_not_decoded(model: Any, config: GenerationConfig) -> str | None:
    """Why `Decoder` can't generate with this model and these settings; None if it can.

    Args:
        model: a PreTrainedModel or PeftModel.
        config: from `settings.generation_config`.
    """
    if names := unread(config):
        return f"generation.{names[0]} is set"
    if config.max_new_tokens is None and config.max_length is None:
        return "neither generation.max_new_tokens nor generation.max_length is set"
    attention = model.config._attn_implementation
    if attention != "sdpa" or packing_support(model).method is not PackingMethod.segments:
        return f"{type(model).__name__} has its own attention ({attention})"
    if depends_on_length(model):
        return "the model's positions depend on the length of a text"
    return None


def _slots(model: Any, tokens: int) -> int:
    """The number of completions that fit in a share of the free memory, each of `tokens` tokens with its prompt."""
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
    """Like `generate`, with `GenerationMixin.generate`; the longest prompts first, so that a batch too large for the memory fails early."""
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
    """Ids and attention mask, int64 [batch, longest]; the real tokens are at the right, where generation continues."""
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([[*[pad_id] * count, *prompt] for count, prompt in zip(pads, prompts, strict=True)])
    return ids.to(device), (torch.arange(ids.shape[1]) >= torch.tensor(pads)[:, None]).long().to(device)


def _room(config: GenerationConfig, prompts: Sequence[Sequence[int]]) -> tuple[GenerationConfig, Sequence[int | None]]:
    """Settings for a batch, and the maximum tokens of each completion: `max_length` counts a prompt's padding too."""
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
        text: as read by `settings.Reader`.
        tokens: number of generated tokens, with the end token.
        interrupted: whether Ctrl-C ended it.
    """

    text: str
    tokens: int
    interrupted: bool = False


class Pieces(BaseStreamer):  # type: ignore[misc]
    """A streamer for `generate` that calls `write` with each new piece of text; the joined pieces are the completion's text.

    Args:
        reader: reads the completion.
        write: called with each piece that isn't empty.
    """

    def __init__(self, reader: Reader, write: Callable[[str], object]) -> None:
        self.text = ""
        self.ids: list[int] = []
        self._reader, self._write = reader, write
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt in the first call, which is ignored, then new token ids."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        self._hand_on(self._reader.begun(self.ids))

    def end(self) -> None:
        """Write the text that was held back because further tokens could have changed it."""
        self._hand_on(self._reader(self.ids))

    def _hand_on(self, text: str) -> None:
        piece = text[len(self.text) :]
        if piece:
            self.text = text
            self._write(piece)


def stream_answer(
    model: Any, prompt_ids: Sequence[int], reader: Reader, *, config: GenerationConfig, write: Callable[[str], object]
) -> Answer:
    """Generate one answer, calling `write` with each new piece; Ctrl-C ends the answer and keeps the text so far.

    Generation runs in the caller's thread, so that Ctrl-C stops it at once. Beam search writes one piece, at the end.

    Args:
        model: on its device, in evaluation mode.
        prompt_ids: up to the start of the answer.
        reader: reads the completion; its tokenizer is used for the stop strings.
        config: from `generation_config`; its `eos_token_id` is a list and ends the answer.
        write: called with each piece.
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
