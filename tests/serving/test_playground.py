"""The playground in a headless Chromium, by what a person does: with a real server, and with scripted replies."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.serving.conftest import Running, Start, apart
from tests.tiny import BYTE_TEMPLATE, byte_llama, byte_tokenizer
from trimtab.answers import Alternative, Choice, TokenTrace, Trial
from trimtab.core import Chat
from trimtab.decoding.decoder import Decoder
from trimtab.evaluation.explaining.trace import explain_tokens
from trimtab.evaluation.explaining.trace_page import trace_page
from trimtab.mixing.tracing import SHARE, shares_of
from trimtab.models.hf import HFModel
from trimtab.serving.asking import Catalogue
from trimtab.serving.limits import Limits
from trimtab.serving.wire import explained

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
expect = playwright.expect

PROMPT = "Say something."
Visit = Callable[..., Any]


pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    with playwright.sync_playwright() as runner:
        own = runner.chromium.executable_path
        if found is None and not Path(own).is_file():
            pytest.skip(f"needs Chromium: none of {', '.join(names)} is on the path, and Playwright has none")
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        running = runner.chromium.launch(executable_path=found or own, args=flags)
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any, server: Running) -> Iterator[Visit]:
    """Open the page. At the end: no error was logged, the policy held, and nobody else was asked for anything."""
    problems: list[str] = []
    contexts: list[Any] = []

    def opened(url: str | None = None, *, may_log: str | None = None, replies: Any = None, **how: Any) -> Any:
        home = url or server.url
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **how})
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: _note(line, may_log, problems))
        page.on("request", lambda request: request.url.startswith(home) or problems.append(request.url))
        if replies is not None:
            page.route("**/v1/**", replies)
        page.goto(home)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def _note(line: Any, may_log: str | None, problems: list[str]) -> None:
    """What the console says, violations of the content security policy among it."""
    if line.type in ("error", "warning") and not (may_log and may_log in line.text):
        problems.append(line.text)


def ask(page: Any, **fields: str) -> None:
    """Fill fields by their labels, send, and wait for the end."""
    for label, value in {"Prompt": PROMPT, "Seed": "3", "Max tokens": "20", **fields}.items():
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("status")).to_have_text(re.compile(r"Unguided: \d+ tokens. Guided: \d+ tokens."))


def text_of(page: Any, answer: str) -> str:
    return str(page.locator(f"#{answer} .text").text_content())


def answers_of(server: Running, weights: dict[str, float], **how: Any) -> Any:
    """What the decoder says to the page's question."""
    prompt = [{"role": "user", "content": PROMPT}]
    how = {"seed": 3, "max_new_tokens": 20, "trace": True, "num_alternatives": 10, **how}
    return next(apart(server).generate([prompt], weights=weights, **how))


def test_both_answers_are_the_servers(visit: Visit, server: Running) -> None:
    page = visit()
    expect(page.locator("#base")).to_have_text("tiny")
    expect(page.get_by_text("All guides are off")).to_be_hidden()
    page.get_by_role("button", name="all off").click()
    expect(page.get_by_text("All guides are off")).to_be_visible()
    page.get_by_label("up, slider").focus()
    for _ in range(15):
        page.keyboard.press("ArrowRight")
    expect(page.get_by_label("up", exact=True)).to_have_value("1.5")
    expect(page.get_by_text("All guides are off")).to_be_hidden()
    ask(page, down="-0.25", Temperature="0.8")
    for name, weights in (("unguided", {"up": 0.0, "down": 0.0}), ("guided", {"up": 1.5, "down": -0.25})):
        answer = answers_of(server, weights, temperature=0.8)
        assert text_of(page, name) == answer.text
        expect(page.locator(f"#{name} .token")).to_have_count(len(answer.token_ids))
        summary = page.locator(f"#{name} dl")
        expect(summary).to_contain_text(f"{len(answer.token_ids)}tokens")
        expect(summary).to_contain_text(f"{answer.kl:.2f}KL, nats")
        expect(summary).to_contain_text({"eos": "by itself", "length": "at max tokens"}[answer.finish_reason])
    assert text_of(page, "guided") != text_of(page, "unguided")
    assert page.locator("#unguided .token:not(.same)").count() == 0


