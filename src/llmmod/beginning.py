"""What a training step began with: a checkpoint, how its weights were quantized, and earlier adapters."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Beginning(NamedTuple):
    """What a training step began with.

    Args:
        base: a checkpoint, as it was typed; a directory that a step of the same run left, relative.
        merged: adapters that were merged into it first, or stayed active beside quantized weights, in order: directories relative to the
            step's own, or as they were typed.
        gguf_file: the file in it that was read; None: its weights aren't GGUF.
        quantization: what decides its quantized weights, as from `schema.quantization.decides_weights`; None: they weren't quantized.
    """

    base: str | None
    merged: list[str]
    gguf_file: str | None = None
    quantization: Mapping[str, Any] | None = None

    def seen_from(self, directory: Path) -> tuple[str, ...]:
        """Comparable with what another training began with: each absolute where it is on this disk."""
        quantization = "" if self.quantization is None else json.dumps(self.quantization, sort_keys=True)
        return (*(seen_from(name, directory) for name in (self.base or "", *self.merged)), self.gguf_file or "", quantization)


def seen_from(name: str, directory: Path) -> str:
    """What a name that is relative to a directory means: absolute where it is on this disk, else as it is."""
    place = Path(os.path.normpath(directory / Path(name).expanduser()))
    return str(place.absolute()) if place.exists() else name
