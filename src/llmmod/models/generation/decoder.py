"""Completions of many prompts, generated together: continuous batching with a cache in slots.

Each slot generates one completion; when it ends, a waiting prompt gets the slot, so that forwards don't compute padding. Prompts are read
without padding, several in one row; a common beginning is read once. Each step runs the model's own layers (with adapters, 4 bit etc.) on
one new token per slot.

On a CPU each step checks which rows have ended; on a GPU only every sixteenth, since a check waits for the device: tokens that a row
generates after its end are discarded.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, StopStringCriteria

from llmmod.models.attention.varlen import BOUNDARIES, KEYS, PackingMethod, isolate_examples
from llmmod.models.generation.settings import TokenChooser
from llmmod.models.generation.slots import Prefilled, SlotCache
from llmmod.models.generation.step import LeanLayers, Step
from llmmod.models.loading.structure import head_on_positions

_SYNC_EVERY = 16  # steps between checks, on asynchronous devices
_PREFILL_TOKENS = 4096  # tokens of prompts that are read in one row
_NO_TOKEN = 2**31 - 1  # transformers' StopStringCriteria treats an id beyond its vocabulary as a token without text
_LEAST_SHARED = 8  # tokens: reading a shorter common beginning again is faster


@dataclass
class _Row:
    """A completion in progress: the number of its prompt, the length in its slot, its maximum length, its tokens."""

    number: int
    length: int
    limit: int
    tokens: list[int] = field(default_factory=list)


class Decoder:
    """Generates completions with a model; see the module.

    Args:
        model: a PreTrainedModel or PeftModel in evaluation mode, whose class keeps the examples of a row apart with segments.
        config: settings without those that `settings.unread` names; `max_new_tokens` is set.
        slots: completions that are generated at once.
        tokenizer: needed if `config.stop_strings` is set.
        seed: of sampled completions; each prompt's seed is computed from it and from the prompt's number.
        first: the number of the first prompt, if another process has the earlier ones.
        branches: whether common beginnings of prompts may be read once.
    """

    def __init__(
        self,
        model: Any,
        config: GenerationConfig,
        *,
        slots: int,
        tokenizer: Any = None,
        seed: int = 0,
        first: int = 0,
        branches: bool = True,
    ) -> None:
        self._model, self._config, self._branches = model, config, branches
        self._seed, self._first = seed, first
        self._slots = slots
        self.device: torch.device = model.device
        self._chooser = TokenChooser(config, self.device)
        self._layers = LeanLayers(model)
        self._step = Step(model, self._layers)
        eos = config.eos_token_id
        self._ends = torch.tensor(eos if isinstance(eos, list) else [] if eos is None else [eos], device=self.device)
        self._strings = StopStringCriteria(tokenizer, config.stop_strings) if config.stop_strings else None
        self._has_least = bool(config.min_new_tokens or config.min_length) and len(self._ends) > 0
        self._tail = self._strings.maximum_token_len if self._strings is not None else 0
        self._sync_every = 1 if self.device.type == "cpu" else _SYNC_EVERY

    def run(self, prompts: Sequence[Sequence[int]], *, on_token: Callable[[int], object] | None = None) -> Iterator[tuple[int, list[int]]]:
        """(number of the prompt, ids of its completion), each as it is finished; a completion includes its end token.

        Args:
            prompts: ids.
            on_token: only for a single prompt: called with each new token.
        """
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        waiting = deque(order)
        slots = min(self._slots, len(prompts))
        most = len(prompts[order[0]]) if order else 0
        state = _State(self, slots, capacity=most + min(self._limit(most), 128) + self._sync_every)
        every = 1 if on_token is not None else self._sync_every
        while waiting or state.rows:
            free = slots - len(state.rows)
            if waiting and (not state.rows or free >= min(len(waiting), max(1, slots // 4))):
                taken = self._next(waiting, prompts, free)
                state.add(taken, [prompts[number] for number in taken])
            else:
                # A row must not exceed its limit between two checks.
                state.step(min(every, min(row.limit - state.made(row) for row in state.rows)))
            if on_token is not None:
                on_token(state.latest())
            yield from state.ended()

    def _next(self, waiting: deque[int], prompts: Sequence[Sequence[int]], free: int) -> list[int]:
        """The prompts to read next: at most one per free slot, and at most a row's number of tokens, equal prompts counted once."""
        taken = [waiting.popleft()]
        tokens = len(prompts[taken[0]])
        while waiting and len(taken) < free:
            alike = prompts[waiting[0]] == prompts[taken[-1]]  # prompts of a group are adjacent
            if not alike and tokens + len(prompts[waiting[0]]) > _PREFILL_TOKENS:
                break
            tokens += 0 if alike else len(prompts[waiting[0]])
            taken.append(waiting.popleft())
        return taken

    def _limit(self, prompt: int) -> int:
        """The maximum number of tokens of a completion, for a prompt of this number of tokens."""
        if self._config.max_new_tokens is not None:
            return int(self._config.max_new_tokens)
        return int(self._config.max_length) - prompt

    def _least(self, prompt: int) -> int:
        """The minimum number of tokens before its end."""
        return max(self._config.min_new_tokens or 0, (self._config.min_length or 0) - prompt)