def test_the_first_pair_differs(visit: Visit, server: Running) -> None:
    """Nothing is moved: where the server gave its guides no weights, the first of them steers at 1."""
    page = visit()
    expect(page.get_by_label("up", exact=True)).to_have_value("1")
    expect(page.get_by_label("down", exact=True)).to_have_value("0")
    ask(page)
    assert text_of(page, "guided") == answers_of(server, {"up": 1.0, "down": 0.0}).text
    assert text_of(page, "guided") != text_of(page, "unguided")


def test_the_page_starts_with_the_servers_own_weights(visit: Visit, start: Start, tiny_model: HFModel) -> None:
    with start(catalogue=Catalogue(tiny_model, "tiny", {"up": 0.0, "down": -0.5}, {})) as own:
        page = visit(own.url)
        expect(page.get_by_label("down", exact=True)).to_have_value("-0.5")
        expect(page.get_by_label("up", exact=True)).to_have_value("0")
        page.goto(f"{own.url}/#w.up=0.25")  # a link says all
        expect(page.get_by_label("up", exact=True)).to_have_value("0.25")
        expect(page.get_by_label("down", exact=True)).to_have_value("0")
        page.close()  # before its server ends: what it still asks for would be refused


def test_a_threshold_starts_at_a_half(visit: Visit) -> None:
    page = visit(replies=scripted(guides=("agent", "mild"), weight=0.0))
    expect(page.get_by_label("agent (threshold)")).to_have_value("0.5")
    expect(page.get_by_label("mild", exact=True)).to_have_value("0")


def test_a_guide_says_its_form(visit: Visit) -> None:
    """A product's slider ends at 0; what the server refuses of a typed number is shown as its sentence."""
    forms = {"mild": "product", "kind": "shift"}
    texts = ("Hm",)
    replies = scripted(("Hm", told(texts, 0), "length"), guides=("mild", "kind", "args"), forms=forms, refuses="mild")
    page = visit(replies=replies, may_log="status of 400")
    limits = {"mild": ("0", "product: "), "kind": ("-3", "shift: "), "args": ("-3", "")}
    for name, (least, sentence) in limits.items():
        slider = page.get_by_label(f"{name}, slider")
        expect(slider).to_have_attribute("min", least)
        words = page.locator(".dial", has=slider).locator(".hint")
        expect(words).to_have_text(re.compile(f"^{sentence}")) if sentence else expect(words).to_be_hidden()
        expect(slider).to_have_accessible_description(re.compile(f"^{sentence}"))
    page.get_by_label("mild", exact=True).fill("-1")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#guided [role='alert']")).to_have_text(REFUSED)
    expect(page.locator("#unguided [role='alert']")).to_be_hidden()
    assert text_of(page, "unguided") == "Hm"


