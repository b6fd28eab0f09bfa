"""What a package's source files say of its names, read without importing any of them.

It follows names through re-exports and methods through base classes within the package, and knows signatures, the
fields of dataclasses and named tuples, and attributes that methods set. What it cannot see: names that are made while
the program runs, and what a function does.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from trimtab.errors import CheckpointError

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
_MOST_HOPS = 20
"""Re-exports that are followed for one name."""


@dataclass(frozen=True, slots=True)
class Found:
    """A name's definition, and the module that holds it."""

    module: str
    node: ast.AST


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a function or a class takes, without `self` or `cls`."""

    positional: tuple[str, ...]
    keyword_only: tuple[str, ...]
    takes_more_positional: bool
    takes_more_keywords: bool

    @property
    def names(self) -> tuple[str, ...]:
        """All of them by name, in their order."""
        return (*self.positional, *self.keyword_only)


@dataclass(slots=True)
class Sources:
    """A package's files below `root`, the directory that holds the package's own."""

    root: Path
    _trees: dict[str, tuple[ast.Module, bool] | None] = field(default_factory=dict, repr=False)

    def text_of(self, module: str) -> str | None:
        """A module's source; None where there is no such file."""
        path = self._path(module)
        return None if path is None else path.read_text(encoding="utf-8", errors="replace")

    def find(self, module: str, name: str) -> Found | None:
        """What `from module import name` gives; None where the files do not say."""
        return self._find(module, name, _MOST_HOPS)

    def parameters(self, found: Found) -> Parameters | None:
        """What calling a function or a class takes; None for what is neither."""
        if isinstance(found.node, Function):
            return _parameters(found.node, bound=False)
        if not isinstance(found.node, ast.ClassDef):
            return None
        made = self.member(found, "__init__")
        if made is not None:
            return made
        lines = [list(_fields(one.node)) for one in reversed(self._line(found)) if isinstance(one.node, ast.ClassDef)]
        names = tuple(dict.fromkeys(name for line in lines for name in line))
        return Parameters(names, (), takes_more_positional=False, takes_more_keywords=False)

    def member(self, found: Found, name: str) -> Parameters | None:
        """What a class's method or a class within it takes, its own or inherited within the package; None: neither."""
        for one in self._line(found):
            for statement in _body(one.node):
                if isinstance(statement, ast.ClassDef) and statement.name == name:
                    return self.parameters(Found(one.module, statement))
                if isinstance(statement, Function) and statement.name == name:
                    is_static = any(
                        isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in statement.decorator_list
                    )
                    return _parameters(statement, bound=not is_static)
        return None

    def has_attribute(self, found: Found, name: str) -> bool:
        """Whether a class says of an attribute: a field, a method, a property, or what one of its methods sets."""
        return any(name in _attributes(one.node) for one in self._line(found))

    def _find(self, module: str, name: str, hops: int) -> Found | None:
        tree = self._tree(module)
        if tree is None or hops == 0:
            return None
        module_tree, is_package = tree
        for statement in _statements(module_tree.body):
            if isinstance(statement, Function | ast.ClassDef) and statement.name == name:
                return Found(module, statement)
            if isinstance(statement, ast.Assign | ast.AnnAssign) and name in _targets(statement):
                return Found(module, statement)
            if isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    if (alias.asname or alias.name) == name:
                        source = _absolute(module, is_package, statement)
                        return self._find(source, alias.name, hops - 1) or self._module(f"{source}.{alias.name}")
        return self._module(f"{module}.{name}")

    def _module(self, module: str) -> Found | None:
        tree = self._tree(module)
        return None if tree is None else Found(module, tree[0])

    def _line(self, found: Found) -> list[Found]:
        """A class and those it inherits from within the package, nearest first."""
        line, waiting = [], [found]
        while waiting:
            one = waiting.pop(0)
            if one in line or not isinstance(one.node, ast.ClassDef):
                continue
            line.append(one)
            names = [ast.unparse(base).split("[")[0] for base in one.node.bases]
            above = (self.find(one.module, name) for name in names if "." not in name)
            waiting += [base for base in above if base is not None]
        return line

    def _tree(self, module: str) -> tuple[ast.Module, bool] | None:
        if module not in self._trees:
            path = self._path(module)
            self._trees[module] = None if path is None else (_parsed(path), path.name == "__init__.py")
        return self._trees[module]

    def _path(self, module: str) -> Path | None:
        place = self.root.joinpath(*module.split("."))
        for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if path.is_file():
                return path
        return None


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as Python ({error}). Unzip the wheel anew.") from error


def _absolute(module: str, is_package: bool, statement: ast.ImportFrom) -> str:
    """The module that a `from ... import` names, without leading dots."""
    if not statement.level:
        return statement.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - statement.level + is_package]
    return ".".join([*kept, *([statement.module] if statement.module else [])])


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module or class, those below its `if`, `try` and `with` as well."""
    for statement in body:
        yield statement
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(statement, ast.If | ast.Try | ast.With):
                yield from _statements(getattr(statement, inner, []))
        for handler in getattr(statement, "handlers", []):
            yield from _statements(handler.body)


def _body(node: ast.AST) -> Iterator[ast.stmt]:
    return _statements(node.body) if isinstance(node, ast.ClassDef) else iter(())


def _targets(statement: ast.Assign | ast.AnnAssign) -> set[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def _fields(node: ast.ClassDef) -> Iterator[str]:
    """Names that a class's body annotates, in their order: what a dataclass or a named tuple is made of."""
    for statement in _body(node):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id


def _attributes(node: ast.AST) -> set[str]:
    found: set[str] = set()
    for statement in _body(node):
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            found |= _targets(statement)
        elif isinstance(statement, Function):
            found.add(statement.name)
            found |= {
                inner.attr
                for inner in ast.walk(statement)
                if isinstance(inner, ast.Attribute)
                and isinstance(inner.ctx, ast.Store)
                and isinstance(inner.value, ast.Name)
                and inner.value.id == "self"
            }
        elif isinstance(statement, ast.ClassDef):
            found.add(statement.name)
    return found


def _parameters(node: Function, *, bound: bool) -> Parameters:
    given = node.args
    positional = [one.arg for one in (*given.posonlyargs, *given.args)]
    return Parameters(
        tuple(positional[1:] if bound else positional),
        tuple(one.arg for one in given.kwonlyargs),
        takes_more_positional=given.vararg is not None,
        takes_more_keywords=given.kwarg is not None,
    )
