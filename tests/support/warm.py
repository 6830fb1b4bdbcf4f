"""Python commands that start with torch, transformers, trl and peft already imported; these imports take 6 s of CPU.

`python_of(socket)` replaces `sys.executable`: a small client that asks the server to fork, passes its own streams, directory and
environment to the fork, forwards signals, and exits like the fork. The server has imported everything and computed nothing. xdist's
workers are such processes too (conftest.py).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import elsewhere
import repeated

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Server:
    """A running server, or one that is just starting: its clients wait for it."""

    def __init__(self, place):
        self.place = place
        # In a session of its own, so that Ctrl-C reaches its forks once: through their clients.
        self._process = subprocess.Popen([sys.executable, __file__, "serve", place], stdin=subprocess.PIPE, start_new_session=True)

    def close(self):
        """End the server."""
        self._process.stdin.close()
        self._process.wait()


def python_of(place):
    """The start of a command line, instead of `[sys.executable]`."""
    return [sys.executable, __file__, "client", str(place)]


def serve(place):
    """Import everything, and fork for each client, until stdin ends."""
    elsewhere.serve(f"{place}.elsewhere")
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    from forks import import_everything

    import_everything()
    sys.path.pop()
    repeated.done_once()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the server doesn't wait for the processes that watch a fork
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place)
        listening.listen()
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                look_after(connection)
            connection.close()


def look_after(connection):
    """Run the client's command in a fork; forward its signals, and end it if the client ends earlier."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not text.endswith(b"\0"):
        text += connection.recv(1 << 20)
    asked = json.loads(text[:-1])
    process = os.fork()
    if process == 0:
        connection.close()
        sys.exit(do(asked, streams))
    for stream in streams:
        os.close(stream)
    pause = 0.02
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        if select.select([connection], [], [], pause)[0]:
            for number in connection.recv(16) or [signal.SIGKILL]:
                os.kill(process, number)
        pause = min(1.02 * pause, 0.2)  # after 10 s
    with contextlib.suppress(BrokenPipeError):  # the client was killed
        connection.send(str(os.waitstatus_to_exitcode(ended[1])).encode())
    os._exit(0)


def do(asked, streams):
    """Run the requested command."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["directory"])
    sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))  # nothing was computed before the fork
    signal.signal(signal.SIGINT, signal.default_int_handler)
    first, *rest = itertools.dropwhile(lambda argument: argument == "-u", asked["arguments"])  # no stream has a buffer that matters
    sys.argv = rest if first == "-m" else ["-c", *rest[1:]] if first == "-c" else [first, *rest]
    sys.path[0] = "" if first in ("-m", "-c") else str(Path(first).parent.resolve())
    if first == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        main = sys.modules["__main__"] = types.ModuleType("__main__")  # what joblib starts would import this file otherwise
        exec(rest[0], vars(main))
    else:
        runpy.run_path(first, run_name="__main__")


def connect(connection, place, within_s=120):
    """Connect to a server that may still be starting."""
    limit = time.monotonic() + within_s
    while connection.connect_ex(place):
        if time.monotonic() > limit:
            sys.exit(f"warm.py: no server at {place}")
        time.sleep(0.05)


def ask(place, arguments):
    """The client's part."""
    with socket.socket(socket.AF_UNIX) as connection:
        connect(connection, place)
        for number in PASSED_ON:
            signal.signal(number, lambda number, frame: connection.send(bytes([number])))
        asked = {"arguments": arguments, "directory": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(connection, [b" "], [0, 1, 2])
        connection.sendall(json.dumps(asked).encode() + b"\0")
        code = int(connection.recv(16) or 1)
    if code < 0:
        if -code != signal.SIGKILL:  # it has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
