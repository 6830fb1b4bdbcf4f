"""The suite on a GPU, `make test-gpu`: small random models, nothing is downloaded, under ten minutes on one card.

It runs where LLMMOD_TEST_GPU is set and torch sees a CUDA device; elsewhere each module is skipped before it is imported. All other tests
hide the GPUs (tests/conftest.py). LLMMOD_TEST_GPU=cpu runs the tests that don't need a card on the CPU, to check the tests themselves.
"""

from __future__ import annotations

import os

import pytest
from toy import lora_conf, sft_conf, toy_splits, toy_trainer

__all__ = ["lora_conf", "sft_conf", "toy_splits", "toy_trainer"]

# cuBLAS reads it at its start; its products are only deterministic with a workspace of fixed size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _why_not():
    asked = os.environ.get("LLMMOD_TEST_GPU")
    if not asked:
        return "make test-gpu runs this on a GPU"
    import torch

    return None if asked == "cpu" or torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


class _Skipped(pytest.Module):
    def collect(self):
        pytest.skip(_why_not())


def pytest_pycollect_makemodule(module_path, parent):
    return _Skipped.from_parent(parent, path=module_path) if _why_not() else None
