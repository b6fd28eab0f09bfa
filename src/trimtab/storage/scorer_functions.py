"""Functions of one's own that score: found by a module or a file, imported, and told apart by their code.

`module:function` is looked for in the working directory, then where Python finds modules; `FILE.py:function` names the
file. What the code of such a function is, and how two versions of it are told apart, `code_digests` says.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from trimtab.core import Prompt
from trimtab.errors import OptionError

ScoreFunction = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_WAY_OUT = (
    "Give module:function, with the module in the working directory (in a recipe: beside the recipe) or installed, or "
    "FILE.py:function."
)


def module_file(module: str, directory: Path) -> Path | None:
    """The file of a module in a directory: `a.b` is a/b.py or a/b/__init__.py; None where there is neither."""
    if not _MODULE.fullmatch(module):
        return None
    path = directory.joinpath(*module.split("."))
    found = next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
    return None if found is None else found.resolve()


def is_function_name(name: str) -> bool:
    """Whether a scorer's name is `module:function` or `FILE.py:function`, one of somebody's own."""
    target, colon, function = name.rpartition(":")
    return bool(colon) and function.isidentifier() and (target.endswith(".py") or bool(_MODULE.fullmatch(target)))


@dataclass(frozen=True, slots=True)
class Function:
    """A score function of one's own, and where its code is."""

    call: ScoreFunction
    description: str
    """The first line of its docstring."""
    file: Path | None
    """None for a module without a file (built into Python)."""


def function_file(name: str) -> Path | None:
    """The file of the module that `module:function` or `FILE.py:function` names, without importing it; None: none."""
    target = name.rpartition(":")[0]
    if target.endswith(".py"):
        file = Path(target).expanduser()
        return file.resolve() if file.is_file() else None
    if (found := module_file(target, Path.cwd())) is not None:
        return found
    try:
        spec = importlib.util.find_spec(target)  # imports the packages above it
    except (ImportError, ValueError, AttributeError):
        return None
    return None if spec is None or spec.origin is None or not Path(spec.origin).is_file() else Path(spec.origin)


def load_function(name: str) -> Function:
    """The function that `module:function` or `FILE.py:function` names, its module imported. Raises OptionError."""
    target, _, function_name = name.rpartition(":")
    if target.endswith(".py"):
        file: Path | None = Path(target).expanduser()
        if not Path(target).expanduser().is_file():
            raise OptionError(f"Scorer {name!r}: there is no file {target}. Give FILE.py:function, or module:function.")
    elif _MODULE.fullmatch(target):
        file = module_file(target, Path.cwd())
    else:
        raise OptionError(f"Scorer {name!r}: {target!r} cannot be imported, as it is not a module's name. {_WAY_OUT}")
    root, module_name = (None, target) if file is None else _root_and_name(file.resolve())
    module = _imported(name, module_name, file, root)
    function = getattr(module, function_name, None)
    where = getattr(module, "__file__", None)
    if not callable(function):
        raise OptionError(f"Scorer {name!r}: {where or module_name} has no function {function_name!r}. {_WAY_OUT}")
    described = ((getattr(function, "__doc__", None) or "").strip() or name).splitlines()[0]
    call = function if root is None else _beside(root, function)
    return Function(call, described, None if where is None else Path(where))


def _root_and_name(file: Path) -> tuple[Path, str]:
    """The directory where Python would find a file, and the module's name there, the packages above it included."""
    parts = [] if file.name == "__init__.py" else [file.stem]
    root = file.parent
    while (root / "__init__.py").is_file():
        parts.append(root.name)
        root = root.parent
    return root, ".".join(reversed(parts))