class _State:
    """The state of the generation. Tensors on the model's device have a row per slot; the first `len(rows)` slots are active."""

    def __init__(self, decoder: Decoder, slots: int, *, capacity: int) -> None:
        self._decoder, self._model = decoder, decoder._model
        self.rows: list[_Row] = []
        self._cache = SlotCache(slots, capacity)
        on: dict[str, Any] = {"dtype": torch.int64, "device": decoder.device}
        self._last = torch.zeros(slots, **on)
        self._lengths = torch.zeros(slots, **on)
        self._made = torch.zeros(slots, **on)  # tokens of each completion so far
        self._least = torch.zeros(slots, **on)  # minimum tokens of each completion
        self._ended_at = torch.zeros(slots, **on)  # tokens up to the end token of the completion; 0: not ended
        self._tails = torch.full((slots, decoder._tail), _NO_TOKEN, **on)
        self._uniform = torch.zeros(slots, 0, device=decoder.device)  # float32: Apple's GPUs don't have float64
        self._since: list[torch.Tensor] = []  # tokens chosen since the last check, each [rows]

    def made(self, row: _Row) -> int:
        """The number of tokens of a row's completion so far."""
        return len(row.tokens) + len(self._since)

    def latest(self) -> int:
        """The last chosen token of the only row."""
        return int(self._since[-1][0]) if self._since else self.rows[0].tokens[-1]

    @torch.no_grad()
    def add(self, numbers: list[int], prompts: list[Sequence[int]]) -> None:
        """Read prompts into free slots and choose the first token of each."""
        first = len(self.rows)
        slots_of: dict[tuple[int, ...], list[int]] = {}
        for place, (number, prompt) in enumerate(zip(numbers, prompts, strict=True)):
            slots_of.setdefault(tuple(prompt), []).append(first + place)
            self.rows.append(_Row(number, len(prompt), self._decoder._limit(len(prompt))))
        rows = range(first, len(self.rows))
        logits = self._read(slots_of)
        self._lengths[first : rows.stop] = torch.tensor([row.length for row in self.rows[first:]], device=self._decoder.device)
        self._ended_at[first : rows.stop] = self._made[first : rows.stop] = 0
        least = [self._decoder._least(row.length) for row in self.rows[first:]]
        self._least[first : rows.stop] = torch.tensor(least, device=self._decoder.device)
        if self._decoder._tail:
            for slot, prompt in zip(rows, prompts, strict=True):
                tail = torch.tensor(list(prompt)[-self._decoder._tail :], device=self._decoder.device)
                self._tails[slot] = _NO_TOKEN
                self._tails[slot, self._decoder._tail - len(tail) :] = tail
        self._draw(rows)
        for slot, token in zip(rows, self._choose(logits, rows).tolist(), strict=True):
            self.rows[slot].tokens.append(token)

    def _read(self, slots_of: dict[tuple[int, ...], list[int]]) -> torch.Tensor:
        """Store the prompts' keys and values in their slots; returns the logits after each prompt, [new slots, vocabulary]."""
        prompts = list(slots_of)
        shared = _shared(prompts) if self._decoder._branches else 0
        ids: list[int] = []
        positions: list[int] = []
        queries, keys, laid = [0], [0], []
        last: dict[int, int] = {}  # slot -> the place of its prompt's last token
        for place, prompt in enumerate(prompts):
            before = shared if place else 0
            start = len(ids)
            ids += prompt[before:]
            positions += range(before, len(prompt))
            queries.append(len(ids))
            keys.append(keys[-1] + len(prompt))
            laid.append(Prefilled(start, len(prompt) - before, shared=before, trunk=0, slots=slots_of[prompt]))
            last |= dict.fromkeys(slots_of[prompt], len(ids) - 1)
        device = self._decoder.device
        inputs = {
            "input_ids": torch.tensor([ids], device=device),
            "position_ids": torch.tensor([positions], device=device),
            BOUNDARIES: torch.tensor(queries, dtype=torch.int32, device=device),
            KEYS: torch.tensor(keys, dtype=torch.int32, device=device),
        }
        position = torch.tensor([last[slot] for slot in sorted(last)])
        read_apart = isolate_examples(self._model.config, inputs, PackingMethod.segments)
        chosen = head_on_positions(self._model, torch.zeros_like(position), position)
        with read_apart, self._cache.prefilling(laid), self._decoder._layers.used(), chosen:
            return self._model(**inputs, past_key_values=self._cache, use_cache=True).logits[0]  # type: ignore[no-any-return]

    def _draw(self, rows: range) -> None:
        """Draw random numbers for the completions of new rows."""
        if not self._decoder._chooser.samples:
            return
        width = max(row.limit for row in self.rows) + 1
        if width > self._uniform.shape[1]:
            self._uniform = torch.nn.functional.pad(self._uniform, (0, width - self._uniform.shape[1]))
        for slot in rows:
            row = self.rows[slot]
            numbers = self._decoder._chooser.uniforms(_seed(self._decoder._seed, self._decoder._first + row.number), row.limit + 1)
            self._uniform[slot, : len(numbers)] = numbers.to(self._uniform)

    @torch.no_grad()
    def step(self, times: int) -> None:
        """Generate `times` tokens for each row."""
        count = len(self.rows)
        rows = range(count)
        for _ in range(times):
            lengths = self._lengths[:count]
            longest = max(row.length + self.made(row) - 1 for row in self.rows)
            self._cache.advance(lengths, longest)
            logits = self._decoder._step(self._last[:count], lengths, self._cache)
            lengths += 1
            self._since.append(self._choose(logits, rows))

    def _choose(self, logits: torch.Tensor, rows: range) -> torch.Tensor:
        """The next token of some slots, int64 [slots]; records which of them it ends."""
        part = slice(rows.start, rows.stop)
        logits = logits.to(device=self._decoder.device, dtype=torch.float32, copy=True)
        made = self._made[part]
        if self._decoder._has_least:
            logits[:, self._decoder._ends] = logits[:, self._decoder._ends].masked_fill((made < self._least[part])[:, None], -torch.inf)
        uniform = self._uniform[part].gather(1, made[:, None])[:, 0] if self._decoder._chooser.samples else None
        tokens = self._decoder._chooser(logits, uniform)
        self._last[part] = tokens
        ended = torch.isin(tokens, self._decoder._ends)
        if self._decoder._strings is not None:
            self._tails[part] = torch.cat([self._tails[part, 1:], tokens[:, None]], dim=1)
            ended |= self._decoder._strings(self._tails[part], None)
        made += 1
        self._ended_at[part] = torch.where(ended & (self._ended_at[part] == 0), made, self._ended_at[part])
        return tokens

    def ended(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the finished rows, and move later rows into their slots."""
        if self._since:
            steps = torch.stack(self._since, dim=1).tolist()
            for row, tokens in zip(self.rows, steps, strict=False):
                row.tokens += tokens
            self._since.clear()
        ended_at = self._ended_at[: len(self.rows)].tolist()
        found = []
        for slot in reversed(range(len(self.rows))):
            row = self.rows[slot]
            if not ended_at[slot] and len(row.tokens) < row.limit:
                continue
            found.append((row.number, row.tokens[: ended_at[slot] or row.limit]))
            last = self.rows.pop()
            if slot < len(self.rows):
                self._take_over(slot, len(self.rows), last)
        yield from reversed(found)

    def _take_over(self, slot: int, source: int, row: _Row) -> None:
        """Move the last slot's row into a free slot."""
        self.rows[slot] = row
        self._cache.move(source, slot, row.length + len(row.tokens) - 1)
        for tensor in (self._last, self._lengths, self._made, self._least, self._ended_at, self._tails, self._uniform):
            tensor[slot] = tensor[source]


def _shared(prompts: Sequence[tuple[int, ...]]) -> int:
    """The number of tokens of the prompts' common beginning, which leaves at least one of each; 0 if it is too short to be read once."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)  # the first and last in sorted order: their common beginning is that of all
    count = next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), min(map(len, (first, last))))
    count = min(count, min(map(len, prompts)) - 1)
    return count if count >= _LEAST_SHARED else 0


def _seed(seed: int, number: int) -> int:
    """The seed of a prompt's completion."""
    return random.Random(f"{seed} {number}").getrandbits(62)
