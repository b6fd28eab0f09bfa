// What is asked for: the guides' dials, presets and sampling; kept in the address's hash, so that a link carries them.
// Neither prompts nor keys go there.

import * as sentences from "./sentences.js";

const field = (id) => document.getElementById(id);
const SAMPLING = ["max", "temperature", "seed", "options"];
const WIDE = { min: -3, max: 3, step: 0.1 };
const UPWARDS = { ...WIDE, min: 0 };
const THRESHOLD = { min: 0, max: 0.95, step: 0.05 }; // of a guide that accepts or rejects; 1 would accept nothing
const FORMS = {
  product: "product: the model's probabilities times the guide's own; it cannot steer the other way.",
  shift: "shift: adds only what training changed in the guide; below 0 it steers the other way.",
};

const dials = new Map(); // guide -> { number, slider }
const presets = new Map(); // button -> { weights, prompts }
let served = []; // the server's own, as [name, weights]
let built = false; // until then the address is not ours to write: it may carry weights of dials to come

/** Draw the dials and presets; `base` is the model whose weights are the guides' own. */
export function build(guides, [base, ...others]) {
  built = false;
  dials.clear();
  presets.clear();
  field("dials").replaceChildren(...guides.map(dial));
  const own = Object.values(base.guidance).some(Boolean) ? [["the server's own", base.guidance]] : [];
  const named = others.map((model) => [model.id, model.guidance]);
  served = guides.length || !field("typed").hidden ? [["all off", {}], ...own, ...named] : [];
  offer();
  set(starting(guides, base.guidance));
  reseed();
  built = true;
  restore(location.hash);
}

/** The buttons of all presets: the server's, and those that this browser keeps. */
function offer() {
  presets.clear();
  const mine = field("typed").hidden ? [] : Object.entries(sentences.kept());
  const all = [...served.map(([name, wanted]) => [name, { weights: wanted }]), ...mine];
  field("presets").replaceChildren(...all.filter(([, wanted]) => wanted).map(([name, wanted]) => preset(name, wanted)));
}

/** Keep what is set now under a name, in this browser. */
export function save(name) {
  const note = !name
    ? "Give the preset a name."
    : served.some(([other]) => other === name)
      ? "The server has a preset of this name; give another."
      : sentences.keep(name, { weights: { ...weights(), ...sentences.weights() }, prompts: sentences.prompts() })
        ? `Saved as ${name}, in this browser.`
        : "This browser keeps nothing for this page, so the preset was not saved.";
  field("saved").hidden = false;
  field("saved").textContent = note;
  offer();
  changed();
}

/** Forget the saved preset that is set now. */
export function forget() {
  const name = pressed();
  sentences.keep(name, undefined);
  field("saved").hidden = false;
  field("saved").textContent = `Forgot ${name}.`;
  offer();
  changed();
}

/** The saved preset that is set now, if it is one. */
function pressed() {
  const names = Object.keys(sentences.kept());
  return [...presets.keys()].find((button) => button.ariaPressed === "true" && names.includes(button.textContent))
    ?.textContent;
}

export function weights() {
  return Object.fromEntries([...dials].map(([name, { number }]) => [name, number.valueAsNumber]));
}

export function sampling() {
  const temperature = field("temperature").valueAsNumber;
  const told = templateOptions(field("options").value);
  return {
    max_tokens: field("max").valueAsNumber,
    seed: field("seed").valueAsNumber,
    ...(Number.isNaN(temperature) ? {} : { temperature }),
    ...(Object.keys(told).length ? { chat_template_kwargs: told } : {}),
  };
}

/** `enable_thinking=false effort=low`: names and values, each JSON or a text, with blanks between; as the flag's. */
function templateOptions(text) {
  const pairs = text.trim().split(/\s+/).filter(Boolean);
  return Object.fromEntries(pairs.map((pair) => [pair.split("=")[0], valueOf(pair.slice(pair.indexOf("=") + 1))]));
}

