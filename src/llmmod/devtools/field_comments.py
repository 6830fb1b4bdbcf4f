"""What the comments in a schema's source say of its fields: behind a field, or else in the lines right above it."""

from __future__ import annotations

import ast
import inspect
import io
import re
import sys
import tokenize
from enum import Enum
from functools import cache

from llmmod.config.wording import hints, union_members

_TO_TOOLS = re.compile(r"#? ?(type: ignore(\[[^]]*\])?|fmt: \w+|noqa.*)")  # a comment that speaks to a linter


def field_comments(schema: type) -> dict[str, str]:
    """Field -> what its comment says, for each field of a dataclass, inherited ones too; empty where nobody says.

    A class that repeats a field without a comment means the same by it. An enum without a comment is explained by its docstring.
    """
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__[:-1]):
        found |= {name: comment for name, comment in _own_comments(base).items() if comment}
    return {name: found.get(name) or _of_enum(hint) for name, hint in hints(schema).items()}


@cache
def _own_comments(schema: type) -> dict[str, str]:
    source = inspect.getsource(sys.modules[schema.__module__])
    comments, alone = _comments(source)
    body = next(node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == schema.__name__)
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            behind = " ".join(comments[line] for line in lines if line in comments)
            above = node.lineno
            while above - 1 in alone:
                above -= 1
            found[node.target.id] = behind or " ".join(comments[line] for line in range(above, node.lineno) if line in comments)
    return found


def _comments(source: str) -> tuple[dict[int, str], set[int]]:
    """Line -> the comment there, and the lines that hold nothing else."""
    comments: dict[int, str] = {}
    alone = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            text = _TO_TOOLS.sub("", token.string).lstrip("#").strip()
            if text:
                comments[line] = text
            if token.line.lstrip().startswith("#"):
                alone.add(line)
    return comments, alone


def _of_enum(hint: object) -> str:
    """The first paragraph of an enum's docstring; empty for any other type."""
    enums = [member for member in union_members(hint) if isinstance(member, type) and issubclass(member, Enum)]
    return (inspect.getdoc(enums[0]) or "").split("\n\n")[0].replace("\n", " ") if enums else ""
