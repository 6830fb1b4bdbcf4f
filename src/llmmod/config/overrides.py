"""Overrides, parsed and applied one by one; each failure becomes a `Problem`.

Hydra decides what an override means: its parser reads it, its rule decides what is a group, its code applies it. That needs
`hydra._internal`, since the public compose API stops at the first error.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmmod.code_arguments import trusted_by_environment
from llmmod.config.explain import (
    check_coercion,
    check_null_part,
    check_replaced_node,
    explain_apply_error,
    explain_compose_error,
    explain_parse_error,
)
from llmmod.config.wording import conf_directory, nearest_or_all, part_of, shown, typed_nodes
from llmmod.errors import Problem
from llmmod.targets import allowed_prefixes, within

# Errors of Hydra and OmegaConf for a user's input, including asserts and ValueErrors, e.g. for a key below null, or `model=null`.
REFUSALS = (HydraException, OmegaConfBaseException, AssertionError, AttributeError, TypeError, ValueError, yaml.YAMLError)

# Hydra's compositions in this process, pickled, about 60 kB each. The jobs of a sweep mostly choose the same options.
_COMPOSITIONS: dict[Hashable, bytes] = {}
_MOST_COMPOSITIONS = 100
_EXTRAS = {"joblib": "sweep", "submitit_local": "slurm", "submitit_slurm": "slurm"}  # launchers with their own packages


def parse(overrides: Sequence[str]) -> tuple[dict[int, Override], dict[int, Problem]]:
    """The overrides that can be parsed, and the problems of the others, by position."""
    parser = OverridesParser.create()
    parsed: dict[int, Override] = {}
    unread: dict[int, Problem] = {}
    for position, text in enumerate(overrides):
        try:
            override = parser.parse_override(text)
        except REFUSALS as error:
            unread[position] = explain_parse_error(text, error)
            continue
        if override.is_sweep_override():
            values = text.partition("=")[2]
            do = f"Add -m for a sweep, or write [{values}] for a list"
            unread[position] = Problem(override.key_or_group, f"several values: {values}", do=do)
        elif not override.key_or_group:
            unread[position] = Problem(text, "doesn't name a key", do="Write key=value or group=option")
        else:
            parsed[position] = override
    return parsed, unread


class Composition:
    """One composition, and the outcome of each override.

    Args:
        overrides: position -> override, parsed; none of a sweep.
        config_dir: the user's directory of options.
        config_name: the file that composing starts from.
    """

    def __init__(self, overrides: Mapping[int, Override], *, config_dir: str | None, config_name: str) -> None:
        self.config: DictConfig | None = None
        self._overrides = overrides
        self._config_name = config_name
        self.failed_groups: list[str] = []
        self._applied: list[Override] = []
        version.setbase("1.3")
        setup_globals()
        search_path = create_config_search_path(str(conf_directory()))
        self._directories = directories(config_dir, overrides.values())
        if config_dir is not None and self._directories[0].is_dir():
            before = SearchPathQuery(provider="schema", path=None)
            search_path.prepend("command-line", f"file://{self._directories[0]}", before)
        self._loader = ConfigLoaderImpl(search_path)

    def compose(self, unread: Mapping[int, Problem]) -> list[Problem]:
        """Compose with the valid overrides; returns the problems of the others, in order, including `unread`.

        `config` stays None if composing fails.
        """
        problems = check_directories(self._directories) + self._check_primary()
        if problems:
            return problems + list(unread.values())
        found = dict(unread)
        choosing = {p: o for p, o in self._overrides.items() if self._chooses(o)}
        for position, override in list(choosing.items()):
            if problem := self._wrong_option(override):
                found[position] = problem
                self._leave_out(choosing, position)
        self.config, general = self._load(choosing, found)
        if self.config is not None:
            self._apply({p: o for p, o in self._overrides.items() if not self._chooses(o)}, found)
            self._note(self._applied)
        return general + [found[position] for position in sorted(found)]

    def user_keys(self) -> list[str]:
        """The keys that the applied overrides set, down to the leaves."""
        found = [key for o in self._applied for key in _leaves(o.key_or_group, o.value())]
        return list(dict.fromkeys(key for key in found if not key.startswith("hydra.")))

    def typed_true(self) -> list[str]:
        """The keys that the applied overrides set literally to true."""
        leaves = [leaf for o in self._applied for leaf in _valued(o.key_or_group, o.value())]
        return [key for key, value in leaves if value is True]

    def _chooses(self, override: Override) -> bool:
        """Whether an override chooses an option of a group; Hydra's search path counts too, since it must be known first."""
        if override.key_or_group == "hydra.searchpath":
            return True
        return not isinstance(override.value(), dict) and self._loader.repository.group_exists(override.key_or_group)

    def _leave_out(self, choosing: dict[int, Override], position: int) -> None:
        self.failed_groups.append(choosing.pop(position).get_key_element().lstrip("+~"))

    def _wrong_option(self, override: Override) -> Problem | None:
        """A problem if the option that is chosen doesn't exist."""
        if override.is_delete() or any(o.key_or_group == "hydra.searchpath" for o in self._overrides.values()):
            return None  # Hydra's own search path can add options that aren't known yet
        value: Any = override.value()
        names = value if isinstance(value, list) else [value]
        options = self._loader.get_group_options(override.key_or_group)
        wrong = [name for name in names if name not in options]
        if not wrong:
            return None
        typed = f"{override.get_key_element()}={wrong[0] if isinstance(wrong[0], str) else shown(wrong[0])}"
        if override.key_or_group == "hydra/launcher" and (extra := _EXTRAS.get(str(wrong[0]))):
            return Problem(typed, "isn't installed", do=f"pip install 'llmmod[{extra}]'")
        return Problem(typed, "no such option", nearest_or_all(str(wrong[0]), options))

    def _check_primary(self) -> list[Problem]:
        """A problem for each package that a configuration of the user's own would have Hydra import, to look for options in it."""
        if self._config_name == "config":
            return []
        loaded = self._loader.repository.load_config(self._config_name)
        entries = OmegaConf.select(loaded.config, "hydra.searchpath") if loaded is not None else None
        packages = [str(e).removeprefix("pkg://") for e in entries or [] if str(e).startswith("pkg://")]
        refused = [p for p in packages if not within(p, allowed_prefixes())]
        return [Problem("hydra.searchpath", f"'{p}' may not be imported", do=f"If you trust it, add --allow {p}") for p in refused]

    def _load(self, choosing: dict[int, Override], found: dict[int, Problem]) -> tuple[DictConfig | None, list[Problem]]:
        """Compose only the options, without those that Hydra refuses; None if a file itself is wrong."""
        while True:
            lines = [str(o.input_line) for o in choosing.values()]
            try:
                return self._composed(lines), []
            except REFUSALS as error:
                blamed, problem = explain_compose_error(error, choosing, self._config_name)
                if blamed is None:
                    return None, [problem]
                found[blamed] = problem
                self._leave_out(choosing, blamed)

    def _composed(self, lines: list[str]) -> DictConfig:
        """Hydra's composition of these options, from a cache if nothing has changed: a copy takes 3 ms instead of 100."""
        elsewhere = self._config_name != "config" or any(line.startswith("hydra.searchpath") for line in lines)
        files = _files([conf_directory(), *self._directories])
        key = None if elsewhere else (tuple(lines), trusted_by_environment(), files, _stored(ConfigStore.instance().repo))
        if key in _COMPOSITIONS:
            kept: DictConfig = pickle.loads(_COMPOSITIONS[key])
            kept.hydra.runtime.cwd = os.getcwd()
            return kept
        config = self._loader.load_configuration(self._config_name, lines, RunMode.RUN, from_shell=False)
        if key is not None and not config.hydra.job.env_copy:
            with suppress(pickle.PicklingError, AttributeError, TypeError):  # a user's schema from inside a function
                _COMPOSITIONS[key] = pickle.dumps(config, pickle.HIGHEST_PROTOCOL)
            if len(_COMPOSITIONS) > _MOST_COMPOSITIONS:
                del _COMPOSITIONS[next(iter(_COMPOSITIONS))]
        return config

    def _apply(self, overrides: Mapping[int, Override], found: dict[int, Problem]) -> None:
        assert self.config is not None
        choices, nodes = dict(self.config.hydra.runtime.choices), typed_nodes(self.config)
        for position, override in overrides.items():
            problem = check_replaced_node(override, nodes) or check_coercion(override, nodes) or check_null_part(override, self.config)
            if problem is not None:
                found[position] = problem
                continue
            try:
                ConfigLoaderImpl._apply_overrides_to_config([override], self.config)
                self._applied.append(override)
            except REFUSALS as error:
                if not in_groups(override.key_or_group, self.failed_groups):
                    found[position] = explain_apply_error(override, error, self.config, choices)

    def _note(self, applied: list[Override]) -> None:
        """Record the applied overrides in Hydra's node, as Hydra does for its own."""
        assert self.config is not None
        job = self.config.hydra.job
        for override in applied:
            names = self.config.hydra.overrides
            (names.hydra if override.is_hydra_override() else names.task).append(override.input_line)
        own = [o for o in self._overrides.values() if not o.is_hydra_override()]
        form = job.config.override_dirname
        job.override_dirname = get_overrides_dirname(own, form.exclude_keys, form.item_sep, form.kv_sep)


