"""A rehearsal of rm through train, evaluate and export, by families that differ; the cells of benchmarks/matrix.py.

What is exported, transformers alone loads and scores with (Baichuan 13B's llmmod), as the trained model does.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("matrix", Path(__file__).parents[2] / "benchmarks" / "matrix.py")
matrix = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(matrix)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny matrices are slower on two threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("model", "way"),
    [("chatglm2", "lora"), ("baichuan_13b", "full"), ("bloom", "qlora"), ("falcon", "freeze"), ("phi1_5", "lora")],
)
def test_cell(model, way, tmp_path):
    matrix.run_cell(model, way, tmp_path, stage="rm")