def _imported(name: str, module_name: str, file: Path | None, root: Path | None) -> ModuleType:
    """A scorer's module: the one in `file`, or the one that Python finds. Raises OptionError with the file and why."""
    importlib.invalidate_caches()
    if file is not None and root is not None:
        top = module_name.partition(".")[0]
        other = _another(top, root)
        if other is not None:
            raise OptionError(
                f"Scorer {name!r}: {file} cannot be used under its name, because Python has another module "
                f"{top!r} ({other}), and whoever imports one would get the other. Rename the file."
            )
    try:
        if root is None:
            return importlib.import_module(module_name)
        with _on_path(root), _without_bytecode():
            return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        where = f"{module_name!r}" if file is None else str(file)
        reason = f"{type(error).__name__}: {error}{_line_of(error, file)}"
        raise OptionError(f"Scorer {name!r}: {where} cannot be imported ({reason}). {_WAY_OUT}") from error


def _another(top: str, root: Path) -> str | None:
    """Where Python has a module of this name that is not the one below `root`; None where it has no other."""
    loaded = sys.modules.get(top)
    try:
        spec = importlib.util.find_spec(top) if loaded is None else loaded.__spec__
    except (ImportError, ValueError):
        spec = None
    origin = getattr(loaded, "__file__", None) or (spec.origin if spec is not None else None)
    if origin is None:  # nothing, or a directory without __init__.py, which gives way to any module
        return None
    return None if Path(origin).resolve() in {root / f"{top}.py", root / top / "__init__.py"} else origin


def _line_of(error: BaseException, file: Path | None) -> str:
    """`, line N` of the file, where the error came from there."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    return f", line {lines[-1]}" if lines else ""


@contextmanager
def _on_path(root: Path) -> Iterator[None]:
    """A directory in front of where Python looks for modules, for as long as this lasts."""
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        with suppress(ValueError):  # the module may have taken it out itself
            sys.path.remove(str(root))


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """No .pyc is written: it is known by the second and the size of its source, so an edit could go unnoticed."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _beside(root: Path, function: ScoreFunction) -> ScoreFunction:
    """A function that finds what lies beside it, also what it imports no sooner than it is called."""

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> Sequence[float]:
        with _on_path(root):
            return function(prompts, texts)

    return score


def code_digests(file: Path) -> dict[str, str]:
    """The code of a function of one's own: file -> SHA-256, of its module's file and of those that it imports there.

    Followed are `import` statements anywhere in the files (and `import_module` of a name that is written out) to what
    lies below the directory where Python finds the module; of an installed package only the package itself. Files are
    named from that directory, so that code that is moved as a whole stays the same. What cannot be seen: a name that is
    put together while it runs, files that the code opens, and other installed packages.
    """
    root, name = _root_and_name(file.resolve())
    packages = {"site-packages", "dist-packages"} & {*root.parts}
    within = name.partition(".")[0] if packages or root == Path(ast.__file__).parent else None
    found: dict[str, str] = {}
    waiting = deque([file.resolve()])
    while waiting:
        path = waiting.popleft()
        key = path.relative_to(root).as_posix()
        if key in found:
            continue
        content = path.read_bytes()
        found[key] = hashlib.sha256(content).hexdigest()
        for module in _imports_of(content, path, root):
            if within is None or module.partition(".")[0] == within:
                waiting.extend(_files_of(module, root))
    return dict(sorted(found.items()))


def _files_of(module: str, root: Path) -> Iterator[Path]:
    """The files that Python runs to import a module: its packages' and its own, as far as they lie below `root`."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        file = module_file(".".join(parts[:length]), root)
        if file is not None and file.is_relative_to(root):
            yield file


def _imports_of(content: bytes, path: Path, root: Path) -> Iterator[str]:
    """The absolute names of modules that a source may import; nothing for what is not Python source."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return
    package = path.relative_to(root).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join([*_above(package, node.level), *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}".lstrip(".") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and _is_import_call(node.func):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def _above(package: Sequence[str], level: int) -> Sequence[str]:
    """What the dots of a relative import stand for."""
    return () if level == 0 else package[: len(package) - level + 1]


def _is_import_call(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")
