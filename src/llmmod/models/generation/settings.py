"""Settings of generation, the choice of tokens, and the ends and texts of answers.

Evaluation, export, chat and rewards use these, so that an exported model answers like the run's predictions, and rewards get the texts that
are shown.

In a batch, an ended answer is padded until the others end, with a token that the model may generate too. `Ends` finds the end of each.

`TokenChooser` chooses the next token of a whole batch. A sampled completion has its own random numbers: the same prompt with the same seed
gets the same completion in any batch and order (up to the rounding of logits, whose last digit can change in a matrix product of another
size). The distribution is that of transformers' processors; a token is drawn from it by inverting its cumulative distribution at one
uniform number.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    MinPLogitsWarper,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from llmmod.models.attention.rope import scaled_length
from llmmod.models.loading.structure import base_model
from llmmod.render.segments import Render
from llmmod.render.template import inner_text
from llmmod.upstream import require_upstream

require_upstream(__name__)

# Only used in sampling; transformers refuses to save them with do_sample=false.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty")
# The decoded character for bytes that aren't a character, or not yet.
_NEUTRAL = {"repetition_penalty": 1.0}  # grpo always sets it
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# Fields that this module or the decoder supports, or that don't affect the tokens. With any other, transformers' own loop generates.
READ = frozenset({
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "renormalize_logits",
    "max_new_tokens", "max_length", "min_new_tokens", "min_length", "eos_token_id", "pad_token_id", "bos_token_id", "stop_strings",
    "use_cache", "num_return_sequences", "num_beams", "transformers_version",
})  # fmt: skip
# Values without an effect in transformers (5.23, `_get_logits_processor`). trl's GRPOConfig has the first as its default.
_WITHOUT_EFFECT = {"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "guidance_scale": 1.0}


def generation_config(
    chosen: GenerationConfig, model: Any, *, stop_ids: Sequence[int], pad_id: int | None, bos_id: int | None = None
) -> GenerationConfig:
    """A model's generation settings: the user's, else those of its checkpoint, with the render's end tokens.

    Args:
        chosen: the user's settings; None: not set.
        model: a PreTrainedModel or PeftModel; its `generation_config` has the other values.
        stop_ids: token ids that end an answer; they replace the checkpoint's own.
        pad_id: None: the first of `stop_ids`, which is masked if it pads.
        bos_id: saved for other programs; None: the checkpoint's.

    Returns:
        A new config that `save_pretrained` accepts: without fields that its mode of generation doesn't use.
    """
    config = copy.deepcopy(model.generation_config)
    own = {name: value for name, value in chosen.to_dict().items() if value is not None and name != "transformers_version"}
    for name, value in own.items():
        setattr(config, name, value)
    config._from_model_config = False  # transformers' mark of default settings
    config.eos_token_id = list(stop_ids)
    config.pad_token_id = pad_id if pad_id is not None else stop_ids[0]
    config.bos_token_id = bos_id if bos_id is not None else config.bos_token_id
    # Gradient checkpointing leaves use_cache=False in the model's settings: generation would get slower with each token.
    config.use_cache = own.get("use_cache", True)
    if config.max_new_tokens is not None:
        config.max_length = None
    unread = (() if config.do_sample else _SAMPLING) + (() if (config.num_beams or 1) > 1 else _BEAMS)
    for name in unread:
        setattr(config, name, None)
    return config


def set_stop_tokens(model: Any, *, stop_ids: Sequence[int], pad_id: int | None) -> None:
    """Set the end tokens of a model's generation settings to the render's; changes the model in place.

    Args:
        model: a PreTrainedModel or PeftModel; one that doesn't generate is unchanged.
        stop_ids, pad_id: as in `generation_config`.
    """
    base = base_model(model)
    # transformers refuses to save the settings of many checkpoints, which would fail after the training; it accepts these.
    if base.can_generate():
        base.generation_config = generation_config(GenerationConfig(), base, stop_ids=stop_ids, pad_id=pad_id)


def answer_text(ids: Sequence[int], tokenizer: Any, *, stop_ids: Collection[int]) -> str:
    """The text of generated `ids` up to the first end token; without special tokens, with white space as generated."""
    end = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
    text: str = tokenizer.decode(list(ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


@dataclass(frozen=True)
class Reader:
    """From generated ids to the text of a completion, as in chat, in predictions, their metrics, and reward functions.

    Args:
        tokenizer: decodes.
        stop_ids: token ids that end a completion, and aren't part of its text.
        inner: generated text -> the answer in it, as a render's `read_answer`.
    """

    tokenizer: Any
    stop_ids: Collection[int] = ()
    inner: Callable[..., str] = inner_text

    @classmethod
    def of(cls, render: Render, tokenizer: Any) -> Reader:
        """The reader for completions of a render's prompts."""
        return cls(tokenizer, frozenset(render.stop_ids), render.read_answer)

    def __call__(self, ids: Sequence[int]) -> str:
        """The text of a completion, generated or from the data, without the render's texts around it."""
        return self.inner(answer_text(ids, self.tokenizer, stop_ids=self.stop_ids))

    def begun(self, ids: Sequence[int]) -> str:
        """The part of an unfinished completion's text that further tokens can't change."""
        text = answer_text(ids, self.tokenizer, stop_ids=self.stop_ids).rstrip(_UNFINISHED)
        return self.inner(text, ended=False)


