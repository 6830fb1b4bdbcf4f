"""Whether the examples of a row see each other in a class of models: measured on a tiny random model of it, in a fraction of a second.

Examples of several lengths are computed alone, as ever, and in one row, each way in which a row can be kept apart (`row_attention`). A way
holds where losses and gradients are the same. So it is seen whatever carries something from one token to another: attention, a convolution,
a recurrent state. What was found is kept in ~/.cache/llmmod/packing under all that it depends on: the class, its small configuration, the
versions of the libraries and this code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from llmmod.cache.store import cache_directory
from llmmod.errors import one_line
from llmmod.files.paths import atomic_write
from llmmod.models.attention import varlen as row_attention
from llmmod.models.attention.rope import use_per_sequence_rope
from llmmod.models.attention.varlen import BOUNDARIES, KEYS, PackingMethod, isolate_examples
from llmmod.models.families.native import initial_model
from llmmod.models.families.registry import is_flash
from llmmod.models.loading.tiny import shrink_config
from llmmod.upstream import installed, require_upstream

require_upstream(__name__)

_LENGTHS = (20, 1, 33, 2, 12)  # tokens of the examples
_WINDOW = 8  # tokens: less than the examples have
_WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size", "sliding_window_size", "local_attention")
_VOCABULARY = 512
_SPREAD = 0.2  # of the weights: larger than usual, so that a token seen or not makes a difference
MAX_LOSS_DIFFERENCE = 1e-3  # nats a token; float32 alone makes 1e-6, a token of another example some 0.1
_MOST_GRADIENT = 1e-2  # of its norm
_LEAST_SEEN = 1e-2  # nats a token by which causal attention over the whole row changes a loss: else nothing could be told


@dataclass(frozen=True)
class PackingSupport:
    """What a tiny model of a class came to.

    Args:
        way: how examples are kept apart; None: in no way.
        branches: whether answers can share their prompt.
        reason: why there is no way, with the numbers.
        apart: nats a token by which losses in a row are others than alone, at most, by the best way.
    """

    way: PackingMethod | None = None
    branches: bool = False
    reason: str | None = None
    apart: float | None = None


def packing_support(model: Any) -> PackingSupport:
    """Whether the class of a model keeps the examples of a row apart, and how; from the cache where it was measured before.

    Args:
        model: a PreTrainedModel.
    """
    for config, found in _known:
        if config is model.config:
            return found
    try:
        small = _small_config(model.config)
        file = _file(type(model), small)
    except Exception as error:  # whatever a class of anybody's raises
        found = PackingSupport(reason=_untold(model, error))
    else:
        found = _read(file) or _kept(file, _measured(model, small))
    _known.append((model.config, found))
    del _known[:-32]
    return found


_known: list[tuple[Any, PackingSupport]] = []  # of this process: each training step asks


def _measured(model: Any, config: Any) -> PackingSupport:
    try:
        tiny = _tiny(model, config)
        examples = _examples()
        alone = _alone(tiny, examples)
        if _distance(alone[0], _in_row(tiny, examples, way=None, told=False)[0]) < _LEAST_SEEN:
            raise ValueError("what a token sees changes too little in it")
    except Exception as error:  # whatever a class of anybody's raises
        return PackingSupport(reason=_untold(model, error))
    tried: dict[PackingMethod, str] = {}
    for way in PackingMethod:
        try:
            losses, gradient = _in_row(tiny, examples, way=way)
        except Exception as error:  # it takes no boundaries, or doesn't hand them down
            tried[way] = one_line(error, 160)
            continue
        apart, turned = _distance(alone[0], losses), ((gradient - alone[1]).norm() / alone[1].norm()).item()
        if apart <= MAX_LOSS_DIFFERENCE and turned <= _MOST_GRADIENT:
            return PackingSupport(way=way, branches=way is PackingMethod.segments and _branches(tiny, examples), apart=apart)
        tried[way] = f"losses differ by up to {apart:.2g} nats a token from those of each example alone, gradients by {turned:.0%}"
    by = {PackingMethod.segments: "by segments", PackingMethod.mask: "by a mask"}
    said = {text: " and ".join(by[way] for way in PackingMethod if tried[way] == text) for text in tried.values()}
    each = "; ".join(f"{text} ({ways})" for text, ways in said.items())
    return PackingSupport(reason=f"{_name(model)} can't keep the examples of a row apart. Measured on a tiny random one: {each}")


def _small_config(config: Any) -> Any:
    small = shrink_config(config, vocab_size=_VOCABULARY, special={"pad_token_id": 0}, **dict.fromkeys(_WINDOWS, _WINDOW))
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    small._attn_implementation = "sdpa" if is_flash(config._attn_implementation) else config._attn_implementation
    return small


def _tiny(model: Any, config: Any) -> Any:
    """A model of the small configuration, its weights random and large."""
    from_code = type(model).__module__.startswith("transformers_modules.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny = (type(model)._from_config if from_code else initial_model)(config, dtype=torch.float32).eval()
        use_per_sequence_rope(tiny)
        with torch.no_grad():
            for parameter in (p for p in tiny.parameters() if p.dim() > 1):
                parameter.normal_(std=_SPREAD)
    return tiny


def _examples() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, _VOCABULARY, (1, length), generator=generator) for length in _LENGTHS]


def _alone(model: Any, examples: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean loss of each example by itself, and the gradient of their sum."""
    model.zero_grad()
    losses = torch.stack([_loss(model(input_ids=ids, use_cache=False).logits, ids) for ids in examples])
    losses.sum().backward()  # type: ignore[no-untyped-call]
    return losses.detach(), _gradient(model)


