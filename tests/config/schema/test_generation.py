from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
from omegaconf import OmegaConf
from transformers import CompileConfig, GenerationConfig
from transformers.generation import configuration_utils

from llmmod.config.schema import generation
from llmmod.config.schema.generation import GenerationConf

CHOICES, ACCEPTED = GenerationConf.CHOICES, GenerationConf.ACCEPTED
# transformers writes these into a config for its own use
BOOKKEEPING = {"_from_model_config", "transformers_version"}
DEFAULTS = {f.name: f.default for f in dataclasses.fields(GenerationConf) if f.name != "_target_"}


def test_the_fields_are_the_installed_class_s():
    assert DEFAULTS.keys() == vars(GenerationConfig()).keys() - BOOKKEEPING


def test_the_table_s_defaults_make_the_class_s_own_default_config():
    assert GenerationConfig(**DEFAULTS) == GenerationConfig()
    assert GenerationConfig(**DEFAULTS).to_dict() == GenerationConfig().to_dict()


def test_omegaconf_takes_the_table():
    assert OmegaConf.to_object(OmegaConf.structured(GenerationConf)) == GenerationConf()


def test_the_values_in_brackets_are_what_generate_falls_back_on():
    said = dict(re.findall(r"^    (\w+): .*\[([^\[\]]*)\]$", inspect.getsource(generation), re.MULTILINE))
    fallbacks = GenerationConfig._get_default_generation_params()
    written = {name: str(value).lower() for name, value in fallbacks.items() if value is not None}
    assert {name: said.get(name) for name in written} == written


@pytest.mark.parametrize("field", [name for name, types in ACCEPTED.items() if any(t.startswith("transformers.") for t in types)])
def test_nested_configurations_are_classes_that_exist(field):
    import transformers

    assert hasattr(transformers, ACCEPTED[field][0].removeprefix("transformers."))


def test_choices_are_the_class_s():
    static, dynamic = configuration_utils.STATIC_CACHE_IMPLEMENTATIONS, configuration_utils.DYNAMIC_CACHE_IMPLEMENTATIONS
    assert set(CHOICES["cache_implementation"]) == {*static, *dynamic, "paged"}
    for value in CHOICES["cache_implementation"]:
        GenerationConfig(cache_implementation=value)
    with pytest.raises(ValueError, match="`early_stopping` must be a boolean or 'never'"):
        GenerationConfig(early_stopping="always")
    assert CHOICES["early_stopping"] == ("never",)


def test_tables_name_existing_fields():
    assert CHOICES.keys() | ACCEPTED.keys() <= DEFAULTS.keys()


def test_values_of_every_kind_pass_through_omegaconf_into_the_class():
    values = {"temperature": 1, "early_stopping": "never", "num_beams": 2, "eos_token_id": [1, 2], "bad_words_ids": [[3, 4], [5]]}
    values |= {"sequence_bias": [[[1, 2], -10.0]], "exponential_decay_length_penalty": [15, 1.5], "stop_strings": ["\n\n"]}
    conf = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(GenerationConf), values))
    config = GenerationConfig(**{name: getattr(conf, name) for name in values}, compile_config=CompileConfig())
    for name, value in values.items():
        assert getattr(config, name) == value
