"""Identities of a result's inputs: by content, never by name or date.

Two files, functions, tokenizers or renders with the same identity give the same result. A file's date isn't reliable (`cp -p` keeps it, and
two writes can have the same one), so files are read completely each time: a gigabyte takes a second, and tokenizing it takes ten minutes.

A user's code is identified by the source of a module and of every module that it imports and that is not part of an installed package. It
is read from the disk: loaded code shows neither an import inside a function nor a constant taken from another module.
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
from pathlib import Path
from typing import Any

from llmmod.code_arguments import find_module
from llmmod.instantiate import locate
from llmmod.upstream import installed

_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_PACKAGE = Path(__file__).parents[1]
CODE = (_PACKAGE / "data", _PACKAGE / "render")  # the code that turns rows into tokens
_LIBRARIES = ("tokenizers", "transformers", "sentencepiece", "tiktoken", "jinja2", "pyarrow")


class NoIdentityError(Exception):
    """An input can't be identified, so a later run can't know whether it is still the same. The message says why."""


def digest(value: Any) -> str:
    """32 hex digits of a JSON value, whatever the order of its keys.

    Raises:
        NoIdentityError: a part of it is not JSON.
    """
    try:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    except TypeError as error:
        raise NoIdentityError(str(error)) from error
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """32 hex digits of a file's bytes.

    Raises:
        NoIdentityError: it is not a file that can be read twice.
    """
    if not path.is_file():
        raise NoIdentityError(f"{path} is not a regular file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def render_identity(render: Any) -> Any:
    """The state of one of our renders.

    Raises:
        NoIdentityError: it is a user's own render.
    """
    kind = type(render)
    if not kind.__module__.startswith("llmmod.render."):
        raise NoIdentityError(f"the render is a {kind.__module__}.{kind.__qualname__}, whose state isn't known")
    return {"class": kind.__qualname__, **render.identity()}


def tokenizer_identity(tokenizer: Any) -> Any:
    """A tokenizer's whole state: a fast one serialized, or all files that a slow one saves; and its class.

    Raises:
        NoIdentityError: it is slow, and can't be saved.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None
    if backend is None:
        state: Any = _saved_files(tokenizer)
    else:
        # Truncation and padding are left from the last call; encoding here doesn't use them.
        state = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)}
    classes = {}  # with the source of a checkpoint's own and of the user's classes
    for cls in type(tokenizer).__mro__[:-1]:
        try:
            file = Path(inspect.getfile(cls))
        except (OSError, TypeError):  # builtin, or defined interactively
            file = None
        classes[f"{cls.__module__}.{cls.__qualname__}"] = file_digest(file) if file and _is_own(cls.__module__, file) else ""
    return {"state": digest(state), "special": special, "ids": sorted(tokenizer.all_special_ids), "class": classes}


def _saved_files(tokenizer: Any) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as directory:
        try:
            tokenizer.save_pretrained(directory)
        except Exception as error:  # a checkpoint's own code may fail in any way
            raise NoIdentityError(f"the tokenizer can't be saved: {error}") from error
        return {path.name: file_digest(path) for path in sorted(Path(directory).rglob("*")) if path.is_file()}


def code_identity() -> Any:
    """The code that turns rows into tokens: ours by its source, libraries by their versions."""
    files = {str(path.relative_to(folder.parent)): file_digest(path) for folder in CODE for path in sorted(folder.rglob("*.py"))}
    return {"files": files, "libraries": {name: installed(name) or "" for name in _LIBRARIES}}


def format_identity(asked: Any) -> Any:
    """A user's own format: a function with its arguments, and the source of every module of the user that it imports.

    Raises:
        NoIdentityError: the function isn't from a configuration.
    """
    if not isinstance(asked, Mapping):
        raise NoIdentityError("the format is a function that was given from Python")
    return {"node": dict(asked), "source": source_identity(asked)}


def source_identity(node: Any) -> list[dict[str, str]]:
    """The source of the modules that a configuration's `_target_`s name, and of the user's modules that they import; llmmod's left out.

    Raises:
        NoIdentityError: the source of one can't be found.
    """
    found = []
    for name in _targets(node):
        module = getattr(locate(name), "__module__", None) or name.rpartition(".")[0]
        if not module.startswith("llmmod."):
            files = source_files(module)
            if not files:
                raise NoIdentityError(f"the source of {module} can't be found")
            found.append({name: file_digest(file) for name, file in sorted(files.items())})
    return found


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _targets(value)


def source_files(module: str) -> dict[str, Path]:
    """Module -> file, for a module and the user's modules that it imports; empty if it doesn't have a file.

    Args:
        module: dotted; also searched in the working directory.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        spec = find_module(name, os.getcwd())
        file = Path(spec.origin) if spec is not None and spec.origin is not None else None
        if file is None or not file.is_file() or name in found or (name != module and not _is_own(name, file)):
            continue
        found[name] = file
        if file.suffix == ".py":
            waiting += _imported(name, file)
    return found


def _is_own(module: str, file: Path) -> bool:
    """Whether a module is neither llmmod's nor an installed package's."""
    return module.split(".")[0] != "llmmod" and not any(file.is_relative_to(place) for place in _INSTALLED)


def _imported(module: str, file: Path) -> Iterator[str]:
    """Names of modules in a module's import statements; a name imported from a module may be a module too."""
    package = module.split(".") if file.stem == "__init__" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in _with_parents(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from _with_parents(name) if name else ()
            yield from (f"{name}.{alias.name}" if name else alias.name for alias in node.names)


def _with_parents(module: str) -> list[str]:
    """A module and its parent packages, whose __init__ runs with it."""
    parts = module.split(".")
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]
