"""What tells two sources of rows, two functions, two tokenizers or two renders apart: their content, never their name or date.

A file's date can lie (it is kept by `cp -p`, and two writes can share one), so files are read to the end each time: a gigabyte takes
a second, and tokenizing it takes ten minutes.

The source of a user's code: of a module, and of every module that it imports and that is no installed package.

Read from the disk and not from what is loaded: an import inside a function, and a constant taken from another module, leave no trace there.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmmod.code_arguments import find_module
from llmmod.data.sources.read_tables import ROWS_A_BATCH
from llmmod.data.sources.source import BY_SUFFIX, Files, Ranges, Source, Table
from llmmod.instantiate import locate
from llmmod.render.auto import AutoTemplate
from llmmod.upstream import installed

_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def source_files(module: str) -> dict[str, Path]:
    """Module -> file, of a module and of the user's own that it reaches; empty where it has no file.

    Args:
        module: dotted; looked for beside the working directory too.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _file(name)
        if file is None or name in found or (name != module and not is_own(name, file)):
            continue
        found[name] = file
        if file.suffix == ".py":
            waiting += _imported(name, file)
    return found


def is_own(module: str, file: Path) -> bool:
    """Whether a module is neither llmmod's nor an installed package's."""
    return module.split(".")[0] != "llmmod" and not any(file.is_relative_to(place) for place in _INSTALLED)


def _file(module: str) -> Path | None:
    spec = find_module(module, os.getcwd())
    return Path(spec.origin) if spec is not None and spec.origin is not None and Path(spec.origin).is_file() else None


def _imported(module: str, file: Path) -> Iterator[str]:
    """Names that a module's import statements may mean; what is imported from a module may be one itself."""
    package = module.split(".") if file.stem == "__init__" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in _above(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from _above(name) if name else ()
            yield from (f"{name}.{alias.name}" if name else alias.name for alias in node.names)


def _above(module: str) -> list[str]:
    """A module and the packages that it lies in, whose __init__ runs with it."""
    parts = module.split(".")
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


_PACKAGE = Path(__file__).parents[1]
CODE = (_PACKAGE / "data", _PACKAGE / "render")  # what decides how rows become tokens
_LIBRARIES = ("tokenizers", "transformers", "sentencepiece", "tiktoken", "jinja2", "pyarrow")
_UNREAD = ("name", "verify")  # fields of a render that no token depends on


class NoIdentityError(Exception):
    """Something that can't be told apart from what it may become, and why."""


def digest(value: Any) -> str:
    """32 hex digits of a JSON value, whatever the order of its keys.

    Raises:
        NoIdentityError: it holds what JSON can't.
    """
    try:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    except TypeError as error:
        raise NoIdentityError(str(error)) from error
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """32 hex digits of a file's bytes.

    Raises:
        NoIdentityError: it is no file that can be read twice.
    """
    if not path.is_file():
        raise NoIdentityError(f"{path} is no regular file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def rows_identity(source: Source) -> Any:
    """The rows of a source, in their order.

    Raises:
        NoIdentityError: a source of another kind, or a pipe.
    """
    if isinstance(source, Files):
        return [[file_digest(path), (source.reader or BY_SUFFIX[path.suffix.lower()]).__name__] for path in source.paths]
    if isinstance(source, Table):
        return _table_digest(source)
    if isinstance(source, Ranges):
        return [[rows_identity(part), start, stop] for part, start, stop in source.parts]
    raise NoIdentityError(f"{source.name} can't be read twice")


def _table_digest(source: Table) -> str:
    """Of the rows themselves: two tables can share their files and differ in which rows they take."""
    found = hashlib.blake2b(digest_size=16)
    for table in source.dataset.with_format("arrow").iter(batch_size=ROWS_A_BATCH):
        for batch in table.combine_chunks().to_batches():
            found.update(batch.schema.to_string().encode() + batch.serialize())
    return found.hexdigest()


def format_identity(asked: Any) -> Any:
    """A format of the user's: a function with its arguments, and the source of every module of theirs that it reaches.

    Raises:
        NoIdentityError: a function that no configuration names.
    """
    if not isinstance(asked, Mapping):
        raise NoIdentityError("the format is a function that was given from Python")
    return {"node": dict(asked), "source": source_identity(asked)}


def source_identity(node: Any) -> list[dict[str, str]]:
    """The source of what a configuration's `_target_`s name, unless it is ours: of modules, and of the user's own that those reach.

    Raises:
        NoIdentityError: one whose source can't be found.
    """
    modules = [getattr(locate(name), "__module__", None) or name.rpartition(".")[0] for name in _targets(node)]
    return [_sources(module) for module in modules if not module.startswith("llmmod.")]


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _targets(value)


def _sources(module: str) -> dict[str, str]:
    files = source_files(module)
    if not files:
        raise NoIdentityError(f"the source of {module} can't be found")
    return {name: file_digest(file) for name, file in sorted(files.items())}


def render_identity(render: Any) -> Any:
    """A render of ours: its class, its fields, and the text of the chat template that it writes by.

    Raises:
        NoIdentityError: a render of the user's own.
    """
    kind = type(render)
    if not kind.__module__.startswith("llmmod.render."):
        raise NoIdentityError(f"the render is a {kind.__module__}.{kind.__qualname__}, whose state isn't known")
    fields = {name: value for name, value in asdict(render.conf).items() if name not in _UNREAD}
    return {"class": kind.__qualname__, "fields": fields, "template": render.chat_template() if kind is AutoTemplate else None}


def tokenizer_identity(tokenizer: Any) -> Any:
    """A tokenizer's whole state: the Rust one as it serialises itself, or all files that a slow one saves; and its class.

    Raises:
        NoIdentityError: a slow one that can't be saved.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None
    if backend is None:
        state: Any = _saved(tokenizer)
    else:
        state = json.loads(backend.to_str())
        # What the last call asked for, not what the tokenizer is; encoding here takes neither.
        state |= {"truncation": None, "padding": None}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)}
    return {"state": digest(state), "special": special, "ids": sorted(tokenizer.all_special_ids), "class": _classes(type(tokenizer))}


def _saved(tokenizer: Any) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as directory:
        try:
            tokenizer.save_pretrained(directory)
        except Exception as error:  # code that came with a checkpoint may fail in any way
            raise NoIdentityError(f"the tokenizer can't be saved: {error}") from error
        return {path.name: file_digest(path) for path in sorted(Path(directory).rglob("*")) if path.is_file()}


def _classes(kind: type) -> dict[str, str]:
    """The class and its bases; of those that came with a checkpoint or are the user's, the source too."""
    named = {}
    for cls in kind.__mro__[:-1]:
        try:
            file = Path(inspect.getfile(cls))
        except (OSError, TypeError):  # builtin, or made in a session
            file = None
        named[f"{cls.__module__}.{cls.__qualname__}"] = file_digest(file) if file and is_own(cls.__module__, file) else ""
    return named


def code_identity() -> Any:
    """The code that makes tokens of rows: ours by its source, libraries by their versions."""
    files = {str(path.relative_to(folder.parent)): file_digest(path) for folder in CODE for path in sorted(folder.rglob("*.py"))}
    return {"files": files, "libraries": {name: installed(name) or "" for name in _LIBRARIES}}