def context_length(model: Any) -> int | None:
    """The maximum number of tokens of the model's context; None if its architecture doesn't have a limit (ALiBi)."""
    config = model.config.get_text_config()
    for value in (scaled_length(config), getattr(config, "seq_length", None), getattr(config, "max_seq_len", None)):
        if isinstance(value, int) and value > 0:
            return value
    return None


class Ends:
    """Finds the ends of answers by the generation settings.

    Args:
        config: `eos_token_id` and `stop_strings` are used.
        tokenizer: needed with stop strings.
    """

    def __init__(self, config: GenerationConfig, tokenizer: Any = None) -> None:
        tokens = config.eos_token_id
        self._tokens = frozenset(tokens if isinstance(tokens, list) else [tokens])
        self._strings = StopStringCriteria(tokenizer, config.stop_strings) if config.stop_strings else None

    def answers(self, output: torch.Tensor, start: int) -> list[list[int]]:
        """Each row's answer with its end token, without padding.

        Args:
            output: of `generate`, [batch, prompt + answer].
            start: of the answers.
        """
        rows: list[list[int]] = output[:, start:].tolist()
        ends = [next((place for place, token in enumerate(row, start=1) if token in self._tokens), len(row)) for row in rows]
        if self._strings is not None:
            for place in range(1, max(ends, default=0)):
                ended = self._strings(output[:, : start + place], None).tolist()
                ends = [min(end, place) if done else end for end, done in zip(ends, ended, strict=True)]
        return [row[:end] for row, end in zip(rows, ends, strict=True)]

    def ended(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        """Whether an answer has an end, and wasn't truncated."""
        if not answer or answer[-1] in self._tokens:
            return bool(answer)
        return self._strings is not None and bool(self._strings(torch.tensor([[*prompt, *answer]]), None))


def unread(config: GenerationConfig) -> list[str]:
    """The sorted names of settings that only transformers' own loop supports; empty if the decoder supports all of them."""
    default = GenerationConfig().to_dict() | _WITHOUT_EFFECT
    said = {name: value for name, value in config.to_dict().items() if name not in READ and name[0] != "_" and value not in (None, False)}
    found = [name for name, value in said.items() if value not in (default.get(name), _NEUTRAL.get(name))]
    found += ["num_beams"] if (config.num_beams or 1) > 1 else []
    found += ["num_return_sequences"] if (config.num_return_sequences or 1) > 1 else []
    return sorted(found + (["use_cache"] if config.use_cache is False else []))


class TokenChooser:
    """Chooses the next token of each row, greedily or by sampling, by a GenerationConfig.

    Args:
        config: without settings that `unread` names.
        device: of the logits.
    """

    def __init__(self, config: GenerationConfig, device: Any) -> None:
        self.samples = bool(config.do_sample)
        self._warpers = _warpers(config, device) if self.samples else []

    def uniforms(self, seed: int, count: int) -> torch.Tensor:
        """The random numbers of one completion, one per token, float64 [count] in [0, 1), on the CPU."""
        return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def __call__(self, logits: torch.Tensor, uniform: torch.Tensor | None) -> torch.Tensor:
        """The next token of each row, int64 [rows].

        Args:
            logits: float32 [rows, vocabulary]; may be changed.
            uniform: random numbers of sampled rows, float64 [rows]; else None.
        """
        if not self.samples or uniform is None:
            return logits.argmax(dim=-1)
        nobody = torch.empty(len(logits), 0, dtype=torch.int64, device=logits.device)  # earlier tokens, which these don't use
        for warper in self._warpers:
            logits = warper(nobody, logits)
        cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
        reached = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
        # The first token whose cumulative probability exceeds the number; `right` skips tokens of probability 0.
        chosen = torch.searchsorted(cumulative, reached, right=True)[:, 0]
        return chosen.clamp(max=logits.shape[-1] - 1)


def _warpers(config: GenerationConfig, device: Any) -> list[Any]:
    """transformers' processors of sampling, in transformers' order (GenerationMixin._get_logits_processor, 5.23)."""
    found: list[Any] = []
    if config.temperature not in (None, 1.0):
        found.append(TemperatureLogitsWarper(config.temperature))
    if config.top_h is not None:
        found.append(TopHLogitsWarper(top_h=config.top_h))
    if config.top_k:
        found.append(TopKLogitsWarper(top_k=config.top_k))
    if config.top_p is not None and config.top_p < 1.0:
        found.append(TopPLogitsWarper(top_p=config.top_p))
    if config.min_p:
        found.append(MinPLogitsWarper(min_p=config.min_p))
    if config.typical_p is not None and config.typical_p < 1.0:
        found.append(TypicalLogitsWarper(mass=config.typical_p))
    if config.epsilon_cutoff is not None and 0.0 < config.epsilon_cutoff < 1.0:
        found.append(EpsilonLogitsWarper(epsilon=config.epsilon_cutoff))
    if config.eta_cutoff is not None and 0.0 < config.eta_cutoff < 1.0:
        found.append(EtaLogitsWarper(epsilon=config.eta_cutoff, device=device))
    return found
