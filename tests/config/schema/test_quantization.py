from __future__ import annotations

import dataclasses
import inspect

import pytest
from transformers import BitsAndBytesConfig

from llmmod.config.schema.base import Dtype
from llmmod.config.schema.model import QuantizationConf, bitsandbytes_arguments

ARGUMENTS = set(inspect.signature(BitsAndBytesConfig.__init__).parameters) - {"self", "kwargs"}  # kwargs are ignored, with a log line


def test_every_argument_of_bitsandbytesconfig_is_given():
    assert bitsandbytes_arguments(QuantizationConf(bits=4), compute_dtype="float32").keys() == ARGUMENTS


# field of ours -> a value other than its default, and the argument that receives it
CHANGES = {
    "type": ("fp4", "bnb_4bit_quant_type"),
    "double_quant": (False, "bnb_4bit_use_double_quant"),
    "quant_storage": ("bfloat16", "bnb_4bit_quant_storage"),
    "llm_int8_threshold": (5.0, "llm_int8_threshold"),
    "llm_int8_has_fp16_weight": (True, "llm_int8_has_fp16_weight"),
    "llm_int8_skip_modules": (["lm_head"], "llm_int8_skip_modules"),
    "llm_int8_enable_fp32_cpu_offload": (True, "llm_int8_enable_fp32_cpu_offload"),
}


def test_every_field_is_covered_here():
    assert CHANGES.keys() | {"bits", "compute_dtype"} == {f.name for f in dataclasses.fields(QuantizationConf)}


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_reaches_its_argument_and_no_other(field):
    value, argument = CHANGES[field]
    before = BitsAndBytesConfig(**bitsandbytes_arguments(QuantizationConf(bits=4), compute_dtype="float32")).to_dict()
    changed = QuantizationConf(bits=4, **{field: value})
    after = BitsAndBytesConfig(**bitsandbytes_arguments(changed, compute_dtype="float32")).to_dict()
    assert {key for key in after if after[key] != before[key]} == {argument}
    assert after[argument] == value


@pytest.mark.parametrize(("bits", "method"), [(4, "nf4"), (8, "llm_int8")])
def test_bits(bits, method):
    config = BitsAndBytesConfig(**bitsandbytes_arguments(QuantizationConf(bits=bits), compute_dtype="bfloat16"))
    assert config.quantization_method() == method
    assert config.to_dict()["bnb_4bit_compute_dtype"] == "bfloat16"


def test_the_defaults_are_bitsandbytesconfig_s_except_two_from_the_paper():
    ours = BitsAndBytesConfig(**bitsandbytes_arguments(QuantizationConf(), compute_dtype="float32")).to_diff_dict()
    assert ours == {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    assert QuantizationConf().compute_dtype is Dtype.auto


@pytest.mark.parametrize("storage", QuantizationConf.CHOICES["quant_storage"])
def test_every_storage_type_is_one_that_the_class_takes(storage):
    config = BitsAndBytesConfig(**bitsandbytes_arguments(QuantizationConf(bits=4, quant_storage=storage), compute_dtype="float32"))
    assert config.to_dict()["bnb_4bit_quant_storage"] == storage
