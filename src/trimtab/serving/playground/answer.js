// One answer: its text as tokens that can be chosen, and the summary below it.
// A token's element holds the text that became certain with it, so the elements' text is the answer's, letter by letter.
// Marks for what has no text (a part of a character, a line break, the end) are drawn by the style sheet.

import { factor, lift, spoken, tone } from "./words.js";

const STRONGEST = Math.log(20); // the legend's ends
const ENDS = { stop: "by itself (stop)", length: "at max tokens (length)" };

export class Answer {
  /** `onPick(answer, index, moved)`: a token was opened, or (moved) walked to. */
  constructor(root, name, onPick) {
    root.append(document.getElementById("answer").content.cloneNode(true));
    const heading = root.querySelector("h2");
    heading.id = `${root.id}-name`;
    heading.textContent = this.name = name;
    this.problem = root.querySelector(".problem");
    this.whole = root.querySelector(".whole");
    this.text = root.querySelector(".text");
    this.text.setAttribute("aria-label", `${name}, token by token`);
    this.summary = root.querySelector("dl");
    this.onPick = onPick;
    this.text.addEventListener("click", (event) => this.#open(event.target));
    this.text.addEventListener("keydown", (event) => this.#press(event));
    this.clear();
  }

  clear() {
    this.tokens = [];
    this.weights = {};
    this.times = [];
    this.text.replaceChildren();
    this.whole.textContent = "";
    this.summary.replaceChildren();
    this.problem.hidden = true;
  }

  begin() {
    this.clear();
    this.text.classList.add("growing");
    this.#summarise("waiting");
  }

  /** A chunk's choice. */
  take(choice) {
    this.weights = choice.guidance?.weights ?? this.weights;
    const told = choice.guidance?.tokens ?? [];
    const text = choice.delta.content ?? "";
    told.forEach((one, number) => this.#add(one, number === told.length - 1 ? text : ""));
    if (!told.length) this.text.append(text);
    if (choice.finish_reason === "stop") this.#markEnd();
    if (choice.finish_reason) this.#summarise(ENDS[choice.finish_reason], "ended");
    else this.#summarise("answering");
  }

  /** No more chunks; `note` where it did not end by itself, `problem` where that is an error. */
  end({ note, problem } = {}) {
    this.text.classList.remove("growing");
    this.whole.textContent = this.text.textContent;
    this.problem.hidden = !problem;
    this.problem.textContent = problem ?? "";
    if (note) this.#summarise(note);
  }

  select(index) {
    for (const element of this.text.querySelectorAll(".open")) element.classList.remove("open");
    this.tokens[index]?.element.classList.add("open");
  }

  focus(index) {
    this.text.querySelector("[tabindex='0']")?.setAttribute("tabindex", "-1");
    const { element } = this.tokens[index];
    element.tabIndex = 0;
    element.focus();
  }

  #add(told, text) {
    const element = document.createElement("span");
    const change = lift(told);
    element.className = `token ${tone(change)}`;
    element.role = "button";
    element.tabIndex = this.tokens.length ? -1 : 0; // one stop for Tab; arrows walk
    element.dataset.index = this.tokens.length;
    element.textContent = text;
    if (!text) element.dataset.mark = "·";
    else if (text.includes("\n")) element.dataset.mark = "↵";
    element.ariaLabel = `${spoken(told)}, ${factor(change)}`;
    element.style.setProperty("--amount", Math.min(Math.abs(change) / STRONGEST, 1).toFixed(3));
    this.text.append(element);
    this.tokens.push({ ...told, element });
    this.times.push(performance.now());
  }

  /** The last token ends the turn and has no text: what came with it had been held back for the tokens before. */
  #markEnd() {
    const { element } = this.tokens.at(-1) ?? {};
    if (!element) return;
    if (element.textContent) element.before(element.textContent);
    element.textContent = "";
    element.dataset.mark = "end";
    element.ariaLabel = element.ariaLabel.replace(/^.*, /s, "end of the answer, ");
  }

  #summarise(state, label = "state") {
    const kl = this.tokens.reduce((sum, told) => sum + told.kl, 0);
    const seconds = (this.times.at(-1) - this.times[0]) / 1000;
    const speed = seconds > 0 ? ((this.times.length - 1) / seconds).toFixed(1) : "–";
    const entries = { tokens: this.tokens.length, "KL, nats": kl.toFixed(2), "tokens/s": speed, [label]: state };
    this.summary.replaceChildren(
      ...Object.entries(entries).map(([name, value]) => {
        const [entry, term, text] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
        term.textContent = name;
        text.textContent = value;
        entry.append(text, term);
        return entry;
      }),
    );
  }

  #open(element) {
    const index = element.dataset.index;
    if (index !== undefined && !String(getSelection())) this.onPick(this, Number(index), false);
  }

  #press(event) {
    const index = Number(event.target.dataset.index);
    const last = this.tokens.length - 1;
    const to = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: last }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") this.onPick(this, index, false);
    else if (to === undefined) return;
    else if (to >= 0 && to <= last) {
      this.focus(to);
      this.onPick(this, to, true);
    }
    event.preventDefault();
  }
}
