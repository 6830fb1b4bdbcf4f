"""`wide_dataclass` creates the same class as `dataclass`."""

from __future__ import annotations

import copy
import pickle
from dataclasses import asdict, dataclass, field, fields, replace

import pytest

from llmmod.config.schema.base import wide_dataclass
from llmmod.config.schema.training import PtConf, SftConf


@dataclass
class Above:
    number: int = 1
    names: list[str] = field(default_factory=list)


@dataclass
class Plain(Above):
    text: str | None = None


@wide_dataclass
class Wide(Above):
    text: str | None = None


@pytest.mark.parametrize("values", [{}, {"text": "a", "names": ["b"]}, {"number": 0, "names": []}])
def test_fields_values_and_repr_are_a_dataclass_s(values):
    plain, wide = Plain(**values), Wide(**values)
    assert asdict(wide) == asdict(plain)
    assert [(each.name, each.type, each.default, each.default_factory) for each in fields(Wide)] == [
        (each.name, each.type, each.default, each.default_factory) for each in fields(Plain)
    ]
    assert repr(wide) == repr(plain).replace("Plain", "Wide")
    assert asdict(replace(wide, number=7)) == asdict(replace(plain, number=7))


def test_objects_of_one_class_with_the_same_values_are_equal():
    assert Wide(text="a") == Wide(text="a")
    assert Wide(text="a") != Wide(text="b")
    assert Wide() != Plain()
    assert SftConf(stage="x") != PtConf(stage="x")
    with pytest.raises(TypeError, match="unhashable"):
        hash(Wide())


def test_two_objects_share_nothing():
    Wide().names.append("a")
    assert Wide().names == []


def test_copies_are_equal():
    conf = SftConf(stage="x", callbacks={"a": {"b": 1}})
    copied = copy.deepcopy(conf)
    assert copied == conf == pickle.loads(pickle.dumps(conf))
    copied.callbacks["a"]["b"] = 2
    assert conf.callbacks == {"a": {"b": 1}}


def test_an_unknown_field_is_refused():
    with pytest.raises(TypeError, match="Wide has no field numbre, txt"):
        Wide(text="a", txt="b", numbre=1)
