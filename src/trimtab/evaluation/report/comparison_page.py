"""A comparison as one HTML page that needs nothing else: no network, no fonts, no scripts; light, dark and on paper."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trimtab.evaluation.comparison.recipe import strength_text
from trimtab.evaluation.comparison.records import Row
from trimtab.evaluation.report.comparison_figure import PALETTE, SERIES_DARK
from trimtab.evaluation.report.page import HEAD, STYLE, filled, listed, noted, prompt_text, signed


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


def comparison_page(page: Page) -> str:
    """The page as text. Section bodies are HTML of our own; everything else is escaped."""
    fields = {
        "title": html.escape(page.title),
        "style": STYLE + _MORE_STYLE + _series_style(),
        "lead": html.escape(page.lead),
        "warnings": "".join(f"<p class=warning>{html.escape(warning)}</p>\n" for warning in page.warnings),
        "sections": "\n".join(map(_section, page.sections)),
        "notes": noted(page.notes),
    }
    return filled(_PAGE, fields)


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


def _sample(sample: Sample) -> str:
    prompt = html.escape(prompt_text(sample.answers[0][1].prompt))
    answers = "\n".join(_answer(reward, row) for reward, row in sample.answers)
    return f"<section class=sample><h3>{prompt}</h3><div class=answers>\n{answers}\n</div></section>"


def _answer(reward: str, row: Row) -> str:
    heading = f"{html.escape(row.key.method)} {strength_text(row.key.strength)}"
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


def reward_text(name: str, value: float) -> str:
    """A reward beside an answer."""
    return f"{name} {signed(value)}"


_MORE_STYLE = """
main { display: block; }
body { max-width: 66rem; }
figure svg { min-width: 38rem; }
table { font-size: .94rem; } th, td { padding-left: 1rem; }
figure + .wide { margin-top: 1.2rem; }
td { vertical-align: top; }
tbody th { white-space: nowrap; vertical-align: top; font-weight: 600; }
th:first-child { position: sticky; left: 0; background: var(--paper); }
article h4 { flex-wrap: wrap; } article h4 span { white-space: nowrap; }
.warning { border-left: .25rem solid var(--accent); padding: .1rem 0 .1rem .8rem; }
.wide:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
details { margin-top: 1.6rem; } summary { cursor: pointer; font-weight: 600; }
.sample h3 { overflow-wrap: anywhere; white-space: pre-line; }
@media print { :root { --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb; }
  body { max-width: none; padding: 0; font-size: 10pt; } article { border: 1px solid var(--line); }
  .wide { overflow: visible; } figure svg { min-width: 0; } h2, h3 { break-after: avoid; }
  figure, article, tr { break-inside: avoid; } table { font-size: 8pt; } th, td { padding-left: .5rem; } }
"""

_PAGE = (
    HEAD
    + """<h1>{{title}}</h1>
<p class=lead>{{lead}}</p>
{{warnings}}{{sections}}
<h2>How it was done</h2>
<dl>
{{notes}}
</dl>
</main>
</body>
</html>
"""
)
