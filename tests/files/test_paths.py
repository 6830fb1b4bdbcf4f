from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmmod.errors import ConfigError
from llmmod.files.paths import atomic_write, find_files, is_hub_id, resolve_path, shown, sweep_partial


def test_a_package_path_is_a_file_of_the_installed_package():
    path = resolve_path("pkg://llmmod.demo/__init__.py")
    assert isinstance(path, Path)
    assert path.is_file()
    assert path.name == "__init__.py"


def test_resolving_runs_no_code_of_the_package(tmp_path, monkeypatch):
    inner = tmp_path / "loud_outer" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (inner / "rows.json").write_text("[]")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_path("pkg://loud_outer.inner/rows.json") == inner / "rows.json"
    assert resolve_path("pkg://loud_outer/inner/rows.json") == inner / "rows.json"
    assert "loud_outer" not in sys.modules


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pkg://no_such_package_here/x.json", ["dataset.path: ", "the package 'no_such_package_here' isn't installed"]),
        ("pkg://llmmod.conf/confg.yaml", ["dataset.path: ", "doesn't have 'confg.yaml'", "Did you mean 'config.yaml'?"]),
    ],
    ids=["package", "file"],
)
def test_a_wrong_package_path_names_its_key(text, words):
    with pytest.raises(ConfigError) as error:
        resolve_path(text, key="dataset.path")
    assert all(word in str(error.value) for word in words)


def test_what_is_not_on_this_disk_stays_text(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    assert resolve_path("someone/some-model") == "someone/some-model"
    assert resolve_path("~/here") == tmp_path / "here"
    assert resolve_path(str(tmp_path)) == tmp_path


def test_globs_are_sorted_and_no_file_comes_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.json", "a.json", "deep/c.json", "data[1].json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_files("[ab].json", key="k") == [Path("a.json"), Path("b.json")]
    assert find_files(["b.json", "?.json"], key="k") == [Path("b.json"), Path("a.json")]
    assert find_files("**/c.json", key="k") == [Path("deep/c.json")]
    assert find_files("deep/**", key="k") == [Path("deep/c.json")]
    assert find_files("data[1].json", key="k") == [Path("data[1].json")]
    assert find_files("c.json", key="k", base=tmp_path / "deep") == [tmp_path / "deep/c.json"]


def test_all_missing_files_are_named_at_once_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.json").touch()
    with pytest.raises(ConfigError) as error:
        find_files(["tran.json", "none/*.csv", "pkg://no_such_package_here/x"], key="dataset.data_files")
    assert [str(problem) for problem in error.value.problems] == [
        f"dataset.data_files: no such file or directory: 'tran.json' ({tmp_path}/tran.json). Did you mean 'train.json'?",
        f"dataset.data_files: no file matches 'none/*.csv' ({tmp_path}/none/*.csv).",
        "dataset.data_files: 'pkg://no_such_package_here/x': the package 'no_such_package_here' isn't installed. "
        "Install it, or give a path.",
    ]


def test_a_path_is_shown_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "a" / "b.json") == str(Path("a/b.json"))
    assert shown(Path("/elsewhere/b.json")) == "/elsewhere/b.json"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.json"
    with atomic_write(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    with pytest.raises(UnicodeEncodeError), atomic_write(path) as partial:
        partial.write_text("second, \ud800", encoding="utf-8")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_partial_files_of_killed_processes_are_removed(tmp_path):
    for name in (".run.json.123", ".training_loss.png.9", "run.json", ".hidden", ".reserve", "a.1"):
        (tmp_path / name).write_text("")
    (tmp_path / ".directory.5").mkdir()
    sweep_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", ".hidden", ".reserve", "a.1", ".directory.5"}


@pytest.mark.parametrize("text", ["gpt2", "HuggingFaceTB/SmolLM2-135M", "_name/x.y-z"])
def test_names_of_the_hub(text):
    assert is_hub_id(text)


@pytest.mark.parametrize("text", ["", "./model", "../model", "/model", "runs/sft/model", "-name", "owner/", "a name", "pkg://x/y"])
def test_paths_are_not_names_of_the_hub(text):
    assert not is_hub_id(text)
