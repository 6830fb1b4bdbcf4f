"""Generation settings: the user's, else the checkpoint's, with the render's stop tokens."""

from __future__ import annotations

import pytest
from transformers import GenerationConfig

from llmmod.models.generation.settings import answer_text, context_length, generation_config, set_stop_tokens
from llmmod.models.reward import with_reward_head


def settings(model, **chosen):
    return generation_config(GenerationConfig(**chosen), model, stop_ids=[0, 2], pad_id=4, bos_id=3)


def test_the_users_settings_come_before_the_checkpoints(tiny_llama):
    tiny_llama.generation_config = GenerationConfig(do_sample=True, temperature=0.6, repetition_penalty=1.1, eos_token_id=7)
    config = settings(tiny_llama, temperature=0.9, max_new_tokens=5)
    assert (config.do_sample, config.temperature, config.repetition_penalty, config.max_new_tokens) == (True, 0.9, 1.1, 5)


def test_the_renders_stop_words_replace_the_checkpoints_eos(tiny_llama):
    tiny_llama.generation_config = GenerationConfig(eos_token_id=7, pad_token_id=9, bos_token_id=8)
    config = settings(tiny_llama)
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == ([0, 2], 4, 3)


def test_padding_falls_back_on_the_first_stop_word(tiny_llama):
    assert generation_config(GenerationConfig(), tiny_llama, stop_ids=[2, 0], pad_id=None).pad_token_id == 2


@pytest.mark.parametrize(
    ("checkpoint", "chosen"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}, {"do_sample": False}),
        ({"do_sample": True, "temperature": 0.6}, {"do_sample": False, "temperature": 0.3, "min_p": 0.1}),
        ({"num_beams": 4, "length_penalty": 2.0, "early_stopping": True}, {"num_beams": 1}),
        ({"max_length": 4096}, {"max_new_tokens": 8}),
    ],
    ids=["checkpoint samples", "both set a temperature", "checkpoint beams", "two lengths"],
)
def test_the_resulting_settings_can_be_saved(tiny_llama, tmp_path, checkpoint, chosen):
    tiny_llama.generation_config = GenerationConfig(**checkpoint)
    config = settings(tiny_llama, **chosen)
    config.save_pretrained(tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert saved.temperature is None
    assert saved.eos_token_id == [0, 2]
    assert saved.max_length is None


def test_generation_uses_its_cache_whatever_training_left(tiny_llama):
    tiny_llama.generation_config.use_cache = False  # as gradient checkpointing leaves it
    assert settings(tiny_llama).use_cache is True
    assert settings(tiny_llama, use_cache=False).use_cache is False


def test_the_models_own_settings_stay(tiny_llama):
    before = tiny_llama.generation_config.to_dict()
    settings(tiny_llama, do_sample=True, temperature=0.5)
    assert tiny_llama.generation_config.to_dict() == before


def test_the_model_under_an_adapter_ends_by_its_own_settings(tiny_lora):
    set_stop_tokens(tiny_lora, stop_ids=[0, 2], pad_id=4)
    config = tiny_lora.get_base_model().generation_config
    assert (config.eos_token_id, config.pad_token_id) == ([0, 2], 4)


def test_a_model_that_writes_nothing_is_left_as_it_is(tiny_llama):
    scoring = with_reward_head(tiny_llama)
    before = dict(vars(scoring))
    set_stop_tokens(scoring, stop_ids=[0, 2], pad_id=4)
    assert vars(scoring) == before


def test_answer_text_ends_before_the_first_stop_word(tiny_tokenizer):
    ids = tiny_tokenizer.encode("The dog<|im_end|> barks<|endoftext|>", add_special_tokens=False)
    assert answer_text(ids, tiny_tokenizer, stop_ids={2, 0}) == "The dog"
    assert answer_text(ids, tiny_tokenizer, stop_ids={0}) == "The dog barks"
    assert answer_text([], tiny_tokenizer, stop_ids={0}) == ""


def test_context_length(tiny_llama, tiny_tokenizer):
    from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

    assert context_length(tiny_llama) == 512
    assert context_length(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8, n_positions=33))) == 33
    bloom = BloomForCausalLM(BloomConfig(n_layer=1, hidden_size=8, n_head=1, vocab_size=8))
    assert context_length(bloom) is None, "ALiBi sets no limit"
