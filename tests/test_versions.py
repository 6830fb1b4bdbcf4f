"""What is installed is said without importing it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

from llmmod.upstream import installed


def test_a_package_that_is_not_there_has_no_version():
    assert installed("hydra-core") == version("hydra-core")
    assert installed("no-such-package-anywhere") is None


def test_the_command_line_names_every_library_and_imports_none():
    script = "import sys; from llmmod.app import run_command; print(run_command(['llmmod', '--version']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    *lines, last = done.stdout.splitlines()
    assert {"transformers " + version("transformers"), "torch " + version("torch"), "peft " + version("peft")} <= set(lines)
    assert last == "0 False"
