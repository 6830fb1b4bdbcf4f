"""Arguments read from source equal those that `inspect` finds on the imported object, or are unknown."""

from __future__ import annotations

import ast
import inspect
import os

import pytest

from llmmod.config import signature
from llmmod.config.signature import called, parameters, required
from llmmod.instantiate import locate

READ = [
    "transformers.EarlyStoppingCallback",
    "transformers.Seq2SeqTrainingArguments",
    "transformers.DataCollatorForSeq2Seq",
    "transformers.get_cosine_schedule_with_warmup",
    "trl.SFTTrainer",
    "trl.SFTConfig",
    "trl.ModelConfig",
    "peft.LoraConfig",
    "torch.nn.Linear",
    "torch.optim.AdamW",
    "torch.utils.data.SequentialSampler",
    "llmmod.metrics.Rouge",
]


@pytest.mark.parametrize("path", READ)
def test_as_inspect_finds_them(path):
    found = parameters(path)
    assert found is not None
    taken = inspect.signature(locate(path)).parameters.values()
    assert found == {p.name for p in taken if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


@pytest.mark.parametrize(
    "path",
    ["transformers.GenerationConfig", "transformers.AutoModel.from_pretrained", "no_such_module.X", "torch.nn.NoSuchThing", "builtins.int"],
)
def test_undecided(path):
    assert parameters(path) is None


SOURCE = """
from dataclasses import dataclass
try:
    from .other import Far
except ImportError:
    pass

@dataclass
class Base:
    a: int
    b: int = 1

@dataclass
class Derived(Base):
    c: int = 2

class Plain(Derived):
    def method(self, x): ...

class Empty: ...

class Own:
    def __init__(self, a, /, b, *args, c=1): ...
    @classmethod
    def create(cls, d): ...

class Open:
    def __init__(self, a, **rest): ...

class Unknown(Missing): ...

def function(a, *, b): ...

@decorated
def changed(a): ...

if True:
    class Inside:
        def __init__(self, z): ...
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in the working directory that can't be imported."""
    package = tmp_path / "beside_package"
    package.mkdir()
    (package / "__init__.py").write_text(SOURCE + "\nraise SystemExit('imported')\n")
    (package / "other.py").write_text("class Far:\n    def __init__(self, far): ...\n    def __call__(self, x, *, y=1): ...\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Base", "a b"),
        ("Derived", "a b c"),
        ("Plain", "a b c"),
        ("Empty", ""),
        ("Own", "b c"),
        ("Own.create", "d"),
        ("function", "a b"),
        ("Inside", "z"),
        ("Far", "far"),
        ("Open", None),
        ("Unknown", None),
        ("changed", None),
        ("Nothing", None),
        ("Own.no_such", None),
    ],
)
def test_source(package, name, expected):
    found = parameters(f"beside_package.{name}")
    assert found == (None if expected is None else frozenset(expected.split()))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("function", "a b"), ("Far", "self x"), ("Own", None), ("Own.create", None), ("changed", None), ("Nothing", None)],
)
def test_what_is_called(package, name, expected):
    found = called(f"beside_package.{name}")
    assert found is None if expected is None else found is not None and required(found) == expected.split()


def test_a_file_is_parsed_once_for_all_working_directories(tmp_path, monkeypatch):
    """Each job of a sweep may have its own. Each used to parse transformers' arguments anew and keep them: 200 MB after a hundred jobs."""
    signature._parsed.cache_clear()
    files = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert "learning_rate" in parameters("transformers.TrainingArguments")
        files.append(signature._parsed.cache_info().currsize)
    assert files[0] == files[1] > 0


def test_trees_hold_no_bodies_of_functions(tmp_path, monkeypatch):
    (tmp_path / "long_body.py").write_text("class A:\n    def __init__(self, a):\n" + "        a = a + 1\n" * 500)
    monkeypatch.chdir(tmp_path)
    assert parameters("long_body.A") == {"a"}
    assert sum(1 for _ in ast.walk(signature._module("long_body", str(tmp_path)).tree)) < 20


def test_a_file_that_changed_is_read_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "changes_soon.py"
    file.write_text("def f(a): ...\n")
    assert [arg.arg for arg in called("changes_soon.f").args.args] == ["a"]
    file.write_text("def f(a, b): ...\n")
    os.utime(file, ns=(1, 1))
    assert [arg.arg for arg in called("changes_soon.f").args.args] == ["a", "b"]
