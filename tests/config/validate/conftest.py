"""Composed configurations for the checks, each choice of options composed once."""

from __future__ import annotations

import copy
from functools import cache

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser

from llmmod.config.compose import Composed, compose_config
from llmmod.config.overrides import _leaves
from llmmod.config.validate.checks import validate
from llmmod.config.wording import groups


@cache
def composed_choices(choices: tuple[str, ...]) -> Composed:
    return compose_config(choices)


def composed(*overrides: str) -> Composed:
    """What `compose_config` returns for valid overrides, without composing the same options twice."""
    choices = tuple(o for o in overrides if o.lstrip("+").split("=")[0].split("@")[0] in groups())
    base = composed_choices(choices)
    config = copy.deepcopy(base.config)
    parsed = OverridesParser.create().parse_overrides([o for o in overrides if o not in choices])
    ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
    keys = [key for override in parsed for key in _leaves(override.key_or_group, override.value())]
    return Composed(config, None, list(overrides), base.choices, keys)


@pytest.fixture
def told(tmp_path, monkeypatch):
    """A function from overrides to the lines that validation reports; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: [str(problem) for problem in validate(composed(*overrides))]
