"""A cache stays below its limit: the least recently used directories are removed, but not those that a running process uses."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from llmmod.cache import store as module
from llmmod.cache.store import MANIFEST, Cache

FORK = multiprocessing.get_context("fork")
SIZE = 10_000


def write(directory):
    (directory / "a").write_bytes(bytes(SIZE))
    return True


def never(directory):
    raise AssertionError("it was there already")


def in_a_process(work, *args):
    worker = FORK.Process(target=work, args=args)
    worker.start()
    worker.join(20)
    assert worker.exitcode == 0


def make(directory, *keys, limit=None):
    """Write some keys, each in a process that has ended."""
    for key in keys:
        in_a_process(Cache(directory, max_bytes=limit).get, key, write)


def used(directory, **ago):
    """Set the last use of each key to this many seconds ago."""
    for key, seconds in ago.items():
        os.utime(directory / f"{key}.use", (time.time() - seconds,) * 2)


def kept(directory):
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def test_the_least_recently_used_is_removed_first(tmp_path):
    make(tmp_path, "a", "b", "c")
    used(tmp_path, a=120, b=90, c=60)
    in_a_process(Cache(tmp_path).get, "a", never)
    make(tmp_path, "d", limit=3 * SIZE + 2000)  # the manifests take some of it
    assert kept(tmp_path) == ["a", "c", "d"]
    make(tmp_path, "e", limit=1)
    assert kept(tmp_path) == ["e"]
    make(tmp_path, "b", limit=None)
    assert kept(tmp_path) == ["b", "e"]


def test_a_hit_removes_nothing(tmp_path):
    make(tmp_path, "a", "b")
    in_a_process(Cache(tmp_path, max_bytes=1).get, "a", never)
    assert kept(tmp_path) == ["a", "b"]


def test_keys_that_this_process_uses_stay(tmp_path):
    cache = Cache(tmp_path, max_bytes=1)
    place, _ = cache.get("a", write)
    cache.get("b", write)
    cache.get("c", write)
    assert (kept(tmp_path), cache.get("a", never)) == (["a", "b", "c"], (place, True))


def test_one_directory_has_one_lock_whatever_its_path(tmp_path, monkeypatch):
    """POSIX releases a process's lock on a file as soon as the process closes any handle of that file."""
    Cache(tmp_path).get("a", write)
    monkeypatch.chdir(tmp_path)
    Cache(Path(), max_bytes=1).get("b", write)
    make(tmp_path, "c", limit=1)
    assert kept(tmp_path) == ["a", "b", "c"]


def hold_on(directory, key, how):
    Cache(directory).get(key, how)
    (directory / "held").touch()
    time.sleep(60)


@pytest.mark.parametrize("how", [write, never], ids=["wrote it", "found it"])
def test_keys_that_another_process_uses_stay_until_it_ends(tmp_path, how):
    make(tmp_path, *(["a"] if how is never else []), "b")
    worker = FORK.Process(target=hold_on, args=(tmp_path, "a", how))
    worker.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    make(tmp_path, "c", limit=1)
    assert kept(tmp_path) == ["a", "c"]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(20)
    make(tmp_path, "d", limit=1)
    assert kept(tmp_path) == ["d"]


def test_a_key_that_is_requested_during_its_removal_is_written_again(tmp_path, monkeypatch):
    make(tmp_path, "a")
    queue = FORK.Queue()

    def come():
        place, found = Cache(tmp_path).get("a", write)
        queue.put((found, (place / "a").stat().st_size))

    def slowly(place, **named):
        worker.start()
        time.sleep(0.3)
        assert queue.empty()  # the other process waits
        real(place, **named)

    real, worker = module.shutil.rmtree, FORK.Process(target=come)
    monkeypatch.setattr(module.shutil, "rmtree", slowly)
    assert module.shrink(tmp_path, 0, manifest=MANIFEST) == [tmp_path / "a"]
    monkeypatch.undo()
    assert queue.get(timeout=20) == (False, SIZE)
    worker.join(20)


def test_many_processes_at_once_find_their_keys(tmp_path):
    """Each process writes or finds a key, and reads it after others have written theirs and removed some to make room."""

    def work(key):
        place, _ = Cache(tmp_path, max_bytes=SIZE).get(key, write)
        time.sleep(0.1)
        assert (place / "a").stat().st_size == SIZE

    workers = [FORK.Process(target=work, args=(key,)) for key in "abcabdabe"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * len(workers)
    make(tmp_path, "z", limit=SIZE)
    assert kept(tmp_path) == ["z"]


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_lock_file", lambda file, *, alone: False)
    make(tmp_path, "a", "b", limit=1)
    assert kept(tmp_path) == ["a", "b"]


def test_other_directories_are_not_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_bytes(bytes(SIZE))
    make(tmp_path, "a", "b", limit=1)
    assert kept(tmp_path) == ["b", "mine"]


def test_without_a_use_file_the_directory_s_age_counts(tmp_path):
    make(tmp_path, "a", "b")
    (tmp_path / "a.use").unlink()
    os.utime(tmp_path / "a", (0, 0))
    make(tmp_path, "c", limit=2 * SIZE + 2000)
    assert kept(tmp_path) == ["b", "c"]
