"""An answer handed on while it is generated, in whole characters.

A character can take several tokens, a Chinese one up to three bytes, an emoji up to four and more. What the tokens so far decode to is
therefore handed on up to its first unfinished character. transformers' own TextStreamer holds text back until a space or a line's end
besides, and prints the token that ends the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from llmmod.models.ends import Ends
from llmmod.models.generation import answer_text

# What decoding puts for bytes that are no character, or none yet.
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Args:
        text: without the token that ended it and what the render writes around an answer.
        tokens: generated, the one that ended it included.
        interrupted: whether Ctrl-C cut it short.
    """

    text: str
    tokens: int
    interrupted: bool = False


class Pieces(BaseStreamer):  # type: ignore[misc]
    """A streamer for `generate` that calls `write` with each new piece of text; the pieces joined are the answer's text.

    Args:
        tokenizer: decodes.
        write: takes each piece, never an empty one.
        stop_ids: token ids that end the answer and are no part of it.
        read: generated text -> the answer in it, as a render's `read_answer`; it may drop text at either end, white space at the start.
    """

    def __init__(
        self, tokenizer: Any, write: Callable[[str], object], *, stop_ids: Collection[int], read: Callable[[str], str] = str
    ) -> None:
        self.text = ""
        self.ids: list[int] = []
        self._tokenizer, self._write, self._stop_ids, self._read = tokenizer, write, frozenset(stop_ids), read
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt first, which is no part of the answer, then one or more new token ids a call."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        text = self._decoded().rstrip(_UNFINISHED)
        if text.strip():  # white space at the start may be the render's and not the answer's: more text will tell
            self._hand_on(self._read(text))

    def end(self) -> None:
        """Hand on what was held back: the answer ended within a character."""
        self._hand_on(self._read(self._decoded()))

    def _decoded(self) -> str:
        return answer_text(self.ids, self._tokenizer, stop_ids=self._stop_ids)

    def _hand_on(self, text: str) -> None:
        piece = text[len(self.text) :]
        if piece:
            self.text = text
            self._write(piece)


def stream_answer(
    model: Any,
    prompt_ids: Sequence[int],
    tokenizer: Any,
    *,
    config: GenerationConfig,
    write: Callable[[str], object],
    read: Callable[[str], str] = str,
) -> Answer:
    """Generate one answer, calling `write` with each piece as it comes; Ctrl-C ends the answer and keeps what there is.

    Generation runs in the caller's thread, so that Ctrl-C stops it at once. Beam search knows its answer only at the end: one piece.

    Args:
        model: on the device where it is to run, in evaluation mode.
        prompt_ids: up to where the answer begins.
        tokenizer: decodes the answer.
        config: as from `generation_config`; its `eos_token_id` is a list and ends the answer.
        write: takes each piece.
        read: generated text -> the answer in it, as a render's `read_answer`.
    """
    stop_ids = config.eos_token_id
    pieces = Pieces(tokenizer, write, stop_ids=stop_ids, read=read)
    ids = torch.tensor([list(prompt_ids)], device=model.device)
    beams = (config.num_beams or 1) > 1
    try:
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            streamer=None if beams else pieces,
            tokenizer=tokenizer if config.stop_strings else None,
        )
    except KeyboardInterrupt:
        pieces.end()
        return Answer(pieces.text, len(pieces.ids), interrupted=True)
    if beams:
        (generated,) = Ends(config, tokenizer).answers(output[:1], ids.shape[1])
        text = read(answer_text(generated, tokenizer, stop_ids=stop_ids))
        write(text)
        return Answer(text, len(generated))
    return Answer(pieces.text, len(pieces.ids))