def _in_row(model: Any, examples: list[torch.Tensor], *, way: PackingMethod | None, told: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of the examples in one row; without `told` as if they were one."""
    model.zero_grad()
    row = _row(examples, [0] * len(examples))
    places = row[BOUNDARIES].tolist()
    with isolate_examples(model.config, row, way) if way is not None else nullcontext():
        logits = model(**(row if told else {"input_ids": row["input_ids"]}), use_cache=False).logits
        parts = zip(pairwise(places), examples, strict=True)
        losses = torch.stack([_loss(logits[:, start:end], ids) for (start, end), ids in parts])
        losses.sum().backward()  # type: ignore[no-untyped-call]
    return losses.detach(), _gradient(model)


@torch.no_grad()
def _branches(model: Any, examples: list[torch.Tensor]) -> bool:
    """Whether two answers that share a stem, of which they see 9 and 20 tokens, are what they would be behind it."""
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
    return _distance(torch.stack(found), torch.stack(expected)) <= MAX_LOSS_DIFFERENCE


def _row(examples: list[torch.Tensor], before: list[int]) -> dict[str, Any]:
    """Examples as a collator gives them (`data.collators.FlatteningCollator`), each with a number of keys before its own."""
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
    """Nats a token; 0 of an example of one token, which predicts nothing."""
    total = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
    return total / max(1, ids.shape[1] - 1)


def _gradient(model: Any) -> torch.Tensor:
    """Of all weights; 0 where there is none: an expert that no token came to."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def _distance(losses: torch.Tensor, others: torch.Tensor) -> float:
    return (losses - others).abs().max().item()


def _untold(model: Any, error: Exception) -> str:
    said = f"{type(error).__name__}: {one_line(error, 200)}"
    return f"whether {_name(model)} keeps the examples of a row apart can't be measured on a tiny model of it ({said})"


def _name(model: Any) -> str:
    return type(model).__name__


def _file(cls: type, config: Any) -> Path:
    """Where what was found of a class is kept."""
    versions = {name: installed(name) for name in ("torch", "transformers", "llmmod")}
    code = [Path(str(module)).read_text(encoding="utf-8") for module in (__file__, row_attention.__file__)]
    fields: Mapping[str, Any] = config.to_dict() | {"_attn_implementation": config._attn_implementation}
    known = json.dumps([f"{cls.__module__}.{cls.__qualname__}", fields, versions, code], sort_keys=True, default=str)
    return cache_directory(None) / "packing" / f"{cls.__name__}-{hashlib.sha256(known.encode()).hexdigest()[:16]}.json"


def _read(file: Path) -> PackingSupport | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        fields = json.loads(file.read_text(encoding="utf-8"))
        return PackingSupport(**fields | {"way": PackingMethod(fields["way"]) if fields["way"] else None})
    return None


def _kept(file: Path, found: PackingSupport) -> PackingSupport:
    """The same, written whole; where nothing can be written, it is measured again next time."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as partial:
            partial.write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found
