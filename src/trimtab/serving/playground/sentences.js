// Guides that a visitor types: a sentence, maybe one to steer away from, and a slider; where the server takes them.
// They are kept as presets in this browser alone. Neither the address nor the server remembers them.

const field = (id) => document.getElementById(id);
const KEPT = "trimtab.presets";
const RANGE = { min: -6, max: 6, step: 0.25 };
const START = 2;
const EXAMPLE = {
  towards: "You are very cheerful and see the best in everything.",
  away: "You are very gloomy and see the worst in everything.",
};

const rows = []; // { name, towards, away, number, slider }
let most = 0; // rows that a request may bring
let changed = () => {};

/** Draw one empty row; `allowed` is what the server takes (null: none). `onChange` is called after every change. */
export function build(allowed, onChange) {
  most = allowed?.max_guides ?? 0;
  changed = onChange;
  rows.length = 0;
  field("sentences").replaceChildren();
  field("typed").hidden = !most;
  field("untyped").hidden = Boolean(most);
  if (most) add(allowed.max_weight);
  field("more").onclick = () => add(allowed.max_weight).towards.focus();
}

/** Where there is nothing else to steer with, begin with an example. */
export function begin() {
  set({ first: EXAMPLE }, {});
}

/** What a request brings: name -> its sentences, of the rows that say something. */
export function prompts() {
  const said = rows.filter(({ towards }) => towards.value.trim());
  return Object.fromEntries(
    said.map(({ name, towards, away }) => {
      const other = away.value.trim();
      return [name, { towards: towards.value.trim(), ...(other ? { away: other } : {}) }];
    }),
  );
}

export function weights() {
  const brought = prompts();
  return Object.fromEntries(
    rows.filter(({ name }) => name in brought).map(({ name, number }) => [name, number.valueAsNumber]),
  );
}

/** Take over sentences and weights, as `prompts` and `weights` gave them. */
export function set(said, strengths) {
  const wanted = Object.entries(said).slice(0, most);
  while (rows.length < wanted.length) add();
  rows.forEach((row, index) => {
    const [name, sentences] = wanted[index] ?? [];
    row.towards.value = sentences?.towards ?? "";
    row.away.value = sentences?.away ?? "";
    row.slider.value = row.number.value = strengths[name] ?? START;
  });
}

/** The presets that this browser keeps: name -> { weights, prompts }. */
export function kept() {
  try {
    return JSON.parse(localStorage.getItem(KEPT)) ?? {};
  } catch {
    return {}; // the browser keeps nothing for this page
  }
}

/** Keep a preset, or (nothing) forget it. Says whether the browser did. */
export function keep(name, preset) {
  try {
    localStorage.setItem(KEPT, JSON.stringify({ ...kept(), [name]: preset }));
    return true;
  } catch {
    return false;
  }
}

function add(maxWeight) {
  const row = field("sentence").content.cloneNode(true).firstElementChild;
  const [towards, away, number, slider] = row.querySelectorAll("textarea, input");
  const name = `sentence-${rows.length + 1}`;
  const which = rows.length ? ` ${rows.length + 1}` : "";
  const labels = row.querySelectorAll("label");
  [towards, away, number].forEach((input, index) => {
    input.id = `${name}-${index}`;
    labels[index].htmlFor = input.id;
    labels[index].textContent += which;
  });
  slider.ariaLabel = `Strength${which}, slider`;
  Object.assign(slider, RANGE);
  if (maxWeight) Object.assign(number, { min: -maxWeight, max: maxWeight });
  slider.value = number.value = START;
  slider.addEventListener("input", () => (number.value = slider.value));
  number.addEventListener("input", () => (slider.value = number.value));
  rows.push({ name, towards, away, number, slider });
  field("sentences").append(row);
  field("more").hidden = rows.length >= most;
  changed();
  return rows.at(-1);
}
