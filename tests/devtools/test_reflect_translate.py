from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest

from devtools.reflect import Translation, translate


class Colour(enum.Enum):
    RED = "red"
    GREEN = "light-green"


@dataclass
class Nested:
    x: int = 1


EXACT = {
    "bool": (bool, "bool"),
    "int": (int, "int"),
    "optional, old style": (Optional[float], "float | None"),  # noqa: UP045
    "optional, new style": (str | None, "str | None"),
    "None first": (None | str, "str | None"),
    "union of primitives, in one order": (str | int | bool, "bool | int | str"),
    "list of strings": (list[str], "list[str]"),
    "bare dict": (dict | None, "dict[str, Any] | None"),
    "typed dict": (dict[str, bool], "dict[str, bool]"),
    "anything": (Any, "Any"),
    "path": (str | Path, "str"),
}


@pytest.mark.parametrize(("hint", "written"), EXACT.values(), ids=EXACT)
def test_what_omegaconf_has_a_type_for_is_exact(hint, written):
    assert translate(hint, default=0) == Translation(written)


def test_none_as_default_allows_none_where_the_annotation_forgets_it():
    assert translate(str, default=None) == Translation("str | None")


def test_enums_and_literals_become_str_with_their_values_as_choices():
    assert translate(Colour | str, default="red") == Translation("str", choices=("red", "light-green"))
    assert translate(Literal["a", "b"], default="a") == Translation("str", choices=("a", "b"))
    assert translate(bool | Literal["a"], default=True) == Translation("bool | str", choices=("a",))


def test_choices_of_the_metadata_are_kept():
    assert translate(str, default="a", choices={"a": 1, "b": 2}.keys()).choices == ("a", "b")


def test_an_enum_inside_a_list_does_not_bind_the_plain_string_beside_it():
    found = translate(str | list[Colour], default="")
    assert found == Translation("Any", exact=False, accepted=("str", "list[str]"))


LOOSER = {
    "union with a container": (dict[str, Any] | str | None, "Any", ("str", "dict[str, Any]", "None")),
    "class": (Optional[Nested], "dict[str, Any] | None", (f"{__name__}.Nested", "None")),  # noqa: UP045
    "class or dict": (Union[Nested, dict], "dict[str, Any]", (f"{__name__}.Nested", "dict[str, Any]")),  # noqa: UP007
    "false alone": (str | Literal[False], "bool | str", ("False", "str")),
    "pairs": (list[tuple[int, int]], "list[list[int]]", ("list[tuple[int, int]]",)),
}


@pytest.mark.parametrize(("hint", "written", "accepted"), LOOSER.values(), ids=LOOSER)
def test_what_has_no_counterpart_is_looser_and_says_what_is_accepted(hint, written, accepted):
    default = None if "None" in accepted else 0
    assert translate(hint, default=default) == Translation(written, exact=False, accepted=accepted)


def test_a_literal_of_something_else_is_refused():
    with pytest.raises(TypeError, match="no translation for Literal"):
        translate(Literal[3], default=3)


def test_the_order_of_a_union_does_not_depend_on_its_first_spelling():
    # typing caches `Union[…]` by equality, so the first spelling in a process is what each later one gets.
    one = translate(str | list[int] | dict[str, int], default=None)
    other = translate(dict[str, int] | list[int] | str, default=None)
    assert one == other
