"""The versions of llmmod and of the libraries it stands on, read from what is installed; nothing is imported for it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

# What decides how a run goes; run.json, model cards and `llmmod --version` name these.
MAIN = ("llmmod", "torch", "transformers", "peft", "trl")
_MORE = ("accelerate", "datasets", "tokenizers", "safetensors", "bitsandbytes", "hydra-core", "omegaconf", "numpy")


def installed(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def report() -> str:
    """What a bug report needs, a line each: all libraries, Python, and the system."""
    lines = [f"{package} {installed(package) or 'not installed'}" for package in (*MAIN, *_MORE)]
    return "\n".join([*lines, f"Python {platform.python_version()}", f"{platform.system()} {platform.release()} {platform.machine()}"])
