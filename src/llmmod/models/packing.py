"""Several examples in one row: without padding or leaking, and without more work than for each alone.

Whether a model's class keeps them apart, and with which of the two methods of `attention.varlen`, is known for `PACKED_FAMILIES`. For every
other class it is measured on a tiny random model, in a fraction of a second: examples of several lengths are computed alone and in one
row, with each method. A method works if losses and gradients are the same. That covers every way from one token to another: attention, a
convolution, a recurrent state. The result is cached in ~/.cache/llmmod/packing, by everything that it depends on: the class, its small
configuration, the versions of the libraries and this code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from llmmod.cache.content import digest
from llmmod.cache.store import cache_directory
from llmmod.config.schema.model import is_flash, why_not_packed_with
from llmmod.errors import one_line
from llmmod.files.paths import atomic_write
from llmmod.models.attention import varlen
from llmmod.models.attention.rope import use_per_sequence_rope
from llmmod.models.attention.varlen import BOUNDARIES, KEYS, NAME, PackingMethod, isolate_examples
from llmmod.models.families.native import initial_model
from llmmod.models.loading.structure import base_model
from llmmod.models.loading.tiny import shrink_config
from llmmod.upstream import installed, require_upstream

require_upstream(__name__)

MAX_LOSS_DIFFERENCE = 1e-3  # nats per token; rounding of float32 causes 1e-6, a token of another example about 0.1
_MAX_GRADIENT_DIFFERENCE = 1e-2  # of its norm
_MIN_LEAK = 1e-2  # nats per token by which causal attention over the whole row changes a loss; below, the test isn't conclusive
_LENGTHS = (20, 1, 33, 2, 12)  # tokens of the examples
_WINDOW = 8  # tokens: shorter than the examples
_WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size", "sliding_window_size", "local_attention")
_VOCABULARY = 512
# model_type of configurations whose classes are exact with segments, by a test that compares losses and gradients.
PACKED_FAMILIES = frozenset({
    "llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi", "phi3", "glm", "glm4",
    "gemma", "gpt2", "granite", "mixtral", "olmo2", "qwen3_moe", "starcoder2",  # without an own option in conf/model
})  # fmt: skip
_WEIGHT_STD = 0.2  # larger than usual, so that each visible token changes the result
_known: list[tuple[Any, PackingSupport]] = []  # configurations in this process, since each training step asks


@dataclass(frozen=True)
class PackingSupport:
    """A class's support for several examples in a row.

    Args:
        method: that keeps them apart, or None.
        branches: whether answers can share their prompt.
        reason: why none of the methods works, with numbers.
        difference: the largest difference of a loss in a row from the loss alone, with the best method, in nats per token.
    """

    method: PackingMethod | None = None
    branches: bool = False
    reason: str | None = None
    difference: float | None = None


def why_not_packed(model: Any, *, branches: bool = False, packed: bool = True) -> str | None:
    """Why several examples can't or shouldn't be in one row for this model; None if they can.

    Args:
        model: a PreTrainedModel or PeftModel.
        branches: whether they share their beginnings.
        packed: whether they are in one row anyway, so that padding isn't an alternative.
    """
    support = packing_support(model)
    if support.reason is not None:
        return support.reason
    name = type(base_model(model)).__name__
    if branches and not support.branches:
        with_it = f"attention '{model.config._attn_implementation}'" if is_flash(model.config._attn_implementation) else name
        return f"{with_it} can't let two answers share their prompt"
    if support.method is PackingMethod.mask and not packed:
        return f"{name} keeps the examples of a row apart by a mask over all of it, which costs more than padding"
    return None


@contextmanager
def packed_attention(model: Any, inputs: Mapping[str, Any]) -> Iterator[None]:
    """A context in which the model's attention stays within the examples of `inputs`, if these have boundaries; forward and backward.

    Without boundaries the model's own attention is used, so that generation and padded batches don't change. Both passes belong in the
    block: with gradient checkpointing the backward pass computes attention again.

    Raises:
        ValueError: the model's class doesn't keep examples apart.
    """
    if BOUNDARIES not in inputs or is_flash(model.config._attn_implementation):
        yield
        return
    support = packing_support(model)
    if support.method is None:
        raise ValueError(support.reason)
    with isolate_examples(model.config, inputs, support.method):
        yield


def packing_support(model: Any) -> PackingSupport:
    """Whether a model with its attention keeps the examples of a row apart, and how: known for its family, or measured.

    Args:
        model: a PreTrainedModel or PeftModel.
    """
    attention = "sdpa" if model.config._attn_implementation == NAME else model.config._attn_implementation
    if reason := why_not_packed_with(attention):
        return PackingSupport(reason=reason)
    base = base_model(model)
    if model.config.model_type in PACKED_FAMILIES and attention != "eager" and not _has_own_code(base):
        return PackingSupport(method=PackingMethod.segments, branches=not is_flash(attention))
    found = measured_support(base)
    if is_flash(attention) and found.method is PackingMethod.mask:
        return PackingSupport(reason=f"attention '{attention}' can't keep the examples of a row apart in {type(base).__name__}")
    return PackingSupport(method=found.method, branches=found.branches and not is_flash(attention), reason=found.reason)


def measured_support(model: Any) -> PackingSupport:
    """The support measured on a tiny model of a PreTrainedModel's class, from the cache if it was measured before."""
    for config, known in _known:
        if config is model.config:
            return known
    try:
        small = shrink_config(model.config, vocab_size=_VOCABULARY, special={"pad_token_id": 0}, **dict.fromkeys(_WINDOWS, _WINDOW))
        if hasattr(small, "quantization_config"):
            del small.quantization_config
        attention = model.config._attn_implementation
        small._attn_implementation = "sdpa" if is_flash(attention) else attention
        file = _cache_file(type(model), small)
    except Exception as error:  # whatever a class of anybody's raises
        found = _not_measured(model, error)
    else:
        found = _read(file) or _write(file, _measure(model, small))
    _known.append((model.config, found))
    del _known[:-32]
    return found


