"""The report of a sweep, one method at several strengths beside the base: what is said where nothing is chosen."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.evaluation import comparison_fakes as fakes
from trimtab.evaluation.comparison.recipe import Recipe
from trimtab.evaluation.comparison.records import Cost
from trimtab.evaluation.comparison.run import RunFiles, open_run, run_comparison
from trimtab.evaluation.comparison.summary import Estimate
from trimtab.evaluation.report.curves import Series, Spot, plot
from trimtab.evaluation.report.document import filled, html_document
from trimtab.evaluation.report.figure import COLOURS, as_svg
from trimtab.evaluation.report.files import write_report
from trimtab.evaluation.report.results import Results, read_results, sample_rows
from trimtab.evaluation.report.wording import gained, in_brackets, in_sentence, listed, prompt_text, signed
from trimtab.storage.json_lines import append, open_to_append

VOID = {"meta", "br", "img", "hr", "input", "link"}


def sweep() -> Recipe:
    """No validation prompts, so no strength is chosen."""
    arm = {"name": "arm", "method": "genarm", "guides": {"good": "builtin:sentiment"}, "strengths": [0, 0.5, 2]}
    return fakes.recipe(
        prompts={"test": {"builtin": "demo", "num": 14}},
        seeds=[0],
        rewards={"good": {"scorer": "sentiment"}},
        methods=[{"method": "base"}, arm],
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose costs are known: a batch of the base took 1 second, of the guide 2, 4 and 8 at rising strengths."""
    pytest.importorskip("matplotlib")
    path, recipe = tmp_path_factory.mktemp("sweep") / "run", sweep()
    prompts = {"test": fakes.PROMPTS["test"]}
    settings = {"methods": {}, "prompts": {"test": {"num": 14}}}
    about = {"notes": {"Judge": "the same & only"}, "scorers": {"good": "share of good words"}}
    files = open_run(path, recipe, settings, about, resume=False)
    from tests.evaluation.test_comparison import CPU

    run_comparison(recipe, prompts, {"good": fakes.SCORERS["good"]}, fakes.build, files, device=CPU)
    files.costs.unlink()
    seconds = {("base", 0.0): 1.0, ("arm", 0.0): 2.0, ("arm", 0.5): 4.0, ("arm", 2.0): 8.0}
    with open_to_append(files.costs) as costs:
        for (method, strength), took in seconds.items():
            append(costs, [Cost(method, strength, 14, 168, 168, took, 1.0, 14).as_json()])
    write_report(path, read_results(path, fakes.METHODS, measure_coherence=False))
    return path


