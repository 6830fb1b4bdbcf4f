"""Finds all problems of a configuration at once, before anything heavy is imported.

The modules of this package have the checks, and `checks.CHECKS` lists them. They are imported when the first configuration is checked: an
override that can't be applied is refused without them, which saves a tenth of the time of a refusal.
"""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from llmmod.config.compose import Composed, compose_accepted
from llmmod.errors import ConfigError


def validated(composed: Composed) -> DictConfig:
    """The configuration, once every check has passed.

    Raises:
        ConfigError: with every problem found.
    """
    from llmmod.config.validate.checks import validate

    if problems := validate(composed):
        raise ConfigError(problems)
    return composed.config


def compose_validated(
    overrides: Sequence[str],
    *,
    config_dir: str | None = None,
    config_name: str = "config",
    with_hydra: bool = False,
    job_num: int | None = None,
) -> Composed:
    """The configuration that a command line's overrides compose to, with every check passed; arguments as in `compose_config`.

    Raises:
        ConfigError: with every override that can't be applied, and the checks' problems with keys that the other overrides set. Problems
            with the rest are not reported until the wrong overrides are corrected.
    """
    composed = compose_accepted(overrides, config_dir=config_dir, config_name=config_name, with_hydra=with_hydra, job_num=job_num)
    from llmmod.config.validate.checks import validate  # after it: to refuse takes less than the checks' import

    problems = validate(composed)
    if composed.refused:
        refused = {problem.key for problem in composed.refused}
        said = [p for p in problems if p.key in composed.user_keys and p.key not in refused and not composed.lacks_option(p.key)]
        problems = [*composed.refused, *said]
    if problems:
        raise ConfigError(problems)
    return composed
