"""For `make test-latest`: the libraries to install, then a report of changed versions and missing private names.

python .ci/latest.py names            the libraries of pyproject.toml, without their caps
python .ci/latest.py report           the report, in the environment with the newest releases
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]


def names(project: dict) -> list[str]:
    """The names of the libraries that the project and its `dev` extra need, without versions."""
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return sorted({re.match(r"[\w.-]+", text)[0] for text in asked})


def moved(tested: dict[str, str], found: dict[str, str]) -> Iterator[str]:
    """A line for each library whose version differs from the tested one, and for each new library."""
    for name in sorted(tested.keys() | found.keys()):
        before, after = tested.get(name), found.get(name)
        if before and after and after.partition("+")[0] != before:
            yield f"{name} {before} -> {after}"
        elif not before:
            yield f"{name} {after}, new"


def normal(name: str) -> str:
    """A library's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def report() -> None:
    """Print the changed versions, and the private names of src/llmmod/upstream.py that the installed libraries don't have."""
    from llmmod.upstream import PRIVATE_NAMES, missing_names

    pinned = (line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line)
    found = {normal(part.metadata["Name"]): part.version for part in distributions()}
    found = {name: version for name, version in found.items() if name not in ("llmmod", "pip")}
    lines = list(moved({normal(name): version for name, version in pinned}, found))
    print("\nWhat moved:", *(lines or ["nothing"]), sep="\n  ")
    gone = {str(problem): use.where for use in PRIVATE_NAMES for problem in missing_names(use)}
    print("\nPrivate names that are gone:", *([f"{where}: {text}" for text, where in gone.items()] or ["none"]), sep="\n  ")


if __name__ == "__main__":
    if sys.argv[1:] == ["names"]:
        print(*names(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]), sep="\n")
    else:
        report()
