"""A visitor of the playground types a sentence, moves its slider, and keeps both as a preset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.conftest import GUIDES, Running, Start
from tests.serving.test_playground import PROMPT, Visit, ask, browser, expect, text_of, visit
from trimtab.decoding.decoder import Decoder
from trimtab.guides.brought import SentencePlace
from trimtab.guides.prompt import PromptGuide
from trimtab.models.hf import HFModel
from trimtab.serving.asking import Catalogue

__all__ = ["browser", "visit"]

PLACES = ("sentence:1", "sentence:2")


@pytest.fixture(scope="module")
def allowing(start: Start, tiny_model: HFModel, guides: dict[str, Any]) -> Iterator[Running]:
    engine = Decoder(tiny_model, {**guides, **{place: SentencePlace(place) for place in PLACES}})
    with start(engine=engine, catalogue=Catalogue(tiny_model, "tiny", dict.fromkeys(GUIDES, 0.0), {}, {}, PLACES)) as s:
        yield s


def answer_of(model: HFModel, guides: dict[str, Any], weights: dict[str, float]) -> str:
    """What the decoder says to the page's question."""
    prompt = [{"role": "user", "content": PROMPT}]
    return next(Decoder(model, guides).generate([prompt], weights=weights, seed=3, max_new_tokens=20)).text


def test_a_typed_sentence_steers_and_is_kept_as_a_preset(
    visit: Visit, allowing: Running, tiny_model: HFModel, guides: dict[str, Any]
) -> None:
    page = visit(allowing.url)
    page.get_by_role("button", name="all off").click()
    expect(page.get_by_text("Or type a sentence.")).to_be_visible()
    page.get_by_label("Towards", exact=True).fill("Be very glad.")
    expect(page.get_by_text("Or type a sentence.")).to_be_hidden()
    page.get_by_label("Away from", exact=True).fill("Be sad.")
    page.get_by_label("Strength, slider").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("Strength", exact=True)).to_have_value("2.25")
    ask(page, up="0.5")
    made = {"up": guides["up"], "glad": PromptGuide("Be very glad.", "Be sad.")}
    expected = answer_of(tiny_model, made, {"up": 0.5, "glad": 2.25})
    assert text_of(page, "guided") == expected
    assert text_of(page, "unguided") == answer_of(tiny_model, {}, {}) != expected
    page.locator("#guided .token").first.click(force=True)
    expect(page.get_by_role("dialog")).to_contain_text("sentence-1")
    page.keyboard.press("Escape")
    assert "glad" not in page.url

    page.get_by_label("Name of the preset").fill("gladder")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Saved as gladder, in this browser.")).to_be_visible()
    expect(page.get_by_role("button", name="gladder")).to_have_attribute("aria-pressed", "true")
    page.goto(allowing.url)
    expect(page.get_by_label("Towards", exact=True)).to_have_value("")
    page.get_by_role("button", name="gladder").click()
    expect(page.get_by_label("Away from", exact=True)).to_have_value("Be sad.")
    ask(page)
    assert text_of(page, "guided") == expected
    page.get_by_role("button", name="Forget it").click()
    expect(page.get_by_role("button", name="gladder")).to_have_count(0)


def test_as_many_sentences_as_the_server_takes(visit: Visit, allowing: Running, tiny_model: HFModel) -> None:
    page = visit(allowing.url, may_log="status of 400")
    page.get_by_role("button", name="all off").click()
    page.get_by_label("Towards", exact=True).fill("Be glad.")
    page.get_by_role("button", name="Another sentence").click()
    expect(page.get_by_role("button", name="Another sentence")).to_be_hidden()
    page.get_by_label("Towards 2").fill("Be short.")
    page.get_by_label("Strength 2", exact=True).fill("-1")
    ask(page)
    made = {"glad": PromptGuide("Be glad."), "short": PromptGuide("Be short.")}
    assert text_of(page, "guided") == answer_of(tiny_model, made, {"glad": 2.0, "short": -1.0})
    page.get_by_label("Towards 2").fill("short " * 200)  # what is refused, the server says and why
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#guided [role='alert']")).to_contain_text("this server takes at most 256")


def test_without_guides_it_begins_with_an_example(visit: Visit, start: Start, tiny_model: HFModel) -> None:
    engine = Decoder(tiny_model, {place: SentencePlace(place) for place in PLACES})
    with start(engine=engine, catalogue=Catalogue(tiny_model, "tiny", {}, {}, {}, PLACES)) as own:
        page = visit(own.url)
        expect(page.get_by_label("Towards", exact=True)).to_have_value(
            "You are very cheerful and see the best in everything."
        )
        ask(page)
        assert text_of(page, "guided") != text_of(page, "unguided")
        page.close()


def test_where_none_is_taken_the_page_says_how_to_allow_it(visit: Visit) -> None:
    page = visit()
    expect(page.get_by_text("--allow-prompt-guides")).to_be_visible()
    expect(page.get_by_label("Towards", exact=True)).to_be_hidden()
