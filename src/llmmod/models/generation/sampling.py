"""Which token comes next, chosen for a whole batch at once.

A sampled completion has random numbers of its own: the same prompt with the same seed gets the same completion in any batch, in any order
(up to the rounding of logits, which a matrix product of another size can change in its last digit). The distribution is the one that
transformers' processors leave; a token is drawn from it by inverting its cumulative distribution at one uniform number.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

# Fields that this module or the decoder reads, or that say nothing of what is generated. With any other, transformers' own loop generates.
READ = frozenset({
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "renormalize_logits",
    "max_new_tokens", "max_length", "min_new_tokens", "min_length", "eos_token_id", "pad_token_id", "bos_token_id", "stop_strings",
    "use_cache", "num_return_sequences", "num_beams", "transformers_version",
})  # fmt: skip


def unread(config: GenerationConfig) -> list[str]:
    """The settings that only transformers' own loop follows: their names, sorted; empty where the decoder follows all of them."""
    default = GenerationConfig().to_dict()
    found = [name for name, value in config.to_dict().items() if name not in READ and value is not None and value != default.get(name)]
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
    if config.min_p is not None:
        found.append(MinPLogitsWarper(min_p=config.min_p))
    if config.typical_p is not None and config.typical_p < 1.0:
        found.append(TypicalLogitsWarper(mass=config.typical_p))
    if config.epsilon_cutoff is not None and 0.0 < config.epsilon_cutoff < 1.0:
        found.append(EpsilonLogitsWarper(epsilon=config.epsilon_cutoff))
    if config.eta_cutoff is not None and 0.0 < config.eta_cutoff < 1.0:
        found.append(EtaLogitsWarper(epsilon=config.eta_cutoff, device=device))
    return found