def in_groups(key: str, groups: Collection[str]) -> bool:
    """Whether a key is in a part whose option one of these groups chooses: `model`, `step@steps.train`."""
    group, node, _ = part_of(key)
    return group in groups or f"{group}@{node}" in groups


def check_directories(found: Sequence[Path]) -> list[Problem]:
    """A problem for each missing directory, and for each file with a shipped option's name: Hydra would read the shipped one."""
    problems = [Problem(str(directory), "this directory of options does not exist") for directory in found if not directory.is_dir()]
    for directory in found:
        for file in sorted(directory.rglob("*.yaml")):
            shipped = conf_directory() / file.relative_to(directory)
            if shipped.is_file() and not shipped.samefile(file):
                name = file.relative_to(directory).with_suffix("").as_posix()
                hidden = f"hidden by the shipped option {name}, which Hydra reads instead"
                problems.append(Problem(str(file), hidden, do=f"Rename it, e.g. to my_{file.name}, and choose it by that name"))
    return problems


def directories(config_dir: str | None, overrides: Iterable[Override]) -> list[Path]:
    """The user's directories of options: of `--config-dir`, and of Hydra's search path."""
    found = [] if config_dir is None else [Path(config_dir).expanduser().absolute()]
    for override in overrides:
        value = override.value() if override.key_or_group == "hydra.searchpath" else None
        for entry in value if isinstance(value, list) else []:
            if str(entry).startswith("file://") or "://" not in str(entry):
                found.append(Path(str(entry).removeprefix("file://")).expanduser().absolute())
    return found


def _leaves(key: str, value: Any) -> list[str]:
    """The keys that a value sets: its own, or those of a mapping's members."""
    return [leaf for leaf, _ in _valued(key, value)]


def _valued(key: str, value: Any) -> list[tuple[str, Any]]:
    """The keys that a value sets, each with its own."""
    if isinstance(value, dict) and value:
        return [leaf for name, item in value.items() for leaf in _valued(f"{key}.{name}", item)]
    return [(key, value)]


def _files(directories: Iterable[Path]) -> Hashable:
    """The path, size and time of each file of options."""
    found = []
    for directory in directories:
        for place, _, names in os.walk(directory):
            for name in names:
                status = os.stat(f"{place}/{name}")
                found.append((place, name, status.st_size, status.st_mtime_ns))
    return tuple(found)


def _stored(node: Any) -> Hashable:
    """Which nodes a ConfigStore holds."""
    return tuple((name, _stored(child)) for name, child in node.items()) if isinstance(node, dict) else id(node)
