"""Saved checkpoints have the native layout, or the original one bit for bit, and training can resume from them."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, conversion_mapping

from llmmod.errors import ConfigError
from llmmod.models.families.convert import check_original_layout, has_unit_rows, original_names, write_original_config

CHECKPOINTS = Path(__file__).parents[1] / "legacy_checkpoints"
IDS = torch.arange(3, 51).reshape(2, 24)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model.eval()(ids).logits


def original_state(name):
    directory = CHECKPOINTS / name
    file = directory / "model.safetensors"
    return load_file(file) if file.exists() else torch.load(directory / "pytorch_model.bin", weights_only=True)


def saved_state(directory):
    return {key: value for file in directory.glob("*.safetensors") for key, value in load_file(file).items()}


def test_stock_transformers_reads_what_is_saved(name, load, tmp_path):
    model = load(name)
    model.save_pretrained(tmp_path)
    if name == "baichuan_13b":
        pytest.skip("has no native class; see test_a_13b_is_taken_for_nothing_else")
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again).__module__.startswith("transformers.")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == model.config.model_type
    assert torch.equal(logits(again), logits(model))


def test_saved_and_loaded_again(name, load, tmp_path):
    model = load(name)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_a_13b_is_taken_for_nothing_else(load, tmp_path):
    load("baichuan_13b").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("baichuan", ["BaichuanForCausalLM"])
    assert not {"max_position_embeddings", "rope_parameters"} & config.keys()
    assert saved_state(tmp_path).keys() == original_state("baichuan_13b").keys()
    with pytest.raises(ValueError, match="baichuan"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_the_trained_head_of_a_baichuan2_13b_is_not_normalised_again(load, copied, tmp_path):
    model = load(copied("baichuan_13b", z_loss_weight=0))
    with torch.no_grad():
        model.lm_head.weight.mul_(torch.linspace(0.5, 2, 256)[:, None])
    model.save_pretrained(tmp_path / "trained")
    assert torch.equal(logits(load(tmp_path / "trained")), logits(model))


def test_the_original_layout_bit_for_bit(name, load, tmp_path):
    model = load(name)
    with original_names(model):
        model.save_pretrained(tmp_path)
    write_original_config(model, tmp_path)
    expected, found = original_state(name), saved_state(tmp_path)
    recomputed = {key for key in expected if re.search(r"rotary(_pos)?_emb\.inv_freq$", key)}
    assert found.keys() == expected.keys() - recomputed
    normalised = {"lm_head.weight"} if name == "baichuan2_7b" else set()
    assert not [key for key in found.keys() - normalised if not torch.equal(found[key], expected[key])]
    assert torch.equal(logits(load(tmp_path)), logits(model)) or name == "baichuan2_7b"
    assert torch.allclose(logits(load(tmp_path)), logits(model), atol=1e-5)
    own = json.loads((tmp_path / "config.json").read_text())
    assert own == dict(model.config.original_config)


def test_shards_and_the_older_format(name, load, tmp_path):
    state, expected = original_state(name), logits(load(name))
    keys = sorted(state)
    parts = {"1-of-2": keys[::2], "2-of-2": keys[1::2]}  # both shards contain parts of the same layers
    for kind, write in (("safetensors", lambda s, f: save_file(s, f, metadata={"format": "pt"})), ("bin", torch.save)):
        directory, stem = tmp_path / kind, "model" if kind == "safetensors" else "pytorch_model"
        directory.mkdir()
        (directory / "config.json").write_text((CHECKPOINTS / name / "config.json").read_text())
        for part, names in parts.items():
            write({key: state[key] for key in names}, directory / f"{stem}-0000{part}.{kind}")
        index = {"metadata": {}, "weight_map": {key: f"{stem}-0000{part}.{kind}" for part, names in parts.items() for key in names}}
        (directory / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
        assert torch.equal(logits(load(directory)), expected), kind


def test_the_rules_hold_for_one_call_only(name, load):
    conversion_mapping.get_checkpoint_conversion_mapping("llama")
    before = set(conversion_mapping._checkpoint_conversion_mapping_cache), set(conversion_mapping.USER_REGISTERED_MAPPINGS)
    load(name)
    assert before == (set(conversion_mapping._checkpoint_conversion_mapping_cache), set(conversion_mapping.USER_REGISTERED_MAPPINGS))


def arguments(directory, **more):
    return TrainingArguments(
        output_dir=str(directory), per_device_train_batch_size=1, max_steps=4, save_steps=2, learning_rate=1e-2, report_to="none",
        use_cpu=True, disable_tqdm=True, seed=1, **more,
    )  # fmt: skip


def trained(model, directory, resume=None):
    rows = [{"input_ids": IDS[i % 2] + i, "labels": IDS[i % 2] + i} for i in range(8)]
    Trainer(model, arguments(directory), train_dataset=rows).train(resume_from_checkpoint=resume)
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_training_goes_on_from_a_checkpoint_with_every_weight(name, load, tmp_path):
    # transformers alone doesn't restore weights that were saved under the original names, and only warns.
    base = {key: value.clone() for key, value in load(name).state_dict().items()}
    whole = trained(load(name), tmp_path)
    resumed = trained(load(name), tmp_path, resume=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert max((whole[key] - base[key]).abs().max().item() for key in whole) > 1e-2, "training moved the weights"


def test_the_original_layout_is_refused_where_the_head_was_trained(load):
    model = load("baichuan2_7b")
    check_original_layout(model, key="steps.export.layout")
    with torch.no_grad():
        model.lm_head.weight[3] *= 1.1
    with pytest.raises(ConfigError, match=r"steps.export.layout: Baichuan2-7B's own code divides each row of the head by its length"):
        check_original_layout(model, key="steps.export.layout")


def test_a_native_checkpoint_has_no_other_layout(tiny_llama):
    with pytest.raises(ConfigError, match=r"has the native layout, and doesn't have another. Allowed: native"):
        check_original_layout(tiny_llama, key="steps.export.layout")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_normalised_head_is_recognized_in_any_dtype(load, dtype):
    head = load("baichuan2_7b", dtype=dtype).lm_head.weight
    assert has_unit_rows(head)
    assert not has_unit_rows(copy.deepcopy(head).data * 1.1)
