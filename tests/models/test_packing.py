"""llmmod.models.packing: each example in a packed row gives the same as alone, for every family."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from torch.overrides import TorchFunctionMode

from llmmod.data.collators import FlatteningCollator, PrefixSharingCollator, PrefixSharingRewardCollator
from llmmod.models.attention.varlen import BOUNDARIES, varlen_attention
from llmmod.models.loading.tiny import tiny_model
from llmmod.models.packing import PACKED_FAMILIES, packed_attention, why_not_packed

OPTIONS = sorted((Path(__file__).parents[2] / "conf" / "model").glob("[!a]*.yaml"))  # auto has none of its own
ARCHITECTURES = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["architecture"] for path in OPTIONS}
KEPT_APART = [name for name, fields in ARCHITECTURES.items() if fields["model_type"] in PACKED_FAMILIES]
BY_MASK = [name for name in ARCHITECTURES if name not in KEPT_APART]
_SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
_EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
ARCHITECTURES_BESIDES = {
    "gemma": {**_SMALL, "head_dim": 16},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2},
    "granite": _SMALL,
    "mixtral": {**_SMALL, "num_local_experts": 4},
    "olmo2": _SMALL,
    "qwen3_moe": {**_SMALL, **_EXPERTS, "head_dim": 16},
    "starcoder2": _SMALL,
}
LENGTHS = (20, 1, 33, 2, 12)
SMALL_WINDOWS = {
    "gemma3_text": ARCHITECTURES["gemma3"] | {"sliding_window": 8},
    "phi3": ARCHITECTURES["phi4_mini"] | {"sliding_window": 8},
    "mistral": ARCHITECTURES["mistral"] | {"sliding_window": 8},
    "qwen2": ARCHITECTURES["qwen2_5"] | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": ARCHITECTURES["qwen3"] | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
}


@pytest.fixture
def make(tiny_tokenizer):
    """A tiny model of an architecture, with weights so large that it matters which tokens attention sees."""

    def build(architecture, **changes):
        model = tiny_model(architecture | {"initializer_range": 0.2} | changes, tokenizer=tiny_tokenizer, seed=0)
        if hasattr(model.config, "sliding_window") and architecture.get("sliding_window"):
            assert model.config.sliding_window == architecture["sliding_window"]
        return model

    return build


@pytest.fixture(scope="module")
def examples():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, 400, (1, length), generator=generator) for length in LENGTHS]


def row(examples):
    """The examples in one row, as a collator gives them."""
    lengths = [example.shape[1] for example in examples]
    places = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return {
        "input_ids": torch.cat(examples, dim=1),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": places,
        "cu_seq_lens_k": places,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def loss(logits, ids):
    return torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")


def alone(model, examples):
    """Each example's loss, and the gradient of their sum."""
    model.zero_grad()
    losses = [loss(model(input_ids=example).logits, example) for example in examples]
    torch.stack(losses).sum().backward()
    return torch.stack(losses).detach(), gradients(model)


def together(model, examples, context=packed_attention):
    """The same for the examples in one row."""
    model.zero_grad()
    inputs = row(examples)
    with context(model, inputs):
        logits = model(**inputs, use_cache=False).logits
        places = inputs["cu_seq_lens_q"].tolist()
        losses = [loss(logits[:, start:end], example) for (start, end), example in zip(pairwise(places), examples, strict=True)]
        torch.stack(losses).sum().backward()
    return torch.stack(losses).detach(), gradients(model)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    """Tolerances for float32: a loss is a sum over up to 33 tokens and about ten."""
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-4)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4 * max(1.0, gradient.abs().max().item()), msg=name)


def test_every_packed_family_is_tested():
    assert {*(ARCHITECTURES[name]["model_type"] for name in KEPT_APART), *ARCHITECTURES_BESIDES} == PACKED_FAMILIES
    assert {"bloom", "falcon", "baichuan_13b"} <= {*BY_MASK}


@pytest.mark.parametrize("family", ARCHITECTURES_BESIDES)
def test_families_without_an_option(make, examples, family):
    model = make({"model_type": family, **ARCHITECTURES_BESIDES[family]})
    assert_same(together(model, examples), alone(model, examples))


@pytest.mark.parametrize("option", KEPT_APART)
def test_each_example_in_a_row_is_as_it_is_alone(make, examples, option):
    model = make(ARCHITECTURES[option])
    assert_same(together(model, examples), alone(model, examples))


@pytest.mark.parametrize("family", SMALL_WINDOWS)
def test_examples_longer_than_the_sliding_window(make, examples, family):
    model = make(SMALL_WINDOWS[family])
    expected = alone(model, examples)
    assert_same(together(model, examples), expected)
    wide = make(SMALL_WINDOWS[family] | {"sliding_window": 64})
    assert (alone(wide, examples)[0] - expected[0]).abs().max() > 1e-2  # the window matters here


