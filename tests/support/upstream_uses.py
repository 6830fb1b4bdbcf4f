"""The private names of other libraries that our source uses, and the names that it replaces, found in the syntax tree."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

# Private only by name: the methods of named tuples, and Hydra's key.
PUBLIC = {"_replace", "_asdict", "_fields", "_make", "_target_"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC and name != "_"


def foreign(module: str | None) -> bool:
    """Whether a module belongs to neither our source nor Python's standard library."""
    top = (module or "").partition(".")[0]
    return bool(top) and top not in ("llmmod", "builtins", "__future__") and top not in sys.stdlib_module_names


def attributes(owner: type) -> set[str]:
    """The names that a class of another library defines, and those in its `__init__`."""
    code = getattr(vars(owner).get("__init__"), "__code__", None)
    return {*vars(owner), *(code.co_names if code else ())}


def defined(node: ast.ClassDef) -> set[str]:
    """The names that a class of ours defines: methods, fields, and attributes set on `self`."""
    fields = [
        name for part in node.body if isinstance(part, ast.Assign | ast.AnnAssign) for name in ast.walk(part) if isinstance(name, ast.Name)
    ]
    on_self = [
        part for part in ast.walk(node) if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self"
    ]
    methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    return (
        methods
        | {part.id for part in fields if isinstance(part.ctx, ast.Store)}
        | {part.attr for part in on_self if isinstance(part.ctx, ast.Store)}
    )


def overriding(classes: dict[type, set[str]]) -> Iterator[tuple[type, str, object]]:
    """(our class, name, theirs) for private names that both a class of ours and its base in another library define.

    For a class that comes before the library's, as in `class SftTrainer(StageTrainer, trl.SFTTrainer)`, the subclass's base order counts.
    `theirs` is None where only an instance has the name.
    """
    for complete in classes:
        order = complete.__mro__
        for number, owner in enumerate(order):
            below = [other for other in order[number:] if foreign(other.__module__)]
            for name in filter(private, classes.get(owner, ())):
                if any(name in attributes(other) for other in below):
                    yield owner, name, next((vars(other)[name] for other in below if name in vars(other)), None)


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is not a package
        return False


def uses_in(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """The names that a module imports, reads or replaces."""
    theirs = set()  # this module's names for objects of other libraries
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            theirs |= {alias.asname or alias.name.partition(".")[0] for alias in node.names if foreign(alias.name)}
        elif isinstance(node, ast.ImportFrom) and foreign(node.module):
            theirs |= {alias.asname or alias.name for alias in node.names}
            inside = any(map(private, str(node.module).split(".")))
            names = [alias.name for alias in node.names if inside or private(alias.name)]
            yield from (name for name in names if not is_module(f"{node.module}.{name}"))
        elif (
            isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(node.value, ast.Call) and "import_module" in ast.unparse(node.value)
        ):
            theirs |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root: ast.AST = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            replaces = not isinstance(node.ctx, ast.Load) and isinstance(root, ast.Name) and root.id in theirs
            if replaces or (private(node.attr) and node.attr not in own):
                yield node.attr
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and ast.unparse(node.value).endswith("__dict__"):
            yield from (name for name in [str(node.slice.value)] if private(name) and name not in own)
        elif isinstance(node, ast.Call) and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            called, name = ast.unparse(node.func).rpartition(".")[2], str(node.args[1].value)
            if called == "replaced" or (called in ("getattr", "hasattr", "setattr") and private(name) and name not in own):
                yield name


def parsed(source: Path) -> dict[str, ast.Module]:
    """Our modules, without the generated ones."""
    paths = {
        ".".join(path.relative_to(source.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in source.rglob("*.py")
    }
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths.items() if "generated" not in path.parts}


def our_classes(trees: dict[str, ast.Module]) -> dict[type, set[str]]:
    """Every top-level class of our modules, with the names that it defines."""
    nodes = [(name, node) for name, tree in trees.items() for node in tree.body if isinstance(node, ast.ClassDef)]
    return {getattr(importlib.import_module(name), node.name): defined(node) for name, node in nodes}


def all_uses(trees: dict[str, ast.Module], classes: dict[type, set[str]]) -> set[tuple[str, str]]:
    """(our module without `llmmod.`, their name) of every use in the source."""
    found = overridden = {(owner.__module__, name) for owner, name, _ in overriding(classes)}
    for name, tree in trees.items():
        here = [owner for owner in classes if owner.__module__ == name]
        nested = [defined(node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        own = {
            part
            for owner in here
            for above in owner.__mro__
            for part in classes.get(above, ())
            if (above.__module__, part) not in overridden
        }
        own |= {part for parts in nested for part in parts if (name, part) not in overridden}
        found = found | {(name, use) for use in uses_in(tree, own)}
    return {(name.removeprefix("llmmod."), use) for name, use in found}
