"""The configuration of a run has the values that OmegaConf gives its references."""

from __future__ import annotations

import pytest
import yaml
from omegaconf import OmegaConf

import llmmod
from llmmod.config.compose import resolved
from llmmod.runs.read import flat, read_run

WRITTEN = {
    "a key": {"a": {"b": [1, {"c": 2.5}]}, "d": "${a.b}", "e": ["${d}", "${a}"]},
    "a key that is missing": {"a": "???", "b": "${a}", "c": 1},
    "no such key": {"a": {"b": 1}, "c": "${a.d}", "e": "${a.b}"},
    "a key below a value": {"a": "text", "b": "${a.c}"},
    "an item of a list": {"a": [1, 2], "b": "${a.1}"},
    "a relative key": {"a": {"b": 1, "c": "${.b}"}},
    "a part of a text": {"a": 1, "b": "x${a}"},
    "a resolver": {"a": "${oc.env:HOME}", "b": 1},
    "an escaped one": {"a": "\\${b}", "b": 1},
    "itself": {"a": "${b}", "b": "${a}", "c": 1},
}


@pytest.mark.parametrize("plain", [*WRITTEN.values(), None], ids=[*WRITTEN, "all keys"])
def test_values_are_those_of_omegaconf(plain, tmp_path):
    plain = plain or yaml.safe_load(OmegaConf.to_yaml(llmmod.compose(["finetune=lora"])))
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(plain))
    assert read_run(tmp_path).config == flat(resolved(OmegaConf.create(plain))[0])
