"""The committed modules of config/schema/generated match the installed libraries, and OmegaConf accepts them."""

from __future__ import annotations

import dataclasses
import importlib
import re

import pytest
from omegaconf import OmegaConf

from devtools.generate import FOLDER, SOURCES, changed_fields, differences, generate, main
from llmmod.config.validate.values import tables

BY_MODULE = {source.module: source for source in SOURCES}


@pytest.fixture(scope="module")
def generated():
    return {module: generate(source) for module, source in BY_MODULE.items()}


def schema(module):
    generated_module = importlib.import_module(f"llmmod.config.schema.generated.{module}")
    return generated_module, getattr(generated_module, BY_MODULE[module].cls.__name__)


def extended(cls):
    """A class that can be instantiated: the generated ones don't have an `__init__`, since the schemas of stages extend them."""
    return dataclasses.make_dataclass(cls.__name__, [], bases=(cls,))


@pytest.mark.parametrize("module", BY_MODULE)
def test_committed_text_is_what_the_generator_writes(module, generated):
    assert differences((FOLDER / f"{module}.py").read_text("utf-8"), generated[module][0]) == []


def test_nine_in_ten_of_the_training_arguments_translate_exactly(generated):
    import transformers

    own = {f.name for f in dataclasses.fields(transformers.TrainingArguments)}
    exact = [f.name for f in generated["seq2seq"][1] if f.translation.exact and f.name in own]
    assert len(own) > 100
    assert len(exact) / len(own) >= 0.9


@pytest.mark.parametrize("module", BY_MODULE)
def test_every_field_of_the_class_is_there_and_no_other(module):
    _, cls = schema(module)
    names = [f.name for f in dataclasses.fields(cls)]
    assert names == ["_target_", *(f.name for f in dataclasses.fields(BY_MODULE[module].cls) if f.init)]
    assert extended(cls)()._target_ == BY_MODULE[module].target


@pytest.mark.parametrize("module", BY_MODULE)
def test_defaults_are_the_class_s_own(module):
    """Compared with the dataclass's declared defaults: an enum by its value, a configuration object by the arguments that create it."""
    _, cls = schema(module)
    ours = extended(cls)()
    for field in dataclasses.fields(BY_MODULE[module].cls):
        theirs = field.default_factory() if field.default is dataclasses.MISSING else field.default
        theirs = getattr(theirs, "value", theirs)
        if dataclasses.is_dataclass(theirs):
            assert theirs == type(theirs)(**getattr(ours, field.name)), field.name
        else:
            assert getattr(ours, field.name) == theirs, field.name


@pytest.mark.parametrize("module", BY_MODULE)
def test_omegaconf_takes_it_and_gives_the_defaults_back(module):
    cls = extended(schema(module)[1])
    assert OmegaConf.to_object(OmegaConf.structured(cls)) == cls()


@pytest.mark.parametrize("module", BY_MODULE)
def test_tables_name_existing_fields_and_allow_the_defaults(module):
    tables_of, cls = schema(module)
    defaults = dataclasses.asdict(extended(cls)())
    assert set(tables_of.CHOICES) | set(tables_of.ACCEPTED) <= set(defaults)
    for name, allowed in tables_of.CHOICES.items():
        assert not isinstance(defaults[name], str) or defaults[name] in allowed, name


def test_examples_known_from_the_documentation():
    written, cls = schema("training_arguments")
    config = OmegaConf.structured(cls)
    config.learning_rate = 1  # a float field takes an int
    assert isinstance(config.learning_rate, float)
    assert "cosine" in written.CHOICES["lr_scheduler_type"]
    assert written.CHOICES["eval_strategy"] == ("no", "steps", "epoch")
    assert written.ACCEPTED["deepspeed"] == ("str", "dict[str, Any]", "None")
    assert schema("lora")[0].CHOICES["bias"] == ("none", "all", "lora_only")


@pytest.mark.parametrize("module", BY_MODULE)
def test_text_is_ascii_within_the_line_and_every_field_has_a_comment(module):
    text = (FOLDER / f"{module}.py").read_text("utf-8")
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 140
    body = re.search(r'_target_: str = "[^"]*"\n(.*?)\n\n\n', text, re.DOTALL)[1].splitlines()
    fields = [number for number, line in enumerate(body) if not line.startswith("    # ")]
    assert len(fields) == len(vars(schema(module)[1])["__annotations__"]) - 1
    assert all(body[number - 1].startswith("    # ") for number in fields)


@pytest.mark.parametrize("module", [module for module, source in BY_MODULE.items() if source.base])
def test_a_field_that_equals_its_base_s_is_only_in_the_base(module):
    _, cls = schema(module)
    base = cls.__mro__[1]
    assert base is schema(BY_MODULE[module].base.module)[1]
    theirs = {f.name: f for f in generate(BY_MODULE[module].base)[1]}
    ours = {f.name: f for f in generate(BY_MODULE[module])[1]}
    assert set(vars(cls)["__annotations__"]) - {"_target_"} == {name for name, f in ours.items() if f != theirs.get(name)}
    # The class inherits the rows of its base's tables, so each of them must hold for the class itself.
    for table in ("CHOICES", "ACCEPTED"):
        told = tables(cls, table)
        assert told == {name: allowed for name, f in ours.items() if (allowed := getattr(f.translation, table.lower()))}


def test_check_passes_here(capsys):
    assert main(["--check"]) == 0
    assert re.search(r"seq2seq.py: transformers.Seq2SeqTrainingArguments, \d+ of \d+ fields exact, unchanged", capsys.readouterr().out)


def test_check_names_the_fields_that_differ_and_fails(tmp_path, monkeypatch, capsys):
    for path in FOLDER.glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text("utf-8"), "utf-8")
    stale = tmp_path / "lora.py"
    stale.write_text(stale.read_text("utf-8").replace("r: int = 8", "r: int = 16"), "utf-8")
    monkeypatch.setattr("devtools.generate.FOLDER", tmp_path)
    assert main(["--check"]) == 1
    printed = capsys.readouterr()
    assert "  differs in r\n" in printed.out
    assert "-    r: int = 16" in printed.out
    assert "+    r: int = 8" in printed.out
    assert "1 of 8 files are stale" in printed.err
    assert "r: int = 16" in stale.read_text("utf-8")  # check writes nothing


def test_changed_fields_of_a_diff():
    diff = differences('    a: int = 1\n    "b": ("x",),\n    c: int = 1', '    a: int = 2\n    "b": ("y",),\n    c: int = 1')
    assert changed_fields(diff) == ["a", "b"]
