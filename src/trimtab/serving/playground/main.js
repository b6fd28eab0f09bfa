// The page: asks the server what it has, sends the prompt twice from one seed, and shows both answers as they grow.

import { Answer } from "./answer.js";
import { list, listing, stream, useKey } from "./api.js";
import * as sentences from "./sentences.js";
import * as settings from "./settings.js";
import * as why from "./why.js";

const field = (id) => document.getElementById(id);
const answers = [
  new Answer(field("unguided"), "Unguided", why.show),
  new Answer(field("guided"), "Guided", why.show),
];
let model = null;
let running = null;

async function load() {
  const [guides, models] = await Promise.all([listing("v1/guides"), list("v1/models")]);
  model = models[0].id;
  field("base").textContent = model;
  sentences.build(guides.prompts, settings.changed);
  settings.build(guides.data, models);
  if (!guides.data.length) sentences.begin(); // the first pair shall differ
  settings.changed();
  field("send").ariaDisabled = "false";
}

/** Say what went wrong with the page as a whole, or (nothing) that it is well. */
function trouble(error) {
  field("trouble").hidden = !error;
  field("trouble").textContent = error?.message ?? "";
  if (error?.status === 401) field("lock").hidden = false;
}

async function start() {
  await load().then(() => trouble(null), trouble);
}

async function unlock() {
  useKey(field("key").value.trim());
  await start();
  field("lock").hidden = model !== null;
  (model === null ? field("key") : field("prompt")).focus();
}

function bodies() {
  const messages = [{ role: "user", content: field("prompt").value }];
  const own = settings.weights();
  const unguided = { weights: Object.fromEntries(Object.keys(own).map((name) => [name, 0])) };
  const prompts = sentences.prompts();
  const guided = { weights: { ...own, ...sentences.weights() }, ...(Object.keys(prompts).length ? { prompts } : {}) };
  return [unguided, guided].map((guidance) => ({
    model,
    messages,
    stream: true,
    ...settings.sampling(),
    guidance: { ...guidance, explain: true, alternatives: 10 },
  }));
}

async function run(answer, body, signal) {
  answer.begin();
  try {
    for await (const choice of stream(body, signal)) answer.take(choice);
    answer.end();
  } catch (error) {
    if (signal.aborted) answer.end({ note: "stopped by you" });
    else answer.end({ note: "failed", problem: error.message });
    if (error.status === 401) field("lock").hidden = false;
  }
}

async function send() {
  if (running) return say("Still answering. Wait, or stop it first.");
  if (model === null || !field("ask").reportValidity()) return;
  running = new AbortController();
  const asked = bodies();
  why.hide({ refocus: false });
  mark();
  say("Answering.");
  if (field("answers").getBoundingClientRect().top > innerHeight / 2) field("answers").scrollIntoView();
  await Promise.all(answers.map((answer, number) => run(answer, asked[number], running.signal)));
  running = null;
  mark();
  say(answers.map(({ name, tokens }) => `${name}: ${tokens.length} tokens.`).join(" "));
}

/** The buttons are marked, not disabled: a disabled button would lose the focus. */
function mark() {
  field("send").ariaDisabled = String(running !== null);
  field("stop").ariaDisabled = String(running === null);
}

function say(text) {
  field("status").textContent = text;
}

field("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
field("ask").addEventListener("input", settings.changed);
field("stop").addEventListener("click", () => running?.abort());
field("reseed").addEventListener("click", settings.reseed);
field("save").addEventListener("click", () => settings.save(field("preset-name").value.trim()));
field("forget").addEventListener("click", () => settings.forget());
field("preset-name").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault(); // it would send the prompt
  settings.save(field("preset-name").value.trim());
});
field("unlock").addEventListener("click", unlock);
field("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault(); // it would send the prompt
  unlock();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) field("ask").requestSubmit();
});
window.addEventListener("hashchange", () => settings.restore(location.hash));
start();