SHADE = """element => {
    const style = getComputedStyle(element);
    return [style.getPropertyValue("--tone").trim(), style.getPropertyValue("--amount").trim(),
        style.borderBottomStyle, style.backgroundColor];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_explain_and_the_playground_say_the_same(
    visit: Visit, server: Running, browser: Any, scheme: str
) -> None:
    """The shares in numbers and in words, and the colours of the tokens, of one answer on both pages."""
    weights = {"up": 1.0, "down": -0.5}
    answer = answers_of(server, weights)
    tokens = explain_tokens(answer.trace, weights, server.service.engine.model.tokenizer.token_text)
    context = browser.new_context(color_scheme=scheme)
    paper = context.new_page()
    paper.set_content(trace_page(tokens, prompt=PROMPT, model="tiny", weights=weights, seed=3))
    page = visit(color_scheme=scheme)
    page.get_by_role("button", name="odd").click()
    ask(page)
    shades = [page.locator("#guided .token").nth(index).evaluate(SHADE) for index in range(len(tokens))]
    assert [paper.locator(".t").nth(index).evaluate(SHADE) for index in range(len(tokens))] == shades
    assert len({tuple(shade) for shade in shades}) > 3
    for index in (0, 7):
        page.locator("#guided .token").nth(index).click(force=True)
        paper.locator(".t").nth(index).click(force=True)
        here = [row.inner_text().split("\t") for row in page.get_by_role("dialog").locator("tbody tr").all()]
        there = [row.inner_text().split("\t") for row in paper.locator("#rivals tr").all()]
        shares = [[_number(cell) for cell in (row[3], row[5])] for row in here]
        assert shares == [[_number(cell) for cell in row[3:5]] for row in there]
        assert any(share > 0 for row in shares for share in row)
        assert any(share < 0 for row in shares for share in row)
    for text in (page.get_by_role("dialog").inner_text(), paper.locator("#split").inner_text()):
        assert SHARE in " ".join(text.split())
    context.close()


def _number(cell: str) -> float:
    return float(cell.replace("−", "-"))


def test_a_token_tells_why(visit: Visit, server: Running) -> None:
    page = visit()
    page.get_by_role("button", name="odd").click()
    ask(page)
    trace = answers_of(server, {"up": 1.0, "down": -0.5}).trace
    assert server.service.catalogue.model.tokenizer is not None
    text_of = server.service.catalogue.model.tokenizer.token_text
    texts = [text_of(step.chosen.token_id) for step in trace]
    index = next(at for at, text in enumerate(texts) if at > 2 and text.isprintable() and text.strip())
    page.locator("#guided .token").nth(index).click()
    trace = trace[index]
    sheet = page.get_by_role("dialog")
    expect(sheet).to_contain_text(f"Token {index + 1} of")
    expect(sheet.get_by_role("columnheader", name="up × 1", exact=True)).to_be_visible()
    rows = [row.inner_text().split("\t") for row in sheet.locator("tbody tr").all()]
    expected = {one.token_id: one for one in (trace.chosen, *trace.alternatives)}
    shares = shares_of(trace, {"up": 1.0, "down": -0.5})
    assert len(rows) == len(expected)
    ordered = sorted(expected.values(), key=lambda one: (one.mixed_rank, one.base_rank))
    for row, one in zip(rows, ordered, strict=True):
        assert ("(chosen)" in row[0]) == (one.token_id == trace.chosen.token_id)
        scores = [value for name in ("up", "down") for value in (one.guide_scores[name], shares[one.token_id][name])]
        assert [float(cell.replace("−", "-")) for cell in row[2:6]] == pytest.approx(scores, abs=0.0051)
        for cell, logprob in ((row[1], one.base_logprob), (row[6], one.mixed_logprob)):
            assert float(cell.removesuffix(" %")) == pytest.approx(100 * math.exp(logprob), rel=0.05, abs=1e-9)
        assert row[7] == f"{one.base_rank + 1} → {one.mixed_rank + 1}"
    tone = "raised" if trace.chosen.mixed_logprob > trace.chosen.base_logprob else "lowered"
    expect(page.locator("#guided .token.open")).to_have_class(re.compile(tone))


def test_by_keyboard_alone(visit: Visit) -> None:
    page = visit()
    press = page.keyboard.press
    focused = page.locator(":focus")
    expect(page.get_by_role("button", name="kinder")).to_be_visible()
    press("Tab")
    expect(focused).to_have_id("prompt")
    press("ControlOrMeta+a")
    page.keyboard.type(PROMPT)
    _tab_to(page, "kinder")
    press("Enter")
    expect(focused).to_have_attribute("aria-pressed", "true")
    press("Control+Enter")
    expect(page.get_by_role("status")).to_have_text(re.compile("Guided: "))
    press("Shift+Tab")
    for _ in range(20):
        press("Tab")
        if "token" in (focused.get_attribute("class") or ""):
            break
    expect(focused).to_have_attribute("data-index", "0")
    press("ArrowRight")
    press("ArrowRight")
    expect(focused).to_have_attribute("data-index", "2")
    press("Enter")
    sheet = page.get_by_role("dialog")
    expect(sheet).to_contain_text("Token 3 of")
    expect(focused).to_have_id("why-title")
    press("ArrowLeft")
    expect(sheet).to_contain_text("Token 2 of")
    press("Escape")
    expect(sheet).to_be_hidden()
    expect(focused).to_have_attribute("data-index", "1")
    press("End")
    press("Space")
    expect(sheet).to_contain_text(re.compile(r"Token (\d+) of \1,"))


def _tab_to(page: Any, name: str) -> None:
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.locator(":focus").text_content() == name:
            return
    raise AssertionError(f"Tab does not reach {name}")


def test_a_link_carries_the_settings_and_nothing_else(visit: Visit) -> None:
    page = visit()
    page.get_by_role("button", name="kinder").click()
    ask(page, Temperature="0.7")
    said = dict(parse_qsl(urlsplit(page.url).fragment))
    assert said == {"max": "20", "temperature": "0.7", "seed": "3", "w.up": "1.5", "w.down": "0"}
    page.get_by_role("button", name="New seed").click()
    expect(page.get_by_label("Seed")).not_to_have_value("3")
    other = visit()
    other.goto(f"{page.url.partition('#')[0]}#seed=8&w.up=0.25&w.gone=1")
    expect(other.get_by_label("Seed")).to_have_value("8")
    expect(other.get_by_label("up", exact=True)).to_have_value("0.25")
    expect(other.get_by_label("up, slider")).to_have_value("0.3")
    other.get_by_role("button", name="all off").click()
    expect(other.get_by_label("up", exact=True)).to_have_value("0")


class Slow(Decoder):
    """Slow enough for a person to press a button."""

    def step(self) -> Any:
        time.sleep(0.02)
        return super().step()


def test_stop(visit: Visit, server: Running, start: Start, tiny_model: HFModel, guides: dict[str, Any]) -> None:
    with start(engine=Slow(tiny_model, guides)) as slow:
        _stop_and_go_on(visit(slow.url), server)


def _stop_and_go_on(page: Any, server: Running) -> None:
    page.get_by_label("Max tokens").fill("2000")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#unguided .token").nth(3)).to_be_attached()
    expect(page.locator("#guided .token").nth(3)).to_be_attached()  # both at a time
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#unguided dl")).to_contain_text("stopped by you")
    expect(page.locator("#guided dl")).to_contain_text("stopped by you")
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    assert 3 < page.locator("#guided .token").count() < 2000
    ask(page)
    assert text_of(page, "unguided") == answers_of(server, {"up": 0.0, "down": 0.0}).text


def test_a_refusal_is_shown(visit: Visit) -> None:
    page = visit(may_log="status of 400")
    ask(page, **{"Max tokens": "100000"})
    alerts = page.get_by_role("alert")
    expect(alerts).to_have_count(2)
    expect(alerts.first).to_have_text("max_tokens is 100000; this server takes at most 2048.")
    ask(page)
    expect(alerts).to_have_count(0)


def test_a_key_is_asked_for_and_not_kept(visit: Visit, start: Start) -> None:
    with start(Limits(max_rows=4), keys=["geheim"]) as locked:
        page = visit(locked.url, may_log="status of 401")
        expect(page.get_by_role("alert")).to_contain_text("Give a valid API key")
        page.goto(f"{locked.url}/#w.up=0.25")
        for key in ("wrong", "geheim"):
            page.get_by_label("API key").fill(key)
            page.keyboard.press("Enter")
            if key == "wrong":
                expect(page.get_by_label("API key")).to_be_visible()
        expect(page.get_by_label("API key")).to_be_hidden()
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(page.get_by_label("up", exact=True)).to_have_value("0.25")  # typing a key has not forgotten the link
        ask(page)
        assert text_of(page, "guided")
        assert "geheim" not in page.url
        assert page.context.storage_state() == {"cookies": [], "origins": []}
        assert page.evaluate("sessionStorage.length") == 0


class Tokens:
    """A tokenizer of the texts that a test names."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def token_text(self, token_id: int) -> str:
        return self.texts[token_id]


