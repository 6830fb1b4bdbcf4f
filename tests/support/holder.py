"""A process that holds a directory."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress


@contextmanager
def held_by_another(directory):
    """A context in which another process holds a directory; yields its id. At the end that process is killed."""
    from llmmod.files.lock import holding

    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        with suppress(BaseException), holding(directory, command=["llmmod", "seed=1"]):
            os.write(writer, b"held")
            signal.pause()
        os._exit(1)
    assert os.read(reader, 4) == b"held"
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(reader)
        os.close(writer)
