"""One process at a time in a directory."""

from __future__ import annotations

import os
import socket
import threading
from argparse import Namespace
from contextlib import nullcontext

import pytest
from holder import held_by_another

from llmmod.app import _own_directory
from llmmod.config.validate import compose_validated
from llmmod.errors import EXIT_CONFIG
from llmmod.files.lock import NAME, DirectoryInUseError, holding


def test_the_error_names_the_holder_and_a_killed_holder_releases_it(tmp_path):
    run = tmp_path / "run"
    with held_by_another(run) as process:
        with pytest.raises(DirectoryInUseError) as told, holding(run):
            pass
        assert str(told.value).startswith(f"output_dir: '{run}' is held by process {process} on {socket.gethostname()} since 20")
        assert "(llmmod seed=1). Only one run at a time may write to a directory. Wait until it ends, choose another" in str(told.value)
        assert told.value.exit_code == EXIT_CONFIG
    with holding(run):
        assert (run / NAME).exists()
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("machine", [0, 1])
def test_the_first_of_several_machines_locks_the_directory(machine, tmp_path):
    """All machines see the directory, and run the same command."""
    machines = ["distributed=ddp", "distributed.nodes=2", f"distributed.rank={machine}", "distributed.address=first:29500"]
    composed = compose_validated([*machines, "smoke=true", f"output_dir={tmp_path}"])
    refused = pytest.raises(DirectoryInUseError) if machine == 0 else nullcontext()
    with held_by_another(tmp_path), refused, _own_directory(composed, Namespace(overrides=[])):
        pass


def test_the_second_can_wait(tmp_path, caplog):
    with held_by_another(tmp_path) as process:
        threading.Timer(0.3, lambda: os.kill(process, 9)).start()
        with holding(tmp_path, wait=True):
            assert f"is held by process {process}" in caplog.text
            assert caplog.text.count("waiting for it to end") == 1


def test_it_is_held_once_by_a_process_and_those_that_it_starts(tmp_path):
    with holding(tmp_path), holding(tmp_path):
        process = os.fork()
        if not process:
            with holding(tmp_path):
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 7
        assert (tmp_path / NAME).exists()
    assert not (tmp_path / NAME).exists()


def test_a_directory_that_cannot_be_created_is_not_an_error_here(tmp_path):
    (tmp_path / "file").write_text("")
    entered = False
    with holding(tmp_path / "file" / "run"):
        entered = True
    assert entered
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_lock_file_that_is_removed_during_the_wait_is_created_again(tmp_path, monkeypatch):
    """The first process removes the file and ends after the second has opened it and before the second locks it."""
    import llmmod.files.lock as module

    opened, real = [], module._locked

    def removed_once(number):
        opened.append(number)
        if len(opened) == 1:
            (tmp_path / NAME).unlink()
        return real(number)

    monkeypatch.setattr(module, "_locked", removed_once)
    with holding(tmp_path), pytest.raises(DirectoryInUseError):
        held_elsewhere(tmp_path)
    assert len(opened) == 2


def held_elsewhere(directory):
    """Lock the directory in another process, and raise the error that it gets."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        os.environ["LLMMOD_HOLDS"] = ""
        try:
            with holding(directory):
                os.write(writer, b"got it")
        except DirectoryInUseError:
            os.write(writer, b"in use")
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    if os.read(reader, 6) == b"in use":
        raise DirectoryInUseError([])
