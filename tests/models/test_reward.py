"""llmmod.models.reward: a head on any trunk, a score at the last real token, and checkpoints in transformers' own format."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from llmmod.errors import ConfigError
from llmmod.models.loading.tiny import tiny_model, tiny_tokenizer
from llmmod.models.packing import why_not_packed
from llmmod.models.reward import is_reward_model, require_head, score, set_reward_padding, with_reward_head

CONF = Path(__file__).parents[2] / "conf" / "model"
FAMILIES = (
    "smollm2", "qwen2_5", "qwen3", "chatglm2", "glm4", "phi1_5", "phi4_mini", "bloom", "falcon", "mistral", "gemma3", "baichuan_13b",
)  # fmt: skip
TEXTS = [[11, 12, 13], [21, 22, 23, 24, 25, 26, 27], [31, 32, 33, 34, 35]]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def tiny(tokenizer):
    """Option of `model` -> a tiny language model of its architecture."""

    def make(option):
        architecture = yaml.safe_load((CONF / f"{option}.yaml").read_text())["architecture"]
        return tiny_model(architecture, tokenizer=tokenizer, seed=0)

    return make


def naive(model, texts):
    """The scores of the texts one by one: the trunk, then the head on the last token."""
    with torch.no_grad():
        return torch.stack([model.score(model.base_model(torch.tensor([text]))[0][0, -1])[0] for text in texts])


def padded(texts, *, left, pad=0, width=9):
    ids, mask = torch.full((len(texts), width), pad), torch.zeros(len(texts), width, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(width - len(text), width) if left else slice(0, len(text))
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    return ids, mask


@pytest.mark.parametrize("option", FAMILIES)
def test_scores_are_those_of_each_text_alone_however_it_is_batched(tiny, option):
    model = with_reward_head(tiny(option), seed=1).eval()
    expected = naive(model, TEXTS)
    assert expected.std() > 1e-3
    for left in (False, True):
        torch.testing.assert_close(score(model, *padded(TEXTS, left=left)), expected, rtol=1e-4, atol=1e-5)
    if why_not_packed(model) is None:
        torch.testing.assert_close(_flat(model, TEXTS), expected, rtol=1e-4, atol=1e-5)


def _flat(model, texts):
    from llmmod.data.collators import FlatteningCollator
    from llmmod.models.packing import packed_attention

    batch = FlatteningCollator()([{"input_ids": text, "labels": text} for text in texts])
    del batch["labels"]
    with torch.no_grad(), packed_attention(model, batch):
        return model(**batch, use_cache=False).logits[:, 0]


def test_the_terminator_scores_even_where_it_is_the_padding_token(tiny, tokenizer):
    """transformers' own class would look one token too early."""
    model = with_reward_head(tiny("smollm2"), seed=1).eval()
    model.config.pad_token_id = 5
    texts = [[11, 12, 5], [21, 22, 23, 24, 5]]
    expected = naive(model, texts)
    torch.testing.assert_close(score(model, *padded(texts, left=False, pad=5)), expected, rtol=1e-5, atol=1e-6)
    stock = LlamaForSequenceClassification.forward(model, *padded(texts, left=False, pad=5)).logits[:, 0]
    assert (stock - expected).abs().max() > 1e-3


def test_the_trunk_is_taken_over_and_not_copied(tiny):
    language = tiny("smollm2")
    before = {id(parameter) for parameter in language.model.parameters()}
    model = with_reward_head(language)
    assert {id(p) for name, p in model.named_parameters() if not name.startswith("score")} == before
    assert is_reward_model(model)
    assert model.name_or_path == language.name_or_path
    assert with_reward_head(model) is model


@pytest.mark.parametrize("way", ["accelerate", "disk", "trl"])
def test_a_forward_that_was_patched_onto_the_language_model_stays_there(tiny, tmp_path, way):
    """accelerate replaces it where a model is spread over devices or offloaded, trl where it fuses the head into the loss."""
    from accelerate import dispatch_model
    from trl.trainer.utils import add_fused_lm_head

    expected = score(with_reward_head(tiny("smollm2"), seed=1).eval(), *padded(TEXTS, left=False))
    language = tiny("smollm2").eval()
    if way == "accelerate":
        dispatch_model(language, device_map={"": "cpu"}, force_hooks=True)
    elif way == "disk":
        offloaded = {"model.embed_tokens": "disk", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
        dispatch_model(language, device_map=offloaded, main_device="cpu", offload_dir=tmp_path)
    else:
        add_fused_lm_head(language)
    assert "forward" in vars(language)
    model = with_reward_head(language, seed=1)
    torch.testing.assert_close(score(model, *padded(TEXTS, left=False)), expected, rtol=1e-5, atol=1e-6)
    assert "forward" in vars(language)


def test_the_head_is_drawn_from_its_seed_alone(tiny):
    torch.manual_seed(7)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    heads = [with_reward_head(tiny("smollm2"), seed=seed).score.weight for seed in (3, 3, 4)]
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_head_is_in_float32_whatever_the_trunk_is_in(tiny):
    model = with_reward_head(tiny("smollm2").to(torch.bfloat16)).eval()
    assert model.score.weight.dtype == torch.float32
    assert score(model, *padded(TEXTS, left=False)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert score(model, *padded(TEXTS, left=False)).dtype == torch.float32


@pytest.mark.parametrize("option", [name for name in FAMILIES if name != "baichuan_13b"])
def test_what_is_saved_transformers_loads_and_scores_alike(tiny, tokenizer, tmp_path, option):
    model = with_reward_head(tiny(option), seed=1).eval()
    saved = copy.deepcopy(tokenizer)
    set_reward_padding(model, saved, stop_ids=[saved.eos_token_id])
    model.save_pretrained(tmp_path)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(stock).__module__.startswith("transformers.")
    ids, mask = padded(TEXTS, left=False, pad=saved.pad_token_id)
    with torch.no_grad():
        torch.testing.assert_close(stock(ids, attention_mask=mask).logits[:, 0], score(model, ids, mask), rtol=1e-4, atol=1e-5)


def test_another_token_pads_where_the_terminator_does(tiny, tokenizer):
    saved = copy.deepcopy(tokenizer)
    saved.pad_token = saved.eos_token
    model = with_reward_head(tiny("smollm2"))
    set_reward_padding(model, saved, stop_ids=[saved.eos_token_id])
    assert saved.pad_token_id == model.config.pad_token_id != saved.eos_token_id


def test_without_another_special_token_the_padding_token_is_none(tiny, tokenizer):
    model = with_reward_head(tiny("smollm2"))
    set_reward_padding(model, copy.deepcopy(tokenizer), stop_ids=tokenizer.all_special_ids)
    assert model.config.pad_token_id is None


def test_a_family_without_such_a_class_is_refused(tiny):
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ConfigError, match=r"granite, for which transformers doesn.t have a class with a reward head"):
        with_reward_head(GraniteForCausalLM(config))


def test_a_made_up_head_is_refused_but_in_a_rehearsal(tiny, tiny_llama):
    require_head(with_reward_head(tiny("smollm2")))
    model = with_reward_head(tiny_llama)
    with pytest.raises(ConfigError, match="doesn't have a reward head, and a random one would give random scores"):
        require_head(model)
