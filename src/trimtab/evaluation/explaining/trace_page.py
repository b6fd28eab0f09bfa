"""A trace as one HTML page that needs nothing else: no network, no fonts, no libraries.

Each token of the answer is a button; pointing at it, or going to it with Tab and the arrow keys, shows the table of the
tokens that could have stood there. Without scripts, the answer and a table of its tokens are there all the same.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence

from trimtab.core import Prompt
from trimtab.evaluation.explaining.trace import ExplainedToken, as_rows, percent, visible
from trimtab.evaluation.report.document import filled, html_document
from trimtab.mixing.tracing import FULL_COLOUR, SHARE

LEAST_SHIFT = 0.005
"""A smaller change of a log-probability has no colour, here and in the playground."""


def trace_page(
    tokens: Sequence[ExplainedToken], *, prompt: Prompt, model: str, weights: Mapping[str, float], seed: int
) -> str:
    """The page as text. Whatever comes from outside is escaped, and a content policy lets the page load nothing."""
    selecting = {token.choice.guide for token in tokens if token.choice}
    tilting = [name for name in weights if name not in selecting]
    kl = sum(token.kl for token in tokens)
    moved = sum(token.chosen.base_rank > 0 for token in tokens)
    fields = {
        "model": html.escape(model),
        "guides": ", ".join(f"{html.escape(name)} {weight:g}" for name, weight in weights.items()) or "none",
        "seed": str(seed),
        "prompt": html.escape(prompt if isinstance(prompt, str) else json.dumps(list(prompt), ensure_ascii=False)),
        "summary": f"{len(tokens)} tokens, {moved} of them not the base's first choice; KL to the base {kl:.2f} nats",
        "choices": _choices(tilting),
        "tokens": "".join(_button(index, token) for index, token in enumerate(tokens)),
        "rows": "\n".join(_row(token, tilting) for token in tokens),
        "headings": "".join(f"<th scope=col>{html.escape(name)}</th>" for name in tilting),
        "full": f"{math.exp(FULL_COLOUR):.0f}",
        "share": html.escape(SHARE, quote=False),
    }
    data = _script_json({"full": FULL_COLOUR, "least": LEAST_SHIFT, "guides": tilting, "tokens": as_rows(tokens)})
    scripts = f'<script type="application/json" id="data">{data}</script>\n<script>{SCRIPT}</script>\n'
    return html_document("Why these tokens", STYLE, filled(BODY, fields), after=scripts, scripted=True)


def _choices(guides: Sequence[str]) -> str:
    """Radio buttons: what the colours show."""
    options = [("", "all guides together"), *((name, name) for name in guides)]
    if len(guides) < 2:
        return ""
    buttons = (
        f'<label><input type=radio name=by value="{html.escape(value)}"{"" if value else " checked"}> '
        f"{html.escape(label)}</label>"
        for value, label in options
    )
    return f"<fieldset><legend>Colour by</legend>{' '.join(buttons)}</fieldset>"


def _button(index: int, token: ExplainedToken) -> str:
    chosen = token.chosen
    strength = max(-1.0, min(1.0, chosen.shift / FULL_COLOUR))
    tone = "same" if abs(chosen.shift) < LEAST_SHIFT else "raised" if chosen.shift > 0 else "lowered"
    kind = f"t {tone} moved" if chosen.base_rank > 0 else f"t {tone}"
    label = html.escape(token.shown.replace("\r", "").replace("\n", "↵")) or "∅"
    breaks = "<br>" * token.shown.count("\n")
    return (
        f'<button type=button class="{kind}" data-i={index} tabindex={0 if index == 0 else -1} aria-pressed=false '
        f'style="--amount:{abs(strength):.3f}">{label}</button>{breaks}'
    )


def _row(token: ExplainedToken, guides: Sequence[str]) -> str:
    chosen = token.chosen
    cells = [percent(chosen.base_logprob), *(f"{chosen.shares.get(name, 0.0):+.2f}" for name in guides)]
    cells += [percent(chosen.mixed_logprob), f"{chosen.base_rank + 1} → {chosen.mixed_rank + 1}", f"{token.kl:.3f}"]
    name = html.escape(visible(chosen.text))
    return f"<tr><th scope=row><code>{name}</code></th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _script_json(value: object) -> str:
    """JSON that cannot end the script element it stands in; numbers that are not finite are null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _finite(value: object) -> object:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #1b1b1b; --soft: #5c5c5c; --line: #d9d7d0;
  --raised: #f08c2e; --lowered: #4a90e8; --strength: 62%; --focus: #1a5fd0; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --ink: #ececec; --soft: #a5a5a5; --line: #3a3c40;
  --raised: #e0781c; --lowered: #3f83dd; --strength: 58%; --focus: #8fc1ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 .5rem; } h2 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; }
