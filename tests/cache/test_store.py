"""A key's directory is complete or missing, with concurrent writers and killed ones."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from llmmod.cache import store as module
from llmmod.cache.store import MANIFEST, Cache, cache_directory

FORK = multiprocessing.get_context("fork")


def write(directory):
    (directory / "a").write_text("first")
    (directory / "b").write_text("second")
    return True


def never(directory):
    raise AssertionError("it was there already")


def content(place):
    return {path.name: path.read_text() for path in place.iterdir() if path.name != MANIFEST}


WHOLE = {"a": "first", "b": "second"}


def test_what_was_written_is_found(tmp_path):
    place, found = Cache(tmp_path / "deep" / "down").get("k", write)
    assert (content(place), found) == (WHOLE, False)
    assert Cache(tmp_path / "deep" / "down").get("k", never) == (place, True)


def test_what_is_not_to_be_kept_is_usable_and_not_found(tmp_path):
    place, found = Cache(tmp_path).get("k", lambda directory: write(directory) and False)
    assert (content(place), found) == (WHOLE, False)
    with pytest.raises(AssertionError):
        Cache(tmp_path).get("k", never)


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def fail(directory):
        (directory / "a").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).get("k", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / "b").write_text("secone"),
        lambda place: (place / "b").unlink(),
        lambda place: (place / MANIFEST).unlink(),
        lambda place: (place / MANIFEST).write_text('{"a": '),
        lambda place: (place / MANIFEST).write_text("[]"),
        lambda place: os.truncate(place / "a", 2),
    ],
    ids=["changed", "missing", "no-manifest", "half-a-manifest", "no-object", "cut"],
)
def test_a_damaged_directory_is_written_again(tmp_path, damage, caplog):
    place, _ = Cache(tmp_path).get("k", write)
    damage(place)
    again, found = Cache(tmp_path).get("k", write)
    assert (again, found) == (place, False)
    assert content(again) == WHOLE
    assert "is damaged; it is written again" in caplog.text


def slowly(directory):
    with (directory.parent / "writers").open("a") as file:
        file.write("x")
    (directory / "a").write_text("first")
    time.sleep(0.3)
    (directory / "b").write_text("second")
    return True


def get(directory, queue):
    place, found = Cache(directory).get("k", slowly)
    queue.put((content(place), found))


@pytest.mark.parametrize("locks", [True, False], ids=["with locks", "without"])
def test_two_processes_at_once_see_a_complete_directory(tmp_path, locks, monkeypatch):
    if not locks:
        monkeypatch.setattr(module, "_lock_to_write", lambda file, key: None)
    queue = FORK.Queue()
    workers = [FORK.Process(target=get, args=(tmp_path, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    seen = [queue.get(timeout=20) for _ in workers]
    for worker in workers:
        worker.join(20)
    assert [whole for whole, _ in seen] == [WHOLE, WHOLE]
    if locks:  # the second waits and doesn't write again
        assert sorted(found for _, found in seen) == [False, True]
        assert (tmp_path / "writers").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["k"]


def hang(directory):
    (directory / "a").write_text("fir")
    (directory.parent / "begun").touch()
    time.sleep(60)


def test_a_killed_writer_leaves_neither_a_complete_directory_nor_a_lock(tmp_path):
    worker = FORK.Process(target=Cache(tmp_path).get, args=("k", hang))
    worker.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(20)
    place, found = Cache(tmp_path).get("k", write)
    assert (content(place), found) == (WHOLE, False)


def test_leftovers_of_a_killed_writer_are_removed_after_a_day(tmp_path):
    old, new = tmp_path / "x-1.tmp", tmp_path / "x-2.tmp"
    for path in (old, new):
        path.mkdir()
        (path / "a").touch()
    for path in (old / "a", old):
        os.utime(path, (0, time.time() - module.ABANDONED_S - 1))
    Cache(tmp_path).get("k", write)
    assert (old.exists(), new.exists()) == (False, True)


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLMMOD_CACHE", "~/mine")
    assert cache_directory("/hub") == tmp_path / "mine"
    monkeypatch.delenv("LLMMOD_CACHE")
    assert [str(cache_directory(given)) for given in ("/hub", None)] == ["/hub/llmmod", str(tmp_path / ".cache" / "llmmod")]