def placed(token_id: int, base: float, mixed: float, **scores: float) -> Alternative:
    return Alternative(token_id, math.log(base), scores, math.log(mixed) if mixed else -math.inf, 1, 0)


REFUSED = "Guide mild is a product, and its weight is below 0."


def scripted(
    *chunks: Any,
    ending: str = "data: [DONE]\n\n",
    guides: tuple[str, ...] = ("mild",),
    weight: float = 0.5,
    forms: Mapping[str, str] | None = None,
    refuses: str = "",
) -> Any:
    """Replies of a server whose answers are these (text, trace of the token, finish reason).

    `weight` is every guide's own; one that is named by `refuses` has a sentence for weights below 0.
    """
    known = [
        {"id": name, "weight": weight, "accepts": name == "agent", "max_weight": 9.0, "form": (forms or {}).get(name)}
        for name in guides
    ]

    def reply(route: Any) -> None:
        kind = route.request.url.rsplit("/", 1)[-1]
        if kind == "guides":
            route.fulfill(json={"data": known})
        elif kind == "models":
            route.fulfill(json={"data": [{"id": "base", "guidance": dict.fromkeys(guides, weight)}]})
        else:
            weights = json.loads(route.request.post_data)["guidance"]["weights"]
            if weights.get(refuses, 0) < 0:
                route.fulfill(status=400, json={"error": {"message": REFUSED}})
                return
            first = {"delta": {"content": ""}, "finish_reason": None, "guidance": {"weights": weights, "seed": 3}}
            sent = [first, *(_choice(*chunk) for chunk in chunks)]
            events = "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in sent)
            route.fulfill(body=events + ending, content_type="text/event-stream")

    return reply


