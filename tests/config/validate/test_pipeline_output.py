"""A full disk is found before the run starts."""

import shutil
from collections import namedtuple

import pytest

from llmmod.config.compose import compose_config
from llmmod.config.validate import validated
from llmmod.errors import ConfigError

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("usage", "refused"), [(Usage(10**9, 10**9, 0), True), (Usage(10**9, 0, 10**9), False), (Usage(0, 0, 0), False)])
def test_a_full_disk(monkeypatch, tmp_path, usage, refused):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    composed = compose_config([f"output_dir={tmp_path / 'run'}"])
    if not refused:
        assert validated(composed) is composed.config
        return
    with pytest.raises(ConfigError) as error:
        validated(composed)
    assert str(error.value) == (
        f"output_dir: '{tmp_path / 'run'}' can't be written: the disk is full. Free some space, or choose another directory."
    )
