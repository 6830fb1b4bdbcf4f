"""Our dependence on other libraries: their versions, and their private names, which must be the same in the table and the source."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import hydra.version
import pytest
from upstream_uses import all_uses, our_classes, overriding, parsed, uses_in

from llmmod import upstream
from llmmod.app import main
from llmmod.errors import LlmmodError
from llmmod.upstream import KNOWN_TO_WORK, PRIVATE_NAMES, UpstreamError, Use, installed, missing_names, replaced, require_upstream

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "llmmod"


def test_a_package_that_is_not_there_has_no_version():
    assert installed("hydra-core") == version("hydra-core")
    assert installed("no-such-package-anywhere") is None


def test_the_command_line_names_every_library_and_imports_none():
    script = "import sys; from llmmod.app import run_command; print(run_command(['llmmod', '--version']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    *lines, last = done.stdout.splitlines()
    assert {"transformers " + version("transformers"), "torch " + version("torch"), "peft " + version("peft")} <= set(lines)
    assert last == "0 False"


@pytest.fixture(scope="module")
def source():
    """Our modules' syntax trees, and our classes."""
    trees = parsed(SOURCE)
    return trees, our_classes(trees)


def test_the_table_has_every_private_name_that_the_source_uses_and_no_other(source):
    listed = [(use.where, name) for use in PRIVATE_NAMES for name in use.names.split()]
    found = all_uses(*source)
    assert len(found) > 80, "the uses are not found"
    assert {"missing": sorted(found - set(listed)), "stale": sorted(set(listed) - found)} == {"missing": [], "stale": []}


def takes(function, *args, **named):
    """Whether a function can be called with these arguments."""
    try:
        inspect.signature(function).bind(*args, **named)
    except TypeError:
        return False
    return True


def test_a_method_of_ours_takes_what_the_library_gives_the_one_that_it_overrides(source):
    wrong, methods = [], 0
    for owner, name, theirs in overriding(source[1]):
        ours = vars(owner).get(name)
        if inspect.isfunction(ours) and inspect.isfunction(theirs):
            methods += 1
            given = [part for part in inspect.signature(theirs).parameters.values() if part.kind is not part.VAR_KEYWORD]
            by_name = {part.name: part for part in given if part.default is not part.empty}
            in_order = given[: len(given) - len(by_name)]
            if not takes(ours, *given) and not takes(ours, *in_order, **by_name):
                wrong.append(f"{owner.__name__}.{name}: {inspect.signature(ours)}, theirs {inspect.signature(theirs)}")
    assert methods > 30
    assert wrong == []


FOUND = {
    "a private name imported": ("from trl.trainer.utils import _tiles, pad", {"_tiles"}),
    "a name of a private module": ("from hydra._internal.utils import get_args_parser", {"get_args_parser"}),
    "an attribute read": ("model._attn = model.config._attn_implementation", {"_attn", "_attn_implementation"}),
    "a class patched": ("from peft.tuners.lora.layer import Linear\nLinear.forward = None", {"forward"}),
    "a module patched": ("import datasets\ndatasets.config.HF_HUB_OFFLINE = True", {"HF_HUB_OFFLINE"}),
    "a module patched that was imported by name": ("m = importlib.import_module('trl')\nm.LIMIT = 0", {"LIMIT"}),
    "a name replaced": ("with replaced(F, 'softmax', f): ...", {"softmax"}),
    "a name as text": ("getattr(model, '_cache', None)", {"_cache"}),
    "what is kept in __dict__": ("node.__dict__['_parent'] = None", {"_parent"}),
    "our own and Python's": ("from os import _exit\nself._own = other._replace(x=1)", set()),
}


@pytest.mark.parametrize(("text", "names"), FOUND.values(), ids=FOUND)
def test_a_use_of_a_private_name_is_found(text, names):
    assert set(uses_in(ast.parse(text), own={"_own"})) == names


def test_the_installed_libraries_have_every_name_of_the_table():
    there = [use for use in PRIVATE_NAMES if installed(use.package) is not None]  # for example, submitit is optional
    assert [str(problem) for use in there for problem in missing_names(use)] == []


def test_libraries_whose_private_names_we_use_are_capped_below_their_next_minor_version():
    assert KNOWN_TO_WORK.keys() == {use.package for use in PRIVATE_NAMES}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line)
    for package, series in KNOWN_TO_WORK.items():
        major, minor = series.split(".")
        caps = {text.partition(",<")[2] for text in asked if re.match(rf"{package}\W", text)}
        assert caps == {f"{major}.{int(minor) + 1}"}, package
        assert tested[package].startswith(f"{series}."), package


GONE = Use("app", "hydra-core", "hydra.version", "_gone getLogger", "reads flags")


def test_a_name_that_is_gone_is_said_with_the_versions_that_have_it(monkeypatch):
    monkeypatch.setattr(upstream, "PRIVATE_NAMES", (GONE,))
    require_upstream("llmmod.config")
    require_upstream("llmmod.app", "torch")
    with pytest.raises(UpstreamError) as error:
        require_upstream("llmmod.app")
    assert isinstance(error.value, LlmmodError)
    first, second = str(error.value).splitlines()
    assert first == (
        f"hydra.version._gone: not in hydra-core {version('hydra-core')}, which is installed. llmmod reads flags with it."
        " Known to work: hydra-core 1.3.*. Install one of them: pip install 'hydra-core>=1.3,<1.4'."
    )
    assert second.startswith("hydra.version.getLogger: ")


@pytest.mark.parametrize("owner", ["hydra.no_such_module", "hydra.version:NoSuchClass"])
def test_a_name_whose_owner_is_gone_is_missing_too(owner):
    (problem,) = missing_names(Use("app", "hydra-core", owner, "name", "reads flags"))
    assert problem.key == owner.replace(":", ".") + ".name"


def test_the_command_ends_with_1_and_that_message(monkeypatch, capsys):
    monkeypatch.setattr(upstream, "PRIVATE_NAMES", (GONE,))
    monkeypatch.setattr(sys, "argv", ["llmmod", "--cfg", "job"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("hydra.version._gone: not in hydra-core")


def test_replaced_names_are_restored():
    class Below(Use):
        pass

    own = hydra.version.getbase
    with contextlib.suppress(KeyError), replaced(hydra.version, "getbase", None), replaced(Below, "names", 1):
        assert (hydra.version.getbase, Below.names) == (None, 1)
        raise KeyError
    assert hydra.version.getbase is own
    assert "names" not in vars(Below)


def latest():
    """The script of `make test-latest`."""
    spec = importlib.util.spec_from_file_location("latest", ROOT / ".ci" / "latest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_newest_releases_are_asked_for_without_caps():
    names = latest().names(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])
    assert {"hydra-core", "torch", "bitsandbytes", "pytest"} <= set(names)
    assert [name for name in names if not re.fullmatch(r"[\w-]+", name)] == []


def test_the_newest_releases_are_compared_with_the_tested_ones():
    tested = {"trl": "1.16.0", "torch": "2.13.0", "peft": "0.21.2", "sphinx": "9.0.4"}
    moved = latest().moved(tested, {"trl": "1.17.0", "torch": "2.13.0+cpu", "peft": "0.21.2", "orjson": "4.0"})
    assert list(moved) == ["orjson 4.0, new", "trl 1.16.0 -> 1.17.0"]


def test_the_report_names_the_private_names_that_are_gone(monkeypatch, capsys):
    monkeypatch.setattr(upstream, "PRIVATE_NAMES", (GONE,))
    latest().report()
    assert "app: hydra.version._gone: not in hydra-core" in capsys.readouterr().out.partition("Private names that are gone:")[2]