@pytest.mark.parametrize("option", BY_MASK)
def test_what_computes_attention_itself_is_kept_apart_by_a_mask(make, examples, option):
    model = make(ARCHITECTURES[option])
    assert why_not_packed(model) is None
    by_mask = "keeps the examples of a row apart by a mask over all of it, which costs more than padding"
    assert by_mask in why_not_packed(model, packed=False)
    assert "can't let two answers share their prompt" in why_not_packed(model, branches=True)
    expected = alone(model, examples)
    assert_same(together(model, examples), expected)
    leaking = together(model, examples, context=lambda *_: nullcontext())[0] if option in ("bloom", "falcon") else None
    assert leaking is None or (leaking - expected[0]).abs().max() > 1e-2


def test_eager_attention_is_kept_apart_as_well(make, examples):
    model = make(ARCHITECTURES["llama"])
    model.set_attn_implementation("eager")
    assert why_not_packed(model) is None
    assert_same(together(model, examples), alone(model, examples))


def test_without_the_boundaries_examples_would_see_each_other(make, examples):
    """Shows that the comparison can fail: the same row with causal attention over all of it."""
    model = make(ARCHITECTURES["llama"])
    inputs = {"input_ids": row(examples)["input_ids"]}
    logits = model(**inputs).logits
    last = LENGTHS[-1]
    assert (loss(logits[:, -last:], examples[-1]) - alone(model, examples)[0][-1]).abs() > 1e-2


def test_gradient_checkpointing_computes_the_same_attention_again(make, examples):
    model = make(ARCHITECTURES["llama"])
    expected = alone(model, examples)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    assert_same(together(model.train(), examples), expected)


def test_with_an_adapter(make, examples):
    model = get_peft_model(make(ARCHITECTURES["llama"]), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    assert_same(together(model, examples), alone(model, examples))


def test_outside_the_block_and_without_boundaries_the_model_is_its_own(make, examples):
    model = make(ARCHITECTURES["llama"])
    padded = {"input_ids": examples[0], "attention_mask": torch.ones_like(examples[0])}
    before = model(**padded).logits
    with packed_attention(model, padded):
        assert model.config._attn_implementation == "sdpa"
        assert torch.equal(model(**padded).logits, before)
    with pytest.raises(KeyError, match="llmmod_segments"), packed_attention(model, row(examples)):
        raise KeyError(model.config._attn_implementation)
    assert model.config._attn_implementation == "sdpa"


def test_what_is_saved_in_the_block_is_what_would_be_saved_outside(make, examples, tmp_path):
    model = make(ARCHITECTURES["llama"])
    model.save_pretrained(tmp_path / "outside")
    with packed_attention(model, row(examples)):
        model.save_pretrained(tmp_path / "inside")
    inside, outside = ((tmp_path / name / "config.json").read_text() for name in ("inside", "outside"))
    assert inside == outside


def test_boundaries_that_get_lost_on_the_way_are_an_error(make, examples):
    model = make(ARCHITECTURES["llama"])
    with packed_attention(model, row(examples)), pytest.raises(ValueError, match=f"LlamaAttention .* got no {BOUNDARIES}"):
        model(input_ids=examples[0])


def test_no_example_is_attended_to_as_a_whole_row(monkeypatch, make, examples):
    """Attention costs as much as for the examples alone: each call of SDPA sees one example."""
    model, seen = make(ARCHITECTURES["llama"]), []
    real = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, **kwargs):
        seen.append((query.shape[2], key.shape[2], kwargs["attn_mask"], kwargs["is_causal"]))
        return real(query, key, value, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    inputs = row(examples)
    with packed_attention(model, inputs):
        model(**inputs, use_cache=False)
    assert seen == [(length, length, None, length > 1) for length in LENGTHS] * 2  # two layers


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        ("sdpa", None),
        ("flash_attention_2", None),
        ("flex_attention", "attention 'flex_attention' can't keep the examples of a row apart"),
        ("llmmod_shifted_0.25", "attention 'llmmod_shifted_0.25' can't keep the examples of a row apart"),
    ],
)
def test_reasons(attention, reason):
    assert why_not_packed(SimpleNamespace(config=SimpleNamespace(model_type="llama", _attn_implementation=attention))) == reason


def test_variable_length_kernels_do_not_support_branches():
    model = SimpleNamespace(config=SimpleNamespace(model_type="llama", _attn_implementation="flash_attention_2"))
    assert why_not_packed(model, branches=True) == "attention 'flash_attention_2' can't let two answers share their prompt"


def branching(trees):
    """A row of stems with their branches; each branch comes with the number of the stem's tokens that it sees."""
    lengths = [part.shape[1] for stem, *branches in trees for part in (stem, *(branch for _, branch in branches))]
    before = [shared for _, *branches in trees for shared in (0, *(shared for shared, _ in branches))]
    places = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    keys = torch.tensor([0, *(length + more for length, more in zip(lengths, before, strict=True))]).cumsum(0).to(torch.int32)
    return {
        "input_ids": torch.cat([part for stem, *branches in trees for part in (stem, *(branch for _, branch in branches))], dim=1),
        "position_ids": torch.cat([torch.arange(b, b + n) for b, n in zip(before, lengths, strict=True)])[None],
        "cu_seq_lens_q": places,
        "cu_seq_lens_k": keys,
    }


