"""How answers are generated: the settings that hold, the choice of tokens, where answers end, and their text.

Evaluation, export, chat and rewards take all three from here, so that an exported model answers as the run's own predictions did, and what
is rewarded is what is shown.

In a batch, an answer that has ended is filled up until the others have, too, with a token that the model may write as well. `Ends` finds
where each ended.

`TokenChooser` chooses the next token of a whole batch. A sampled completion has random numbers of its own: the same prompt with the same
seed gets the same completion in any batch, in any order (up to the rounding of logits, which a matrix product of another size can change in
its last digit). The distribution is the one that transformers' processors leave; a token is drawn from it by inverting its cumulative
distribution at one uniform number.
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

# Read by sampling alone; transformers refuses to save any of them beside do_sample=false.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty")
# What decoding puts for bytes that are no character, or none yet.
_NEUTRAL = {"repetition_penalty": 1.0}  # grpo always sets it
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# Fields that this module or the decoder reads, or that say nothing of what is generated. With any other, transformers' own loop generates.
READ = frozenset({
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "renormalize_logits",
    "max_new_tokens", "max_length", "min_new_tokens", "min_length", "eos_token_id", "pad_token_id", "bos_token_id", "stop_strings",
    "use_cache", "num_return_sequences", "num_beams", "transformers_version",
})  # fmt: skip
# Values with which transformers (5.23, `_get_logits_processor`) changes nothing. trl's GRPOConfig has the first as its default.
_WITHOUT_EFFECT = {"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "guidance_scale": 1.0}


def generation_config(
    chosen: GenerationConfig, model: Any, *, stop_ids: Sequence[int], pad_id: int | None, bos_id: int | None = None
) -> GenerationConfig:
    """The settings that hold for a model: what was chosen, else what came with its checkpoint, and the render's ends of an answer.

    Args:
        chosen: what the user set; a field of None is not set.
        model: a PreTrainedModel or PeftModel, whose `generation_config` fills the gaps.
        stop_ids: token ids that end an answer; they replace the checkpoint's own.
        pad_id: None: the first of `stop_ids`, which is masked wherever it pads.
        bos_id: recorded for other programs; None: the checkpoint's.

    Returns:
        A new config that `save_pretrained` accepts: it holds nothing that its own mode of generation doesn't read.
    """
    config = copy.deepcopy(model.generation_config)
    own = {name: value for name, value in chosen.to_dict().items() if value is not None and name != "transformers_version"}
    for name, value in own.items():
        setattr(config, name, value)
    config._from_model_config = False  # transformers' mark of settings that nobody chose
    config.eos_token_id = list(stop_ids)
    config.pad_token_id = pad_id if pad_id is not None else stop_ids[0]
    config.bos_token_id = bos_id if bos_id is not None else config.bos_token_id
    # Gradient checkpointing leaves use_cache=False behind in the model's own settings: generation would slow down with each token.
    config.use_cache = own.get("use_cache", True)
    if config.max_new_tokens is not None:
        config.max_length = None
    unread = (() if config.do_sample else _SAMPLING) + (() if (config.num_beams or 1) > 1 else _BEAMS)
    for name in unread:
        setattr(config, name, None)
    return config


def set_stop_tokens(model: Any, *, stop_ids: Sequence[int], pad_id: int | None) -> None:
    """Have a model's answers end where the render's do, by its own settings; the model is changed in place.

    Args:
        model: a PreTrainedModel or PeftModel; one that writes nothing is left as it is.
        stop_ids, pad_id: as of `generation_config`.
    """
    base = base_model(model)
    # Many a checkpoint's own settings are refused when it is saved, by then with a trained model in hand; these aren't.
    if base.can_generate():
        base.generation_config = generation_config(GenerationConfig(), base, stop_ids=stop_ids, pad_id=pad_id)


def answer_text(ids: Sequence[int], tokenizer: Any, *, stop_ids: Collection[int]) -> str:
    """The text of generated `ids` up to the first that ends an answer; special tokens left out, white space as generated."""
    end = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
    text: str = tokenizer.decode(list(ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


@dataclass(frozen=True)
class Reader:
    """Generated ids to the text of a completion: the one that chat shows, that predict writes and measures, and that reward functions see.

    Args:
        tokenizer: decodes.
        stop_ids: token ids that end a completion and are no part of it.
        inner: generated text -> the answer in it, as a render's `read_answer`.
    """

    tokenizer: Any
    stop_ids: Collection[int] = ()
    inner: Callable[..., str] = inner_text

    @classmethod
    def of(cls, render: Render, tokenizer: Any) -> Reader:
        """The reader of what is generated after a render's prompts."""
        return cls(tokenizer, frozenset(render.stop_ids), render.read_answer)

    def __call__(self, ids: Sequence[int]) -> str:
        """The text of a completion, as it was generated or as the data has it: what the render writes around it isn't part of it."""
        return self.inner(answer_text(ids, self.tokenizer, stop_ids=self.stop_ids))

    def begun(self, ids: Sequence[int]) -> str:
        """As much of the text of a completion that goes on as nothing that follows can change."""
        text = answer_text(ids, self.tokenizer, stop_ids=self.stop_ids).rstrip(_UNFINISHED)
        return self.inner(text, ended=False)


