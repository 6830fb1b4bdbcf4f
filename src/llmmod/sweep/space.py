"""The parameters of a search, in Hydra's own syntax.

| override | values |
|---|---|
| `key=a,b` and `key=choice(a, b)` | one of these |
| `key=range(4, 33, 4)` | 4, 8, … 32: the end is excluded, as everywhere in Hydra |
| `key=interval(0.0, 0.2)` | any number from the first to the last |
| `key='int(interval(4, 64))'` | any whole number from the first to the last |
| `key='tag(log, interval(1e-5, 1e-3))'` | the same on a logarithmic scale |
| `key='tag("finetune=lora,qlora", …)'` | a parameter only of trials with one of these options |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, RangeSweep

from llmmod.errors import ConfigError, Problem

LOG = "log"


@dataclass(frozen=True)
class Parameter:
    """A parameter of a search.

    Args:
        key: as in an override, with its `+` if it has one.
        choices: the texts of its values; empty: a number from `low` to `high`, both included.
        step: the distance between neighbouring values; None: any value.
        integer: whether it is a whole number.
        log: whether its scale is logarithmic.
        conditions: it exists only if each of these keys has one of these values.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    integer: bool = False
    log: bool = False
    conditions: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def exists(self, chosen: Mapping[str, str]) -> bool:
        """Whether it exists in a trial with these values by key."""
        return all(chosen.get(key) in values for key, values in self.conditions)

    def suggest(self, trial: Any) -> str:
        """The text of the value that an optuna.Trial suggests."""
        if self.choices:
            return str(trial.suggest_categorical(self.key, self.choices))
        if self.integer:
            return str(trial.suggest_int(self.key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log))
        return repr(trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log))

    def values(self) -> list[str]:
        """The texts of all values, in their order.

        Raises:
            ConfigError: there are infinitely many.
        """
        if self.choices:
            return list(self.choices)
        if self.step is None and not (self.integer and not self.log):
            do = "Give a range or a choice, or another sampler"
            raise ConfigError(Problem(self.key, "an interval, and a grid needs single values", do=do))
        step = self.step or 1
        numbers = [self.low + number * step for number in range(round((self.high - self.low) / step) + 1)]
        return [str(round(number)) if self.integer else repr(number) for number in numbers]

    def corner(self, last: bool) -> str:
        """The text of its first or last value."""
        if self.choices:
            return self.choices[-1 if last else 0]
        number = self.high if last else self.low
        return str(int(number)) if self.integer else repr(float(number))


def search_space(overrides: Sequence[Override]) -> list[Parameter]:
    """The parameters in overrides, each after those that it depends on.

    Raises:
        ConfigError: with all of their problems.
    """
    problems: list[Problem] = []
    found: list[Parameter] = []
    for override in overrides:
        if override.is_sweep_override():
            try:
                found.append(_parameter(override))
            except ConfigError as error:
                problems += error.problems
    known = {key for key, _ in fixed_values(overrides)} | {_plain(parameter.key) for parameter in found}
    for parameter in found:
        for key, _ in parameter.conditions:
            if key not in known:
                found_text = f"depends on {key}, which is not on the command line"
                problems.append(Problem(parameter.key, found_text, do=f"Vary it: {key}=choice(…)"))
    if problems:
        raise ConfigError(problems)
    return _ordered(found)


def fixed_values(overrides: Iterable[Override]) -> list[tuple[str, str]]:
    """Key and text of the overrides that are the same in all trials."""
    return [(o.key_or_group, o.get_value_element_as_str()) for o in overrides if not o.is_sweep_override() and not o.is_delete()]