def tree_losses(model, examples):
    """The losses of two stems in one row, and each path alone. The first stem has branches of 12 and 2 tokens, the second has none."""
    stem, other, long, short = examples[0], examples[2], examples[4], examples[3]
    inputs = branching([[stem, (9, long), (20, short)], [other]])
    with packed_attention(model, inputs):
        logits = model(**inputs, use_cache=False).logits
        ends = inputs["cu_seq_lens_q"][1:].tolist()
        parts = zip([0, *ends], ends, (stem, long, short, other), strict=False)
        found = torch.stack([loss(logits[:, start:end], ids) for start, end, ids in parts])
    return found, (stem, torch.cat([stem[:, :9], long], 1), torch.cat([stem, short], 1), other)


@pytest.mark.parametrize("option", [*KEPT_APART, *(f"{family} with a window" for family in SMALL_WINDOWS)])
def test_a_branch_is_computed_as_if_it_followed_what_it_shares(make, examples, option):
    family, _, windowed = option.partition(" with ")
    model = make(SMALL_WINDOWS[family] if windowed else ARCHITECTURES[family])
    found, paths = tree_losses(model, examples)
    found.sum().backward()
    mine = gradients(model)
    model.zero_grad()
    own = [path.shape[1] - tokens for path, tokens in zip(paths, (20, 12, 2, 33), strict=True)]
    expected = [loss(model(input_ids=path).logits[:, start:], path[:, start:]) for path, start in zip(paths, own, strict=True)]
    torch.stack(expected).sum().backward()
    assert_same((found.detach(), mine), (torch.stack(expected).detach(), gradients(model)))


def test_no_branch_is_paid_for_its_stem_again(monkeypatch, make, examples):
    """Queries and keys of each call of SDPA: only a branch's own tokens are queries, and the shared ones are keys besides."""
    model, seen = make(ARCHITECTURES["llama"]), []
    real = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, **kwargs):
        seen.append((query.shape[2], key.shape[2]))
        return real(query, key, value, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    tree_losses(model, examples)
    assert seen[:4] == [(20, 20), (12, 21), (2, 22), (33, 33)]


READING = {"tolist", "item", "nonzero", "masked_select", "__bool__", "__int__", "__index__", "__float__", "cpu", "numpy"}


class Reads(TorchFunctionMode):
    """Records calls that halt an accelerator: the host reads a tensor's value, or waits for the size of a result."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if (name := getattr(func, "__name__", "")) in READING:
            self.calls.append(name)
        return func(*args, **(kwargs or {}))


PAIRS = [{"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9], "rejected_ids": [10]}] * 2
COLLATORS = {
    "flat": (FlatteningCollator(), [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]),
    "filled": (FlatteningCollator(length=9), [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8], "seq_lengths": [3, 1]}]),
    "pairs": (PrefixSharingCollator(), PAIRS),
    "scored pairs": (PrefixSharingRewardCollator(), PAIRS),
}


@pytest.mark.parametrize("kind", COLLATORS)
def test_a_step_on_a_collator_s_row_reads_nothing_back(make, kind):
    collator, rows = COLLATORS[kind]
    inputs, model = collator(rows), make(SMALL_WINDOWS["mistral"] | {"sliding_window": 2}).train()
    own, names = inputs["segment_lengths"], ("input_ids", "position_ids", *(name for name in inputs if "_l" in name))
    for lengths, boundaries in ((own.lengths, inputs[BOUNDARIES]), (own.keys, inputs["cu_seq_lens_k"])):
        assert torch.tensor([0, *lengths]).cumsum(0).tolist() == boundaries.tolist()
    with Reads() as reads, packed_attention(model, inputs):
        given = {name: inputs[name] for name in names}
        model(**given, use_cache=False).logits.sum().backward()
    assert reads.calls == []
    del given["segment_lengths"]
    found = gradients(model)
    model.zero_grad()
    with Reads() as reads, packed_attention(model, given):  # a user's own collator may leave the lengths out
        model(**given, use_cache=False).logits.sum().backward()
    assert "tolist" in reads.calls
    torch.testing.assert_close(gradients(model), found, rtol=0, atol=0)
    assert any(mask is not None for mask in own.masks.values())  # the window's masks, which the layers share


def test_a_kernel_of_variable_length_gets_the_boundaries_itself():
    model = SimpleNamespace(config=SimpleNamespace(model_type="llama", _attn_implementation="flash_attention_2"))
    with packed_attention(model, {BOUNDARIES: torch.tensor([0, 2])}):
        assert model.config._attn_implementation == "flash_attention_2"


def test_the_window_holds_the_token_itself_and_those_before_it():
    """Window 2, four tokens, by hand: each token sees itself and the one before."""
    module = torch.nn.Module()
    query = torch.zeros(1, 1, 4, 1)  # all scores equal: the output is the mean of the values seen
    value = torch.tensor([1.0, 3.0, 5.0, 9.0])[None, None, :, None]
    output, _ = varlen_attention(module, query, query, value, None, sliding_window=2, cu_seq_lens_q=torch.tensor([0, 4]))
    assert output.flatten().tolist() == [1.0, 2.0, 4.0, 7.0]
