"""`dataset.mix.<name>.*`: its entries have names of the user's own, so that no node of the configuration is typed for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmmod.errors import Problem
from llmmod.schema.data import ColumnsConf, MixedConf
from llmmod.schema.validate.bounds import ABOVE_0, BOUNDS
from llmmod.schema.validate.context import Context
from llmmod.schema.validate.data_files import of_dataset
from llmmod.schema.validate.types import ACCEPTED, accepts
from llmmod.schema.wording import expected, hints, nearest_or_all, shown

_BESIDE = ("path", "data_files", "val_files", "val_split")  # of a dataset that is no mix
_BOUNDS = {"weight": ABOVE_0, **{name: bound for name, bound in BOUNDS["dataset"].items() if name in hints(MixedConf)}}


def check_mix(context: Context) -> Iterator[Problem]:
    """A problem for each key or value of a mix that is wrong, for files that aren't there, and for what is set beside it."""
    for place in context.places("dataset"):
        dataset = context.get(place) or {}
        if not dataset.get("mix"):
            continue
        for name in _BESIDE:
            if dataset.get(name):
                do = "Begin with dataset=json" if not context.user_set(f"{place}.{name}") else f"Set {place}.mix.<name>.{name}"
                yield Problem(f"{place}.{name}", "not read with dataset.mix, whose datasets have their own", do=do)
        for name, entry in dataset["mix"].items():
            yield from _entry(f"{place}.mix.{name}", entry, dataset)


def _entry(key: str, entry: Any, dataset: Mapping[str, Any]) -> Iterator[Problem]:
    if not isinstance(entry, Mapping):
        yield Problem(key, f"found {shown(entry)}", f"Expected a dataset, e.g. {key}.path=…")
        return
    problems = [*_fields(key, entry, MixedConf)]
    if isinstance(columns := entry.get("columns"), Mapping):
        problems += _fields(f"{key}.columns", columns, ColumnsConf)
    yield from problems
    wrong = {problem.key for problem in problems}
    for name, bound in _BOUNDS.items():
        value = entry.get(name)
        if f"{key}.{name}" not in wrong and isinstance(value, int | float) and not bound.holds(value):
            yield Problem(f"{key}.{name}", f"found {shown(value)}", f"Allowed: {bound.text}")
    if not wrong & {f"{key}.{name}" for name in _BESIDE}:
        yield from of_dataset(key, {"_target_": dataset.get("_target_"), **entry})
    ways = [name for name in ("val_size", "val_files", "val_split") if entry.get(name)]
    if len(ways) > 1:
        yield Problem(f"{key}.{ways[1]}", f"set, and {key}.{ways[0]} holds examples out as well", do="Keep one of them")


def _fields(key: str, given: Mapping[Any, Any], schema: type) -> Iterator[Problem]:
    """A problem for each key that a dataclass doesn't have, and for each value that its field doesn't take."""
    known = hints(schema)
    for name, value in given.items():
        if name not in known:
            yield Problem(f"{key}.{name}", "no such field", nearest_or_all(str(name), known))
            continue
        types = ACCEPTED.get(("dataset", str(name))) if schema is MixedConf else None
        if not (_accepted(types, value) if types else _takes(schema, str(name), value)):
            yield Problem(f"{key}.{name}", f"found {shown(value)}", f"Expected {expected(known[name])}" if not types else _EXPECTED)


_EXPECTED = "Expected a text, or keys with values, written {a: 1}, or a list, written [a,b]"


def _accepted(types: tuple[str, ...], value: Any) -> bool:
    """Null leaves a field of an entry to `dataset`."""
    return value is None or any(accepts(value, kind) for kind in types)


def _takes(schema: type, name: str, value: Any) -> bool:
    """Whether a field takes a value; which columns there are is looked at by itself."""
    if name == "columns":
        return isinstance(value, Mapping)
    if isinstance(value, bool | Mapping):
        return False  # no field of an entry is one, and OmegaConf would make 1 and 'true' of true
    if not isinstance(value, str) and value is not None and hints(schema)[name] in (str, str | None):
        return False
    try:
        OmegaConf.merge(OmegaConf.structured(schema), {name: value})
    except OmegaConfBaseException:
        return False
    return True
