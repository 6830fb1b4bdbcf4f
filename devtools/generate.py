"""Writes `config/schema/generated/`: a dataclass for each argument class of transformers, trl and peft that the configuration exposes.

    python -m devtools.generate            write
    python -m devtools.generate --check    compare, and exit with 1 where the committed files differ

The files are committed so that composing and validating a configuration imports none of those libraries. Run it after an upgrade of one of
them: the difference shows what the upgrade changes for a user.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.metadata
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devtools.reflect import Field, reflect

_HEAD = '''"""`{target}` ({versions}) as a schema, with that class's own defaults.

Written by `python -m devtools.generate`, not by hand. {exact} of {total} fields take just what the class takes, by their
annotation or with `CHOICES`; the rest are looser, and `ACCEPTED` says what the class itself takes.{besides}
"""

from dataclasses import dataclass, field
from typing import Any{imports}


@dataclass(init=False, repr=False, eq=False)  # only extended, never made: without them it is defined four times as fast
class {name}{bases}:
    """Every argument of `{target}`."""

    _target_: str = "{target}"
'''
_CHOICES = "# field -> the strings it allows, each item of a list too; a part in [brackets] stands for any text"
_ACCEPTED = "# field -> the types that the class takes; a dotted path: a dict of that class's fields"
_WIDTH = 140
FOLDER = Path(__file__).resolve().parents[1] / "src" / "llmmod" / "config" / "schema" / "generated"


def module_text(
    *, target: str, versions: str, fields: list[Field], inherited: Iterable[Field] = (), base: tuple[str, str] | None = None
) -> str:
    """The module for the class at `target`: its dataclass, then the tables `CHOICES` and `ACCEPTED`.

    Args:
        target: the class's public path.
        versions: of the libraries that decide the result.
        fields: all that the class can be built with.
        inherited: the fields of the base; only those that the class changes are written again.
        base: the module in this package, and the name, of the dataclass that this one extends.
    """
    head = _HEAD.format(
        target=target,
        name=target.rpartition(".")[2],
        versions=versions,
        besides=f"\nWhat isn't here is as in `{base[0]}`." if base else "",
        imports=f"\n\nfrom llmmod.config.schema.generated.{base[0]} import {base[1]}" if base else "",
        bases=f"({base[1]})" if base else "",
        exact=sum(f.translation.exact for f in fields),
        total=len(fields),
    )
    alike = {f.name: f for f in inherited}
    own = [f for f in fields if f != alike.get(f.name)]
    body = "\n".join(line for f in own for line in _field_lines(f))
    choices = _table("CHOICES", {f.name: f.translation.choices for f in own if f.translation.choices}, comment=_CHOICES)
    accepted = _table("ACCEPTED", {f.name: f.translation.accepted for f in own if f.translation.accepted}, comment=_ACCEPTED)
    return f"{head}{body}\n\n\n{choices}\n\n{accepted}\n"


def field_line(field: Field) -> str:
    """The field's own line, e.g. `adam_beta1: float = 0.9`."""
    return f"{field.name}: {field.translation.type} = {_default(field)}"


def _field_lines(field: Field) -> Iterable[str]:
    comment = "    # "
    yield from textwrap.wrap(field.comment, _WIDTH, initial_indent=comment, subsequent_indent=comment, break_on_hyphens=False)
    yield f"    {field_line(field)}"


def _default(field: Field) -> str:
    value: Any = field.default
    if isinstance(value, list | dict):
        return f"field(default_factory={f'lambda: {json.dumps(value)}' if value else type(value).__name__})"
    if isinstance(value, int) and not isinstance(value, bool) and field.translation.type.startswith("float"):
        return repr(float(value))
    return _literal(value)


