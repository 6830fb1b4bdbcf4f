"""The parameters of a search, from Hydra's own syntax."""

import pytest

from llmmod.errors import ConfigError
from llmmod.sweep.plan import parsed
from llmmod.sweep.space import Parameter, combinations, corners, fixed_values, search_space


@pytest.mark.parametrize(
    ("override", "parameter"),
    [
        ("k=1,x", Parameter("k", choices=("1", "x"))),
        ("+k=choice([a,b],c)", Parameter("+k", choices=("[a,b]", "c"))),
        ("k=range(4, 33, 4)", Parameter("k", low=4, high=32, step=4, integer=True)),
        ("k=range(0.5, 2.0, 0.5)", Parameter("k", low=0.5, high=1.5, step=0.5)),
        ("k=range(5, 0, -2)", Parameter("k", choices=("5", "3", "1"))),
        ("k=interval(0, 1)", Parameter("k", low=0.0, high=1.0)),
        ("k=int(interval(4, 64))", Parameter("k", low=4, high=64, integer=True)),
        ("k=tag(log, interval(1e-5, 1e-3))", Parameter("k", low=1e-5, high=1e-3, log=True)),
        ("k=int(tag(log, interval(1, 64)))", Parameter("k", low=1, high=64, integer=True, log=True)),
        ('k=tag("a=b,c", range(1, 3)) a=b,c', Parameter("k", low=1, high=2, step=1, integer=True, conditions=(("a", ("b", "c")),))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hydra_s_syntax_says_what_a_parameter_may_be(override, parameter):
    overrides = override.split(") ") if ") " in override else [override]
    overrides = [f"{overrides[0]})", *overrides[1:]] if len(overrides) > 1 else overrides
    assert search_space(parsed(overrides))[-1] == parameter


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("k=interval(2, 1)", "an interval from 2.0 to 1.0"),
        ("k=tag(log, interval(0, 1))", "a logarithmic scale from 0"),
        ("k=tag(log, choice(1, 2))", "a logarithmic scale of single values"),
        ("k=tag(lgo, interval(1, 2))", "the tag 'lgo'. Allowed: log"),
        ('k=tag("other=x", choice(1, 2))', "depends on other, which is not on the command line"),
        ('k=tag("k=1", choice(1, 2))', "depends on itself"),
    ],
    ids=["order", "log-of-0", "log-of-values", "tag", "unknown", "circle"],
)
def test_an_invalid_search_space_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        search_space(parsed([override]))


CONDITIONAL = ["finetune=lora,full", 'finetune.r=tag("finetune=lora", choice(4, 8))', "seed=1"]


def test_a_parameter_exists_only_under_another_s_choice():
    overrides = parsed(CONDITIONAL[::-1])
    space, fixed = search_space(overrides), dict(fixed_values(overrides))
    assert [parameter.key for parameter in space] == ["finetune", "finetune.r"]
    assert combinations(space, fixed) == [
        {"finetune": "lora", "finetune.r": "4"},
        {"finetune": "lora", "finetune.r": "8"},
        {"finetune": "full"},
    ]


def test_the_corners_of_a_space_are_checked_before_it_is_searched():
    assert corners(parsed(CONDITIONAL)) == [["seed=1", "finetune=lora", "finetune.r=4"], ["seed=1", "finetune=full"]]
    assert corners(parsed(["a=interval(0, 1)", "b=range(1, 9, 3)"])) == [["a=0.0", "b=1"], ["a=1.0", "b=7"]]


def test_a_grid_can_t_go_through_an_interval():
    with pytest.raises(ConfigError, match="an interval, and a grid needs single values"):
        combinations(search_space(parsed(["k=interval(0, 1)"])), {})
