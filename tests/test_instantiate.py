"""A dotted path becomes an object only if the object itself may be named."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from llmmod.errors import ConfigError
from llmmod.instantiate import arguments, build, import_own, locate


def names(text):
    return text.split()


# Each path starts with an allowed package and leads to something else.
ALIASES = names(
    """
torch.nn.functional.torch.load torch.nn.functional.torch.nn.Linear.mro torch.nn.Module.apply torch.float32 torch.tensor
torch.nn.modules.linear torch.nn.functional.boolean_dispatch torch.optim.lr_scheduler.partial
torch.utils.data.dataloader.multiprocessing.Process transformers.pipeline transformers.HfArgumentParser
transformers.RagRetriever.from_pretrained transformers.AutoConfig.register transformers.set_seed
transformers.PreTrainedModel.save_pretrained transformers.logging transformers.Trainer.train trl.TrlParser trl.get_dataset
trl.ScriptArguments peft.load_peft_weights peft.PeftModel.save_pretrained datasets.Dataset.map datasets.arrow_dataset.Dataset.from_sql
datasets.arrow_dataset.Path datasets.arrow_dataset.partial accelerate.utils.write_basic_config accelerate.utils.patch_environment
llmmod.models llmmod.data.formats
    """
)

REAL = names(
    """
