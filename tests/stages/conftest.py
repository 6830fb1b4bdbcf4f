"""The toy task of tests/toy.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parents[1] / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

one_thread, toy_splits, toy_trainer = toy.one_thread, toy.toy_splits, toy.toy_trainer
sft_conf, lora_conf, toy_session = toy.sft_conf, toy.lora_conf, toy.toy_session
