"""The wheel, built and installed elsewhere, runs from another directory with all of its data files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SOURCES = ["pyproject.toml", "README.md", "LICENSE", "src", "conf", "data"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools also packs files of an earlier build in build/, even if they are deleted in the source."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        path = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(path, source / name, ignore=ignored) if path.is_dir() else shutil.copy(path, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A directory with the wheel, without this checkout."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, timeout=120)
    return target


def run(installed, tmp_path, *arguments):
    """`python …` from another directory, with the installed package first on the path."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120)


def expected_files():
    """The files of the source that a run needs: every option, every demonstration row, the small tokenizer, every module and page."""
    for folder, package, patterns in [
        ("conf", "llmmod/conf", ["*.yaml", "*.py"]),
        ("data", "llmmod/demo", ["*.json", "*.jsonl", "*.py"]),
        ("src/llmmod", "llmmod", ["*.py", "*.html", "*.css", "*.js", "py.typed", "other_tools.yaml"]),
        ("src/llmmod/models/loading/tiny_tokenizer", "llmmod/models/loading/tiny_tokenizer", ["*"]),
    ]:
        for pattern in patterns:
            for path in (ROOT / folder).rglob(pattern):
                if path.is_file() and "__pycache__" not in path.parts:
                    yield f"{package}/{path.relative_to(ROOT / folder).as_posix()}"


def test_everything_a_run_needs_is_in_the_wheel(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = set(expected_files())
    for part in ("llmmod/conf/model/smollm2.yaml", "llmmod/demo/", "llmmod/models/loading/tiny_tokenizer/", "llmmod/app.py"):
        assert [name for name in expected if name.startswith(part)], f"the source has no {part}"
    assert expected - inside == set()


def test_nothing_else_is_in_the_wheel(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name for name in inside if not name.startswith("llmmod/")} == set()
    assert {name for name in inside - set(expected_files()) if not name.endswith((".md", ".txt"))} == set()


def test_the_license_travels(wheel):
    assert [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("dist-info/licenses/LICENSE")]


def test_the_installed_package_is_the_one_that_runs(installed, tmp_path):
    done = run(installed, tmp_path, "-c", "import llmmod; print(llmmod.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(installed), done.stdout + done.stderr


def test_it_composes_from_another_directory(installed, tmp_path):
    done = run(installed, tmp_path, "-m", "llmmod", "--cfg", "job", "finetune.r=4")
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["finetune"]["r"] == 4
    assert config["pipeline"] == ["train", "evaluate", "predict", "export"]
    assert list(tmp_path.iterdir()) == [], "showing a configuration writes nothing"


def test_a_misspelt_key_is_refused_from_another_directory(installed, tmp_path):
    done = run(installed, tmp_path, "-m", "llmmod", "finetune.rr=4")
    assert done.returncode == 2
    assert "finetune.rr" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