@pytest.fixture(scope="module")
def page(directory: Path) -> str:
    return (directory / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results(directory: Path) -> Results:
    return read_results(directory, fakes.METHODS, measure_coherence=False)


class Reader(HTMLParser):
    """Checks that every element that is opened is closed, in order; collects text and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of place"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == [], f"never closed: {reader.open}"
    return reader


def outside(page: str) -> list[str]:
    """What the page would load from elsewhere."""
    loads = [
        f"{tag} {name}={value}"
        for tag, name, value in read(page).attributes
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster") and not value.startswith("#")
    ]
    return loads + re.findall(r"@import[^;]*|url\((?!#)[^)]*\)", page)


@pytest.mark.parametrize(
    "planted",
    ['<img src="https://example.org/x.png">', "<style>@import 'x.css';</style>", "<p style='background:url(x)'></p>"],
)
def test_a_planted_request_is_found(page: str, planted: str) -> None:
    assert len(outside(page.replace("</main>", planted + "</main>"))) == 1


def test_an_element_left_open_is_found(page: str) -> None:
    with pytest.raises(AssertionError):
        read(page.replace("</section>", "", 1))


def test_a_field_that_an_answer_names_is_text() -> None:
    assert filled("<p>{{one}}, {{two}}</p>", {"one": "{{two}}", "two": "2"}) == "<p>{{two}}, 2</p>"


def test_a_document_runs_scripts_only_where_it_says_so() -> None:
    plain, scripted = html_document("<b>", "", ""), html_document("t", "", "", scripted=True)
    assert "<title>&lt;b&gt; - trimtab</title>" in plain
    assert "script-src" not in plain
    assert "default-src 'none'" in plain
    assert "script-src 'unsafe-inline'" in scripted
    assert "default-src 'none'" in scripted


def test_every_strength_has_its_own_cost(results: Results) -> None:
    costs = {(cost.label, cost.strength): cost.ratio_to_base for cost in results.cost_summaries}
    assert costs == pytest.approx({("base", 0.0): 1.0, ("arm", 0.0): 0.5, ("arm", 0.5): 0.25, ("arm", 2.0): 0.125})
    for one in results.measured:
        cost = results.cost_of(one)
        assert cost is not None
        assert cost.ratio_to_base == pytest.approx(costs[one.label, one.strength])


def test_a_strength_that_was_not_timed_has_no_cost(directory: Path, results: Results) -> None:
    from dataclasses import replace

    untimed = replace(results, costs=[cost for cost in results.costs if cost.strength != 2.0])
    assert untimed.cost_of(untimed.measured[-1]) is None
    assert untimed.cost_of(untimed.measured[0]) is not None


def test_three_prompts_are_shown_at_every_strength(page: str, results: Results) -> None:
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["Test prompt 0?", "Test prompt 4?", "Test prompt 9?"]
    assert page.count("<article>") == 3 * 4
    rows = sample_rows(results, 3)
    assert [[(row.key.prompt_index, row.key.strength) for row in same] for same in rows][1] == [
        (4, 0.0),
        (4, 0.0),
        (4, 0.5),
        (4, 2.0),
    ]


def test_a_run_s_notes_stand_on_its_page(page: str) -> None:
    assert "<dt>Judge</dt><dd>the same &amp; only</dd>" in page


def test_points_carry_their_strengths_where_few_methods_are_drawn(page: str) -> None:
    svg = page[page.index("<svg") : page.index("</svg>") + 6]
    ElementTree.fromstring(svg)
    labels = re.findall(r">([^<>]*)</text>", svg)
    assert "2" in labels
    assert "0.5" in labels
    for name in set(re.findall(r"var\(--(\w+)\)", svg)):
        assert len(re.findall(rf"--{name}: #", page)) >= 2, f"--{name} is not defined for light and dark"


def test_a_figure_is_the_same_each_time_and_says_labels() -> None:
    pytest.importorskip("matplotlib")
    spots = [Spot(Estimate(x, x - 0.1, x + 0.1, 12), Estimate(x, None, None, 12), f"dial {x:g}") for x in (1.0, 2.0)]
    draw = plot([Series("one", spots, 0)], "x", "y", root_x=True)
    first, again = (as_svg(draw, label="a figure", colours=COLOURS) for _ in range(2))
    assert first == again
    assert ">dial 1</text>" in first
    assert ">dial 2</text>" in first


def test_the_png_is_one(directory: Path) -> None:
    content = (directory / "frontier-good.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    assert (width, height) == (1680, 1040)


def test_the_files_of_a_run_are_removed_and_no_others(tmp_path: Path) -> None:
    names = ("run.json", "answers.jsonl", "unscored.jsonl", "costs.jsonl", "judgements.jsonl", "win_rates.json")
    for name in (*names, "notes.txt"):
        (tmp_path / name).write_text("x")
    RunFiles(tmp_path).remove()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    RunFiles(tmp_path).remove()


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Hello.", "Hello."),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}], "Hello?"),
        ([5, 6], "5 6"),
    ],
)
def test_a_prompt_for_readers(prompt: str | list[int], text: str) -> None:
    assert prompt_text(prompt) == text


def test_signs() -> None:
    assert [signed(value) for value in (0.126, -0.126, -0.001, 0.0)] == ["0.13", "−0.13", "0.00", "0.00"]
    assert [signed(value, 1) for value in (-0.04, 2.25, -3.0)] == ["0.0", "2.2", "−3.0"]
    assert [gained(value, 3) for value in (0.0004, 0.0006, -0.5)] == ["0.000", "+0.001", "−0.500"]


def test_a_mean_with_its_interval_in_words() -> None:
    sure, unsure = Estimate(-0.5, -1.0, 0.25, 12), Estimate(0.5, None, None, 3)
    assert in_brackets(sure, digits=3) == "−0.500 [−1.000, 0.250]"
    assert in_brackets(unsure) == "0.50"
    assert in_sentence(sure) == "−0.50 (95 % interval −1.00 to 0.25)"
    assert in_sentence(unsure) == "0.50 (no interval: 3 prompts are too few)"
    assert [listed([1]), listed([1, 2]), listed(["a", "b", "c"])] == ["1", "1 and 2", "a, b and c"]
