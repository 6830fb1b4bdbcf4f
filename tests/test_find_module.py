"""Modules are found without importing them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmmod.code_arguments import find_module


@pytest.mark.parametrize(
    ("name", "file"),
    [("json", "json/__init__.py"), ("json.decoder", "json/decoder.py"), ("llmmod.models.loading.load", "llmmod/models/loading/load.py")],
)
def test_found(name, file):
    assert Path(find_module(name).origin).as_posix().endswith(file)


@pytest.mark.parametrize("name", ["no_such_module", "json.no_such", "json.decoder.JSONDecoder", "llmmod.no_such.x"])
def test_absent(name):
    assert find_module(name) is None


def test_neither_the_module_nor_its_package_is_imported(tmp_path, monkeypatch):
    (tmp_path / "loud_package" / "inner").mkdir(parents=True)
    for file in ("loud_package/__init__.py", "loud_package/inner/__init__.py", "loud_package/inner/leaf.py"):
        (tmp_path / file).write_text("raise SystemExit('imported')\n")
    assert find_module("loud_package.inner.leaf") is None
    assert find_module("loud_package.inner.leaf", str(tmp_path)).origin == str(tmp_path / "loud_package/inner/leaf.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_module("loud_package.inner.leaf") is not None
    assert not any(name.startswith("loud_package") for name in sys.modules)
