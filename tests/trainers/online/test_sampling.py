"""The settings for sampling completions."""

from __future__ import annotations

import pytest

from llmmod.errors import ConfigError
from llmmod.trainers.online.base import sampling_settings


class Arguments:
    """The arguments that the settings depend on."""

    temperature, top_p, top_k, max_completion_length = 0.7, 1.0, 0, 5

    def __init__(self, **generation_kwargs):
        self.generation_kwargs = generation_kwargs


def test_the_checkpoints_recommended_settings_are_not_used(tiny_llama):
    recommended = {"repetition_penalty": 1.3, "min_p": 0.2, "temperature": 0.1, "top_k": 20, "no_repeat_ngram_size": 3, "num_beams": 4}
    for name, value in recommended.items():
        setattr(tiny_llama.generation_config, name, value)
    config = sampling_settings(Arguments(), tiny_llama)
    assert (config.repetition_penalty, config.min_p, config.no_repeat_ngram_size, config.num_beams) == (1.0, 0.0, 0, 1)
    assert (config.temperature, config.top_k, config.max_new_tokens, config.do_sample) == (0.7, 0, 5, True)
    assert sampling_settings(Arguments(repetition_penalty=1.1), tiny_llama).repetition_penalty == 1.1


def test_ends_are_those_of_the_model(tiny_llama):
    tiny_llama.generation_config.eos_token_id = [3, 7]
    assert sampling_settings(Arguments(), tiny_llama).eos_token_id == [3, 7]


def test_refused(tiny_llama):
    with pytest.raises(ConfigError, match=r"training\.generation_kwargs\.min_tokens: not a field of GenerationConfig"):
        sampling_settings(Arguments(min_tokens=3), tiny_llama)
