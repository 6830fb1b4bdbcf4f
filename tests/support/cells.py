"""benchmarks/matrix.py as a module, for tests that run its cells."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks" / "matrix.py"
_spec = importlib.util.spec_from_file_location("matrix", FILE)
matrix = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(matrix)