def _choice(text: str, told: Any, finish_reason: str | None = None) -> dict[str, Any]:
    return {"delta": {"content": text}, "finish_reason": finish_reason, "guidance": {"tokens": [told]}}


def told(texts: tuple[str, ...], token_id: int, base: float = 0.02, mixed: float = 0.4, choice: Any = None) -> Any:
    own = placed(token_id, base, mixed, mild=2.5)
    rivals = tuple(placed(other, 0.1, 0.05, mild=-0.5) for other in range(len(texts)) if other != token_id)
    return explained(TokenTrace(own, rivals, 0.5, choice), Tokens(*texts), {"mild": 0.5})


def test_text_is_never_wrong(visit: Visit) -> None:
    """A part of a character has no text until the character is whole; the end has none, and gives back what it got."""
    texts = ("\ufffd", "\ufffd", "\n<b>", "\ufffd", "</s>")
    chunks = [("", told(texts, 0)), ("é", told(texts, 1)), ("\n<b>", told(texts, 2)), ("", told(texts, 3))]
    page = visit(replies=scripted(*chunks, ("\ufffd", told(texts, 4), "stop")))
    ask(page)
    assert text_of(page, "guided") == "é\n<b>\ufffd"
    tokens = page.locator("#guided .token")
    assert tokens.all_text_contents() == ["", "é", "\n<b>", "", ""]
    marks = [token.get_attribute("data-mark") for token in tokens.all()]
    assert marks == ["·", None, "↵", "·", "end"]
    assert tokens.nth(2).get_attribute("aria-label") == "<b>, ×20"
    assert tokens.nth(4).get_attribute("aria-label") == "end of the answer, ×20"
    expect(page.locator("#guided dl")).to_contain_text("by itself (stop)")


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ('data: {"error": {"message": "A guide broke down."}}\n\n', "A guide broke down."),
        ("", "The answer was cut off: the connection ended before it did. Send again."),
        ("data: {", "The answer was cut off: the connection ended before it did. Send again."),
    ],
)
def test_an_answer_that_fails_says_so(visit: Visit, ending: str, message: str) -> None:
    page = visit(replies=scripted(("Hm", told(("Hm",), 0)), ending=ending))
    ask(page)
    expect(page.locator("#guided [role='alert']")).to_have_text(message)
    expect(page.locator("#unguided dl")).to_contain_text("failed")
    assert text_of(page, "guided") == "Hm"


