"""llmmod.models.attention.rope: positions that depend on a text's length are the same in a packed row as for each text alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from llmmod.errors import ConfigError
from llmmod.models.attention.rope import lengths_and_starts
from llmmod.models.loading.structure import rebuild_model
from llmmod.models.loading.tiny import tiny_model
from llmmod.models.packing import packed_attention

BORDER = 16  # tokens, beyond which positions change
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": BORDER}


def architecture(name):
    return yaml.safe_load((Path(__file__).parents[3] / "conf" / "model" / f"{name}.yaml").read_text(encoding="utf-8"))["architecture"]


def phi4_mini():
    found = architecture("phi4_mini")
    rope = found["rope_parameters"] | {"original_max_position_embeddings": BORDER}
    return found | {"original_max_position_embeddings": BORDER, "rope_parameters": rope}


KINDS = {
    "longrope": phi4_mini(),
    "dynamic": {"model_type": "llama", "rope_parameters": DYNAMIC, **SMALL},
    "dynamic in some layers": architecture("gemma3")
    | {"max_position_embeddings": BORDER, "rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": {"rope_type": "default"}}},
}


@pytest.fixture(params=KINDS)
def model(request, tiny_tokenizer):
    """A tiny model of each kind, with weights so large that positions make a difference."""
    return tiny_model(KINDS[request.param] | {"initializer_range": 0.2}, tokenizer=tiny_tokenizer, seed=0)


def stock(model):
    """A new model with the same weights and transformers' own positions."""
    new = AutoModelForCausalLM.from_config(copy.deepcopy(model.config)).eval()
    new.load_state_dict(model.state_dict())
    return new


def text(length, seed=1):
    return torch.randint(5, 400, (1, length), generator=torch.Generator().manual_seed(seed))


def row(texts, positions=None, keys=None):
    lengths = [one.shape[1] for one in texts]
    places = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return {
        "input_ids": torch.cat(texts, dim=1),
        "position_ids": torch.cat([torch.arange(length) for length in lengths] if positions is None else positions)[None],
        "cu_seq_lens_q": places,
        "cu_seq_lens_k": places if keys is None else torch.tensor([0, *keys]).cumsum(0).to(torch.int32),
        "max_length_q": max(lengths),
        "max_length_k": max(keys or lengths),
    }


def in_a_row(model, inputs):
    with torch.no_grad(), packed_attention(model, inputs):
        return model(**inputs).logits[0]


def alone(model, ids, logits):
    return logits(stock(model), ids)[0]


def test_each_text_of_a_row_has_its_own_positions(model, logits):
    texts = [text(length, seed) for seed, length in enumerate((12, 40, 1, BORDER, BORDER + 1, 25))]
    expected = torch.cat([alone(model, ids, logits) for ids in texts])
    torch.testing.assert_close(in_a_row(model, row(texts)), expected, atol=2e-4, rtol=0)
    assert (in_a_row(stock(model), row(texts)) - expected).abs().max() > 0.1, "transformers alone goes by the longest"


def test_a_text_is_computed_as_if_none_had_come_before(model, logits):
    for length in (40, 25, BORDER, 12):  # after the first, `dynamic` in transformers keeps the base for 40 tokens during the next two
        assert torch.equal(logits(model, text(length))[0], alone(model, text(length), logits)), length


def test_several_rows_use_the_positions_of_the_longest_as_a_cache_needs_it(model, logits):
    ids = text(60).reshape(2, 30)
    assert torch.equal(logits(model, ids), logits(stock(model), ids))


def test_a_copy_and_a_rebuilt_model_have_their_own_positions(model, logits):
    texts = [text(12), text(40)]
    expected = in_a_row(model, row(texts))
    for other in (copy.deepcopy(model), rebuild_model(model)):
        assert torch.equal(in_a_row(other, row(texts)), expected)
        own = [module for module in other.modules() if "forward" in vars(module)]
        assert [module.forward.args[0] for module in own] == own, "not the first model's positions"
        assert own


@pytest.mark.parametrize("answers", [(2, 3), (40, 40)], ids=["within", "beyond, with equal lengths"])
def test_a_shared_prompt_that_stays_the_same(model, logits, answers):
    first, second = (torch.cat([text(8), text(length, seed=7 + n)], dim=1) for n, length in enumerate(answers))
    positions = [torch.arange(first.shape[1]), torch.arange(8, second.shape[1])]
    inputs = row([first, second[:, 8:]], positions, keys=[first.shape[1], second.shape[1]])
    expected = torch.cat([alone(model, first, logits), alone(model, second, logits)[8:]])
    torch.testing.assert_close(in_a_row(model, inputs), expected, atol=2e-4, rtol=0)


def test_a_shared_prompt_with_two_kinds_of_positions_is_refused(model):
    inputs = row([text(10), text(32)], [torch.arange(10), torch.arange(8, 40)], keys=[10, 40])
    with pytest.raises(ConfigError, match=r"dataset.cutoff_len: two answers make texts of 10 and 40 tokens, and beyond 16 the positions"):
        in_a_row(model, inputs)


def test_lengths_and_beginnings():
    lengths, starts = lengths_and_starts(torch.tensor([0, 1, 2, 0, 0, 1, 1, 2, 3, 0]))
    assert lengths.tolist() == [3, 3, 3, 1, 2, 2, 4, 4, 4, 1]
    assert starts.tolist() == [0, 0, 0, 3, 4, 4, 6, 6, 6, 9]


def test_a_model_whose_positions_never_change_is_left_alone(tiny_tokenizer):
    model = tiny_model(architecture("llama3"), tokenizer=tiny_tokenizer, seed=0)
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]
