"""The house keeps its shape: who may import whom, what may be called what, and how large it may grow.

`violations` reads a source tree without importing it; the tests run it on trimtab, where it must find nothing, and on
small trees with one thing planted, where it must find exactly that.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType
from typing import TypeGuard

import pytest

import trimtab
from trimtab import core

LAYERS = (
    {"answers", "caches", "calls", "constraint", "core", "drafting", "environment", "errors", "fields", "gates"}
    | {"params"},
    {"columns", "documents", "mixing", "prompts", "sessions", "statistics"},
    {"constraining", "guides", "models"},
    {"decoding", "testing"},
    {"storage"},
    {"engines"},
    {"methods"},
    {"evaluation", "serving", "training"},
    {"making"},
    {"cli"},
)
"""Files and folders at the top; each imports what is below it, or beside it in `models`, `decoding` and the like."""
LAYER = {unit: depth for depth, units in enumerate(LAYERS) for unit in units}
NEIGHBOURS = LAYERS[7]
"""What is built on everything below and knows nothing of its neighbours."""
GUESTS = {"scorers"}
"""Names of earlier versions that written model cards import; each only hands on what moved."""

SCHEMAS = ("wire", "message", "tool", "guidance", "form", "responses", "reply")
"""What the wire types are divided into, besides the requests themselves."""

ALLOWED_IN: Mapping[str, tuple[str, ...]] = {
    "transformers": ("models/", "storage/loading.py", "training/"),
    "trl": ("training/",),
    "torchrl": ("training/",),
    "tensordict": ("training/",),
    "ray": ("training/",),
    "pydantic": ("serving/schema.py", *(f"serving/{part}_schema.py" for part in SCHEMAS)),
    "fastapi": ("serving/app.py", "serving/replies.py", "cli/server.py"),
    "starlette": ("serving/app.py", "serving/replies.py"),
    "uvicorn": ("serving/app.py", "serving/connections.py", "cli/"),
    "prometheus_client": ("serving/metrics.py",),
    "vllm": ("engines/",),
    "llguidance": ("constraining/",),
}
"""Third-party package -> the only places that may import it."""

OPTIONAL = (
    "accelerate",
    "datasets",
    "gguf",
    "llguidance",
    "lm_eval",
    "matplotlib",
    "moarchiving",
    "openai",
    "peft",
    "profanity_check",
    "psutil",
    "ray",
    "sklearn",
    "tensordict",
    "torchrl",
    "trl",
    "vaderSentiment",
    "wordllama",
    "yaml",
)
"""What `import trimtab` must not import: each belongs to an extra."""

SIGNED_BY_OTHERS = {
    ("models/forward/row_cache.py", "update"),
    *((f"training/{method}/trainer.py", "__init__") for method in ("arm", "distill", "dpo", "parm", "reward", "rl")),
    ("training/arm/head.py", "__init__"),
    ("training/rl/mixed.py", "__init__"),
    *((f"training/{method}/trainer.py", "train") for method in ("parm", "rl")),
}
"""Methods whose signature is the contract of a library's class, open end included, which refuses a typo itself:
transformers' `Cache`, TRL's trainers."""

EMPTY_NAMES = {"own", "told", "theirs", "heat", "dice"}
BANNED_NAMES = {"base", "helpers", "manager", "utils"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

_GUEST = "a name of earlier versions only hands on what moved"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def violations(package: Path) -> list[str]:
    """Every breach of the house's rules in a source tree, as `file:line: what is wrong`."""
    found: list[str] = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package).as_posix()
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source, relative)
        for check in (_names, _sizes, _imports, _prints, _environment, _open_ended, _words):
            found += [f"{relative}:{line}: {problem}" for line, problem in check(relative, source, tree)]
    return found + _circles(package)


def _circles(package: Path) -> list[str]:
    """Files that import themselves by way of others, and folders side by side that import each other."""
    places = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    modules = {_module_of(relative): relative for relative in places}
    files = {relative: _imported_files(relative, path, modules) for relative, path in places.items()}
    folders: dict[str, set[str]] = {}
    for relative, imported in files.items():
        for other in imported:
            for one, another in _side_by_side(relative, other):
                folders.setdefault(one, set()).add(another)
    found = [
        f"{one}:1: imports itself by way of {way}"
        for one, imported in files.items()
        for way in sorted(other for other in imported if one in _reached(other, files))
    ]
    return found + [
        f"{relative}:1: {one} and {another} import each other"
        for one, others in folders.items()
        for another in sorted(others)
        if one in _reached(another, folders)
        for relative in files
        if relative.startswith(f"{one}/")
    ]


