"""What the plug-in relies on in vLLM, compared with sources: an invented package's, and vLLM's own out of wheels."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.engines.vllm import contract, versions
from trimtab.engines.vllm.contract import Asks, Calls, Clause, Exists, Overrides, Reads, differences
from trimtab.engines.vllm.sources import Sources
from trimtab.errors import CheckpointError, CompatibilityError, MissingExtraError

FILES = {
    "eng/__init__.py": "from eng.inner import Base as Renamed\nfrom . import parts\n",
    "eng/inner.py": """
import other
try:
    from eng.parts.deep import helper
except ImportError:
    helper = None

class Base(other.Thing):
    rows: int
    count: int = 0

    def add(self, index, data, *, more=None): ...
    def open(self, *args, **kwargs):
        self.state = {}
    @staticmethod
    def check(config): ...

class Child(Base):
    name: str = ""
    class Source:
        path: str
        prefix: str = ""

TABLE = {"hook": 1}
""",
    "eng/parts/__init__.py": "",
    "eng/parts/deep.py": "def helper(one, two=2): ...\n",
}


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return Sources(tmp_path)


@pytest.mark.parametrize(
    "clause",
    [
        Exists("eng.Renamed"),
        Exists("eng.parts"),
        Exists("eng.inner.helper"),
        Exists("eng.inner.TABLE"),
        Calls("eng.inner.helper", ("one",), ("two",)),
        Calls("eng.inner.Base.open", ("anything",), ("whatever",)),
        Calls("eng.inner.Child", ("rows", "count", "name")),
        Calls("eng.inner.Child.Source", ("path",), ("prefix",)),
        Overrides("eng.Renamed.add", ("index", "data", "more")),
        Overrides("eng.inner.Child.check", ("config",)),
        Reads("eng.inner.Child", ("rows", "state", "name", "add", "Source")),
        Asks("eng.inner", ("hook",)),
    ],
)
def test_what_holds_differs_in_nothing(clause: Clause, sources: Sources) -> None:
    assert list(clause.differences(sources)) == []


@pytest.mark.parametrize(
    ("clause", "words"),
    [
        (Exists("eng.inner.Gone"), "eng.inner.Gone is not there."),
        (Exists("eng.nowhere.Base"), "eng.nowhere.Base is not there."),
        (Calls("eng.inner.Base.gone"), "eng.inner.Base.gone is not there."),
        (Calls("eng.inner.helper", ("first",)), "takes (one, two); it is called with (first)"),
        (Calls("eng.inner.helper", (), ("three",)), "eng.inner.helper takes no three."),
        (Overrides("eng.inner.Child.add", ("index", "data")), "takes (index, data, more); ours takes (index, data)"),
        (Overrides("eng.inner.Child.gone", ()), "eng.inner.Child.gone, which is overridden, is not there."),
        (Reads("eng.inner.Child", ("rows", "columns")), "eng.inner.Child has no columns."),
        (Reads("eng.inner.Gone", ("rows",)), "eng.inner.Gone is not there."),
        (Asks("eng.inner", ("other_hook",)), "eng.inner does not ask for other_hook."),
        (Asks("eng.gone", ("hook",)), "eng.gone is not there."),
    ],
)
def test_what_differs_is_said(clause: Clause, words: str, sources: Sources) -> None:
    [sentence] = clause.differences(sources)
    assert words in sentence


def _imported() -> Iterator[str]:
    """Every name that the plug-in imports from vLLM."""
    for path in Path(contract.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "vllm" for alias in node.names), path


def test_every_import_of_the_plug_in_stands_in_the_contract() -> None:
    """As a clause of its own, or as what another clause's method or parameters belong to."""
    places = [place for clause in contract.CONTRACT if (place := getattr(clause, "place", None))]
    places += [
        f"{clause.module}.{name}" for clause in contract.CONTRACT if isinstance(clause, Asks) for name in clause.names
    ]
    imported = set(_imported())
    assert len(imported) > 20
    assert {name for name in imported if not any(f"{place}.".startswith(f"{name}.") for place in places)} == set()


@pytest.mark.parametrize(
    ("version", "found", "accepted"),
    [("0.32.1", [], True), ("0.33.0", [], True), ("0.32.0", ["x is not there."], False), ("0.34.0", [], False)],
)
def test_a_version_is_accepted_where_its_release_is_known_and_nothing_differs(
    version: str, found: list[str], accepted: bool, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "differences", lambda _: found)
    assert versions.verdict_on(version, sources).is_accepted is accepted
    monkeypatch.setattr(versions, "installed", lambda: version)
    monkeypatch.setattr(versions, "installed_sources", lambda: sources)
    versions._check.cache_clear()
    if accepted:
        versions.check_version()
        return
    with pytest.raises(CompatibilityError) as caught:
        versions.check_version()
    for words in (version, "0.32.x", "0.33.x", *found):
        assert words in str(caught.value)


def test_a_version_that_was_only_compared_is_said_to_be(
    sources: Sources, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(versions, "differences", lambda _: [])
    monkeypatch.setattr(versions, "installed", lambda: "0.33.0")
    monkeypatch.setattr(versions, "installed_sources", lambda: sources)
    versions._check.cache_clear()
    versions.check_version()
    versions.check_version()
    [record] = caplog.records
    assert "nobody has run them inside it" in record.getMessage()


def test_an_error_lists_a_few_differences_and_counts_the_others(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "differences", lambda _: [f"name{number} is not there." for number in range(9)])
    monkeypatch.setattr(versions, "installed", lambda: "0.34.0")
    monkeypatch.setattr(versions, "installed_sources", lambda: sources)
    versions._check.cache_clear()
    with pytest.raises(CompatibilityError, match=r"name4 is not there\. And 4 more: trimtab vllm check lists them"):
        versions.check_version()


def test_files_without_a_distribution_are_no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda: None)
    with pytest.raises(MissingExtraError, match=r"trimtab\[vllm\]"):
        versions.check_version()


def _unpacked(release: str, directory: Path) -> Path:
    """The sources of a release: those in `TRIMTAB_VLLM_SOURCES/RELEASE`, else out of its wheel, which is downloaded."""
    given = os.environ.get("TRIMTAB_VLLM_SOURCES")
    if given:
        return Path(given) / release
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(directory), f"vllm=={release}.*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the wheel of vLLM {release}, which pip does not get here")
    [wheel] = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory, [name for name in archive.namelist() if name.endswith((".py", "METADATA"))])
    wheel.unlink()
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("release", [*versions.TESTED, *versions.COMPARED])
def test_the_sources_of_a_supported_release_hold_the_contract(release: str, tmp_path: Path) -> None:
    root = _unpacked(release, tmp_path)
    assert (root / "vllm" / "v1").is_dir()
    assert differences(Sources(root)) == []
    assert versions.verdict_of(str(root)).is_accepted


@pytest.mark.parametrize("content", [b"def (", b"\xff\xfe\x00"])
def test_sources_that_are_no_python_are_named(content: bytes, sources: Sources) -> None:
    (sources.root / "eng" / "inner.py").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"inner\.py cannot be read as Python"):
        list(Exists("eng.inner.Base").differences(sources))
