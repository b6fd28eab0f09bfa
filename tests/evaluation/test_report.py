"""The report: a page that stands alone and tells the truth, and the figures beside it."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from trimtab.answers import Alternative, Answer, TokenTrace
from trimtab.evaluation.report.figure import frontier_svg
from trimtab.evaluation.report.frontier import Point
from trimtab.evaluation.report.frontier_report import Study, write_report
from trimtab.evaluation.report.page import prompt_text, signed

HOSTILE = '</p><script>alert(1)</script>{{notes}}<img src="https://example.org/x.png">&amp; "quoted"'
CHOSEN = Alternative(1, -1.0, {}, -1.0, 0, 0)
VOID = {"meta", "br", "img", "hr", "input", "link"}


def point(weight: float, rewards: list[float], kl: float, *, text: str = "It is fine.", seconds: float = 2.0) -> Point:
    answers = [
        Answer(
            [{"role": "user", "content": f"Prompt {index}?"}],
            (1,),
            (1, 2),
            f"{text} At {weight:g}.",
            "length" if index == 0 else "eos",
            {},
            index,
            (TokenTrace(CHOSEN, (), kl * (1 + index)),),
        )
        for index in range(len(rewards))
    ]
    return Point(weight, tuple(answers), tuple(rewards), seconds)


def study(**changes: object) -> Study:
    base = [-0.2, 0.1, 0.0, 0.3, -0.4, 0.2]
    points = [point(w, [value + 0.3 * w for value in base], 3 * w, seconds=1 + w) for w in (0.0, 0.5, 2.0)]
    fields = {
        "title": "A model, steered",
        "points": points,
        "reference": point(0.0, base, 0.0, seconds=1.0),
        "reward_name": "sentiment reward",
        "notes": {"Judge": "the same & only", "Seeds": "0 + i"},
    }
    return Study(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    write_report(study(), path / "new")
    return path / "new"


@pytest.fixture(scope="module")
def page(directory: Path) -> str:
    return (directory / "report.html").read_text(encoding="utf-8")


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


def test_the_page_is_well_formed_and_loads_nothing(page: str) -> None:
    assert outside(page) == []
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert page.lower().count("<!doctype") == 1
    assert "<?xml" not in page


@pytest.mark.parametrize(
    "planted",
    ['<img src="https://example.org/x.png">', "<style>@import 'x.css';</style>", "<p style='background:url(x)'></p>"],
)
def test_a_planted_request_is_found(page: str, planted: str) -> None:
    assert len(outside(page.replace("</main>", planted + "</main>"))) == 1


def test_an_element_left_open_is_found(page: str) -> None:
    with pytest.raises(AssertionError):
        read(page.replace("</section>", "", 1))


def test_what_an_answer_says_is_text(tmp_path: Path) -> None:
    rewards = [0.1, 0.2, 0.4]
    hostile = study(
        title=HOSTILE,
        points=[point(1.0, rewards, 1.0, text=HOSTILE)],
        reference=point(0.0, rewards, 0.0),
        notes={HOSTILE: HOSTILE},
    )
    page = write_report(hostile, tmp_path).read_text(encoding="utf-8")
    assert outside(page) == []
    assert "<script" not in page
    assert read(page).text.count(HOSTILE) == 2 + 3 + 2


def test_the_figures_on_the_page_are_the_studys(page: str) -> None:
    text = " ".join(read(page).text.split())
    # Base mean 0; strength 2 adds 0.6 to every reward, so its gain has no width.
    assert "Without guidance the mean reward is 0.00. The guide changes it at strength " in text
    assert "at strength 2 by +0.60 (0.60 to 0.60) for 21.0 nats" in text  # 6 nats times the mean of 1 to 6
    assert "decodes 12 tokens/s" in text
    assert "The same" not in text
    assert "the same & only" in text


def test_three_prompts_are_shown_at_every_strength(page: str) -> None:
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["Prompt 0?", "Prompt 2?", "Prompt 4?"]
    assert page.count("<article>") == 9
    assert "Prompts 1, 3 and 5 of 6" in page
    assert page.count("At 0.5.&nbsp;…") == 1  # prompt 0 ran into the limit, the others did not
    assert page.count("At 0.5.") == 3


def test_no_gain_is_said_to_be_none(tmp_path: Path) -> None:
    rewards = [0.1, 0.2, 0.4]
    flat = study(points=[point(w, rewards, w) for w in (0.0, 1.0)], reference=point(0.0, rewards, 0.0))
    page = write_report(flat, tmp_path).read_text(encoding="utf-8")
    assert "at strength 1 by <b>0.00</b> (0.00 to 0.00)" in page
    assert "a gain of" not in page


def test_the_figure_takes_its_colours_from_the_page(page: str) -> None:
    svg = page[page.index("<svg") : page.index("</svg>") + 6]
    ElementTree.fromstring(svg)
    assert ">0.5</text>" in svg
    assert "strength 2" in svg
    assert "var(--accent)" in svg
    assert re.findall(r"(?:stroke|fill): #[0-9a-fA-F]+", svg) == []
    for name in set(re.findall(r"var\(--(\w+)\)", svg)):
        assert len(re.findall(rf"--{name}: #", page)) == 2, f"--{name} is not defined for light and dark"


def test_the_figure_is_the_same_each_time() -> None:
    points = study().points
    assert frontier_svg(points, reward_label="r") == frontier_svg(points, reward_label="r")


def test_the_png_is_one(directory: Path) -> None:
    content = (directory / "frontier.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    assert (width, height) == (1600, 880)


def test_the_table_of_figures(directory: Path) -> None:
    with (directory / "frontier.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["weight"]) for row in rows] == [0.0, 0.5, 2.0]
    last = {key: float(value) for key, value in rows[-1].items() if key != "form"}
    assert last["reward"] == pytest.approx(0.6)
    assert last["reward_low"] < 0.6 < last["reward_high"]
    assert (last["kl"], last["num_prompts"], last["num_tokens"]) == (21.0, 6, 12)
    assert last["tokens_per_s"] == pytest.approx(4.0)
    assert last["ratio_to_base"] == pytest.approx(1 / 3, abs=1e-5)


def test_every_answer_is_kept(directory: Path) -> None:
    rows = [json.loads(line) for line in (directory / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 18
    assert rows[6]["text"] == "It is fine. At 0.5."
    assert (rows[6]["weight"], rows[6]["seed"], rows[6]["kl"]) == (0.5, 0, 1.5)


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
