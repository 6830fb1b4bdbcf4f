"""Keep the libraries' own noise out of the terminal, where it hides what the user should read.

Deprecations among transformers, trl and peft are none of the user's business, and progress bars are lines without end in a log file.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

_LIBRARIES = r"(transformers|trl|peft|datasets|accelerate|huggingface_hub|torch)\b"

# bitsandbytes 0.50 advises every run on a CPU, quantized or not, to install a library of kernels.
_KERNELS = "bitsandbytes.backends.cpu.ops"


def quiet_libraries() -> None:
    """Ask for quiet; to be called before the libraries are imported. What the user has set in the environment stays."""
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=_LIBRARIES)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    logging.getLogger(_KERNELS).setLevel(logging.ERROR)
