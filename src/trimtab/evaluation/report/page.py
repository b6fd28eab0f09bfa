"""A comparison as one HTML page that needs nothing else: no network, no fonts, no scripts; light, dark and on paper."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trimtab.evaluation.comparison.records import Row
from trimtab.evaluation.report.curves import PALETTE, SERIES_DARK
from trimtab.evaluation.report.document import filled, html_document
from trimtab.evaluation.report.wording import listed, prompt_text, strength_shown


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it, as HTML."""

    title: str
    body: str
    folded: bool = False
    """Whether a reader has to open it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt and what the methods said."""

    answers: Sequence[tuple[str, Row]]
    """(reward as text, answer)."""


@dataclass(frozen=True, slots=True)
class Page:
    """What the page says."""

    title: str
    lead: str
    sections: Sequence[Section]
    notes: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    """What a reader must know before the figures: answers that are missing, prompts too few."""


def report_page(page: Page) -> str:
    """The page as text. Section bodies are HTML of our own; everything else is escaped."""
    fields = {
        "title": html.escape(page.title),
        "lead": html.escape(page.lead),
        "warnings": "".join(f"<p class=warning>{html.escape(warning)}</p>\n" for warning in page.warnings),
        "sections": "\n".join(map(_section, page.sections)),
        "notes": _terms(page.notes),
    }
    return html_document(page.title, _STYLE + _series_style(), filled(_BODY, fields))


def figure_html(svg: str, caption: str) -> str:
    """A figure that scrolls rather than shrink to what nobody can read. `caption` is plain text."""
    return f"<figure><div class=wide tabindex=0>{svg}</div>\n<figcaption>{html.escape(caption)}</figcaption>\n</figure>"


def note(text: str) -> str:
    """A remark below a table. Plain text."""
    return f"<p class=note>{html.escape(text)}</p>"


def samples_html(samples: Sequence[Sample], indices: Sequence[int], num_prompts: int, seed: int) -> str:
    """Prompts with what each method said."""
    which = listed([index + 1 for index in indices])
    remark = note(
        f"Test prompts {which} of {num_prompts}, spread evenly over the list and not chosen by what was said; seed "
        f"{seed}. An ellipsis marks an answer that the length limit cut."
    )
    return remark + "\n" + "\n".join(map(_sample, samples))


def _terms(notes: Mapping[str, str]) -> str:
    """Terms and what is said of them, as the inside of a `dl`."""
    return "\n".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in notes.items())


def _sample(sample: Sample) -> str:
    prompt = html.escape(prompt_text(sample.answers[0][1].prompt))
    answers = "\n".join(_answer(reward, row) for reward, row in sample.answers)
    return f"<section class=sample><h3>{prompt}</h3><div class=answers>\n{answers}\n</div></section>"


def _answer(reward: str, row: Row) -> str:
    heading = f"{html.escape(row.key.method)} {strength_shown(row.key.strength)}"
    cut = "&nbsp;…" if row.finish_reason == "length" else ""
    text = html.escape(row.text.strip()) or "<i>(nothing)</i>"
    return f"<article><h4>{heading}<span>{html.escape(reward)}</span></h4><p>{text}{cut}</p></article>"


def _section(section: Section) -> str:
    title = html.escape(section.title)
    if section.folded:
        return f"<details><summary>{title}</summary>\n{section.body}\n</details>"
    return f"<h2>{title}</h2>\n{section.body}"


def _series_style() -> str:
    light = " ".join(f"--{name}: {colour};" for name, colour in PALETTE.items() if name.startswith("c"))
    dark = " ".join(f"--c{index}: {colour};" for index, colour in enumerate(SERIES_DARK))
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


_STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfb; --card: #f5f4f0; --ink: #1b1b1d; --soft: #5c5c61;
  --line: #dcdad3; --accent: #1f5fb4; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --card: #212326; --ink: #ececec; --soft: #a8a8ad;
  --line: #3a3c40; --accent: #8fc1ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 66rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .6rem; font-weight: 650; text-wrap: balance; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .5rem; font-weight: 650; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; font-weight: 600; }
p { margin: 0 0 .6rem; max-width: 42rem; }
.lead { font-size: 1.08rem; }
.note, figcaption { color: var(--soft); font-size: .9rem; }
figure { margin: 1.6rem 0 0; } figcaption { max-width: 42rem; margin-top: .4rem; }
figure svg { width: 100%; min-width: 38rem; height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .94rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem 0 .4rem 1rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
td { vertical-align: top; }
th:first-child { padding-left: 0; text-align: left; position: sticky; left: 0; background: var(--paper); }
thead th { color: var(--soft); font-weight: 500; font-size: .9rem; vertical-align: bottom; }
tbody th { vertical-align: top; font-weight: 600; }
.wide + .note { margin-top: .7rem; }
.range { display: block; color: var(--soft); font-size: .82rem; line-height: 1.3; }
.answers { display: grid; gap: .7rem; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); }
article { background: var(--card); border-radius: .4rem; padding: .7rem .85rem; }
article h4 { display: flex; flex-wrap: wrap; justify-content: space-between; gap: .5rem; margin: 0 0 .35rem;
  font-size: .82rem; font-weight: 600; color: var(--soft); font-variant-numeric: tabular-nums; }
article h4 span { font-weight: 400; white-space: nowrap; }
article p { margin: 0; font-size: .92rem; line-height: 1.5; overflow-wrap: anywhere; white-space: pre-line; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.4rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; max-width: 42rem; overflow-wrap: anywhere; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; } }
figure + .wide { margin-top: 1.2rem; }
.warning { border-left: .25rem solid var(--accent); padding: .1rem 0 .1rem .8rem; }
.wide:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
details { margin-top: 1.6rem; } summary { cursor: pointer; font-weight: 600; }
.sample h3 { overflow-wrap: anywhere; white-space: pre-line; }
@media print { :root { --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb; }
  body { max-width: none; padding: 0; font-size: 10pt; } article { border: 1px solid var(--line); }
  .wide { overflow: visible; } figure svg { min-width: 0; } h2, h3 { break-after: avoid; }
  figure, article, tr { break-inside: avoid; } table { font-size: 8pt; } th, td { padding-left: .5rem; } }
"""

_BODY = """<h1>{{title}}</h1>
<p class=lead>{{lead}}</p>
{{warnings}}{{sections}}
<h2>How it was done</h2>
<dl>
{{notes}}
</dl>
"""
