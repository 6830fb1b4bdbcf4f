from __future__ import annotations

import dataclasses

import omegaconf
import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf, UnionNode, ValidationError

from llmmod.config.hydra_patches import structured_node
from llmmod.config.register import SCHEMAS, schema_class
from llmmod.config.schema.finetune import LoraConf


def parts(node, key=""):
    """Everything that makes a node: kind, metadata, flags and value, for it and all below it."""
    content = node.__dict__["_content"] if isinstance(node, DictConfig | ListConfig | UnionNode) else node._value()
    yield key, type(node), node._metadata, node.__dict__.get("_flags_cache")
    if isinstance(content, dict):
        for name, child in content.items():
            assert child._get_parent() is node
            yield from parts(child, f"{key}.{name}")
    elif isinstance(content, list):
        for index, child in enumerate(content):
            assert child._get_parent() is node
            yield from parts(child, f"{key}[{index}]")
    elif isinstance(node, UnionNode) and isinstance(content, omegaconf.Node):
        yield from parts(content, f"{key}|")
    else:
        yield key, content


@pytest.mark.parametrize("path", SCHEMAS)
def test_it_is_what_omegaconf_makes(path):
    schema = schema_class(path)
    ours, theirs = list(parts(structured_node(schema))), list(parts(OmegaConf.structured(schema)))
    assert len(ours) > len(dataclasses.fields(schema))
    assert ours == theirs


def test_it_validates_and_converts_as_any_other():
    node = structured_node(LoraConf)
    node.r = "16"
    assert node.r == 16
    with pytest.raises(ValidationError, match=r"Value 'x' of type 'str' could not be converted to Integer"):
        node.r = "x"
    with pytest.raises(omegaconf.errors.ConfigAttributeError, match="Key 'rr' not in 'LoraConf'"):
        node.rr = 3


def test_two_nodes_share_nothing():
    first, second = structured_node(LoraConf), structured_node(LoraConf)
    first.rank_pattern["q_proj"] = 4
    assert second.rank_pattern == {}


def test_another_version_makes_it_itself(monkeypatch):
    monkeypatch.setattr(omegaconf, "__version__", "2.3.2")
    assert list(parts(structured_node(LoraConf))) == list(parts(OmegaConf.structured(LoraConf)))
