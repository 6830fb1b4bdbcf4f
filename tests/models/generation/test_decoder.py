"""The decoder: transformers' own loop is the reference for greedy completions, its processors for the distribution of sampled ones."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
import yaml
from transformers import GenerationConfig

from llmmod.models.generation.decoder import Decoder
from llmmod.models.generation.generate import _say_once, generate, generate_in_order, why_not_decoded
from llmmod.models.generation.settings import TokenChooser, generation_config, unread
from llmmod.models.loading.tiny import tiny_model

DRAW = random.Random(5)
BEGIN = [DRAW.randrange(20, 250) for _ in range(12)]
PROMPTS = [BEGIN * (place % 2) + [DRAW.randrange(20, 250) for _ in range(DRAW.randrange(1, 20))] for place in range(9)] + [[33, 44]] * 2


def settings(**fields):
    """Greedy by default; `eos_token_id` has so many tokens that completions of all lengths up to 10 occur."""
    config = GenerationConfig(**{"do_sample": False, "max_new_tokens": 10, "eos_token_id": list(range(60)), "pad_token_id": 1, **fields})
    config.max_length = None
    return config


def reference(model, prompts, config):
    """transformers' completion of each prompt alone, its end included."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(prompt) :].tolist()
        ends = [place for place, token in enumerate(made, start=1) if token in config.eos_token_id]
        found.append(made[: ends[0]] if ends else made)
    return found


@pytest.fixture
def make(tiny_tokenizer):
    """A tiny model of an option's architecture in float64, with weights so large that it matters which tokens attention sees."""

    def build(option):
        return tiny_model(ARCHITECTURES[option] | {"initializer_range": 0.2}, tokenizer=tiny_tokenizer, seed=0).double().eval()

    return build


OPTIONS = sorted((Path(__file__).parents[3] / "conf" / "model").glob("[!a]*.yaml"))  # auto doesn't have its own architecture
ARCHITECTURES = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["architecture"] for path in OPTIONS}
DECODED = ["chatglm2", "gemma3", "glm4", "llama", "llama3", "mistral", "phi1_5", "qwen", "qwen2_5", "qwen3", "smollm2", "internlm_20b"]


@pytest.mark.parametrize("option", sorted(ARCHITECTURES))
def test_greedy_completions_are_those_of_transformers(make, option):
    """For every family, by either loop. In float64, so that rounding doesn't decide between two tokens."""
    model = make(option)
    config = settings(max_new_tokens=6)
    prompts = PROMPTS
    if why_not_decoded(model, config):
        model, prompts = model.float(), PROMPTS[:4]  # transformers' BLOOM (5.23) computes NaN for padded rows of float64
    assert generate_in_order(model, prompts, config=config, batch_size=4) == reference(model, prompts, config)


def test_which_families_are_decoded(make):
    found = {option for option in ARCHITECTURES if why_not_decoded(make(option), settings()) is None}
    assert found >= set(DECODED)
    assert not found & {"bloom", "bloomz", "falcon", "baichuan_13b", "baichuan2_13b"}, "they add biases or masks to their scores"


@pytest.mark.parametrize("every", [1, 16])
@pytest.mark.parametrize("slots", [1, 3, 40])
def test_slots_and_synchronization_change_nothing(tiny_llama, slots, every):
    model, config = copy.deepcopy(tiny_llama).double(), settings(max_new_tokens=25)
    decoder = Decoder(model, config, slots=slots)
    decoder._sync_every = every  # 16 is the value on an accelerator
    found = dict(decoder.run(PROMPTS))
    wanted = reference(model, PROMPTS, config)
    assert [found[place] for place in range(len(PROMPTS))] == wanted
    assert len({len(ids) for ids in wanted}) > 3, "all end at one place, so that no slot is taken over"


def test_a_groups_prompt_is_read_once(tiny_llama, monkeypatch):
    """Also with prompts of other lengths, and with more tokens than fit in one row if every copy counted."""
    monkeypatch.setattr("llmmod.models.generation.decoder._PREFILL_TOKENS", 60)
    model, config = copy.deepcopy(tiny_llama).double(), settings(do_sample=True, top_k=20)
    groups = [[DRAW.randrange(20, 250) for _ in range(length)] for length in (25, 30, 25)]
    read = []
    handle = model.register_forward_pre_hook(lambda module, args, given: read.append(given["input_ids"].shape[1]), with_kwargs=True)
    torch.manual_seed(0)
    found = generate_in_order(model, [prompt for prompt in groups for _ in range(8)], config=config, batch_size=64)
    handle.remove()
    assert sum(count for count in read if count > 1) == sum(map(len, groups)), "each prompt is read once for its eight completions"
    assert len({tuple(ids) for ids in found}) > 3 * len(groups), "each completion has random numbers of its own"


@pytest.mark.parametrize("window", [4, 9])
def test_a_sliding_window(tiny_llama, window):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {name: getattr(tiny_llama.config, name) for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=window)).double().eval()
    whole = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=None)).double().eval()
    whole.load_state_dict(model.state_dict())
    config = settings(max_new_tokens=12, eos_token_id=[5])
    found = generate_in_order(model, PROMPTS, config=config)
    assert found == reference(model, PROMPTS, config)
    assert found != generate_in_order(whole, PROMPTS, config=config), "the window hides nothing here"


def test_an_adapter(tiny_lora):
    model, config = tiny_lora.double(), settings()
    found = generate_in_order(model, PROMPTS, config=config)
    assert found == reference(model, PROMPTS, config)
    with model.disable_adapter():
        assert found != generate_in_order(model, PROMPTS, config=config)


