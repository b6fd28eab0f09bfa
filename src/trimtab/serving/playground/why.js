// Why a token was chosen: the tables of one token, in a sheet that leaves the answers in reach.

import { factor, lift, percent, plain, signed, tone, visible } from "./words.js";

const sheet = document.getElementById("why");
const tables = document.getElementById("why-tables");
let answer = null;
let index = 0;

/** Show a token's tables; `moved`: only if a sheet is open already, and the focus stays where it is. */
export function show(of, at, moved) {
  if (moved && !sheet.open) return;
  answer?.select(-1);
  [answer, index] = [of, at];
  const told = answer.tokens[index];
  document.getElementById("why-title").textContent = `“${visible(told)}”`;
  document.getElementById("why-lead").textContent =
    `Token ${index + 1} of ${answer.tokens.length}, ${answer.name.toLowerCase()}: the base gave it ` +
    `${percent(told.base_logprob)}, with the guides ${percent(told.mixed_logprob)} (${factor(lift(told))}). ` +
    `KL of this step ${told.kl.toFixed(3)} nats.`;
  tables.replaceChildren(...(told.choice ? [trials(told.choice)] : []), rivals(told), definition());
  tables.scrollTo(0, 0);
  if (!sheet.open) sheet.show();
  if (!moved) document.getElementById("why-title").focus();
  answer.select(index);
  told.element.scrollIntoView({ block: "nearest" });
}

export function hide({ refocus = true } = {}) {
  if (!sheet.open) return;
  sheet.close();
  answer.select(-1);
  if (refocus) answer.focus(index);
}

function step(by) {
  if (answer.tokens[index + by]) show(answer, index + by, true);
}

document.getElementById("previous").addEventListener("click", () => step(-1));
document.getElementById("next").addEventListener("click", () => step(1));
document.getElementById("close").addEventListener("click", () => hide());
document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
sheet.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by && !(event.target === tables && tables.scrollWidth > tables.clientWidth)) step(by);
});

/** What a share is, in the words of the page. */
function definition() {
  const words = document.createElement("p");
  words.className = "hint";
  words.textContent = document.getElementById("share").textContent.replace(/\s+/g, " ");
  return words;
}

/** The chosen token among its rivals: what the base says, what each guide adds, what comes of it. */
function rivals(told) {
  const names = Object.keys(told.scores);
  const others = told.alternatives.filter((one) => one.token_id !== told.token_id);
  const rows = [told, ...others].sort((a, b) => a.mixed_rank - b.mixed_rank || a.base_rank - b.base_rank);
  const heads = [["Token"], ["Base"], ...names.map((name) => [`${name} × ${plain(answer.weights[name])}`, 2]), ["Guided"], ["Rank"]];
  const below = names.flatMap(() => ["score", "share"]);
  const table = framed("The base's log-probability plus the guides' shares, made to add up to 1. Before temperature.");
  table.createTHead().append(headings(heads, names.length ? 2 : 1));
  if (names.length) table.tHead.append(headings(below.map((name) => [name])));
  for (const one of rows) {
    const row = lined(table, one, one.token_id === told.token_id);
    barred(row, one.base_logprob, "base");
    for (const name of names) {
      celled(row, signed(one.scores[name]));
      celled(row, signed(one.shares[name]));
    }
    barred(row, one.mixed_logprob, tone(lift(one)));
    celled(row, `${one.base_rank + 1} → ${one.mixed_rank + 1}`);
  }
  return table;
}

const REASONS = {
  accepted: "accepted this candidate",
  only: "was not asked: there was one candidate",
  none: "accepted no candidate, so its rule fell back on this one",
  weighed: "weighed the candidates by probability and score",
  insignificant: "was asked about the first candidate alone, since its gate was closed",
};

/** What a guide that selects had before it. */
function trials(choice) {
  const weighs = choice.reason === "weighed";
  const table = framed(`${choice.guide} (weight ${plain(answer.weights[choice.guide])}) ${REASONS[choice.reason]}.`);
  table.createTHead().append(headings([["Candidate"], ["Probability"], [weighs ? "Score" : "Acceptance"], ["Verdict"]]));
  choice.trials.forEach((trial, place) => {
    const row = lined(table, trial, place === choice.index);
    barred(row, trial.logprob, "base");
    const looked = trial.score !== null;
    // An agent's score is the log-odds of acceptance.
    celled(row, !looked ? "–" : weighs ? signed(trial.score) : percent(-Math.log1p(Math.exp(-trial.score))));
    celled(row, !looked ? "not looked at" : weighs ? "weighed" : trial.accepted ? "accepted" : "rejected");
  });
  return table;
}

function framed(text) {
  const table = document.createElement("table");
  table.createCaption().textContent = text;
  table.createTBody();
  return table;
}

function headings(names, depth = 1) {
  const row = document.createElement("tr");
  for (const [name, width = 1] of names) {
    const cell = document.createElement("th");
    cell.textContent = name;
    cell.scope = width > 1 ? "colgroup" : "col";
    cell.colSpan = width;
    cell.rowSpan = width > 1 ? 1 : depth;
    row.append(cell);
  }
  return row;
}

function lined(table, one, isChosen) {
  const row = table.tBodies[0].insertRow();
  const head = document.createElement("th");
  head.scope = "row";
  const text = document.createElement("bdi");
  text.textContent = visible(one);
  head.append(text);
  if (isChosen) {
    row.className = "chosen";
    head.append(" (chosen)");
  }
  row.append(head);
  return row;
}

function celled(row, text) {
  const cell = row.insertCell();
  cell.textContent = text;
  return cell;
}

function barred(row, logprob, kind) {
  const cell = celled(row, percent(logprob));
  cell.className = `bar ${kind}`;
  cell.style.setProperty("--part", Math.exp(logprob).toFixed(4));
}