dt, .note, legend { color: var(--soft); } dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.note { font-size: .9rem; } #caption { margin: 0 0 .3rem; }
fieldset { border: 0; padding: 0; margin: .6rem 0; } legend { float: left; margin-right: .8rem; }
label { margin-right: .8rem; white-space: nowrap; }
.key { display: inline-block; padding: 0 .4rem; color: var(--ink); --amount: 1; }
#answer { line-height: 2; overflow-wrap: anywhere; margin: .5rem 0 1rem; }
.t { font: inherit; color: inherit; border: 0; padding: .1rem 0; margin: 0; cursor: pointer;
  white-space: pre-wrap; text-align: left; display: inline; }
.t, .key { --tone: transparent; border-radius: .2rem;
  background: color-mix(in srgb, var(--tone) calc(var(--amount) * var(--strength)), transparent); }
.raised { --tone: var(--raised); border-bottom: 2px solid var(--tone); }
.lowered { --tone: var(--lowered); border-bottom: 2px dotted var(--tone); }
.t.moved, .moved { font-weight: 700; }
.t:hover, .t[aria-pressed=true] { outline: 2px solid var(--focus); }
.t:focus-visible, input:focus-visible, summary:focus-visible { outline: 3px solid var(--focus); outline-offset: 1px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .8rem .15rem 0; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400;
  white-space: nowrap; }
th:first-child { text-align: left; } thead th { color: var(--soft); }
tr.chosen th, tr.chosen td { font-weight: 700; }
code { font: .95em ui-monospace, monospace; white-space: pre-wrap; }
"""

SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const buttons = [...document.querySelectorAll(".t")];
const percent = x => (x === null ? 0 : 100 * Math.exp(x)).toFixed(2) + "%";
const nats = x => x === null ? "never" : x.toFixed(2).replace(/^-0\\.00$/, "0.00").replace("-", "\\u2212");
const signed = x => x !== null && x >= 0.005 ? "+" + nats(x) : nats(x);
const dots = spaces => "\\u00b7".repeat(spaces.length);
const visible = s => s.replace(/^ +| +$/g, dots).replace(/\\n/g, "\\u21b5").replace(/\\t/g, "\\u21e5");
const toneOf = shift => Math.abs(shift) < data.least ? "same" : shift > 0 ? "raised" : "lowered";
let selected = 0;
function cell(kind, text) { const c = document.createElement(kind); c.textContent = text; return c; }
function row(item, chosen) {
  const tr = document.createElement("tr"), head = document.createElement("th");
  head.scope = "row"; head.append(cell("code", visible(item.text)));
  if (chosen) { tr.className = "chosen"; head.append(" \\u2190 chosen"); }
  tr.append(head, cell("td", percent(item.base_logprob)), cell("td", nats(item.base_logprob)));
  for (const g of data.guides) tr.append(cell("td", signed(item.shares[g] === undefined ? 0 : item.shares[g])));
  tr.append(cell("td", signed(item.rest)), cell("td", nats(item.mixed_logprob)));
  tr.append(cell("td", percent(item.mixed_logprob)));
  tr.append(cell("td", `${item.base_rank + 1} \\u2192 ${item.mixed_rank + 1}`));
  return tr;
}
function verdict(c, i) {
  if (i === c.index) return c.reason === "accepted" ? "accepted, taken" : c.reason === "only" ? "the only one" :
    c.reason === "weighed" ? "taken" : c.reason === "insignificant" ? "taken: the gate was closed" :
    "none accepted, so this one";
  const one = c.candidates[i];
  if (c.reason === "weighed") return "";
  return one.accept_probability === null ? "not looked at" : one.accepted ? "accepted" : "rejected";
}
function tried(c) {
  document.getElementById("agent").hidden = !c;
  document.getElementById("split").hidden = c && !data.guides.length;
  if (!c) return;
  document.getElementById("agent-caption").textContent = c.reason === "weighed" ?
    `Candidates of ${c.guide}, by log-probability plus ${c.threshold} \u00d7 reward:` :
    `Candidates of ${c.guide}, which accepts above ${(100 * c.threshold).toFixed(0)}%:`;
  document.getElementById("candidates").replaceChildren(...c.candidates.map((one, i) => {
    const tr = document.createElement("tr"), head = document.createElement("th");
    head.scope = "row"; head.append(cell("code", visible(one.text)));
    if (i === c.index) tr.className = "chosen";
    const p = one.accept_probability, r = c.reason === "weighed" && one.score !== null ? nats(one.score) : "";
    tr.append(head, cell("td", percent(one.logprob)), cell("td", p === null ? r : (100 * p).toFixed(1) + "%"),
      cell("td", verdict(c, i)));
    return tr;
  }));
}
function show(i) {
  const token = data.tokens[i];
  tried(token.choice);
  document.getElementById("caption").textContent =
    `Token ${i + 1} of ${data.tokens.length}: "${visible(token.text)}". KL at this step ${token.kl.toFixed(3)} nats.`;
  const items = [token, ...token.alternatives].sort((a, b) => a.mixed_rank - b.mixed_rank);
  document.getElementById("rivals").replaceChildren(...items.map(item => row(item, item === token)));
}
function select(i) {
  buttons[selected].tabIndex = -1; buttons[selected].setAttribute("aria-pressed", "false");
  selected = i;
  buttons[i].tabIndex = 0; buttons[i].setAttribute("aria-pressed", "true");
  show(i);
}
function colour(by) {
  buttons.forEach((b, i) => {
    const t = data.tokens[i], shift = by ? t.shares[by] || 0 : t.mixed_logprob - t.base_logprob;
    b.style.setProperty("--amount", Math.min(1, Math.abs(shift) / data.full).toFixed(3));
    for (const tone of ["raised", "lowered", "same"]) b.classList.toggle(tone, tone === toneOf(shift));
  });
}
buttons.forEach((b, i) => {
  b.addEventListener("mouseenter", () => show(i));
  b.addEventListener("mouseleave", () => show(selected));
  b.addEventListener("focus", () => select(i));
  b.addEventListener("click", () => select(i));
});
document.getElementById("answer").addEventListener("keydown", event => {
  const last = buttons.length - 1;
  const next = Math.min(selected + 1, last), previous = Math.max(selected - 1, 0);
  const to = { ArrowRight: next, ArrowLeft: previous, Home: 0, End: last }[event.key];
  if (to !== undefined) { event.preventDefault(); buttons[to].focus(); }
});
document.querySelectorAll("input[name=by]").forEach(r => r.addEventListener("change", () => colour(r.value)));
if (buttons.length) { document.getElementById("panel").hidden = false; select(0); }
"""

