from __future__ import annotations

import dataclasses

import omegaconf
import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf, UnionNode, ValidationError

from llmmod.config import register
from llmmod.config.register import SCHEMAS, register_schemas, schema_class
from llmmod.config.schema.model import LoraConf
from llmmod.config.schema.steps import Root


@pytest.fixture(autouse=True)
def _patched():
    register_schemas()


@pytest.fixture
def unpatched(monkeypatch):
    """A function that removes the patch for the rest of the test."""
    return lambda: monkeypatch.setattr(DictConfig, "_set_value_impl", register._set_value)


def parts(node, key=""):
    """Everything that makes up a node and its descendants: type, metadata, flags and value."""
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
def test_a_schema_s_node_is_what_omegaconf_makes(path, unpatched):
    schema = schema_class(path)
    ours = list(parts(OmegaConf.structured(schema)))
    unpatched()
    assert len(ours) > len(dataclasses.fields(schema))
    assert ours == list(parts(OmegaConf.structured(schema)))


@dataclasses.dataclass
class Inner:
    values: dict[str, int] = dataclasses.field(default_factory=dict)
    text: str | None = None


@dataclasses.dataclass
class Outer:
    one: Inner = omegaconf.MISSING
    made: Inner = dataclasses.field(default_factory=lambda: Inner({"a": 1}, "x"))
    each: dict[str, Inner] = dataclasses.field(default_factory=lambda: {"b": Inner()})
    none: Inner | None = None


def merged():
    """A node that a merge fills, one that an assignment fills, one in a typed mapping, and an instance with its own flags."""
    node = OmegaConf.merge(OmegaConf.structured(Outer), {"one": {"text": "y"}, "each": {"c": {"values": {"d": 2}}}})
    node.none = Inner(text="z")
    node.each.e = Inner
    return OmegaConf.create({"a": node, "b": OmegaConf.structured(Outer(one=Inner()), flags={"readonly": True, "allow_objects": True})})


def test_nodes_that_merges_and_assignments_fill_are_what_omegaconf_makes(unpatched):
    ours = list(parts(merged()))
    unpatched()
    assert ours == list(parts(merged()))


@pytest.mark.parametrize("value", [None, "???", "${x}", {"text": "a"}, 3])
def test_values_that_are_not_dataclasses_go_to_omegaconf(value, unpatched):
    def set_value():
        node = OmegaConf.structured(Outer)
        try:
            node.made = value
        except ValidationError as error:
            return str(error)
        return list(parts(node))

    ours = set_value()
    unpatched()
    assert ours == set_value()


def test_it_validates_and_converts_as_any_other():
    node = OmegaConf.structured(LoraConf)
    node.r = "16"
    assert node.r == 16
    with pytest.raises(ValidationError, match=r"Value 'x' of type 'str' could not be converted to Integer"):
        node.r = "x"
    with pytest.raises(omegaconf.errors.ConfigAttributeError, match="Key 'rr' not in 'LoraConf'"):
        node.rr = 3
    with pytest.raises(ValidationError, match="LoraConf"):
        OmegaConf.structured(Root).model = LoraConf


def test_two_nodes_share_nothing():
    first, second = OmegaConf.structured(LoraConf), OmegaConf.structured(LoraConf)
    first.rank_pattern["q_proj"] = 4
    assert second.rank_pattern == {}