def _module_of(relative: str) -> str:
    return ".".join(["trimtab", *relative.removesuffix(".py").removesuffix("/__init__").split("/")])


def _imported_files(relative: str, path: Path, modules: Mapping[str, str]) -> set[str]:
    """The files that one imports anywhere in it, but not the packages on the way to them, nor by the public surface."""
    if relative == "__init__.py":
        return set()
    found: set[str] = set()
    for _, module, name in _imported_names(relative, ast.parse(path.read_text(encoding="utf-8"))):
        within = f"{module}.{name}"
        found |= {modules[one] for one in (within if within in modules else module,) if one in modules}
    return found - {relative, "__init__.py"}


def _reached(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    seen, left = {start}, [start]
    while left:
        for other in graph.get(left.pop(), set()) - seen:
            seen.add(other)
            left.append(other)
    return seen


def _side_by_side(one: str, another: str) -> Iterator[tuple[str, str]]:
    """The folders of two files where their paths part, if both are folders within one room."""
    ones, others = one.split("/")[:-1], another.split("/")[:-1]
    for depth, (here, there) in enumerate(zip(ones, others, strict=False)):
        if here != there:
            if depth:
                yield "/".join(ones[: depth + 1]), "/".join(others[: depth + 1])
            return


def _names(relative: str, source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    parts = relative.removesuffix(".py").split("/")
    for part in parts:
        if part.strip("_") in BANNED_NAMES or set(part.split("_")) & (BANNED_NAMES - {"base"}):
            yield 1, f"a module named {part!r} says nothing about what it holds"
    if relative in {f"{name}.py" for name in GUESTS}:
        kinds = (ast.ImportFrom, ast.Expr, ast.Assign)
        yield from ((node.lineno, _GUEST) for node in tree.body if not isinstance(node, kinds))
    elif parts[0] not in LAYER and relative not in ("__init__.py", "__main__.py"):
        yield 1, f"{parts[0]!r} has no place in the layers"


def _words(relative: str, source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Docstrings that begin in the middle of a sentence, and names that say nothing a reader could search for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and _is_text(node.value) and ast.unparse(node.value)[1:].startswith("Of "):
            yield node.lineno, 'a docstring begins with "Of"'
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    for node in {inner for function in functions for inner in ast.walk(function)}:
        name = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else ""
        if name in EMPTY_NAMES:
            yield node.lineno, f"{name} says nothing of what it holds"


def _sizes(relative: str, source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    lines = len(source.splitlines())
    if lines > MAX_FILE_LINES:
        yield lines, f"{lines} lines; a file has at most {MAX_FILE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, Function):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {length} lines; a function has at most {MAX_FUNCTION_LINES}"


def _imports(relative: str, source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    here = relative.removesuffix(".py").split("/")[0]
    for line, module in _imported_modules(relative, tree):
        top, *rest = module.split(".")
        if top != "trimtab":
            places = ALLOWED_IN.get(top)
            if places is not None and not relative.startswith(places):
                yield line, f"imports {top}, which only {', '.join(places)} may"
        elif not rest:
            if here not in ("__init__", "__main__"):
                yield line, "imports the public surface from inside; name the module"
        elif here != "__init__":
            yield from ((line, problem) for problem in _layering(here, rest[0]))


def _layering(here: str, there: str) -> Iterator[str]:
    if there not in LAYER:
        yield f"imports {there!r}, which has no place in the layers"
    elif here in LAYER and LAYER[there] > LAYER[here]:
        yield f"{here} imports {there}, a layer above it"
    elif here in NEIGHBOURS and there in NEIGHBOURS and here != there:
        yield f"{here} imports {there}, its neighbour"
    elif (here, there) == ("guides", "models"):
        yield "guides import models; a guide is given its model"


def _imported_modules(relative: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every import as a dotted absolute name."""
    for line, module, name in _imported_names(relative, tree):
        # `from trimtab import core` names a module; `from trimtab import __version__` names nothing to order.
        if module == "trimtab" and name in LAYER:
            yield line, f"trimtab.{name}"
        elif (module, name) != ("trimtab", "__version__"):
            yield line, module


def _imported_names(relative: str, tree: ast.Module) -> Iterator[tuple[int, str, str | None]]:
    """Every import, inside functions and `if TYPE_CHECKING` too: its line, the module, and what is taken out of it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, _origin(relative, node), alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from ((node.lineno, arg.value, None) for arg in node.args[:1] if _is_text(arg))


def _origin(relative: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = ["trimtab", *relative.split("/")[:-1]]
    return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])


def _is_text(node: ast.expr) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _prints(relative: str, source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if relative.startswith("cli/"):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno, "prints; a library logs"
        if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr") and ast.unparse(node.value) == "sys":
            yield node.lineno, f"uses sys.{node.attr}; a library logs"


_READS_ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv", "expandvars"}


def _environment(relative: str, source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Where the environment is read or written, which `environment.py` alone does: its table is the page's."""
    if relative == "environment.py":
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "os.path", "posix"):
            names = {alias.name for alias in node.names}
        else:
            names = {node.attr} if isinstance(node, ast.Attribute) else set()
        for name in sorted(names & _READS_ENVIRONMENT):
            yield getattr(node, "lineno", 1), f"{name}: the environment is read and written in environment.py alone"


def _open_ended(relative: str, source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for function in _public_functions(tree):
        if function.args.kwarg is not None and (relative, function.name) not in SIGNED_BY_OTHERS:
            yield function.lineno, f"{function.name} takes **{function.args.kwarg.arg}, so it cannot refuse a typo"


def _public_functions(scope: ast.Module | ast.ClassDef) -> Iterator[Function]:
    for node in scope.body:
        dunder = isinstance(node, Function) and node.name.startswith("__") and node.name.endswith("__")
        if isinstance(node, Function | ast.ClassDef) and node.name.startswith("_") and not dunder:
            continue
        if isinstance(node, Function):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from _public_functions(node)


def test_the_house_keeps_its_rules() -> None:
    package = Path(inspect.getfile(trimtab)).parent
    assert violations(package) == []


LONG_FUNCTION = "def f() -> int:\n" + "    x = 1\n" * MAX_FUNCTION_LINES + "    return x\n"

PLANTED = {
    "core imports a rule": ("core.py", "import trimtab.mixing.rules", "core imports mixing, a layer above it"),
    "a rule imports the decoder": (
        "mixing/rules.py",
        "from trimtab.decoding.decoder import Decoder",
        "mixing imports decoding",
    ),
    "relative, upwards": ("models/hf.py", "from ..storage.loading import load_model", "models imports storage"),
    "relative, a module": ("models/hf.py", "from .. import storage", "models imports storage"),
    "from the package": ("mixing/rules.py", "from trimtab import decoding", "mixing imports decoding"),
    "inside a function": ("storage/loading.py", "def f():\n    import trimtab.training", "storage imports training"),
    "by name": (
        "decoding/text.py",
        "import importlib\nimportlib.import_module('trimtab.cli.main')",
        "decoding imports cli",
    ),
    "for types only": (
        "decoding/decoder.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from trimtab.evaluation import judges",
        "decoding imports evaluation",
    ),
    "sideways": ("training/arm/train.py", "from trimtab.evaluation import harness", "evaluation, its neighbour"),
    "sideways, back": ("evaluation/harness.py", "import trimtab.training.arm.train", "training, its neighbour"),
    "sideways, serving": ("serving/app.py", "import trimtab.evaluation", "evaluation, its neighbour"),
    "a training imports what is made with it": (
        "training/pairs/data.py",
        "import trimtab.making.run",
        "training imports making, a layer above it",
    ),
    "a library uses the command line": ("evaluation/report.py", "import trimtab.cli.main", "a layer above it"),
    "a guide imports a model": ("guides/arm.py", "from trimtab.models.hf import HFModel", "a guide is given its model"),
    "the surface from inside": ("cli/chat.py", "from trimtab import Decoder", "imports the public surface"),
    "an unknown room": ("cli/chat.py", "import trimtab.attic", "'attic', which has no place"),
    "a new room": ("attic.py", "x = 1", "'attic' has no place in the layers"),
    "a guest is imported": ("cli/chat.py", "import trimtab.scorers", "'scorers', which has no place"),
    "a guest says something": ("scorers.py", "def load(): ...", "a name of earlier versions only hands on"),
    "transformers in the decoder": ("decoding/decoder.py", "import transformers", "imports transformers, which only"),
    "transformers in a guide": ("guides/arm.py", "def f():\n    from transformers import AutoModel", "which only"),
    "trl outside training": ("evaluation/harness.py", "import trl", "imports trl, which only training/"),
    "wire types in the app": ("serving/app.py", "from pydantic import BaseModel", "imports pydantic, which only"),
    "vllm in serving": ("serving/app.py", "import vllm.config", "imports vllm, which only engines/"),
    "a print": ("storage/loading.py", "print('loading')", "prints; a library logs"),
    "stderr": ("training/arm/train.py", "import sys\nsys.stderr.write('x')", "uses sys.stderr"),
    "the environment": ("cli/main.py", "import os\nos.environ['A'] = '1'", "environ: the environment is read"),
    "the environment, by name": ("cli/main.py", "from os import getenv", "getenv: the environment is read"),
    "kwargs": ("mixing/sampling.py", "def sample(logits, **options):\n    pass", "sample takes **options"),
    "kwargs in a method": ("mixing/rules.py", "class Tilt:\n    def policy(self, **kw): ...", "policy takes **kw"),
    "kwargs in a constructor": (
        "mixing/rules.py",
        "class Tilt:\n    def __init__(self, **kw): ...",
        "__init__ takes **kw",
    ),
    "utils": ("utils.py", "x = 1", "a module named 'utils'"),
    "helpers below": ("training/helpers.py", "x = 1", "a module named 'helpers'"),
    "a package of utils": ("models/hf_utils/__init__.py", "x = 1", "a module named 'hf_utils'"),
    "base": ("guides/base.py", "x = 1", "a module named 'base'"),
    "half a sentence": ("core.py", 'WIDTH = 3\n"""Of a layer."""\n', 'a docstring begins with "Of"'),
    "an empty name": ("core.py", "def f(own: int) -> int:\n    return own\n", "own says nothing"),
    "a long file": ("decoding/decoder.py", "x = 1\n" * (MAX_FILE_LINES + 1), "401 lines; a file has at most 400"),
    "a long function": ("decoding/decoder.py", LONG_FUNCTION, "f has 62 lines"),
    "a circle of two": (
        "mixing/sampling.py",
        "def f():\n    from trimtab.mixing.rules import Tilt\n",
        "imports itself by way of mixing/rules.py",
    ),
    "a circle by name": (
        "mixing/sampling.py",
        "import importlib\nimportlib.import_module('trimtab.mixing.rules')\n",
        "imports itself by way of mixing/rules.py",
    ),
    "a circle for types": (
        "storage/loading.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from trimtab.storage import directories\n",
        "imports itself by way of storage/directories.py",
    ),
    "a circle of folders": (
        "training/arm/settings.py",
        "from trimtab.training.dpo import settings",
        "training/arm and training/dpo import each other",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name: str, tmp_path: Path) -> None:
    relative, source, problem = PLANTED[name]
    _write(tmp_path, {**SOUND, relative: source})
    found = violations(tmp_path)
    assert found, "nothing was found"
    assert any(problem in line and line.startswith(f"{relative}:") for line in found), found


SOUND = {
    "__init__.py": "from trimtab.decoding.decoder import Decoder\nfrom trimtab.storage.loading import load_model\n",
    "core.py": "import torch\n",
    "environment.py": "import os\nVALUE = os.environ.get('A')\n",
    "scorers.py": '"""For cards."""\nfrom trimtab.storage.scorers import load\n__all__ = ["load"]\n',
    "mixing/rules.py": "from .. import core\nfrom ..core import Candidates\nfrom trimtab.mixing import sampling\n",
    "mixing/sampling.py": "def _private(**options): ...\nclass _Hidden:\n    def f(self, **options): ...\n",
    "testing/__init__.py": "from trimtab.models.tabular import TabularModel\n",
    "models/hf.py": "import transformers\nfrom ..core import LanguageModel\n",
    "storage/loading.py": (
        "def load_model():\n    from transformers import AutoModel\n    from trimtab.guides.arm import ARM\n"
    ),
    "storage/directories.py": "from trimtab.storage.loading import load_model\n",
    "decoding/decoder.py": "from trimtab import core, errors\nfrom trimtab.mixing.rules import Tilt\n",
    "training/arm/train.py": "import trl\nfrom trimtab.training.arm import settings\n",
    "training/arm/settings.py": "from trimtab.decoding.decoder import Decoder\n",
    "training/dpo/settings.py": "from trimtab.training.arm import train\n",
    "training/dpo/train.py": "from trimtab.training.dpo.settings import Settings\n",
    "cli/main.py": "import trimtab.cli.chat\nfrom trimtab import __version__\nprint('hello')\n",
    "cli/chat.py": "",
}


def test_a_sound_tree_passes(tmp_path: Path) -> None:
    _write(tmp_path, SOUND)
    assert violations(tmp_path) == []


def _write(root: Path, files: Mapping[str, str]) -> None:
    for relative, source in files.items():
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")


def test_the_public_names_are_complete() -> None:
    assert len(trimtab.__all__) == len(set(trimtab.__all__))
    imported = {name for name in _names_bound_in_init() if not name.startswith("_")} - set(LAYER)
    assert imported == {name for name in trimtab.__all__ if not name.startswith("_")}
    assert all(hasattr(trimtab, name) for name in trimtab.__all__)


def _names_bound_in_init() -> Iterator[str]:
    for node in _statements_of_the_surface():
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trimtab"):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _statements_of_the_surface() -> Iterator[ast.stmt]:
    """Those of `trimtab/__init__.py`, with the imports that are for type checkers alone."""
    for node in ast.parse(inspect.getsource(trimtab)).body:
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        yield from node.body if isinstance(node, ast.If) and is_for_types else (node,)


def test_the_surface_holds_no_logic() -> None:
    kinds = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)
    others = [node for node in _statements_of_the_surface() if not isinstance(node, kinds)]
    assert [getattr(node, "name", ast.unparse(node)) for node in others] == ["__getattr__", "__dir__"]
    assert {*trimtab.__all__} <= {*dir(trimtab)}


def test_what_is_imported_late_is_what_type_checkers_see() -> None:
    seen = {
        alias.name: node.module
        for outer in ast.parse(inspect.getsource(trimtab)).body
        if isinstance(outer, ast.If)
        for node in outer.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == trimtab._LATE
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        trimtab.nothing  # noqa: B018


@pytest.mark.parametrize("name", trimtab.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    thing = getattr(trimtab, name)
    if not (inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing)):
        assert name in _documented_constants(), f"{name} has no docstring below its definition"
        return
    assert _has_own_docstring(thing), f"{name} has no docstring"
    assert _bare_methods(thing) == [], f"{name} has methods without a docstring"


def _has_own_docstring(thing: object) -> bool:
    written = (getattr(thing, "__doc__", None) or "").strip()
    # A dataclass writes its signature where no docstring was.
    return bool(written) and not written.startswith(f"{getattr(thing, '__name__', '')}(")


def _bare_methods(thing: object) -> list[str]:
    """Public methods without a docstring; what a protocol of core asks for is explained there, once."""
    if not inspect.isclass(thing):
        return []
    protocols = [cls for cls in vars(core).values() if inspect.isclass(cls) and getattr(cls, "_is_protocol", False)]
    explained = {key for protocol in protocols for key in vars(protocol)}
    return [
        key
        for key, member in vars(thing).items()
        if isinstance(member, staticmethod | classmethod | FunctionType) and not key.startswith("_")
        if not inspect.getdoc(member) and key not in explained
    ]


def test_an_undocumented_method_is_found() -> None:
    class Steering:
        def open(self) -> None: ...
        def steer(self) -> None: ...
        def _private(self) -> None: ...

    assert _bare_methods(Steering) == ["steer"]
    assert not _has_own_docstring(Steering)


def _documented_constants() -> set[str]:
    """Names assigned in core with a docstring on the next line."""
    body = ast.parse(inspect.getsource(core)).body
    names: set[str] = set()
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(after, ast.Expr):
            names.add(ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0]))
    return names


PROBE = """
import json, logging, os, pathlib, random, sys, warnings
import numpy, torch
def state():
    return {
        "environment": dict(os.environ),
        "root handlers": len(logging.getLogger().handlers),
        "own handlers": [type(h).__name__ for h in logging.getLogger("trimtab").handlers],
        "own level": logging.getLogger("trimtab").level,
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "random": [hash(random.getstate()), int(torch.initial_seed() % 1000), int(numpy.random.get_state()[1][0])],
        "directory": os.getcwd(),
        "files": sorted(str(p) for p in pathlib.Path(os.environ["HOME"]).rglob("*")),
    }
before = state()
import trimtab
after = state()
print(json.dumps({"changed": [k for k in before if before[k] != after[k]], "modules": sorted(sys.modules)}))
"""


def test_importing_trimtab_imports_nothing_optional_and_changes_nothing(tmp_path: Path) -> None:
    result = _probe(tmp_path, PROBE)
    loaded = set(OPTIONAL) & set(result["modules"])
    assert not loaded, f"`import trimtab` imports {sorted(loaded)}"
    assert result["changed"] == []


def test_the_probe_sees_a_side_effect(tmp_path: Path) -> None:
    guilty = "import trimtab, torch, os; os.environ['X'] = '1'; torch.set_default_dtype(torch.float64); import gguf"
    result = _probe(tmp_path, PROBE.replace("import trimtab", guilty))
    assert result["changed"] == ["environment", "dtype"]
    assert "gguf" in result["modules"]


def _probe(home: Path, program: str) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"HOME": str(home), "PATH": "", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=home,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "importing trimtab writes to standard error"
    result: dict[str, list[str]] = json.loads(done.stdout)
    return result
