"""Recipes, examples and pages use what is public: whatever else a reader copied from them could move in any version."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import trimtab

MODULES = {"trimtab.errors", "trimtab.statistics", "trimtab.testing", "trimtab.evaluation.lm_eval"}
"""The public modules that the first page of the Python reference names, beside `trimtab` itself."""
READ = ("README.md", "docs/**/*.md", "examples/**/*.py", "recipes/**/*")
_IMPORT = re.compile(
    r"^[ \t]*(?:from trimtab(?:\.[\w.]+)? import (?:\([^)]*\)|[^\n#(]*)|import trimtab(?![\w])[\w.]*)", re.MULTILINE
)


def private_imports(text: str) -> Iterator[str]:
    """What a text, a program or a page with code in it, imports of trimtab that is not public."""
    for found in _IMPORT.findall(text):
        for node in ast.parse(found.strip()).body:
            if isinstance(node, ast.ImportFrom):
                names = {name.name for name in node.names} - {*trimtab.__all__, *_BELOW}
                if node.module == "trimtab":
                    yield from (f"trimtab.{name}" for name in sorted(names))
                elif node.module not in MODULES:
                    yield str(node.module)
            elif isinstance(node, ast.Import):
                yield from (name.name for name in node.names if name.name not in {"trimtab", *MODULES})


_BELOW = {module.removeprefix("trimtab.") for module in MODULES}


def test_what_is_written_for_users_imports_what_is_public(repository: Path) -> None:
    found_in = (path for pattern in READ for path in repository.glob(pattern) if path.is_file())
    paths = [path for path in found_in if path.suffix not in (".gz", ".pyc")]
    assert len(paths) > 40
    found = {str(path.relative_to(repository)): [*private_imports(path.read_text(encoding="utf-8"))] for path in paths}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_reference_names_the_public_modules(repository: Path) -> None:
    first = (repository / "docs" / "reference" / "python.md").read_text(encoding="utf-8").partition("```")[0]
    assert {*re.findall(r"`(trimtab\.[a-z_.]+)`", first)} - {"trimtab.__all__"} == MODULES


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("from trimtab.training.pairs.data import sample", ["trimtab.training.pairs.data"]),
        ("def f():\n    from trimtab.storage.loading import load_model\n", ["trimtab.storage.loading"]),
        ("from trimtab import (\n    ARM,\n    made_up,\n)", ["trimtab.made_up"]),
        ("import trimtab.models.hf as hf", ["trimtab.models.hf"]),
        ("```python\nfrom trimtab.core import Guide\n```", ["trimtab.core"]),
        ("from trimtab import ARM, testing  # both\nfrom trimtab.errors import TrimtabError\nimport trimtab\n", []),
        ("from trimtab_other.core import x", []),
    ],
)
def test_a_private_import_is_found(text: str, names: list[str]) -> None:
    assert list(private_imports(text)) == names
