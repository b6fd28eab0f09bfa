from __future__ import annotations

import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from trimtab.answers import Alternative, TokenTrace
from trimtab.evaluation.explaining.trace import (
    ExplainedToken,
    as_rows,
    as_table,
    coloured_text,
    difference,
    explain_tokens,
    visible,
)
from trimtab.evaluation.explaining.trace_page import trace_page
from trimtab.mixing.tracing import SHARE

WEIGHTS = {"kind": 2.0, "brief": -1.0}
TEXTS = {0: " good", 1: "bad", 2: "\n", 3: "</script><img src=x onerror=alert(1)>"}

# A world of three tokens: base probabilities 0.5, 0.3, 0.2 and two guides' scores.
BASE = [math.log(p) for p in (0.5, 0.3, 0.2)]
KIND = [1.0, -1.0, 0.5]
BRIEF = [0.0, 0.2, -0.4]
TILTED = [b + 2.0 * k - 1.0 * s for b, k, s in zip(BASE, KIND, BRIEF, strict=True)]
NORMALISER = math.log(sum(math.exp(value) for value in TILTED))


def _alternative(token: int, constant: float = 0.0) -> Alternative:
    scores = {"kind": KIND[token] + constant, "brief": BRIEF[token]}
    return Alternative(token, BASE[token], scores, TILTED[token] - NORMALISER, token, (0, 2, 1)[token])


def _trace(chosen: int = 1, constant: float = 0.0) -> TokenTrace:
    everything = tuple(_alternative(token, constant) for token in (0, 2, 1))
    return TokenTrace(_alternative(chosen, constant), everything, kl=0.25)


def _explained(*chosen: int) -> list[ExplainedToken]:
    return explain_tokens([_trace(token) for token in chosen], WEIGHTS, TEXTS.__getitem__)


def test_shares_are_weight_times_centred_score() -> None:
    (token,) = _explained(1)
    centre = {"kind": 0.5 * 1.0 - 0.3 * 1.0 + 0.2 * 0.5, "brief": 0.3 * 0.2 - 0.2 * 0.4}
    for item in (token.chosen, *token.rivals):
        assert item.shares["kind"] == pytest.approx(2.0 * (KIND[item.token_id] - centre["kind"]))
        assert item.shares["brief"] == pytest.approx(-1.0 * (BRIEF[item.token_id] - centre["brief"]))
        assert item.rest == pytest.approx(2.0 * centre["kind"] - centre["brief"] - NORMALISER)
        assert item.base_logprob + sum(item.shares.values()) + item.rest == pytest.approx(item.mixed_logprob)


def test_a_constant_added_to_a_guides_scores_changes_no_share() -> None:
    (plain,), (shifted,) = (explain_tokens([_trace(1, c)], WEIGHTS, TEXTS.__getitem__) for c in (0.0, 7.0))
    assert shifted.chosen.shares == pytest.approx(plain.chosen.shares)


def test_the_chosen_token_is_not_its_own_rival() -> None:
    (token,) = _explained(0)
    assert token.chosen.token_id == 0
    assert [rival.token_id for rival in token.rivals] == [2, 1], "by falling mixed probability"


def test_without_alternatives_the_chosen_token_is_its_own_centre() -> None:
    (token,) = explain_tokens([TokenTrace(_alternative(1), (), 0.1)], WEIGHTS, TEXTS.__getitem__)
    assert token.chosen.shares == {"kind": 0.0, "brief": 0.0}
    assert token.rivals == ()


def test_a_token_that_a_guide_forbids_neither_moves_the_centre_nor_gives_nan() -> None:
    never = Alternative(2, BASE[2], {"kind": -math.inf, "brief": BRIEF[2]}, -math.inf, 2, 2)
    trace = TokenTrace(_alternative(0), (_alternative(0), _alternative(1), never), 0.1)
    (token,) = explain_tokens([trace], WEIGHTS, TEXTS.__getitem__)
    centre = (0.5 * 1.0 - 0.3 * 1.0) / 0.8
    assert token.chosen.shares["kind"] == pytest.approx(2.0 * (1.0 - centre))
    (forbidden,) = (rival for rival in token.rivals if rival.token_id == 2)
    assert forbidden.shares["kind"] == -math.inf
    assert not any(math.isnan(value) for value in (forbidden.rest, forbidden.shift, *forbidden.shares.values()))


def test_never_minus_never_is_no_difference() -> None:
    assert difference(-math.inf, -math.inf) == 0.0
    assert difference(1.5, 1.0) == 0.5


def test_rows_are_plain_values() -> None:
    (row,) = as_rows(_explained(0))
    assert json.loads(json.dumps(row)) == row
    assert set(row) == {
        *("token_id", "text", "base_logprob", "shares", "rest", "mixed_logprob", "base_rank", "mixed_rank"),
        *("kl", "alternatives", "choice"),
    }


