"""A frontier as one HTML page that needs nothing else: no network, no fonts, no scripts; light and dark."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.core import Prompt
from trimtab.evaluation.report.frontier import Point

Row = Mapping[str, Any]

_FORMS = """ As a shift the guide adds what training changed in it, and below 0 it steers the other way; as a product
(GenARM's own form) it adds all that it says, its base's share with it."""

MAX_NAMED = 6
"""So many strengths the summary names; more are left to the table."""


def frontier_page(
    *,
    title: str,
    points: Sequence[Point],
    rows: Sequence[Row],
    reference: Point,
    samples: Sequence[int],
    figure: str,
    notes: Mapping[str, str],
) -> str:
    """The page as text. `figure` is SVG of our own; everything else is escaped, and the page may load nothing."""
    fields = {
        "title": html.escape(title),
        "style": STYLE,
        "summary": _summary(rows, reference),
        "figure": figure,
        "rows": "\n".join(_row(row) for row in rows),
        "base": f"{reference.tokens_per_s:.0f}",
        "samples": "\n".join(_sample(points, index) for index in samples),
        "sample_note": f"Prompts {listed([index + 1 for index in samples])} of {len(points[0].answers)}, "
        "spread evenly over the list and not chosen by what was said. A prompt has the same seed at every strength.",
        "notes": noted(notes),
        "forms": _FORMS if any(point.form for point in points) else "",
    }
    return filled(_PAGE, fields)


def filled(template: str, fields: Mapping[str, str]) -> str:
    """A template with each {{name}} replaced. Split rather than replaced one after another: what an answer says must
    not be taken for a field."""
    parts = template.split("{{")
    return parts[0] + "".join(fields[name] + after for name, after in (part.split("}}", 1) for part in parts[1:]))


def noted(notes: Mapping[str, str]) -> str:
    """Terms and what is said of them, as the inside of a `dl`."""
    return "\n".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in notes.items())


def prompt_text(prompt: Prompt) -> str:
    """A prompt as a reader should see it: the last message of a chat."""
    if isinstance(prompt, str):
        return prompt
    last = prompt[-1] if prompt else ""
    return last["content"] if isinstance(last, Mapping) else " ".join(map(str, prompt))


def _summary(rows: Sequence[Row], reference: Point) -> str:
    """What every strength gives and costs. None is picked out: the largest gain on these prompts would be too large."""
    base = f"Without guidance the mean reward is <b>{signed(reference.reward.value)}</b>."
    guided = [row for row in rows if row["weight"] != 0]
    if not guided:
        return base
    if len(guided) > MAX_NAMED:
        return f"{base} The table gives what each of {len(guided)} strengths adds to it, and at what price."
    gains = "; ".join(
        f"{_as(row)}at strength {row['weight']:g} by <b>{gained(row['gain'])}</b> ({signed(row['gain_low'])} to "
        f"{signed(row['gain_high'])}) for {row['kl']:.1f} nats of KL an answer"
        for row in guided
    )
    return f"{base} The guide changes it {gains} (95&#8239;% intervals, paired)."


def _as(row: Row) -> str:
    return f"as a {row['form']} " if row["form"] else ""


def gained(value: float) -> str:
    """`signed` with a plus sign where it is above 0."""
    text = signed(value)
    return text if text.startswith("−") or text == "0.00" else f"+{text}"


def _row(row: Row) -> str:
    cells = [
        f"{signed(row['reward'])} {_range(row['reward_low'], row['reward_high'], signed)}",
        f"{signed(row['gain'])} {_range(row['gain_low'], row['gain_high'], signed)}",
        f"{row['kl']:.1f} {_range(row['kl_low'], row['kl_high'], '{:.1f}'.format)}",
        f"{row['tokens_per_s']:.0f}",
        f"{row['ratio_to_base']:.2f}",
    ]
    name = f"{row['form']} {signed_short(row['weight'])}".strip()
    return f"<tr><th scope=row>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _range(low: float, high: float, write: object) -> str:
    assert callable(write)
    return f"<span class=range>{write(low)} to {write(high)}</span>"


def signed_short(value: float) -> str:
    """As few digits as it takes, with a true minus sign."""
    return f"{value:g}".replace("-", "−")


def signed(value: float) -> str:
    """Two decimals with a true minus sign; nothing is −0.00."""
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text.replace("-", "−")


def _sample(points: Sequence[Point], index: int) -> str:
    answers = "\n".join(_answer(point, index) for point in points)
    prompt = html.escape(prompt_text(points[0].answers[index].prompt))
    return f"<section class=sample><h3>{prompt}</h3><div class=answers>\n{answers}\n</div></section>"


def _answer(point: Point, index: int) -> str:
    answer, name = point.answers[index], f"{point.form or 'strength'} {signed_short(point.weight)}"
    cut = "&nbsp;…" if answer.finish_reason == "length" else ""
    return (
        f"<article><h4>{html.escape(name)}<span>reward {signed(point.rewards[index])}</span></h4>"
        f"<p>{html.escape(answer.text.strip()) or '<i>(nothing)</i>'}{cut}</p></article>"
    )


def listed(numbers: Sequence[int]) -> str:
    """`1, 2 and 3`."""
    *firsts, last = map(str, numbers)
    return f"{', '.join(firsts)} and {last}" if firsts else last


STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfb; --card: #f5f4f0; --ink: #1b1b1d; --soft: #5c5c61;
  --line: #dcdad3; --accent: #1f5fb4; --second: #a8480f; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --card: #212326; --ink: #ececec; --soft: #a8a8ad;
  --line: #3a3c40; --accent: #8fc1ff; --second: #f0a877; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .6rem; font-weight: 650; text-wrap: balance; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .5rem; font-weight: 650; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; font-weight: 600; }
p { margin: 0 0 .6rem; max-width: 42rem; }
.lead { font-size: 1.08rem; }
.note, figcaption { color: var(--soft); font-size: .9rem; }
figure { margin: 1.6rem 0 0; } figcaption { max-width: 42rem; margin-top: .4rem; }
figure svg { width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem 0 .4rem 1.4rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { padding-left: 0; text-align: left; }
thead th { color: var(--soft); font-weight: 500; font-size: .9rem; vertical-align: bottom; }
tbody th { font-weight: 650; }
.wide + .note { margin-top: .7rem; }
.range { display: block; color: var(--soft); font-size: .82rem; line-height: 1.3; }
.answers { display: grid; gap: .7rem; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); }
article { background: var(--card); border-radius: .4rem; padding: .7rem .85rem; }
article h4 { display: flex; justify-content: space-between; gap: .5rem; margin: 0 0 .35rem; font-size: .82rem;
  font-weight: 600; color: var(--soft); font-variant-numeric: tabular-nums; }
article h4 span { font-weight: 400; }
article p { margin: 0; font-size: .92rem; line-height: 1.5; overflow-wrap: anywhere; white-space: pre-line; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.4rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; max-width: 42rem; overflow-wrap: anywhere; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; } }
"""

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}} - trimtab</title>
<style>{{style}}</style>
</head>
<body>
<main>
"""
"""How every page begins: a content policy that lets it load nothing."""

_PAGE = (
    HEAD
    + """<h1>{{title}}</h1>
<p class=lead>{{summary}}</p>
<figure>
{{figure}}
<figcaption>Mean reward against mean KL from the base, one point for each strength of the guide, which stands
beside it.{{forms}} Bars are 95&#8239;%
bootstrap intervals over prompts. Every way of steering buys reward with KL, so a better guide lies further up and
to the left.</figcaption>
</figure>
<h2>In numbers</h2>
<div class=wide><table>
<thead><tr><th scope=col>strength</th><th scope=col>reward</th><th scope=col>gain over no guidance</th>
<th scope=col>KL, nats an answer</th><th scope=col>tokens/s</th><th scope=col>ratio to the base</th></tr></thead>
<tbody>
{{rows}}
</tbody>
</table></div>
<p class=note>Below each mean: its 95&#8239;% bootstrap interval over prompts; the gain is paired by prompt and seed.
The base without any guide decodes {{base}} tokens/s at the same batch. No strength is chosen: which of them does best
on these prompts is itself subject to chance.</p>
<h2>What it says</h2>
<p class=note>{{sample_note}} An ellipsis marks an answer that the length limit cut.</p>
{{samples}}
<h2>How it was done</h2>
<dl>
{{notes}}
</dl>
</main>
</body>
</html>
"""
)