def context_length(model: Any) -> int | None:
    """How many tokens the model can attend to, None where its architecture sets no limit (ALiBi)."""
    config = model.config.get_text_config()
    for value in (scaled_length(config), getattr(config, "seq_length", None), getattr(config, "max_seq_len", None)):
        if isinstance(value, int) and value > 0:
            return value
    return None


class Ends:
    """The ends that generation settings name.

    Args:
        config: `eos_token_id` and `stop_strings` are read.
        tokenizer: needed where there are stop strings.
    """

    def __init__(self, config: GenerationConfig, tokenizer: Any = None) -> None:
        tokens = config.eos_token_id
        self._tokens = frozenset(tokens if isinstance(tokens, list) else [tokens])
        self._strings = StopStringCriteria(tokenizer, config.stop_strings) if config.stop_strings else None

    def answers(self, output: torch.Tensor, start: int) -> list[list[int]]:
        """Each row's answer without what fills it up, its end included.

        Args:
            output: of `generate`, [batch, prompt + answer].
            start: where the answers begin.
        """
        rows: list[list[int]] = output[:, start:].tolist()
        ends = [next((place for place, token in enumerate(row, start=1) if token in self._tokens), len(row)) for row in rows]
        if self._strings is not None:
            for place in range(1, max(ends, default=0)):
                ended = self._strings(output[:, : start + place], None).tolist()
                ends = [min(end, place) if done else end for end, done in zip(ends, ended, strict=True)]
        return [row[:end] for row, end in zip(rows, ends, strict=True)]

    def ended(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        """Whether an answer came to its end, rather than being cut off."""
        if not answer or answer[-1] in self._tokens:
            return bool(answer)
        return self._strings is not None and bool(self._strings(torch.tensor([[*prompt, *answer]]), None))


def unread(config: GenerationConfig) -> list[str]:
    """The settings that only transformers' own loop follows: their names, sorted; empty where the decoder follows all of them."""
    default = GenerationConfig().to_dict() | _WITHOUT_EFFECT
    said = {name: value for name, value in config.to_dict().items() if name not in READ and name[0] != "_" and value not in (None, False)}
    found = [name for name, value in said.items() if value not in (default.get(name), _NEUTRAL.get(name))]
    found += ["num_beams"] if (config.num_beams or 1) > 1 else []
    found += ["num_return_sequences"] if (config.num_return_sequences or 1) > 1 else []
    return sorted(found + (["use_cache"] if config.use_cache is False else []))


class TokenChooser:
    """The next token of each row, greedily or sampled, as a GenerationConfig says.

    Args:
        config: without anything that `unread` names.
        device: of the logits.
    """

    def __init__(self, config: GenerationConfig, device: Any) -> None:
        self.samples = bool(config.do_sample)
        self._warpers = _warpers(config, device) if self.samples else []

    def uniforms(self, seed: int, count: int) -> torch.Tensor:
        """The random numbers of one completion, one a token, float64 [count] in [0, 1), on the CPU."""
        return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def __call__(self, logits: torch.Tensor, uniform: torch.Tensor | None) -> torch.Tensor:
        """The next token of each row, int64 [rows].

        Args:
            logits: float32 [rows, vocabulary]; may be changed.
            uniform: where the rows are sampled, float64 [rows].
        """
        if not self.samples or uniform is None:
            return logits.argmax(dim=-1)
        nobody = torch.empty(len(logits), 0, dtype=torch.int64, device=logits.device)  # what came before, which these don't read
        for warper in self._warpers:
            logits = warper(nobody, logits)
        cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
        reached = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
        # The first token whose share of the line ends beyond the number; `right` passes over tokens without any share.
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
