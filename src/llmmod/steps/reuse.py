"""Whether a training step has to be trained: in a run of several, an earlier run may have left the very same.

Change the learning rate of the last of three steps, and the run takes what the other two left. `reuse=false` trains them all; what they
leave is found by later runs all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from llmmod.data.cache.identity import NoIdentityError, digest
from llmmod.data.cache.store import cache_directory
from llmmod.paths import shown
from llmmod.ranks import rank, world_size
from llmmod.steps.earlier import NAME, EarlierResults, Result, read_result, write_result
from llmmod.steps.fingerprint import parts, weights_identity

_NAMED = 4  # parts that have changed
log = logging.getLogger("llmmod.train")


class Reuse:
    """What earlier runs have to do with a training step; of several processes, the first looks.

    Args:
        session: of the run.
        step: that trains.
        args: its trainer's arguments.
        data: the identity of its examples.
        checkpoint: that it goes on from.
    """

    def __init__(self, session: Any, step: str, *, args: Any, data: str | None, checkpoint: Path | None) -> None:
        self._directory, self._step = session.step_dir(step), step
        self._key: str | None = None
        self._parts: dict[str, str] = {}
        self._takes = session.trains_several and session.root.reuse and checkpoint is None
        if rank() == 0 and session.trains_several:
            self._results = EarlierResults(cache_directory(session.root.hub.cache_dir) / "trained")
            self._key = self._fingerprint(session, args, data)
        if checkpoint is not None and self._key != getattr(read_result(checkpoint.parent), "fingerprint", None):
            self._key = None  # the checkpoint is another training's, and so will be what comes of it

    def take(self) -> tuple[Result, Path] | None:
        """What an earlier run left, put into the step's directory, and where it was; None: it is to be trained."""
        found = [self._results.take(self._key, self._directory) if self._takes and self._key is not None else None]
        if self._takes and world_size() > 1:
            broadcast_object_list(found)
        if found[0] is None and rank() == 0:
            if self._takes and self._key is not None:
                self._tell()
            self._begin()
        return found[0]

    def keep(self, *, metrics: Mapping[str, float], kind: str) -> None:
        """Let later runs find what was trained."""
        if self._key is not None:
            self._results.keep(self._directory, self._key, metrics=metrics, kind=kind, parts=self._parts)

    @property
    def identity(self) -> str | None:
        """Of the weights that are in the directory now; None where later runs can't know them again."""
        return None if self._key is None else weights_identity(self._directory, self._key)

    def _tell(self) -> None:
        """Say why it is trained although an earlier run has trained a step of that name."""
        names, place = self._results.changed(self._parts, self._step) or ([], None)
        if place is not None and names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            log.info("%s: trained, since this has changed from %s: %s%s", self._step, shown(place), ", ".join(names[:_NAMED]), more)

    def _begin(self) -> None:
        """What the directory says of itself isn't true from now on."""
        (self._directory / NAME).unlink(missing_ok=True)
        if self._key is not None:
            write_result(self._directory, Result(self._key))

    def _fingerprint(self, session: Any, args: Any, data: str | None) -> str | None:
        try:
            self._parts = parts(session, self._step, args=args, data=data)
            return digest(self._parts)
        except (NoIdentityError, OSError) as error:  # a file that nobody needs may be unreadable
            log.info("%s: later runs can't reuse it: %s", self._step, error)
            return None
