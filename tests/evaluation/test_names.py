"""Names of methods and rewards, letter by letter, wherever they are shown: figures, tables, CSV, files."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation import comparison_fakes as fakes
from tests.evaluation.judged_runs import row
from tests.evaluation.test_comparison import run
from trimtab.errors import OptionError
from trimtab.evaluation.comparison.recipe import file_part
from trimtab.evaluation.comparison.summary import Estimate
from trimtab.evaluation.judging.alpaca_export import export_alpaca_eval
from trimtab.evaluation.judging.run import Contender
from trimtab.evaluation.report.csv_files import as_text, write_csv
from trimtab.evaluation.report.curves import PALETTE, Series, Spot, plot
from trimtab.evaluation.report.figure import COLOURS, as_svg
from trimtab.evaluation.report.files import write_report
from trimtab.evaluation.report.results import read_results, summary_of
from trimtab.storage.scorers import Scorer

NAMES = [
    *("$$", "cost $\\frac{$", "cost $5 vs $10", "_hidden", "__", "=1+1", "+1", "-x", "@SUM(A1)", "|a|b|", "<b>&amp;"),
    *(
        "\"quoted\" 'too'",
        "'=1",
        "{{title}}",
        "{place}",
        "%s %d",
        "#0072b2",
        "font: 10px serif;",
        "var(--c0)",
        "[bold]",
    ),
    *(
        "[/]",
        "../../up",
        "a/b",
        "a\\b",
        ".",
        "größer ‮",
        "日本語",
        "👩‍👩‍👧 🙂",
        "x" * 200,
        "  spaces  ",
        "nan",
        "1e3",
        "label 0",
    ),
]
"""Mathematics, what is left out of legends, formulas, markup, fields, colours, paths, scripts, long ones."""


def _texts(svg: str) -> list[str]:
    return [html.unescape(re.sub("<.*?>", "", text)) for text in re.findall(r"<text.*?</text>", svg, re.DOTALL)]


def _drawn(names: list[str], x_label: str = "x", y_label: str = "y") -> list[str]:
    series = [
        Series(name, [Spot(Estimate(1.0 + index, None, None, 1), Estimate(1.0 * index, None, None, 1))], index - 1)
        for index, name in enumerate(names)
    ]
    pytest.importorskip("matplotlib")
    svg = as_svg(plot(series, x_label, y_label, root_x=False), label="a figure", colours={**PALETTE, **COLOURS})
    return _texts(svg)


@pytest.mark.parametrize("names", [NAMES[start : start + 7] for start in range(0, len(NAMES), 7)])
@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.filterwarnings("ignore:constrained_layout")
def test_a_figure_shows_every_name_at_its_line_and_in_the_legend(names: list[str]) -> None:
    texts = _drawn(["base", *names], x_label=names[0], y_label=f"mean {names[-1]} reward")
    for name in names[1:]:
        assert texts.count(name) == texts.count("base") == 2, name
    assert names[0] in texts
    assert f"mean {names[-1]} reward" in texts


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_page_shows_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    names = [name for name in NAMES if name.strip() == name][:12]
    arms = [{"name": name, "method": "genarm", "guides": {"g": "builtin:x"}, "strengths": [1]} for name in names]
    rewards = {"$r_1$": {"scorer": "sentiment"}, "=r|<b>": {"scorer": "offence", "role": "judged_by"}}
    recipe = fakes.recipe(methods=[{"method": "base"}, *arms], rewards=rewards, seeds=[0])
    scorers = dict(zip(rewards, fakes.SCORERS.values(), strict=True))
    monkeypatch.setattr(fakes, "SCORERS", scorers)
    run(tmp_path, recipe)
    write_report(tmp_path, read_results(tmp_path, fakes.METHODS))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    figures = page.count("<svg")
    texts = _texts(page)
    headings = re.findall(r"<th scope=row>(.*?)</th>", page)
    for name in names:
        assert texts.count(name) == 2 * figures, name
        assert html.escape(name) in headings
    assert {"mean $r_1$ reward", "mean =r|<b> reward"} <= set(texts)
    with (tmp_path / "methods.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {as_text(line["method"]) for line in rows} == {"base", *names}
    assert {"reward_$r_1$", "reward_=r|<b>"} <= set(rows[0])
    assert len(list(tmp_path.glob("frontier-*.png"))) == 2


NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@pytest.mark.parametrize("values", [[1e30, -1e30], [1e30, 0.5], [1e-300, 1e30], [1e30, 1e30]], ids=str)
def test_the_largest_rewards_make_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[float]
) -> None:
    """And nothing in it is infinite."""
    pytest.importorskip("matplotlib")
    scorer = Scorer("mine", "", lambda prompts, texts: [values[len(text) % 2] for text in texts])
    monkeypatch.setattr(fakes, "SCORERS", {"r": scorer})
    methods = [{"method": "base"}, {"method": "genarm", "guides": {"g": "builtin:x"}, "strengths": [1]}]
    run(tmp_path, fakes.recipe(methods=methods, rewards={"r": {"scorer": "sentiment"}}, seeds=[0]))
    results = read_results(tmp_path, fakes.METHODS)
    json.dumps(summary_of(results), allow_nan=False)
    assert "inf" not in write_report(tmp_path, results).read_text().replace("information", "").lower()


@given(names=st.lists(NAME, min_size=1, max_size=5))
def test_a_cell_is_no_formula_and_is_its_text(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    write_csv(path, [{"name": name, "value": -0.5, "count": 3, "nothing": None, "strength": "-1"} for name in names])
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [as_text(line["name"]) for line in rows] == names
    for line in rows:
        assert not line["name"].startswith(("=", "+", "@", "\t", "\r", "＝", "＋", "＠"))
        assert not line["name"].startswith("-") or float(line["name"].split(",")[0]) < 0
        assert (line["value"], line["count"], line["nothing"], line["strength"]) == ("-0.5", "3", "", "-1")


@pytest.mark.parametrize("name", NAMES)
def test_a_spreadsheet_runs_no_name(tmp_path: Path, name: str) -> None:
    write_csv(tmp_path / "x.csv", [{"method": name}])
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as stream:
        (cell,) = (line["method"] for line in csv.DictReader(stream))
    assert as_text(cell) == name
    assert cell.lstrip()[0] not in "=+-@"


def test_no_two_names_share_a_file() -> None:
    odd = [*NAMES, "a b", "a-b", "a/b ", "д", "ж", "y" * 300, "y" * 301, "..", ""]
    parts = [file_part(name) for name in odd]
    assert len(set(parts)) == len(parts)
    for part in parts:
        assert re.fullmatch(r"[A-Za-z0-9_.+-]{1,100}", part)
        assert part.strip(".")
    assert file_part("offence_2.b") == "offence_2.b"


def test_an_export_writes_a_file_for_every_name(tmp_path: Path) -> None:
    contenders = [Contender(name, 1.0) for name in [*NAMES, "a b"]]
    rows = [row(contender.method, 0, f"by {index}") for index, contender in enumerate(contenders)]
    paths = export_alpaca_eval(rows, contenders, tmp_path / "out", dataset="d")
    assert len(set(paths)) == len(contenders)
    assert {path.parent for path in paths} == {tmp_path / "out"}
    found = [json.loads(path.read_text())[0] for path in paths]
    assert [item["output"] for item in found] == [f"by {index}" for index in range(len(contenders))]


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x1b[31mred", "a\u2028b", "x\x00", "z" * 97])
@pytest.mark.parametrize("kind", ["method", "reward"])
def test_a_name_that_cannot_be_shown_is_refused(name: str, kind: str) -> None:
    changes: dict[str, Any] = {"rewards": {name: {"scorer": "sentiment"}}}
    if kind == "method":
        changes = {"methods": [{"method": "base", "name": name}]}
    with pytest.raises(OptionError, match=r"give a name of (one line|at most 96)"):
        fakes.recipe(**changes)