def test_weights_of_4_bit():
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.nn import Linear4bit
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    ).eval()
    for layer in model.model.layers:
        old = layer.mlp.up_proj
        layer.mlp.up_proj = Linear4bit(old.in_features, old.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        layer.mlp.up_proj.load_state_dict(old.state_dict())
        layer.mlp.up_proj.to("cpu")
    config = settings()
    assert why_not_decoded(model, config) is None
    assert generate_in_order(model, PROMPTS, config=config) == reference(model, PROMPTS, config)


@pytest.mark.parametrize(("fields", "least"), [({"min_new_tokens": 7}, lambda prompt: 7), ({"min_length": 11}, lambda prompt: 11 - prompt)])
def test_the_least_length_counts_no_padding(tiny_llama, fields, least):
    model, config = copy.deepcopy(tiny_llama).double(), settings(**fields)
    found = generate_in_order(model, PROMPTS, config=config)
    assert found == reference(model, PROMPTS, config)
    assert all(len(ids) >= min(10, least(len(prompt))) for ids, prompt in zip(found, PROMPTS, strict=True))
    assert found != generate_in_order(model, PROMPTS, config=settings())


def sampled(model, seed, prompts, **given):
    torch.manual_seed(seed)
    return generate_in_order(model, prompts, config=settings(do_sample=True, temperature=0.9, top_k=20, top_p=0.9), **given)


def test_a_sampled_completion_does_not_depend_on_its_batch(tiny_llama):
    model = copy.deepcopy(tiny_llama).double()
    found = [sampled(model, 3, PROMPTS, batch_size=size) for size in (1, 4, 40)]
    assert found[0] == found[1] == found[2]
    assert found[0] != sampled(model, 4, PROMPTS)
    assert found[0][-1] != found[0][-2], "the same prompt twice gets a completion each"


FILTERS = [
    {},
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_p": 0.8, "temperature": 1.3},
    {"top_k": 12, "top_p": 0.7, "min_p": 0.05},
    {"typical_p": 0.7},
    {"epsilon_cutoff": 0.05},
    {"eta_cutoff": 0.1},
]


@pytest.mark.parametrize("fields", FILTERS, ids=str)
def test_tokens_are_drawn_from_the_distribution_that_transformers_leaves(tiny_llama, fields):
    """Chi-squared test of 20,000 draws against the probabilities from transformers' processors, p > 1e-6; filtered tokens never occur."""
    scipy = pytest.importorskip("scipy.stats")
    torch.manual_seed(7)
    logits = torch.randn(30) * 1.5
    config = GenerationConfig(do_sample=True, **{"top_k": 0, **fields})
    processors = tiny_llama._get_logits_processor(config, input_ids_seq_length=1, device="cpu")
    wanted = processors(torch.zeros(1, 1, dtype=torch.long), logits.clone()[None]).softmax(-1)[0].double()
    chooser = TokenChooser(config, "cpu")
    uniform = torch.cat([chooser.uniforms(seed, 200) for seed in range(100)])
    drawn = chooser(logits.expand(len(uniform), -1).clone(), uniform)
    count = torch.bincount(drawn, minlength=30).double()
    assert count[wanted == 0].sum() == 0
    shared = wanted > 0
    expected = wanted[shared] / wanted[shared].sum() * len(uniform)
    assert scipy.chisquare(count[shared].numpy(), expected.numpy()).pvalue > 1e-6 if shared.sum() > 1 else True


@pytest.mark.parametrize(
    ("fields", "named"),
    [({}, []), ({"num_beams": 2}, ["num_beams"]), ({"repetition_penalty": 1.2}, ["repetition_penalty"]),
     ({"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "guidance_scale": 1.0}, []),
     ({"no_repeat_ngram_size": 3}, ["no_repeat_ngram_size"]),
     ({"temperature": 0.5, "do_sample": True}, []), ({"suppress_tokens": [4]}, ["suppress_tokens"]), ({"use_cache": False}, ["use_cache"])],
    ids=str,
)  # fmt: skip
def test_transformers_generates_with_settings_that_the_decoder_does_not_know(tiny_llama, fields, named, caplog):
    config = settings(**fields)
    assert unread(config) == named
    _say_once.cache_clear()
    with caplog.at_level("INFO", logger="llmmod"):
        list(generate(tiny_llama, PROMPTS[:1], config=config))
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"transformers' own loop generates: generation.{name} is set" for name in named]


@pytest.mark.parametrize("fields", [{"do_sample": False}, {"do_sample": True, "temperature": 0.95, "top_p": 0.7, "top_k": 50}], ids=str)
def test_the_shipped_options_are_decoded(tiny_llama, fields):
    """As in a run: merged into the checkpoint's own settings."""
    config = generation_config(GenerationConfig(max_new_tokens=8, **fields), tiny_llama, stop_ids=[17], pad_id=1)
    assert why_not_decoded(tiny_llama, config) is None


def test_a_prompt_that_is_asked_several_times_is_read_once(tiny_llama, monkeypatch):
    seen = []
    forward = tiny_llama.forward
    monkeypatch.setattr(tiny_llama, "forward", lambda **given: seen.append(given["input_ids"].numel()) or forward(**given))
    decoder = Decoder(tiny_llama, settings(max_new_tokens=2), slots=8)
    done = dict(decoder.run([list(range(70, 90))] * 4 + [[*range(70, 82), 99]]))
    assert len(done) == 5
    assert seen[0] == 20 + 1, "what both begin with is read once, the repeated prompt once"