def combinations(space: Sequence[Parameter], fixed: Mapping[str, str]) -> list[dict[str, str]]:
    """Every trial of a grid: key -> text, in the order of Hydra's own grid, each once.

    Raises:
        ConfigError: if a parameter has infinitely many values.
    """
    trials: list[dict[str, str]] = [{}]
    for parameter in space:
        values = parameter.values()
        trials = [
            {**trial, parameter.key: value}
            for trial in trials
            for value in (values if parameter.exists({**fixed, **_by_plain_key(trial)}) else [None])
            if value is not None
        ] + [trial for trial in trials if not parameter.exists({**fixed, **_by_plain_key(trial)})]
    return trials


def corners(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of two trials: with the first of each parameter's values, and with the last.

    Raises:
        ConfigError: as `search_space`.
    """
    space, fixed = search_space(overrides), dict(fixed_values(overrides))
    lines = [o.input_line or "" for o in overrides if not o.is_sweep_override()]
    found = []
    for last in (False, True):
        chosen: dict[str, str] = {}
        for parameter in space:
            if parameter.exists({**fixed, **_by_plain_key(chosen)}):
                chosen[parameter.key] = parameter.corner(last)
        found.append([*lines, *(f"{key}={value}" for key, value in chosen.items())])
    return found if space else found[:1]


def choose(space: Sequence[Parameter], trial: Any, fixed: Mapping[str, str]) -> list[str]:
    """The overrides that an optuna.Trial suggests for a space whose other keys are fixed."""
    chosen: dict[str, str] = {}
    for parameter in space:
        if parameter.exists({**fixed, **_by_plain_key(chosen)}):
            chosen[parameter.key] = parameter.suggest(trial)
    return [f"{key}={value}" for key, value in chosen.items()]


def _parameter(override: Override) -> Parameter:
    value, key = override.value(), override.get_key_element()
    tags = {str(tag.text if isinstance(tag, QuotedString) else tag) for tag in getattr(value, "tags", ())}
    conditions = tuple(sorted(_condition(tag) for tag in tags if "=" in tag))
    if unknown := sorted(tag for tag in tags if "=" not in tag and tag != LOG):
        raise ConfigError(Problem(key, f"the tag '{unknown[0]}'", 'Allowed: log, and conditions such as "finetune=lora"'))
    log = LOG in tags
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or low > high:
            raise ConfigError(Problem(key, f"an interval from {low} to {high}", do="Put the lower number first"))
        if log and low <= 0:
            raise ConfigError(Problem(key, f"a logarithmic scale from {low}", "Allowed: above 0"))
        return Parameter(key, low=low, high=high, integer=isinstance(low, int) and isinstance(high, int), log=log, conditions=conditions)
    texts = tuple(override.sweep_string_iterator())
    if log:
        raise ConfigError(Problem(key, "a logarithmic scale of single values", do="Use interval(first, last)"))
    if not texts:
        raise ConfigError(Problem(key, "no values"))
    if isinstance(value, RangeSweep) and value.start is not None and value.step > 0 and not value.shuffle:
        last = value.start + (len(texts) - 1) * value.step
        integer = isinstance(value.start, int) and isinstance(value.step, int)
        return Parameter(key, low=value.start, high=last, step=value.step, integer=integer, conditions=conditions)
    return Parameter(key, choices=texts, conditions=conditions)


def _condition(tag: str) -> tuple[str, tuple[str, ...]]:
    key, _, values = tag.partition("=")
    return key.strip(), tuple(value.strip() for value in values.split(","))


def _ordered(space: list[Parameter]) -> list[Parameter]:
    """Each parameter after those that its conditions name."""
    left, done = list(space), list[Parameter]()
    while left:
        waiting = {_plain(parameter.key) for parameter in left}
        ready = [p for p in left if not any(key in waiting for key, _ in p.conditions)]
        if not ready:
            raise ConfigError(Problem(left[0].key, "depends on itself through the conditions of other parameters"))
        done += ready
        left = [p for p in left if p not in ready]
    return done


def _plain(key: str) -> str:
    return key.lstrip("+~")


def _by_plain_key(chosen: Mapping[str, str]) -> dict[str, str]:
    return {_plain(key): value for key, value in chosen.items()}