def _literal(value: Any) -> str:
    """The value in Python; a string in double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _table(name: str, rows: Mapping[str, tuple[str, ...]], *, comment: str) -> str:
    lines = [comment, f"{name}: dict[str, tuple[str, ...]] = {{" + ("" if rows else "}")]
    for key, values in rows.items():
        row = f'    "{key}": ({", ".join(map(_literal, values))}{"," * (len(values) == 1)}),'
        lines += [row] if len(row) <= _WIDTH else [f'    "{key}": (', *_wrapped(values), "    ),"]
    return "\n".join(lines + ["}"] * bool(rows))


def _wrapped(values: tuple[str, ...]) -> list[str]:
    indent = " " * 8
    return textwrap.wrap(
        ", ".join(map(_literal, values)) + ",", _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


@dataclass(frozen=True)
class Source:
    """A class to generate from.

    Args:
        module: the generated module's name.
        target: the class's public path, which becomes `_target_`.
        libraries: the distributions whose versions decide the result.
        base: the source whose dataclass this one extends; fields that are equal in both are only there.
    """

    module: str
    target: str
    libraries: tuple[str, ...]
    base: Source | None = None

    @property
    def cls(self) -> type:
        """The class itself, imported."""
        module, _, name = self.target.rpartition(".")
        found: type = getattr(importlib.import_module(module), name)
        return found


TRAINING = Source("training_arguments", "transformers.TrainingArguments", ("transformers",))
SOURCES = (
    TRAINING,
    Source("seq2seq", "transformers.Seq2SeqTrainingArguments", ("transformers",), TRAINING),
    Source("sft", "trl.SFTConfig", ("trl", "transformers"), TRAINING),
    Source("reward", "trl.RewardConfig", ("trl", "transformers"), TRAINING),
    Source("dpo", "trl.DPOConfig", ("trl", "transformers"), TRAINING),
    Source("kto", "trl.KTOConfig", ("trl", "transformers"), TRAINING),
    Source("grpo", "trl.GRPOConfig", ("trl", "transformers"), TRAINING),
    Source("lora", "peft.LoraConfig", ("peft",)),
)


def generate(source: Source) -> tuple[str, list[Field]]:
    """The text of the module for one class, and all the fields that its dataclass has, inherited ones too."""
    fields = reflect(source.cls)
    inherited = reflect(source.base.cls) if source.base else []
    versions = ", ".join(f"{library} {importlib.metadata.version(library)}" for library in source.libraries)
    base = (source.base.module, source.base.cls.__name__) if source.base else None
    return module_text(target=source.target, versions=versions, fields=fields, inherited=inherited, base=base), fields


def differences(committed: str, generated: str) -> list[str]:
    """The lines of a unified diff without context; empty where the texts are equal."""
    lines = difflib.unified_diff(committed.splitlines(), generated.splitlines(), "committed", "generated", lineterm="", n=0)
    return [line for line in lines if not line.startswith("@@")]


def changed_fields(diff: Sequence[str]) -> list[str]:
    """The names of the fields, and of rows of the tables, that a diff touches."""
    names = (re.match(r'[+-] {4}"?(\w+)"?: ', line) for line in diff)
    return list(dict.fromkeys(n[1] for n in names if n))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the modules, or compare them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m devtools.generate", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    check = parser.parse_args(arguments).check
    stale = 0
    for source in SOURCES:
        text, fields = generate(source)
        path = FOLDER / f"{source.module}.py"
        diff = differences(path.read_text("utf-8") if path.exists() else "", text)
        exact = sum(f.translation.exact for f in fields)
        print(f"{path.name}: {source.target}, {exact} of {len(fields)} fields exact" + ("" if diff else ", unchanged"))
        if diff and check:
            stale += 1
            print(f"  differs in {', '.join(changed_fields(diff)) or 'its header'}", *diff, sep="\n  ")
        elif diff:
            path.write_text(text, "utf-8")
    if stale:
        print(f"{stale} of {len(SOURCES)} files are stale: run `python -m devtools.generate`", file=sys.stderr)
    return int(stale > 0)


if __name__ == "__main__":
    sys.exit(main())
