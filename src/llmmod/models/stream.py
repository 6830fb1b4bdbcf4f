"""An answer handed on while it is generated, in whole characters.

A character can take several tokens, a Chinese one up to three bytes, an emoji up to four and more. What the tokens so far decode to is
therefore handed on up to its first unfinished character. transformers' own TextStreamer holds text back until a space or a line's end
besides, and prints the token that ends the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from llmmod.models.ends import Ends
from llmmod.models.generation import Reader


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
