"""The documentation speaks of the code that is there: every public name, every signature, every flag, every link."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import inspect
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import trimtab


@pytest.fixture(scope="module")
def reference(repository: Path) -> str:
    return (repository / "docs" / "reference" / "python.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", trimtab.__all__)
def test_a_public_name_is_in_the_reference(name: str, reference: str) -> None:
    stub = _stubs(reference).get(name)
    if stub is None:
        assert f"`{name}`" in reference.partition("## Further names")[2], (
            f"docs/reference/python.md does not document {name}"
        )
        return
    assert _differences(stub, getattr(trimtab, name)) == []


def test_the_reference_documents_nothing_else(reference: str) -> None:
    assert {name for name in _stubs(reference) if "." not in name} - set(trimtab.__all__) == set()


def test_what_else_the_reference_names_has_its_signature(reference: str) -> None:
    dotted = {name: stub for name, stub in _stubs(reference).items() if "." in name}
    assert dotted
    found = []
    for name, stub in dotted.items():
        module, _, attribute = name.rpartition(".")
        found += _differences(stub, getattr(importlib.import_module(module), attribute))
    assert found == []


WRONG = {
    "a name": "def load(path, *, weight=1.0): ...",
    "a default": "def load(name, *, weight=2.0): ...",
    "a kind": "def load(name, weight=1.0): ...",
    "one too few": "def load(name): ...",
    "a field": "class load:\n    name: str",
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_signature_is_found(what: str) -> None:
    def load(name: str, *, weight: float = 1.0) -> None: ...

    assert _differences(_stub("def load(name: str, *, weight: float = 1.0) -> None: ..."), load) == []
    assert _differences(_stub(WRONG[what]), load)


def _reference_page(repository: Path, name: str) -> str:
    return (repository / "docs" / "reference" / f"{name}.md").read_text(encoding="utf-8")


def test_every_command_and_flag_is_in_the_reference(repository: Path) -> None:
    page = "".join(_reference_page(repository, name) for name in ("bench", "checks", "cli"))
    shared = _reference_page(repository, "flags")
    missing = [
        f"{command} {flag}" for command, flag in _flags() if not _mentions(_section(page, command), flag, shared)
    ]
    assert missing == []


def test_a_flag_is_looked_for_where_a_command_links_to_alone() -> None:
    shared = "# Flags\n\n## Model flags\n\n`--model`\n\n## Prompt flags\n\n`--chat`\n"
    section = "[Model flags](flags.md#model-flags) and `--rule`"
    assert [_mentions(section, flag, shared) for flag in ("--model", "--rule", "--chat")] == [True, True, False]


def test_the_reference_names_no_flag_that_is_not_there(repository: Path) -> None:
    known = {flag for _, flag in _flags()} | {"--help", "--version", "--verbose"}
    for name in ("bench", "checks", "cli", "flags", "json"):
        assert set(re.findall(r"`(--[a-z][a-z-]*)", _reference_page(repository, name))) - known == set()


def test_a_page_of_the_command_line_can_be_read_in_one_go(repository: Path) -> None:
    assert _reference_page(repository, "cli").count("\n") < 400


@pytest.fixture(scope="module")
def field_tables(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("field_tables", repository / "docs" / "field_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_made_from_fields_are_the_codes(repository: Path, field_tables: ModuleType) -> None:
    for path, tables_of in field_tables.PAGES.items():
        page = path.read_text(encoding="utf-8")
        assert field_tables.MARK.findall(page) == list(tables_of())
        assert field_tables.written(page) == page, f"{path.name} is behind the code: make docs-tables"
    marked = {path for path in (repository / "docs").rglob("*.md") if "<!-- fields: " in path.read_text("utf-8")}
    assert marked == set(field_tables.PAGES)


def test_a_changed_table_is_found_and_written_anew(repository: Path, field_tables: ModuleType) -> None:
    page = _reference_page(repository, "flags")
    for row in ("| `--lora-rank N` | 8 |", "| `--top-k K` | 0; with an agent 40 |", "| `--gamma X` | 0.99 |"):
        assert row in page
        assert field_tables.written(page.replace(row, "| `--other N` | 7 |")) == page


@pytest.mark.parametrize("method", ["arm", "parm", "reward", "dpo", "rl", "guide-rl", "distill", "agent"])
def test_the_defaults_of_training_are_those_of_the_parser(field_tables: ModuleType, method: str) -> None:
    """Those of numbers, method by method, before they are drawn together in one table."""
    rows = field_tables.settings()[method]
    pattern = r"`(--[a-z-]+) [NX]`"
    written = {found[1]: default for flag, default, _ in rows if (found := re.fullmatch(pattern, flag))}
    assert len(written) >= 20
    defaults = {action.option_strings[-1]: action.default for action in _parser("train", method)._actions}
    assert {flag: float(value) for flag, value in written.items()} == {flag: defaults[flag] for flag in written}


SETTINGS = {
    "ArmSettings": "trimtab.training.run.settings",
    "ParmSettings": "trimtab.training.parm.settings",
    "AgentSettings": "trimtab.training.agent.settings",
    "RewardSettings": "trimtab.training.reward.settings",
    "DpoSettings": "trimtab.training.dpo.settings",
    "RLSettings": "trimtab.training.rl.settings",
    "DistillSettings": "trimtab.training.distill.settings",
}


@pytest.mark.parametrize("method", SETTINGS)
def test_the_paper_index_gives_the_settings_that_are_set(repository: Path, method: str) -> None:
    settings = getattr(importlib.import_module(SETTINGS[method]), method)()
    page = (repository / "docs" / "inside" / "paper_index.md").read_text(encoding="utf-8")
    above = rf"The defaults of `{method}`[^|]*?\n\n"
    (table,) = re.findall(rf"{above}\| setting \| value \| source \|\n(.*?)\n\n", page, flags=re.DOTALL)
    written: dict[str, float] = {}
    for row in table.splitlines()[1:]:
        names, values = re.findall(r"`(\w+)`", row.split("|")[1]), re.findall(r"[\d.]+(?:e-\d+)?", row.split("|")[2])
        written.update(zip(names, map(float, values[: len(names)]), strict=True))
    assert len(written) >= 10
    assert written == {name: getattr(settings, name) for name in written}


def test_the_readme_gives_no_figure_that_the_pages_do_not(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    pages = "".join(
        (repository / "docs" / "evaluation" / name).read_text(encoding="utf-8")
        for name in ("results.md", "performance.md")
    )
    (measured,) = re.findall(r"^## Measured$(.*?)^## ", readme, flags=re.DOTALL | re.MULTILINE)
    rows = [line.split("|")[1:4] for line in measured.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) >= 4
    assert [row for row in rows if not _row_in(pages, row)] == []
    prose = re.sub(r"^\|.*$", "", measured, flags=re.MULTILINE)
    measured = re.sub(r"arXiv \d+\.\d+|\(https?://\S+\)", "", prose)
    unknown = [one for one in re.findall(r"\d\.\d+", measured) if not re.search(rf"(?<![\d.]){one}(?!\d)", pages)]
    assert unknown == []


def _row_in(pages: str, cells: list[str]) -> bool:
    """Whether a table of the pages has a row that begins with the first cell and holds the others."""
    lines = [line for line in pages.splitlines() if line.startswith(f"|{cells[0]}|")]
    return any(all(f"|{cell}|" in line for cell in cells[1:]) for line in lines)


def test_every_guide_that_ships_is_small_and_named_where_guides_are_looked_up(repository: Path) -> None:
    table = (repository / "docs/guides/guides.md").read_text(encoding="utf-8")
    shipped = [path.parent for path in (repository / "src/trimtab/shipped").glob("*/guide.json")]
    assert {"sentiment", "plain-words", "short-sentences"} <= {directory.name for directory in shipped}
    for directory in shipped:
        assert f"`{directory.name}`" in table, directory.name
        assert sum(path.stat().st_size for path in directory.iterdir()) < 8e6, directory.name


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**/*.md"])
def test_links_lead_somewhere(page: str, repository: Path) -> None:
    broken = [
        f"{path.name}: {target}"
        for path in sorted(repository.glob(page))
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
        if not target.startswith(("https://", "#")) and not _leads_somewhere(path, target)
    ]
    assert broken == []


def test_the_guide_of_the_guides_page_keeps_the_laws(repository: Path) -> None:
    """The page tells readers to write theirs this way, so it has to work."""
    from trimtab.models.tabular import TabularModel
    from trimtab.testing import check_guide

    page = (repository / "docs" / "guides" / "guides.md").read_text(encoding="utf-8")
    (source,) = (block for block in _python_blocks(page) if "class NoRepeat" in block)
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(source, "guides.md", "exec", dont_inherit=True), names)
    model = TabularModel.random(5, seed=0)
    check_guide(names["NoRepeat"](), model)


def test_the_guide_of_another_vocabulary_keeps_the_laws(reference: str) -> None:
    """The example checks itself, and is seen to be checked: translated by its ids alone, the guide breaks a law."""
    from trimtab.testing import LawViolation

    (source,) = (block for block in _python_blocks(reference) if "class Speller" in block)
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(source, "python.md", "exec", dont_inherit=True), names)
    broken = source.replace("[*self.rows[row], token_id]", "[*self.rows[row], token_id % 5]")
    assert broken != source
    with pytest.raises(LawViolation, match=r"admit\(p \+ t\)"):
        exec(compile(broken, "python.md", "exec", dont_inherit=True), {"__name__": __name__})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A small model in the place of the demo's, and an adapter of it in the place of the guide that ships."""
    pytest.importorskip("peft")
    from tests.tiny import byte_llama, byte_tokenizer, write_lora
    from trimtab.models.hf import HFModel

    tokenizer = byte_tokenizer()
    model = HFModel(byte_llama(tokenizer, max_length=256), tokenizer, name="demo")
    guide = trimtab.load_guide(write_lora(tmp_path / "lora", model.module, seed=1))
    monkeypatch.setattr(trimtab, "load_model", {"demo": model}.__getitem__)
    monkeypatch.setattr(trimtab, "load_guide", {"builtin:sentiment": guide}.__getitem__)
    return model, guide


