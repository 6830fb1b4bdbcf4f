from __future__ import annotations

import subprocess
import sys

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from llmmod.config.register import SCHEMAS, register_schemas, schema_class
from llmmod.config.wording import conf_directory


@pytest.fixture(autouse=True)
def registered():
    register_schemas()


@pytest.mark.parametrize("path", SCHEMAS)
def test_the_store_hands_out_a_node_of_the_schema_s_type(path):
    schema = schema_class(path)
    assert f"{schema.__module__}.{schema.__qualname__}" == SCHEMAS[path]
    assert OmegaConf.get_type(ConfigStore.instance().load(f"{path}.yaml").node) is schema


def test_there_is_no_class_where_nothing_is_stored():
    assert schema_class("schema/nothing") is None


def test_each_node_is_the_caller_s_own():
    first = ConfigStore.instance().load("schema/generation.yaml").node
    first.temperature = 0.5
    register_schemas()
    assert ConfigStore.instance().load("schema/generation.yaml").node.temperature is None


def test_groups_are_listed_as_hydra_does():
    assert ConfigStore.instance().list("schema/finetune") == ["freeze.yaml", "full.yaml", "lora.yaml"]


def test_registering_imports_no_schema():
    code = "import sys; from llmmod.config.register import register_schemas; register_schemas(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in loaded if name.startswith("llmmod.config.schema.generated")] == []
    assert "llmmod.config.register" in loaded


@pytest.mark.parametrize(("wanted", "rate"), [("finetune=lora", 2e-5), ("finetune=full", 2e-6), ("finetune.learning_rate=0.07", 7e-3)])
@pytest.mark.parametrize("stage", ["dpo", "kto", "ppo", "grpo"])
def test_preference_and_online_stages_use_a_tenth_of_the_learning_rate(stage, wanted, rate):
    from llmmod.config.compose import compose_config

    assert compose_config([f"stage={stage}", "model=llama2", wanted]).config.training.learning_rate == rate


def test_help_lists_every_group_that_there_is_to_choose_from_and_no_schema():
    shown = subprocess.run([sys.executable, "-m", "llmmod", "--help"], check=True, capture_output=True, text=True).stdout
    listed = {line.split(":")[0] for line in shown.split("Groups, and their options")[1].splitlines() if ": " in line}
    folders = {folder.name for folder in conf_directory().iterdir() if any(folder.glob("*.yaml"))}
    assert folders <= listed
    assert "schema" not in shown
