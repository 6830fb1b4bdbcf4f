"""What a training step began with: a checkpoint, and adapters merged into it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Beginning(NamedTuple):
    """What a training step began with.

    Args:
        base: a checkpoint, as it was typed; a directory that a step of the same run left, relative.
        merged: adapters that were merged into it first, in order: directories relative to the step's own, or as they were typed.
        gguf_file: the file in it that was read; None: its weights aren't GGUF.
    """

    base: str | None
    merged: list[str]
    gguf_file: str | None = None

    def seen_from(self, directory: Path) -> tuple[str, ...]:
        """Comparable with what another training began with: each absolute where it is on this disk."""
        return (*(seen_from(name, directory) for name in (self.base or "", *self.merged)), self.gguf_file or "")


def seen_from(name: str, directory: Path) -> str:
    """What a name that is relative to a directory means: absolute where it is on this disk, else as it is."""
    place = Path(os.path.normpath(directory / Path(name).expanduser()))
    return str(place.absolute()) if place.exists() else name
