"""The devices of tests/gpu, and the tests that need a GPU."""

from __future__ import annotations

import pytest
import torch

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
needs_card = pytest.mark.skipif(not ON_GPU, reason="a rehearsal on the CPU")
