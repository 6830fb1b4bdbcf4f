"""Datasets: missing files, rows of another kind than the stage needs, options that its rows don't have, mixes, and packing.

The user chooses the names of the entries of `dataset.mix`, so OmegaConf doesn't have a type for them, and each field is checked here.
Packing is checked by names only; `llmmod.trainers.build` checks what depends on the loaded model or class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmmod.config.schema.data import ColumnsConf, MixedConf
from llmmod.config.schema.model import why_not_packed_with
from llmmod.config.step_parts import Context
from llmmod.config.validate.values import ABOVE_0, ACCEPTED, BOUNDS, accepts
from llmmod.config.wording import conf_directory, expected, hints, nearest_or_all, shown
from llmmod.errors import ConfigError, Problem
from llmmod.files.paths import find_files, is_hub_id, resolve_path

BUILDERS = ("json", "csv", "parquet", "arrow", "text")  # names of readers for files in `datasets`; they are not places
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
_ADDRESS = re.compile(r"(?!pkg:)[a-z0-9]+://")
_NOT_IN_A_MIX = ("path", "data_files", "val_files", "val_split")  # only for a dataset without a mix
_BOUNDS = {"weight": ABOVE_0, **{name: bound for name, bound in BOUNDS["dataset"].items() if name in hints(MixedConf)}}
_EXPECTED = "Expected a text, or keys with values, written {a: 1}, or a list, written [a,b]"
# Packages whose trainers don't support rows of several examples, except rows that they packed themselves.
_LIBRARIES = ("trl", "transformers")
# Format -> the kind of its records: its KIND, which would need an import.
FORMATS = {
    "alpaca": "conversation", "kto": "judgement", "messages": "conversation", "preference": "preference", "prompt": "prompt",
    "sharegpt": "conversation", "text": "document",
}  # fmt: skip
_PAD_RIGHT = "llmmod.data.collators.PaddingCollator"


def check_data_files(context: Context) -> list[Problem]:
    """A problem for each place of a dataset in use that is neither on this disk nor a name on the hub."""
    datasets = {place: context.get(place) or {} for place in context.places("dataset")}
    # `check_mix` checks the datasets of a mix.
    return [problem for place, dataset in datasets.items() if not dataset.get("mix") for problem in check_dataset(place, dataset)]


def check_dataset(place: str, dataset: dict[str, Any]) -> Iterator[Problem]:
    """A problem for each place of one dataset."""
    path, files, val_files = dataset.get("path"), dataset.get("data_files"), dataset.get("val_files")
    if path is None and not files:
        if dataset.get("_target_") == "llmmod.data.dataset.load.load_splits":
            yield Problem(f"{place}.path", "is not set", do=f"Set {place}.path or {place}.data_files")
        return
    base = None
    if path is not None and not (path in BUILDERS and (files or not Path(path).exists())):
        located = yield from _locate(path, f"{place}.path")
        base = located if files and isinstance(located, Path) and located.is_dir() else None
    if path in BUILDERS and not files and not Path(path).exists():
        yield Problem(f"{place}.path", f"'{path}' reads files, but files are not given", do=f"Set {place}.data_files")
    if base is not None or path is None or path in BUILDERS:
        yield from _missing_files(files, f"{place}.data_files", base)
    yield from _missing_files(val_files, f"{place}.val_files", None)


def _locate(path: str, key: str) -> Any:
    """The path on this disk, or None; yields a problem if it isn't a name on the hub either."""
    try:
        located = resolve_path(path, key=key)
        if isinstance(located, str) and not is_remote(path):
            find_files(path, key=key)
    except ConfigError as error:
        yield from error.problems
        return None
    return located if isinstance(located, Path) else None


def is_remote(path: str) -> bool:
    """Whether a path that isn't on this disk may be an address, or a dataset's name on the hub."""
    if _ADDRESS.match(path):
        return True
    return is_hub_id(path) and not path.endswith(_SUFFIXES)