BODY = """<h1>Why these tokens</h1>
<dl>
<dt>Model</dt><dd>{{model}}</dd>
<dt>Guides</dt><dd>{{guides}}</dd>
<dt>Seed</dt><dd>{{seed}}</dd>
<dt>Prompt</dt><dd>{{prompt}}</dd>
</dl>
<h2>Answer</h2>
<p class=note>{{summary}}.
<span class="key raised">raised by the guides</span>
<span class="key lowered">lowered by them</span>
(full colour where {{full}} times or a {{full}}th as likely); <span class=moved>bold</span>: not the base's first
choice. Point at a token, or use Tab and the arrow keys.</p>
{{choices}}
<div id=answer role=group aria-label="Answer, one button for each token">{{tokens}}</div>
<section id=panel hidden>
<p id=caption class=note aria-live=polite></p>
<div id=agent hidden>
<p id=agent-caption class=note></p>
<div class=wide><table aria-labelledby=agent-caption>
<thead><tr><th scope=col>candidate, best first</th><th scope=col>before the choice</th>\
<th scope=col>accepted with</th><th scope=col>verdict</th></tr></thead>
<tbody id=candidates></tbody>
</table></div>
</div>
<div id=split>
<div class=wide><table aria-labelledby=caption>
<thead><tr><th scope=col>token</th><th scope=col>base</th><th scope=col>base, nats</th>{{headings}}\
<th scope=col>rest</th><th scope=col>= mixed, nats</th><th scope=col>mixed</th><th scope=col>rank</th></tr></thead>
<tbody id=rivals></tbody>
</table></div>
<p class=note>base + each guide's share + rest = mixed, in nats, at temperature 1 and before any filter.
{{share}}
The rest is normalisation, the same for every token of a step, and the choice where a guide makes one. Rank 1
is the most probable.</p>
</div>
</section>
<details><summary>All tokens as a table</summary>
<div class=wide><table>
<thead><tr><th scope=col>token</th><th scope=col>base</th>{{headings}}<th scope=col>mixed</th><th scope=col>rank</th>\
<th scope=col>KL</th></tr></thead>
<tbody>
{{rows}}
</tbody></table></div></details>
"""