def test_the_lines_for_generate_run_as_they_are_written(
    reference: str, tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """And give what the decoder gives."""
    model, guide = tiny
    (source,) = (block for block in _python_blocks(reference) if "model.module.generate" in block)
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(source, "python.md", "exec", dont_inherit=True), names)
    decoder = trimtab.Decoder(model, {"positive": guide})
    how = {"weights": {"positive": 1.0}, "temperature": 0.0, "max_new_tokens": 24}
    wanted = [answer.text for answer in decoder.generate(names["texts"], **how)]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in wanted)
    unguided = [answer.text for answer in trimtab.Decoder(model).generate(names["texts"], **{**how, "weights": {}})]
    assert wanted != unguided


def test_the_reference_says_what_a_model_offers(reference: str, tiny: Any) -> None:
    """Every attribute of the table is there, and every public one is in the table or below `LanguageModel`."""
    model, _ = tiny
    rows = re.findall(r"^\| (`[^|]*`) \| (.*) \|$", reference.partition("### `load_guide`")[0], flags=re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([\w.]+)`", row[0])]
    assert {"module", "tokenizer.hf", "name", "device", "vocab_size", "eos_ids", "max_length"} <= {*named}
    for name in named:
        operator.attrgetter(name)(model)
    (said,) = (text for name, text in rows if name == "`tokenizer`")
    offered = {name for name in dir(model.tokenizer) if not name.startswith("_")} - {"hf"}
    assert {*re.findall(r"`(\w+)[(`]", said)} == offered


def _python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


def _stubs(page: str) -> dict[str, ast.stmt]:
    """Name -> its signature, from blocks below a heading with the name."""
    found = re.findall(r"^### `([\w.]+)`\n+```python\n(.*?)```", page, flags=re.DOTALL | re.MULTILINE)
    return {name: _stub(source) for name, source in found}


def _stub(source: str) -> ast.stmt:
    (statement,) = ast.parse(source).body
    return statement


def _differences(stub: ast.stmt, thing: Any) -> list[str]:
    """Where a signature as written differs from the object's own."""
    if isinstance(stub, ast.FunctionDef):
        if not inspect.isroutine(thing):
            return [f"{stub.name} is not a function"]
        written, real = _written(stub), _real(thing)
        return [] if written == real else [f"{stub.name}: written {written}, is {real}"]
    assert isinstance(stub, ast.ClassDef)
    if not inspect.isclass(thing):
        return [f"{stub.name} is not a class"]
    found = []
    for node in stub.body:
        if isinstance(node, ast.FunctionDef):
            found += _differences(node, getattr(thing, node.name, None))
    fields = [_field(node) for node in stub.body if isinstance(node, ast.AnnAssign)]
    own = _fields(thing)
    if fields != own:
        found.append(f"{stub.name}: fields written {fields}, are {own}")
    documented = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    methods = {key for key, member in vars(thing).items() if inspect.isfunction(member) and not key.startswith("_")}
    guided = {"bind", "prompt_ids", "open"} if dataclasses.is_dataclass(thing) else set()  # said under `Guide`
    return found + [f"{stub.name}.{key} is not documented" for key in sorted(methods - documented - guided)]


def _written(stub: ast.FunctionDef) -> list[tuple[str, str, str]]:
    ordinary = stub.args.args
    defaults = [None] * (len(ordinary) - len(stub.args.defaults)) + list(stub.args.defaults)
    parameters = [(arg.arg, "ordinary", _text(value)) for arg, value in zip(ordinary, defaults, strict=True)]
    keywords = zip(stub.args.kwonlyargs, stub.args.kw_defaults, strict=True)
    return parameters + [(arg.arg, "keyword", _text(value)) for arg, value in keywords]


def _real(function: Any) -> list[tuple[str, str, str]]:
    kinds = {inspect.Parameter.KEYWORD_ONLY: "keyword"}
    return [
        (name, kinds.get(p.kind, "ordinary"), "" if p.default is p.empty else repr(p.default))
        for name, p in inspect.signature(function).parameters.items()
    ]


def _text(value: ast.expr | None) -> str:
    return "" if value is None else repr(ast.literal_eval(value))


def _field(node: ast.AnnAssign) -> tuple[str, str]:
    return ast.unparse(node.target), _text(node.value)


def _fields(thing: Any) -> list[tuple[str, str]]:
    if not dataclasses.is_dataclass(thing):
        return []
    return [(field.name, _default(field)) for field in dataclasses.fields(thing)]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "" if field.default is dataclasses.MISSING else repr(field.default)


def _parser(*commands: str) -> argparse.ArgumentParser:
    from trimtab.cli.main import build_parser

    parser = build_parser()
    for command in commands:
        (choices,) = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = choices[command]
    return parser


def _flags() -> Iterator[tuple[str, str]]:
    yield from _flags_of(_parser(), "trimtab")


def _flags_of(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for key, inner in action.choices.items():
                yield from _flags_of(inner, f"{name} {key}")
        elif not isinstance(action, argparse._HelpAction):
            yield from ((name, option) for option in action.option_strings if option.startswith("--"))


def _section(page: str, command: str) -> str:
    """What the page says under a command's heading."""
    match = re.search(rf"^## `{command}`$(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)
    return match.group(1) if match else ""


def _mentions(section: str, flag: str, shared: str) -> bool:
    """Whether a command's section names a flag, or links to a section of the page of shared flags that does."""
    if re.search(rf"`{flag}\b(?!-)", section):
        return True
    linked = re.findall(r"\(flags\.md#([a-z-]+)\)", section)
    parts = re.findall(r"^## ([^\n]+)$(.*?)(?=^## |\Z)", shared, flags=re.DOTALL | re.MULTILINE)
    wanted = [text for title, text in parts if title.lower().replace(" ", "-") in linked]
    return any(re.search(rf"`{flag}\b(?!-)", text) for text in wanted)


def _leads_somewhere(page: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    if not path.exists():
        return False
    if not anchor:
        return True
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["which-method", "how-many-pairs"])
def test_a_page_of_advice_gives_no_figure_that_was_not_measured(name: str, repository: Path) -> None:
    """Its figures are those of the pages that say how they were measured."""
    (page,) = (repository / "docs").rglob(f"{name}.md")
    measured = "".join(
        path.read_text(encoding="utf-8") for part in ("results", "performance") for path in _pages(repository, part)
    )
    said = re.findall(
        r"(?<![\d.])\d\.\d+", re.sub(r"\]\([^)]*\)|\d\.\dB|Qwen\S+", "", page.read_text(encoding="utf-8"))
    )
    assert len(said) >= 5
    assert [one for one in said if not re.search(rf"(?<![\d.]){re.escape(one)}(?!\d)", measured)] == []


def _pages(repository: Path, name: str) -> list[Path]:
    return sorted((repository / "docs").rglob(f"{name}.md"))


@pytest.mark.parametrize(
    ("name", "first"), [("results", "The sentiment guide that ships"), ("performance", "Decoding")]
)
def test_what_stands_first_is_what_was_measured(name: str, first: str, repository: Path) -> None:
    """The table that opens a page says nothing that its sections do not."""
    (page,) = _pages(repository, name)
    opening, _, sections = page.read_text(encoding="utf-8").partition(f"\n## {first}\n")
    said = re.findall(r"(?<![\d.])\d+\.\d+", re.sub(r"\]\([^)]*\)|\d\.\dB", "", opening))
    assert len(said) >= 12
    versions = {"2.13", "5.23"}
    assert [one for one in {*said} - versions if not re.search(rf"(?<![\d.]){re.escape(one)}(?!\d)", sections)] == []