def _missing_files(files: Any, key: str, base: Path | None) -> Iterator[Problem]:
    named = [file for value in files.values() for file in _as_list(value)] if isinstance(files, dict) else _as_list(files)
    local = [file for file in named if isinstance(file, str) and not _ADDRESS.match(file)]
    try:
        find_files(local, key=key, base=base)
    except ConfigError as error:
        yield from error.problems


def _as_list(files: Any) -> list[Any]:
    return files if isinstance(files, list) else [] if files is None else [files]


def row_kinds(context: Context, dataset: str) -> set[str]:
    """The kinds of record that the steps make of a dataset's rows; empty if a stage doesn't say."""
    readers = [step for step in context.steps if context.part(step, "dataset") == dataset]
    found = {context.get(f"{context.part(step, 'training')}.data_kind") for step in readers}
    return {str(kind) for kind in found if kind is not None}


def has_kind(context: Context, dataset: str, *others: str) -> bool:
    """Whether all rows of a dataset become records of these kinds."""
    found = row_kinds(context, dataset)
    return bool(found) and found <= set(others)


def check_data_kinds(context: Context) -> Iterator[Problem]:
    """A problem for each dataset with packing whose records can't share a row."""
    for place in context.places("dataset"):
        dataset: dict[str, Any] = context.get(place) or {}
        found = row_kinds(context, place) - {"conversation", "document"}
        if dataset.get("packing") and found:
            kind = sorted(found)[0]
            said = f"true, but the rows of this stage are of kind {kind}, and only conversations and documents can share a row"
            yield Problem(f"{place}.packing", said, do="Set it to false")


def check_formats(context: Context) -> Iterator[Problem]:
    """A problem for each dataset whose format has records of another kind than its stage needs."""
    read = context.places("dataset")
    pairs = {(context.part(step, "dataset"), context.part(step, "training")): None for step in context.steps}
    for place, training in pairs:
        wanted, dataset = context.get(f"{training}.data_kind"), context.get(place) or {}
        if place not in read or wanted not in FORMATS.values():
            continue
        mixed = {f"{place}.mix.{name}": entry for name, entry in (dataset.get("mix") or {}).items() if isinstance(entry, Mapping)}
        asked = {key if entry.get("format") else place: entry.get("format") or dataset.get("format") for key, entry in mixed.items()}
        for key, name in (asked or {place: dataset.get("format")}).items():
            kind = FORMATS.get(name) if isinstance(name, str) else None
            if kind in (wanted, None):
                continue
            if context.user_set(f"{key}.format"):
                allowed = ", ".join(other for other in FORMATS if FORMATS[other] == wanted)
                yield Problem(f"{key}.format", f"the records of '{name}' are of kind {kind}, not {wanted}", f"Allowed: auto, {allowed}")
            else:
                stage = context.get(f"{training}.stage")
                found = f"the rows of '{dataset.get('name')}' are of kind {kind}, but stage={stage} needs {wanted}"
                yield Problem(key, found, f"Allowed: {', '.join(_options(str(wanted)))}, or json and hub for your own data")


def _options(kind: str) -> Iterator[str]:
    """The options of `dataset` with records of a kind."""
    for path in sorted((conf_directory() / "dataset").glob("*.yaml")):
        if FORMATS.get(yaml.safe_load(path.read_text(encoding="utf-8")).get("format")) == kind:
            yield path.stem


def check_mix(context: Context) -> Iterator[Problem]:
    """A problem for each wrong key or value of a mix, for missing files, and for keys that a mix replaces."""
    for place in context.places("dataset"):
        dataset = context.get(place) or {}
        if not dataset.get("mix"):
            continue
        for name in _NOT_IN_A_MIX:
            if dataset.get(name):
                do = "Begin with dataset=json" if not context.user_set(f"{place}.{name}") else f"Set {place}.mix.<name>.{name}"
                yield Problem(f"{place}.{name}", "not read with dataset.mix: each of its datasets has its own", do=do)
        for name, entry in dataset["mix"].items():
            yield from _check_entry(f"{place}.mix.{name}", entry, dataset)


