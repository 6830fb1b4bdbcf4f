"""Whether a value fits a type that the generated tables name."""

from __future__ import annotations

import pytest

from llmmod.config.validate.values import accepts


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("a", "str", True),
        (1, "str", False),
        (1, "int", True),
        (True, "int", False),
        (1, "float", True),
        (True, "bool", True),
        (1, "bool", False),
        (None, "None", True),
        (False, "None", False),
        (False, "False", True),
        (True, "False", False),
        ({"a": 1}, "Any", True),
        (["a"], "list[str]", True),
        (["a", 1], "list[str]", False),
        ("a", "list[str]", False),
        ([[1, 2]], "list[list[int]]", True),
        ([[0, 4], [2, 5]], "list[tuple[int, int]]", True),
        ([["a", 4]], "list[tuple[int, int]]", False),
        (["a", {"token": "x"}], "list[str | dict[str, str]]", True),
        ([3], "list[str | dict[str, str]]", False),
        ({"a": 1}, "dict[str, Any]", True),
        ({"a": [1]}, "dict[str, list[int]]", True),
        ({"a": ["b"]}, "dict[str, list[int]]", False),
        ({"a": 1}, "peft.tuners.lora.config.EvaConfig", True),
        (3, "peft.tuners.lora.config.EvaConfig", False),
    ],
)
def test_accepts(value, kind, expected):
    assert accepts(value, kind) == expected