@pytest.mark.parametrize(
    ("text", "shown"), [(" a b ", "·a b·"), ("\n\n", "↵↵"), ("\t", "⇥"), ("  ", "··"), ("", ""), ("\r\n", "␍↵")]
)
def test_blank_characters_can_be_seen(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_what_a_guide_forbids_is_no_gain_at_a_negative_weight() -> None:
    never = Alternative(2, BASE[2], {"kind": KIND[2], "brief": -math.inf}, -math.inf, 2, 2)
    (token,) = explain_tokens([TokenTrace(_alternative(0), (never,), 0.1)], WEIGHTS, TEXTS.__getitem__)
    assert token.rivals[0].shares["brief"] == -math.inf
    assert token.rivals[0].rest == 0.0


def test_the_definition_of_a_share_is_one(repository: Path, page: str) -> None:
    """Written in the code, and in the same words wherever a reader meets shares."""
    from trimtab.cli.answering import explain

    playground = repository / "src" / "trimtab" / "serving" / "playground" / "index.html"
    texts = [
        page,
        str(explain.__doc__),
        playground.read_text(),
        (repository / "docs" / "reference" / "cli.md").read_text(),
    ]
    assert [SHARE in " ".join(text.split()) for text in texts] == [True] * 4


def test_colour_says_raised_or_lowered_and_bold_says_moved() -> None:
    text = coloured_text(_explained(0, 1))
    assert text.plain == " goodbad"
    (raised, lowered) = (span.style for span in text.spans)
    assert TILTED[0] - NORMALISER > BASE[0]
    red, _, blue = raised.bgcolor.triplet  # type: ignore[union-attr]
    assert red > blue
    assert not raised.bold  # type: ignore[union-attr]
    red, _, blue = lowered.bgcolor.triplet  # type: ignore[union-attr]
    assert blue > red
    assert lowered.bold  # type: ignore[union-attr]


def test_markup_in_tokens_and_names_stays_text() -> None:
    texts = {**TEXTS, 1: "[bold]x[/]"}
    tokens = explain_tokens([_trace(1)], WEIGHTS, texts.__getitem__)
    written = io.StringIO()
    console = Console(width=120, file=written)
    console.print(coloured_text(tokens))
    console.print(as_table(tokens))
    assert written.getvalue().count("[bold]x[/]") == 2


class Page(HTMLParser):
    """The elements of a page, in order, and the text of each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1][0] if self.tags else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page() -> str:
    texts = {**TEXTS, 1: TEXTS[3]}
    tokens = explain_tokens([_trace(0), _trace(1), _trace(2)], WEIGHTS, texts.__getitem__)
    return trace_page(tokens, prompt="<b>{{data}} & co</b>", model="demo", weights=WEIGHTS, seed=3)


def test_the_page_needs_nothing_else(page: str) -> None:
    parsed = Page(page)
    assert not re.search(r"https?://|@import|url\(", page)
    assert not [tag for tag, attributes in parsed.tags if {"src", "href"} & set(attributes)]
    (policy,) = (meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "prefers-color-scheme: dark" in page


def test_nothing_from_outside_becomes_markup(page: str) -> None:
    parsed = Page(page)
    assert parsed.all("img") == []
    assert parsed.all("b") == []
    assert len(parsed.all("script")) == 2
    assert "&lt;b&gt;{{data}} &amp; co&lt;/b&gt;" in page, "the prompt stands there as it is"


def test_the_page_holds_the_whole_trace(page: str) -> None:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    content = json.loads(data)
    assert content["guides"] == ["kind", "brief"]
    assert [token["text"] for token in content["tokens"]] == [" good", TEXTS[3], "\n"]
    assert all(len(token["alternatives"]) == 2 for token in content["tokens"])


def test_infinite_numbers_are_null_in_the_page() -> None:
    never = Alternative(2, BASE[2], {"kind": -math.inf, "brief": 0.0}, -math.inf, 2, 2)
    tokens = explain_tokens([TokenTrace(_alternative(0), (never,), 0.1)], WEIGHTS, TEXTS.__getitem__)
    page = trace_page(tokens, prompt="x", model="m", weights=WEIGHTS, seed=0)
    (data,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    (rival,) = json.loads(data)["tokens"][0]["alternatives"]
    assert rival["mixed_logprob"] is None
    assert "Infinity" not in page


def test_tokens_are_buttons_that_a_keyboard_reaches(page: str) -> None:
    buttons = Page(page).all("button")
    assert [button["tabindex"] for button in buttons] == ["0", "-1", "-1"], "one stop for Tab, arrows within"
    assert [button["data-i"] for button in buttons] == ["0", "1", "2"]
    assert "moved" in str(buttons[1]["class"])
    assert "moved" not in str(buttons[0]["class"])
    assert all(f"{key}:" in page for key in ("ArrowRight", "ArrowLeft", "Home", "End"))


def test_without_scripts_there_is_a_table_of_all_tokens(page: str) -> None:
    table = page[page.index("<details>") : page.index("</details>")]
    assert table.count("<tr><th scope=row>") == 3
    assert table.count("%</td>") == 6


def test_an_answer_without_tokens_is_a_page_too() -> None:
    assert "0 tokens" in trace_page([], prompt="x", model="m", weights={}, seed=0)
