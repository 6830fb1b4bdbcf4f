"""Loading keeps a checkpoint in memory once: the peak is within 1.2 times its size, including its file's pages.

This runs some of the cases in benchmarks/loading.py.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_FILE = Path(__file__).parents[3] / "benchmarks" / "loading.py"
_spec = importlib.util.spec_from_file_location("loading", _FILE)
loading = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(loading)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.mark.parametrize(
    ("name", "suffix", "dtype"),
    [
        ("chatglm2", "safetensors", "float16"),
        ("chatglm2", "bin", "float32"),
        ("baichuan2_7b", "safetensors", "float32"),
    ],
)
def test_the_peak_of_loading(tmp_path, warm_python, name, suffix, dtype):
    path = loading.grown(name, tmp_path / "grown", suffix=suffix)
    peak, size = loading.peak(str(path), str(loading.CHECKPOINTS / name), python=warm_python, dtype=dtype)
    assert size > 100e6
    assert 0.9 < peak < loading.LIMIT, f"{peak:.2f} times its size"