function valueOf(text) {
  try {
    return JSON.parse(/^(true|false|null|none)$/i.test(text) ? text.toLowerCase().replace("none", "null") : text);
  } catch {
    return text;
  }
}

export function reseed() {
  field("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
  changed();
}

/** The server's own weights; where it has none, the first guide at 1 (a threshold at ½): the first pair shall differ.
 *  One alone: several might cancel each other, and of guides that select a request may run one. */
function starting([first], own) {
  if (!first || Object.values(own).some(Boolean)) return own;
  return { ...own, [first.id]: first.accepts ? 0.5 : 1 };
}

/** Take over what an address says; a link that sets weights sets all of them. */
export function restore(hash) {
  const said = new URLSearchParams(hash.slice(1));
  for (const name of SAMPLING) if (said.has(name)) field(name).value = said.get(name);
  const linked = [...dials.keys()].some((name) => said.has(`w.${name}`));
  const rest = linked ? {} : weights();
  set(Object.fromEntries([...dials.keys()].map((name) => [name, Number(said.get(`w.${name}`) ?? rest[name]) || 0])));
}

function dial(guide) {
  const row = field("dial").content.cloneNode(true).firstElementChild;
  const [number, slider] = row.querySelectorAll("input");
  const label = row.querySelector("label");
  const limits = guide.accepts ? THRESHOLD : guide.form === "product" ? UPWARDS : WIDE;
  row.classList.toggle("from-zero", limits.min === 0);
  number.id = `weight-${guide.id}`;
  label.htmlFor = number.id;
  label.textContent = guide.accepts ? `${guide.id} (threshold)` : guide.id;
  slider.ariaLabel = `${guide.id}, slider`;
  const form = row.querySelector(".hint");
  form.hidden = !FORMS[guide.form];
  if (FORMS[guide.form]) {
    form.textContent = FORMS[guide.form];
    form.id = `form-${guide.id}`;
    for (const input of [number, slider]) input.setAttribute("aria-describedby", form.id);
  }
  Object.assign(slider, limits);
  number.min = guide.accepts ? 0 : -guide.max_weight; // of a product too: what is refused, the server says and why
  number.max = guide.max_weight;
  slider.addEventListener("input", () => (number.value = slider.value));
  number.addEventListener("input", () => (slider.value = number.value));
  dials.set(guide.id, { number, slider });
  return row;
}

function preset(name, wanted) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = name;
  button.addEventListener("click", () => {
    sentences.set(wanted.prompts ?? {}, wanted.weights);
    set(wanted.weights);
  });
  presets.set(button, wanted);
  return button;
}

function set(wanted) {
  for (const [name, { number, slider }] of dials) slider.value = number.value = wanted[name] ?? 0;
  changed();
}

/** After any change: the hash, which preset this is, and whether the guides do anything. */
export function changed() {
  if (!built) return;
  const now = weights();
  const typed = sentences.weights();
  const texts = JSON.stringify(sentences.prompts());
  const said = new URLSearchParams(SAMPLING.map((name) => [name, field(name).value]).filter(([, value]) => value));
  for (const [name, value] of Object.entries(now)) said.set(`w.${name}`, value);
  history.replaceState(null, "", `#${said}`);
  for (const [button, wanted] of presets) {
    const all = { ...now, ...typed };
    const same = Object.keys(all).every((name) => all[name] === (wanted.weights[name] ?? 0));
    button.ariaPressed = String(same && texts === JSON.stringify(wanted.prompts ?? {}));
  }
  field("forget").hidden = !pressed();
  const or = field("typed").hidden ? "" : " Or type a sentence.";
  const advice = dials.size
    ? `All guides are off, so both answers will be the same. Move a slider.${or}`
    : `This server has no guides. Start it with --guide NAME=WHERE to steer.${or}`;
  field("advice").textContent = advice;
  field("advice").hidden = [...Object.values(now), ...Object.values(typed)].some(Boolean);
}