def _measure(model: Any, config: Any) -> PackingSupport:
    try:
        tiny, generator = _tiny_model(model, config), torch.Generator().manual_seed(1)
        examples = [torch.randint(5, _VOCABULARY, (1, length), generator=generator) for length in _LENGTHS]
        alone, gradient_alone = _compute_alone(tiny, examples)
        if (alone - _compute_in_row(tiny, examples, method=None)[0]).abs().max() < _MIN_LEAK:
            raise ValueError("visible tokens change its losses too little")
    except Exception as error:  # whatever a class of anybody's raises
        return _not_measured(model, error)
    tried: dict[PackingMethod, str] = {}
    for method in PackingMethod:
        try:
            losses, gradient = _compute_in_row(tiny, examples, method=method)
        except Exception as error:  # it doesn't accept boundaries, or doesn't pass them on
            tried[method] = one_line(error, 160)
            continue
        difference, turned = (alone - losses).abs().max().item(), ((gradient - gradient_alone).norm() / gradient_alone.norm()).item()
        if difference <= MAX_LOSS_DIFFERENCE and turned <= _MAX_GRADIENT_DIFFERENCE:
            branches = method is PackingMethod.segments and _can_branch(tiny, examples)
            return PackingSupport(method=method, branches=branches, difference=difference)
        tried[method] = f"losses differ by up to {difference:.2g} nats a token from those of each example alone, gradients by {turned:.0%}"
    by = {PackingMethod.segments: "by segments", PackingMethod.mask: "by a mask"}
    said = {text: " and ".join(by[method] for method in PackingMethod if tried[method] == text) for text in tried.values()}
    each = "; ".join(f"{text} ({methods})" for text, methods in said.items())
    return PackingSupport(reason=f"{type(model).__name__} can't keep the examples of a row apart. Measured on a tiny random one: {each}")


def _not_measured(model: Any, error: Exception) -> PackingSupport:
    name, said = type(model).__name__, f"{type(error).__name__}: {one_line(error, 200)}"
    return PackingSupport(reason=f"whether {name} keeps the examples of a row apart can't be measured on a tiny model of it ({said})")


def _tiny_model(model: Any, config: Any) -> Any:
    """A model of the small configuration with large random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny = (type(model)._from_config if _has_own_code(model) else initial_model)(config, dtype=torch.float32).eval()
        use_per_sequence_rope(tiny)
        with torch.no_grad():
            for parameter in (p for p in tiny.parameters() if p.dim() > 1):
                parameter.normal_(std=_WEIGHT_STD)
    return tiny


def _has_own_code(model: Any) -> bool:
    """Whether a model's class is from a checkpoint's own code."""
    return type(model).__module__.startswith("transformers_modules.")


def _compute_alone(model: Any, examples: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean loss of each example alone, and the gradient of their sum."""
    model.zero_grad()
    losses = torch.stack([_loss(model(input_ids=ids, use_cache=False).logits, ids) for ids in examples])
    losses.sum().backward()  # type: ignore[no-untyped-call]
    return losses.detach(), _gradient(model)


