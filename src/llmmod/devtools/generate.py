"""Writes `schema/generated/`: a dataclass for each argument class of transformers, trl and peft that the configuration exposes.

    python -m llmmod.devtools.generate            write
    python -m llmmod.devtools.generate --check    compare, and exit with 1 where the committed files differ

The files are committed so that composing and validating a configuration imports none of those libraries. Run it when one of them is
upgraded: the difference shows what the upgrade changes for a user.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.metadata
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmmod.devtools.reflect import Field, reflect
from llmmod.devtools.write import module_text

FOLDER = Path(__file__).resolve().parents[1] / "schema" / "generated"


@dataclass(frozen=True)
class Source:
    """A class to generate from.

    Args:
        module: the generated module's name.
        target: the class's public path, which becomes `_target_`.
        libraries: the distributions whose versions decide the result.
        base: the source whose dataclass this one's extends; what the two classes have alike stands there alone.
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
    parser = argparse.ArgumentParser(prog="python -m llmmod.devtools.generate", description=__doc__.splitlines()[0])
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
        print(f"{stale} of {len(SOURCES)} files are stale: run `python -m llmmod.devtools.generate`", file=sys.stderr)
    return int(stale > 0)


if __name__ == "__main__":
    sys.exit(main())
