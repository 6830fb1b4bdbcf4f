"""The jobs that a sweep's overrides stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llmmod.errors import ConfigError, Problem


def sweep_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Every job's overrides, in the order in which Hydra's basic sweeper runs them.

    With another sweeper the values are not known beforehand; then the one job that is returned holds what doesn't vary.

    Raises:
        ConfigError: if an override can't be parsed.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(Problem("-m", " ".join(str(error).split()))) from error
    if any(item.key_or_group == "hydra/sweeper" for item in parsed):
        return [[item.input_line or "" for item in parsed if not item.is_sweep_override()]]
    return BasicSweeper.split_arguments(parsed, None)[0]


@contextmanager
def only(jobs: list[list[str]]) -> Iterator[None]:
    """Within it, Hydra's basic sweeper runs these jobs, whatever the overrides stand for.

    Patches `BasicSweeper.split_arguments` (hydra-core 1.3.8).
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    sweeper: Any = BasicSweeper
    own = vars(sweeper)["split_arguments"]
    sweeper.split_arguments = staticmethod(lambda overrides, max_batch_size: [jobs])
    try:
        yield
    finally:
        sweeper.split_arguments = own
