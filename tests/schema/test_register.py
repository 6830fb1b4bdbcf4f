from __future__ import annotations

import copy
import importlib
import subprocess
import sys

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from llmmod.schema.register import SCHEMAS, register_schemas


@pytest.fixture(autouse=True)
def registered():
    register_schemas()


@pytest.mark.parametrize("path", SCHEMAS)
def test_the_store_hands_out_a_node_of_the_schema_s_type(path):
    module, _, name = SCHEMAS[path].rpartition(".")
    assert OmegaConf.get_type(ConfigStore.instance().load(f"{path}.yaml").node) is getattr(importlib.import_module(module), name)


def test_each_node_is_the_caller_s_own():
    first = ConfigStore.instance().load("schema/generation.yaml").node
    first.temperature = 0.5
    register_schemas()
    assert ConfigStore.instance().load("schema/generation.yaml").node.temperature is None


def test_groups_are_listed_as_hydra_does():
    assert ConfigStore.instance().list("schema/finetune") == ["freeze.yaml", "full.yaml", "lora.yaml"]


def test_copies_of_what_refers_to_the_store_share_it():
    store = ConfigStore.instance()
    assert copy.deepcopy({"store": store})["store"] is store
    assert ConfigStore.instance() is store


def test_registering_imports_no_schema():
    code = "import sys; from llmmod.schema.register import register_schemas; register_schemas(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in loaded if name.startswith("llmmod.schema.generated")] == []
    assert "llmmod.schema.register" in loaded
