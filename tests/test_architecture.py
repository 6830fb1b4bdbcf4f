"""Design rules as tests: the number and length of modules, their imports, and what a file may mention."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from llmmod.upstream import PRIVATE_NAMES

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "llmmod"
HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "accelerate", "numpy")
MODULES = sorted(path for path in SOURCE.rglob("*.py") if "generated" not in path.parts)
ROOMS = [path for path in MODULES if path.name != "__init__.py"]
# Never import anything heavy; listed as in pyproject.toml's contracts, which see imports inside functions too.
LIGHT = ["app", "config", "data.formats", "distributed", "errors", "files.paths", "instantiate", "pages", "pipeline", "protocols", "render"]
LIGHT += ["runs", "signals", "sweep", "targets", "upstream"]
MOST_MODULES = 170  # without the generated ones
MOST_SIDE_BY_SIDE = 12
# Users add formats, rewards, schemas and steps by copying a file, so these may be short; other modules have at least 60 lines.
COPIED = ("config.schema", "data.formats", "rewards", "steps")
SHORT = {
    "__main__": "what `python -m llmmod` asks for",
    "distributed": "rank, world size and cores, which code above the torch line asks for too",
}


def relative(path):
    return path.relative_to(ROOT).as_posix()


def module_name(path):
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_says_what_it_is_and_stays_short(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip(), "no docstring on top"
    assert len(text.splitlines()) <= 300
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions(tree)}
    assert {name: lines for name, lines in long.items() if lines > 60} == {}


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_what_is_public_is_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = [
        node
        for owner in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))]
        for node in owner.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [node.name for node in public if not ast.get_docstring(node) and not _overrides(node)] == []


def _overrides(node):
    """Whether a function is marked as an override, which is documented at its declaration, or is a property's setter."""
    return any(ast.unparse(decorator).endswith(("override", "setter", "overload")) for decorator in node.decorator_list)


def test_a_module_holds_an_idea_and_not_a_fragment_of_one():
    lines = {module_name(path).removeprefix("llmmod."): len(path.read_text(encoding="utf-8").splitlines()) for path in ROOMS}
    assert len(lines) <= MOST_MODULES
    short = {name: count for name, count in lines.items() if count < 60 and not f"{name}.".startswith(tuple(f"{part}." for part in COPIED))}
    assert {name: count for name, count in short.items() if name not in SHORT} == {}
    side_by_side = Counter(name.rpartition(".")[0] for name in lines)
    assert {package: count for package, count in side_by_side.items() if count > MOST_SIDE_BY_SIDE} == {}


def imports(path, known):
    """Modules of ours that a module imports, at its top or inside a function; without imports for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    for_types = {id(node) for guard in guards for node in ast.walk(guard)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (name if (name := f"{node.module}.{alias.name}") in known else node.module for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def circles(edges):
    """The sets of nodes that reach each other."""
    reached = {}
    for start in edges:
        seen, ahead = set(), [start]
        while ahead:
            new = edges.get(ahead.pop(), set()) - seen
            seen |= new
            ahead += new
        reached[start] = seen
    found = {frozenset(other for other in seen if start in reached.get(other, ())) for start, seen in reached.items()}
    return [set(circle) for circle in found if len(circle) > 1]


def test_no_import_goes_in_a_circle():
    """Neither between modules nor between packages; a module belongs to its direct package."""
    paths = {module_name(path): path for path in MODULES}
    package = {name: name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in paths.items()}
    modules, packages = {}, defaultdict(set)
    for name, path in paths.items():
        modules[name.removeprefix("llmmod.")] = {other.removeprefix("llmmod.") for other in imports(path, paths) if other in paths}
        for other in imports(path, paths):
            if other in paths and "llmmod" not in (package[name], package[other]) and package[name] != package[other]:
                packages[package[name].removeprefix("llmmod.")].add(package[other].removeprefix("llmmod."))
    assert sum(map(len, modules.values())) > 500, "the imports are not found"
    assert circles(modules) == []
    assert circles(packages) == []


def test_tools_for_tests_are_not_used_in_production():
    found = [relative(path) for path in MODULES if any(name.startswith(("unittest", "pytest")) for name in imports(path, ()))]
    assert found == []


@pytest.mark.parametrize("where", sorted({use.where for use in PRIVATE_NAMES}))
def test_a_module_checks_the_private_names_of_other_libraries_before_it_uses_them(where):
    """The table in upstream.py must also change when a module is renamed; tests/test_upstream.py compares the names."""
    module = SOURCE.joinpath(*where.split(".")).with_suffix(".py")
    assert module.exists(), "the table in upstream.py names a module that is not there"
    texts = [path.read_text(encoding="utf-8") for path in (module, module.parent / "__init__.py")]
    assert any("require_upstream(__name__" in text for text in texts)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_names_that_say_nothing_are_not_used(path):
    assert not re.search(r"util|helper|manager|misc|common", relative(path))


def test_light_modules_import_nothing_heavy():
    """All of them in one new process, so that indirect imports are found too."""
    names = [name for name in map(module_name, MODULES) if any(f"{name}.".startswith(f"llmmod.{light}.") for light in LIGHT)]
    assert len(names) > 30, "the list of light modules matches nothing"
    script = f"""
import sys, importlib
for name in {["llmmod", *names]}:
    importlib.import_module(name)
print([heavy for heavy in {HEAVY} if heavy in sys.modules])
"""
    environment = {**os.environ, "LLMMOD_ALLOW": ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def shipped_files():
    """Every text file of the repository, except tests/ and the files that git ignores."""
    for folder in (".ci", "benchmarks", "conf", "data", "src"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file() and "egg-info" not in str(path))
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.name != ".git")  # in a worktree, .git is a file


def test_scripts_and_helpers_of_tests_have_different_names():
    """Both directories are on the path when tests import a script; the second of two equal names could not be imported."""
    scripts, helpers = ({path.stem for path in (ROOT / name).iterdir()} for name in ("benchmarks", "tests/support"))
    assert scripts & helpers <= {"__pycache__"}


def test_no_file_mentions_a_path_of_somebodys_machine():
    machine = re.compile(rf"(?<![\w.:-])(/(root|work|Users|home/\w+)/|{re.escape(str(Path.home()))}\b)")
    found = {}
    for path in shipped_files():
        if "__pycache__" not in path.parts and path.suffix not in (".model", ".png"):
            lines = path.read_text(encoding="utf-8").splitlines()
            if hits := [number for number, line in enumerate(lines, start=1) if machine.search(line)]:
                found[relative(path)] = hits
    assert found == {}


def test_each_option_names_the_command_that_uses_it():
    options = sorted((ROOT / "conf").rglob("*.yaml"))
    assert len(options) > 30
    lines = {relative(path): path.read_text(encoding="utf-8").splitlines() for path in options}
    first = {path: next(line for line in text if not line.startswith("# @package")) for path, text in lines.items()}
    assert {path: line for path, line in first.items() if not line.startswith("# llmmod")} == {}