torch.nn.Linear torch.nn.functional.gelu torch.nn.functional.max_pool2d torch.optim.AdamW torch.optim.lr_scheduler.LambdaLR
torch.utils.data.SequentialSampler torch.Generator torch.device transformers.AutoModelForCausalLM.from_pretrained
transformers.AutoTokenizer.from_pretrained transformers.GenerationConfig transformers.EarlyStoppingCallback transformers.Seq2SeqTrainer
transformers.Seq2SeqTrainingArguments transformers.BitsAndBytesConfig transformers.DataCollatorForSeq2Seq
transformers.default_data_collator transformers.get_cosine_schedule_with_warmup transformers.integrations.TensorBoardCallback
trl.SFTTrainer trl.SFTConfig trl.rewards.accuracy_reward peft.LoraConfig peft.get_peft_model peft.PeftModel.from_pretrained
datasets.load_dataset datasets.Dataset.from_json datasets.Features accelerate.Accelerator
    """
)


@pytest.mark.parametrize("path", ALIASES)
def test_an_object_is_judged_by_what_it_is(path):
    with pytest.raises(ConfigError):
        locate(path)


@pytest.mark.parametrize("path", REAL)
def test_components_are_found(path):
    assert callable(locate(path))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("torch.nn.Linaer", "torch.nn.Linaer: torch.nn doesn't have 'Linaer'. Did you mean 'Linear'?"),
        ("llmmod.metrics.no_such.Thing", "llmmod.metrics.no_such.Thing: llmmod.metrics doesn't have 'no_such'."),
        ("torch.nn.Module.apply", "torch.nn.Module.apply: Module.apply is a method, which needs an object."),
        (
            "torch.nn.functional.torch.load",
            "torch.nn.functional.torch.load: is really torch.serialization.load, which a configuration must not name",
        ),
        ("torch.float32", "torch.float32: is a dtype, neither class nor function."),
    ],
)
def test_messages(path, message):
    with pytest.raises(ConfigError) as error:
        locate(path)
    assert str(error.value).startswith(message)


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A module `beside_user` in the working directory that writes a file when it is imported."""
    (tmp_path / "beside_user.py").write_text(
        """
import functools
import os
import pathlib
import subprocess
from os import system
from functools import partial
from torch.optim import AdamW
pathlib.Path("imported").touch()

made = partial(print)

class Thing:
    def __init__(self, a, b=2):
        self.a, self.b = a, b
    def method(self): ...
    @classmethod
    def create(cls, a): return cls(a)
    @staticmethod
    def static(a): return a

def double(x): return 2 * x

@functools.wraps(system)
def disguised(x): return x

@functools.wraps(double)
def wrapped(x): return double(x) + 1

def anything(**named): return named
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield tmp_path
    sys.modules.pop("beside_user", None)


def test_what_is_refused_is_not_imported(beside):
    with pytest.raises(ConfigError, match="add --allow beside_user, or set LLMMOD_ALLOW=beside_user"):
        locate("beside_user.Thing")
    assert not (beside / "imported").exists()


def test_a_module_beside_the_user_is_found_once_allowed(beside, monkeypatch):
    monkeypatch.setenv("LLMMOD_ALLOW", "beside_user")
    assert locate("beside_user.double")(4) == 8
    assert locate("beside_user.wrapped")(4) == 9
    assert build({"_target_": "beside_user.Thing", "a": 1}).b == 2
    assert locate("beside_user.Thing.create")(5).a == 5
    assert locate("beside_user.Thing.static")(6) == 6
    assert locate("beside_user.AdamW").__module__ == "torch.optim.adamw"
    assert sys.path[-1] == str(beside)  # last, so that it doesn't hide other modules


@pytest.mark.parametrize(
    "name",
    ["system", "os.system", "partial", "made", "disguised", "Thing.method", "Thing.mro", "subprocess.Popen", "pathlib.Path", "os", "gone"],
)
def test_what_an_allowed_module_imports_stays_refused(beside, monkeypatch, name):
    monkeypatch.setenv("LLMMOD_ALLOW", "beside_user")
    with pytest.raises(ConfigError):
        locate(f"beside_user.{name}")


def test_garbage_collection_is_off_during_an_import(tmp_path, monkeypatch):
    (tmp_path / "looks_for_garbage.py").write_text("import gc\nENABLED = gc.isenabled()\ndef enabled():\n    return ENABLED\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("LLMMOD_ALLOW", "looks_for_garbage")
    assert locate("looks_for_garbage.enabled")() is False
    sys.modules.pop("looks_for_garbage")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_own("looks_for_garbage.enabled")() is False
    assert gc.isenabled()


def test_objects_of_large_libraries_are_never_scanned(tmp_path, monkeypatch):
    code = "import sys\nsys.modules.update({f'part_{n}': sys for n in range(%d)})\nkept = [[n] for n in range(2000)]\n"
    (tmp_path / "small_library.py").write_text(code % 10)
    (tmp_path / "large_library.py").write_text(code % 1000)
    monkeypatch.syspath_prepend(tmp_path)
    before = gc.get_freeze_count()
    try:
        import_own("small_library.sys")
        assert gc.get_freeze_count() <= before
        import_own("large_library.sys")
        assert gc.get_freeze_count() > before + 4000
    finally:
        for name in [name for name in sys.modules if name.startswith("part_") or name in ("small_library", "large_library")]:
            del sys.modules[name]


def test_an_allowed_module_that_fails_to_import_is_the_users_error(tmp_path, monkeypatch):
    (tmp_path / "broken_beside.py").write_text("import not_there_at_all")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("LLMMOD_ALLOW", "broken_beside,absent_module")
    with pytest.raises(ConfigError, match=r"broken_beside.X: importing broken_beside needs not_there_at_all, which isn't installed"):
        locate("broken_beside.X")
    with pytest.raises(ConfigError, match=r"absent_module.X: module absent_module does not exist. Is it installed, or in your"):
        locate("absent_module.X")


@dataclass
class Inner:
    _target_: str = "beside_user.double"
    x: int = 3


@dataclass
class Outer:
    _target_: str = "beside_user.Thing"
    a: Any = None
    b: Any = field(default_factory=Inner)


@pytest.fixture
def allowed(beside, monkeypatch):
    monkeypatch.setenv("LLMMOD_ALLOW", "beside_user")


@pytest.mark.usefixtures("allowed")
class TestBuild:
    def test_nested_nodes_are_built_first(self):
        thing = build({"_target_": "beside_user.Thing", "a": [{"_target_": "beside_user.double", "x": 1}, {"k": Inner(x=5)}], "b": 0})
        assert thing.a == [2, {"k": 10}]

    def test_a_dataclass_is_a_node_and_runtime_arguments_win(self):
        assert vars(build(Outer(a=1))) == {"a": 1, "b": 6}
        assert vars(build(Outer(a=1), a=7, b=8)) == {"a": 7, "b": 8}

    def test_attributes_of_a_dataclass_besides_its_fields_are_arguments(self):
        node = Inner(_target_="beside_user.anything")
        node.more = [1]  # as OmegaConf.to_object does with a key that was added with `+`
        assert build(node) == {"x": 3, "more": [1]}

    def test_partial(self):
        made = build({"_target_": "beside_user.Thing", "_partial_": True, "b": {"_target_": "beside_user.double", "x": 1}}, a=4)
        assert isinstance(made, functools.partial)
        assert made.keywords == {"a": 4, "b": 2}
        assert vars(made()) == {"a": 4, "b": 2}

    def test_positional_arguments(self):
        assert vars(build({"_target_": "beside_user.Thing", "_args_": [{"_target_": "beside_user.double", "x": 4}, 5]})) == {"a": 8, "b": 5}

    def test_not_recursive(self):
        inner = {"_target_": "os.system", "x": 1}
        assert build({"_target_": "beside_user.anything", "_recursive_": False, "_convert_": "all", "a": inner}) == {"a": inner}

    def test_arguments_leave_the_special_keys_out(self):
        assert arguments({"_target_": "not.looked_at", "_partial_": True, "a": {"_target_": "beside_user.double", "x": 2}}) == {"a": 4}
        assert arguments(Outer(a=1)) == {"a": 1, "b": 6}

    @pytest.mark.parametrize(
        ("node", "message"),
        [
            ({"_target_": "beside_user.Thing", "aa": 1}, "beside_user.Thing: doesn't have an argument 'aa'. Did you mean 'a'[?]"),
            (
                {"_target_": "beside_user.Thing", "a": 1, "bb": 1, "cc": 1},
                "doesn't have an argument 'bb'.*\n.*doesn't have an argument 'cc'",
            ),
            ({"_target_": "beside_user.Thing"}, "beside_user.Thing: missing a required argument: 'a'."),
            ({"a": 1}, "'' is not a dotted path"),
            ({"_target_": "beside_user.Thing", "_args_": "ab"}, "_args_: found 'ab'. Expected a list"),
            ({"_target_": "beside_user.Thing", "a": {"_target_": "beside_user.system", "c": "true"}}, "beside_user.system: is really"),
        ],
        ids=["unknown", "two unknown", "missing", "no target", "arguments", "nested refused"],
    )
    def test_refused(self, node, message):
        with pytest.raises(ConfigError, match=message):
            build(node)

    def test_an_error_of_the_target_s_own_is_left_as_it_is(self):
        with pytest.raises(TypeError, match="unsupported operand"):
            build({"_target_": "beside_user.double", "x": {}})


def test_the_module_is_light():
    heavy = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "hydra"}
    code = f"import sys, llmmod.instantiate; assert not set(sys.modules) & {heavy!r}"
    subprocess.run([sys.executable, "-c", code], check=True)
