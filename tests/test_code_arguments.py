"""A component that a configuration may name doesn't run code from a hostile directory, whatever its arguments are.

A node, as in a configuration, calls every callable that the rules of `targets` allow, with arguments that point at such a
directory. Audit events (PEP 578) show what is compiled, imported, unpickled, started and written during the call.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
import pkgutil
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmmod.errors import ConfigError
from llmmod.instantiate import build, locate
from llmmod.targets import PACKAGES, refusal, refusal_in_package
from tests.support.hostile import Watch, hostile_directory, template, watching

CALLS_S = 10  # the limit for a call
STRONG = {"trust_remote_code": True, "weights_only": False, "allow_pickle": True, "use_kernels": True, "allow_all_kernels": True}


def modules(name: str) -> Iterator[object]:
    """A module and those below it that a path in a configuration may pass through."""
    if refusal_in_package(f"{name}.x") and not name.startswith("llmmod"):
        return
    try:
        module = importlib.import_module(name)
    except Exception:  # it needs something that isn't installed
        return
    yield module
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if not found.name.startswith("_"):
            yield from modules(f"{name}.{found.name}")


def nameable() -> dict[str, str]:
    """The objects that a configuration may name: their real location -> a path that leads there.

    Of transformers.models, only the Auto classes and one family; another test checks the source of the others.
    """
    found: dict[str, str] = {}
    for package in PACKAGES.values():
        for prefix in dict.fromkeys(package.classes + package.functions):
            whole = prefix in sys.modules or importlib.util.find_spec(prefix.rpartition(".")[0]) is None or _is_module(prefix)
            for below in ("auto", "llama") if prefix == "transformers.models" else ("",):
                for module in modules(f"{prefix}.{below}".strip(".") if whole else prefix.rpartition(".")[0]):
                    found |= dict(_of(module))
    return found


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _of(module) -> Iterator[tuple[str, str]]:
    for name, value in list(vars(module).items()):
        if name.startswith("_") or not callable(value):
            continue
        makers = [f".{maker}" for maker in dir(value) if maker.startswith("from_")] if isinstance(value, type) else []
        for path in (f"{module.__name__}.{name}{maker}" for maker in ("", *makers)):
            if refusal(path):
                continue
            try:
                it = locate(path)
            except ConfigError:
                continue
            owner = f"{it.__self__.__module__}.{it.__self__.__qualname__}" if inspect.ismethod(it) else it.__module__
            yield f"{owner}.{it.__qualname__}", path


def hostile_calls(target, hostile: str) -> Iterator[dict]:
    """Arguments for a target, as a configuration could pass them: the hostile directory wherever it is accepted, and flags inverted."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        parameters = {}
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and not n.startswith("_")}
    needed = {n: OBJECTS.get(n, hostile) for n, p in named.items() if p.default is p.empty}
    texts = {n: hostile for n, p in named.items() if p.default is None or isinstance(p.default, str)}
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    yield dict.fromkeys(needed, hostile)
    needed |= {n: OBJECTS[n] for n in named if n in OBJECTS}
    yield needed
    yield texts | needed
    yield dict.fromkeys(named, hostile)
    yield {n: not p.default for n, p in named.items() if isinstance(p.default, bool) and n not in STRONG} | needed
    for strong in (STRONG, {"kwargs": STRONG}, {"custom_generate": hostile}, {"code_revision": "x"}, {"storage_options": {"fo": hostile}}):
        taken = strong if anything else {name: value for name, value in strong.items() if name in named}
        if taken:
            yield needed | taken
    yield {"_partial_": True, **needed, **(STRONG if anything else {})}


TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16}
CONFIG = {"_target_": "transformers.LlamaConfig", **TINY}
MODEL = {"_target_": "transformers.LlamaForCausalLM", "config": CONFIG}
# Arguments with these names get a valid object, so that a call gets further.
OBJECTS = {
    "model": MODEL, "base_model": MODEL, "config": CONFIG, "peft_config": {"_target_": "peft.LoraConfig", "target_modules": ["q_proj"]},
    "args": {"_target_": "transformers.TrainingArguments", "output_dir": "../elsewhere", "use_cpu": True},
    "train_dataset": {"_target_": "datasets.Dataset.from_dict", "mapping": {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory that contains the hostile one, the run's, and one for the libraries' caches."""
    place = tmp_path_factory.mktemp("foreign")
    (place / "run").mkdir()
    hostile_directory(place / "hostile", place / "marker")
    return place


@pytest.fixture
def called(place, monkeypatch):
    """A function that builds a node in the run's directory -> the recorded events."""
    monkeypatch.chdir(place / "run")
    monkeypatch.syspath_prepend(str(place / "hostile"))  # as if the user had started llmmod there
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(place / "cache" / "modules"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "cache" / "datasets")

    def call(node):
        watch = Watch(place / "hostile", [place / "run", place / "cache"])
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), watching(watch), contextlib.suppress(Exception):
            build(node)
        marker = place / "marker"
        if marker.exists():
            watch.seen.append(f"ran {marker.read_text()}")
            marker.unlink()
        return watch.seen

    return call


@pytest.fixture
def in_time():
    """Stops a call that takes too long."""

    def too_long(number, frame):
        raise TimeoutError(f"a call took more than {CALLS_S} s")

    before = signal.signal(signal.SIGALRM, too_long)
    yield lambda: signal.alarm(CALLS_S)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # incomplete callbacks
def test_no_component_runs_what_it_is_pointed_at(place, called, in_time):
    found = nameable()
    offenders = {}
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for real, path in found.items():
                in_time()
                nodes = {str(node): {"_target_": path, **node} for node in hostile_calls(locate(path), str(place / "hostile"))}
                seen = {what for node in nodes.values() for what in called(node)}
                if seen:
                    offenders[real] = sorted(seen)
        finally:
            logging.disable(logging.NOTSET)
    assert len(found) > 500
    assert not offenders, "\n".join(f"{real}: {seen}" for real, seen in offenders.items())


TRUSTING = {"_target_": "transformers.AutoConfig.from_pretrained", "trust_remote_code": True}
UNPICKLING = {"_target_": "transformers.LlamaForCausalLM.from_pretrained", "config": CONFIG, "weights_only": False}


@pytest.mark.parametrize(("node", "seen"), [(TRUSTING, "hostile_code"), (UNPICKLING, "pickle")], ids=["imports", "unpickles"])
def test_without_the_rule_the_watch_records_the_code(called, place, monkeypatch, node, seen):
    node = {"pretrained_model_name_or_path": str(place / "hostile"), **node}
    assert called(node) == []
    monkeypatch.setattr("llmmod.instantiate.check_code_arguments", lambda *arguments: [])
    assert any(what.startswith("ran") and seen in what for what in called(node))


def test_the_watch_sees_a_template_that_runs(place):
    jinja2 = pytest.importorskip("jinja2")
    watch = Watch(place / "hostile", [])
    with watching(watch), contextlib.suppress(PermissionError):
        jinja2.Template(template(place / "marker")).render()
    assert watch.seen[0].startswith("os.system")


def test_the_models_of_transformers_do_not_load_or_run_code_themselves():
    """Searches the source of all models for unpickling, evaluating, importing by name and starting programs. Listed uses were reviewed."""
    forbidden = re.compile(
        r"\bpickle\.load|weights_only=False|allow_pickle=True|\bsubprocess\.(run|Popen|call|check)|\bos\.(system|popen|exec)|"
        r"(?<![\w.])(eval|exec|__import__)\(|import_module\((?!f?\"\.|\"transformers\"|f\"\.)|trust_remote_code=True|joblib|cloudpickle|dill\b"
    )
    # Each match has one of these words, which are found faster.
    words = ("pickle", "weights_only", "subprocess", "os.system", "os.popen", "os.exec", "eval(", "exec(", "__import__(", "import_module(")
    words += ("trust_remote", "joblib", "dill")
    folder = Path(importlib.util.find_spec("transformers").submodule_search_locations[0]) / "models"
    found = set()
    for file in folder.rglob("*.py"):
        if file.name.startswith("convert_"):
            continue
        text = file.read_text(encoding="utf-8")
        if not any(word in text for word in words):
            continue
        if forbidden.search(text) and forbidden.search("\n".join(line.partition("#")[0] for line in text.splitlines())):
            found.add(file.relative_to(folder).as_posix())
    assert "rag/retrieval_rag.py" in found
    assert {name for name in found if not refusal(f"transformers.models.{name.split('/')[0]}.X") } == set()