def _check_entry(key: str, entry: Any, dataset: Mapping[str, Any]) -> Iterator[Problem]:
    if not isinstance(entry, Mapping):
        yield Problem(key, f"found {shown(entry)}", f"Expected a dataset, e.g. {key}.path=…")
        return
    problems = [*_check_fields(key, entry, MixedConf)]
    if isinstance(columns := entry.get("columns"), Mapping):
        problems += _check_fields(f"{key}.columns", columns, ColumnsConf)
    yield from problems
    wrong = {problem.key for problem in problems}
    for name, bound in _BOUNDS.items():
        value = entry.get(name)
        if f"{key}.{name}" not in wrong and isinstance(value, int | float) and not bound.holds(value):
            yield Problem(f"{key}.{name}", f"found {shown(value)}", f"Allowed: {bound.text}")
    if not wrong & {f"{key}.{name}" for name in _NOT_IN_A_MIX}:
        yield from check_dataset(key, {"_target_": dataset.get("_target_"), **entry})
    ways = [name for name in ("val_size", "val_files", "val_split") if entry.get(name)]
    if len(ways) > 1:
        yield Problem(f"{key}.{ways[1]}", f"set, but {key}.{ways[0]} holds out examples too", do="Keep one of them")


def _check_fields(key: str, given: Mapping[Any, Any], schema: type) -> Iterator[Problem]:
    """A problem for each key that a dataclass doesn't have, and for each value that its field doesn't accept."""
    known = hints(schema)
    for name, value in given.items():
        if name not in known:
            yield Problem(f"{key}.{name}", "no such field", nearest_or_all(str(name), known))
            continue
        types = ACCEPTED.get(("dataset", str(name))) if schema is MixedConf else None
        if not (_accepted(types, value) if types else _takes(schema, str(name), value)):
            yield Problem(f"{key}.{name}", f"found {shown(value)}", f"Expected {expected(known[name])}" if not types else _EXPECTED)


def _accepted(types: tuple[str, ...], value: Any) -> bool:
    """Whether one of these types accepts a value; with null, an entry uses the field of `dataset`."""
    return value is None or any(accepts(value, kind) for kind in types)


def _takes(schema: type, name: str, value: Any) -> bool:
    """Whether a field accepts a value; the keys of `columns` are checked elsewhere."""
    if name == "columns":
        return isinstance(value, Mapping)
    if isinstance(value, bool | Mapping):
        return False  # an entry has no such field, and OmegaConf would convert true to 1 or 'true'
    if not isinstance(value, str) and value is not None and hints(schema)[name] in (str, str | None):
        return False
    try:
        OmegaConf.merge(OmegaConf.structured(schema), {name: value})
    except OmegaConfBaseException:
        return False
    return True


def check_packing(context: Context) -> Iterator[Problem]:
    """A problem for each packed dataset if its training would not keep the examples of a row apart."""
    for step in context.steps:
        place = context.part(step, "dataset")
        if not context.trains(step) or not context.get(f"{place}.packing"):
            continue
        training = context.part(step, "training")
        if (trainer := _trainer(context, training)) is not None:
            yield trainer
        elif reason := _why_not_packed(context, step, training):
            yield Problem(f"{place}.packing", f"true, and {reason}", do="Set it to false")


def _trainer(context: Context, training: str) -> Problem | None:
    target = str(context.get(f"{training}.trainer._target_"))
    if target.split(".")[0] not in _LIBRARIES:
        return None
    found = f"{target} with dataset.packing=true, but it doesn't keep the examples of a row apart"
    do = "Use the stage's trainer, derive yours from llmmod.trainers.sft.SftTrainer, or set dataset.packing=false"
    return Problem(f"{training}.trainer._target_", found, do=do)


def _why_not_packed(context: Context, step: str, training: str) -> str | None:
    if context.get(f"{training}.collator._target_") == _PAD_RIGHT:
        return f"{training}.collator._target_={_PAD_RIGHT} treats a row as one example"
    if isinstance(context.get(f"{training}.pad_to_multiple_of"), int):
        return f"{training}.pad_to_multiple_of asks for padding"
    attention = context.get(f"{context.part(step, 'model')}.attn_implementation")
    return why_not_packed_with(attention) if isinstance(attention, str) else None