def test_an_agent_shows_its_trials(visit: Visit) -> None:
    texts = (" rude", " mild", " odd")
    trials = (
        Trial(0, math.log(0.5), -2.0, False),
        Trial(1, math.log(0.3), 1.0, True),
        Trial(2, math.log(0.2), None, False),
    )
    token = told(texts, 1, 0.3, 1.0, Choice("agent", trials, 1, "accepted"))
    page = visit(replies=scripted((" mild", token, "length"), guides=("mild", "agent")))
    threshold = page.get_by_label("agent (threshold)")
    expect(threshold).to_have_value("0.5")
    expect(page.get_by_label("agent, slider")).to_have_attribute("step", "0.05")
    ask(page)
    page.locator("#guided .token").click()
    table = page.get_by_role("table", name="agent (weight 0.5) accepted this candidate.")
    rows = [row.inner_text().split("\t") for row in table.locator("tbody tr").all()]
    assert rows == [
        ["␣rude", "50.0 %", "11.9 %", "rejected"],
        ["␣mild (chosen)", "30.0 %", "73.1 %", "accepted"],
        ["␣odd", "20.0 %", "–", "not looked at"],
    ]


CONTRAST = """token => {
    const read = (...colours) => {
        const canvas = new OffscreenCanvas(1, 1).getContext("2d");
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(
            value => value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const of = (element, name) => getComputedStyle(element)[name];
    const paper = read(of(token.closest("article"), "backgroundColor"), of(token, "backgroundColor"));
    const ink = read(of(token, "color"));
    return (Math.max(paper, ink) + 0.05) / (Math.min(paper, ink) + 0.05);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_in_light_and_dark(visit: Visit, scheme: str) -> None:
    how = {"color_scheme": scheme, "viewport": {"width": 360, "height": 740}, "reduced_motion": "reduce"}
    texts = ("up" * 60, " down")
    chunks = [(texts[0], told(texts, 0, 0.01, 0.9)), (texts[1], told(texts, 1, 0.9, 0.01), "length")]
    page = visit(replies=scripted(*chunks, guides=("mild", "a-guide-with-quite-a-long-name")), **how)
    ask(page)
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) > 3 * 128) == (scheme == "light")
    for index, tone in enumerate(("raised", "lowered")):
        token = page.locator("#guided .token").nth(index)
        expect(token).to_have_class(f"token {tone}")
        assert token.evaluate(CONTRAST) >= 4.5
    page.locator("#guided .token").last.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("document.getAnimations().length") == 0
    unnamed = (
        "[...document.querySelectorAll('input, textarea')].filter(one => !one.labels.length && !one.ariaLabel).length"
    )
    assert page.evaluate(unnamed) == 0


def test_template_options_are_sent_and_kept_in_the_address(visit: Visit, start: Start) -> None:
    tokenizer = byte_tokenizer(template=BYTE_TEMPLATE + "{% if enable_thinking is false and depth == 3 %}-{% endif %}")
    model = HFModel(byte_llama(tokenizer, max_length=512), tokenizer, name="tiny")
    options = {"enable_thinking": False, "depth": 3}
    with start(engine=Decoder(model), catalogue=Catalogue(model, "tiny", {}, {})) as own:
        page = visit(own.url)
        ask(page, **{"Template options": "enable_thinking=False depth=3"})
        prompt = Chat([{"role": "user", "content": PROMPT}], options)
        answer = next(apart(own).generate([prompt], seed=3, max_new_tokens=20))
        assert text_of(page, "unguided") == answer.text
        assert ("options", "enable_thinking=False depth=3") in parse_qsl(urlsplit(page.url).fragment)