def _compute_in_row(model: Any, examples: list[torch.Tensor], *, method: PackingMethod | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for the examples in one row; without a method as if they were one example."""
    model.zero_grad()
    row = _row(examples, [0] * len(examples))
    places = row[BOUNDARIES].tolist()
    with isolate_examples(model.config, row, method) if method is not None else nullcontext():
        logits = model(**({"input_ids": row["input_ids"]} if method is None else row), use_cache=False).logits
        parts = zip(pairwise(places), examples, strict=True)
        losses = torch.stack([_loss(logits[:, start:end], ids) for (start, end), ids in parts])
        losses.sum().backward()  # type: ignore[no-untyped-call]
    return losses.detach(), _gradient(model)


@torch.no_grad()
def _can_branch(model: Any, examples: list[torch.Tensor]) -> bool:
    """Whether two answers that share a prompt, with 9 and 20 of its tokens, have the same losses as each alone."""
    stem, short, other, _, long = examples[0], examples[3], examples[2], examples[1], examples[4]
    row = _row([stem, long, short, other], [0, 9, 20, 0])
    try:
        with isolate_examples(model.config, row, PackingMethod.segments):
            logits = model(**row, use_cache=False).logits
    except Exception:  # whatever a class of anybody's raises
        return False
    places = row[BOUNDARIES].tolist()
    found = [_loss(logits[:, start:end], ids) for (start, end), ids in zip(pairwise(places), (stem, long, short, other), strict=True)]
    paths = [(stem, 0), (torch.cat([stem[:, :9], long], 1), 9), (torch.cat([stem, short], 1), 20), (other, 0)]
    expected = [_loss(model(input_ids=ids, use_cache=False).logits[:, start:], ids[:, start:]) for ids, start in paths]
    return bool((torch.stack(found) - torch.stack(expected)).abs().max() <= MAX_LOSS_DIFFERENCE)


def _row(examples: list[torch.Tensor], before: list[int]) -> dict[str, Any]:
    """A row of examples as from `FlatteningCollator`, each with a number of keys before its own."""
    lengths = [ids.shape[1] for ids in examples]
    keys = [length + more for length, more in zip(lengths, before, strict=True)]
    return {
        "input_ids": torch.cat(examples, dim=1),
        "position_ids": torch.cat([torch.arange(more, more + length) for more, length in zip(before, lengths, strict=True)])[None],
        BOUNDARIES: torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        KEYS: torch.tensor([0, *keys]).cumsum(0).to(torch.int32),
        "max_length_q": max(lengths),
        "max_length_k": max(keys),
    }


def _loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The loss in nats per token; 0 for an example of one token, which doesn't predict another."""
    total = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
    return total / max(1, ids.shape[1] - 1)


def _gradient(model: Any) -> torch.Tensor:
    """The gradient of all weights; 0 for weights without one, such as an unused expert's."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def _cache_file(cls: type, config: Any) -> Path:
    """The cache file of a class's result."""
    versions = {name: installed(name) for name in ("torch", "transformers", "llmmod")}
    code = [Path(str(module)).read_text(encoding="utf-8") for module in (__file__, varlen.__file__)]
    fields: Mapping[str, Any] = config.to_dict() | {"_attn_implementation": config._attn_implementation}
    known = json.dumps([f"{cls.__module__}.{cls.__qualname__}", fields, versions, code], sort_keys=True, default=str)
    return cache_directory(None) / "packing" / f"{cls.__name__}-{digest(known)[:16]}.json"


def _read(file: Path) -> PackingSupport | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        fields = json.loads(file.read_text(encoding="utf-8"))
        return PackingSupport(**fields | {"method": PackingMethod(fields["method"]) if fields["method"] else None})
    return None


def _write(file: Path, found: PackingSupport) -> PackingSupport:
    """Cache a result and return it; if it can't be written, it is measured again next time."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as partial:
            partial.write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found
