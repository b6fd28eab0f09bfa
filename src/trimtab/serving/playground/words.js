// Numbers and tokens as a person reads them.

const NEVER = -9999; // what the wire says for a log-probability of −∞
const LEAST = 0.005; // a smaller change of a log-probability is none

export const lift = (told) => told.mixed_logprob - told.base_logprob;

export function percent(logprob) {
  if (logprob <= NEVER) return "never";
  const value = 100 * Math.exp(logprob);
  return `${value >= 1 ? value.toFixed(1) : value.toPrecision(2)} %`;
}

export function signed(value) {
  if (value <= NEVER) return "forbids";
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
}

export const plain = (value) => String(value).replace("-", "−");

/** How many times as likely: ×3.2, ÷8.0. */
export function factor(change) {
  if (Math.abs(change) < LEAST) return "unchanged";
  const times = Math.exp(Math.abs(change));
  const digits = times >= 1e4 ? times.toExponential(0) : times.toFixed(times < 2 ? 2 : times < 10 ? 1 : 0);
  return `${change < 0 ? "÷" : "×"}${digits}`;
}

export function tone(change) {
  if (Math.abs(change) < LEAST) return "same";
  return change < 0 ? "lowered" : "raised";
}

/** A token with its spaces made visible. */
export function visible({ token, token_id }) {
  if (token.includes("\uFFFD") || token.startsWith("bytes:\\x")) return `part of a character (${token_id})`;
  if (!token) return `no text (${token_id})`;
  return token.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
}

/** A token for a screen reader, which passes over marks for spaces. */
export function spoken(told) {
  const words = told.token.trim() ? visible({ ...told, token: told.token.trim() }) : null;
  return words ?? (told.token.includes("\n") ? "line break" : told.token ? "space" : visible(told));
}
