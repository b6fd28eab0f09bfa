// The server's wire: its lists, and one answer as a stream. Knows nothing of the page.
// Addresses are relative, so that the page also works behind a proxy's prefix.

export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

let key = ""; // in memory alone: it is gone with the page

export function useKey(value) {
  key = value;
}

export async function list(path) {
  return (await listing(path)).data;
}

/** A list with what the server says of it. */
export async function listing(path) {
  return (await call(path)).json();
}

/** The choices of one answer's chunks, as they come. Throws ServerError where the answer failed or was cut. */
export async function* stream(body, signal) {
  const headers = { "content-type": "application/json" };
  const reply = await call("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  for await (const data of events(reply.body)) {
    if (data === "[DONE]") return;
    const content = JSON.parse(data);
    if (content.error) throw new ServerError(content.error.message);
    yield content.choices[0];
  }
  throw new ServerError("The answer was cut off: the connection ended before it did. Send again.");
}

async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key) headers.set("authorization", `Bearer ${key}`);
  const reply = await fetch(path, { ...options, headers }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. See whether `trimtab serve` still runs, then try again.");
  });
  if (reply.ok) return reply;
  const content = await reply.json().catch(() => null);
  throw new ServerError(content?.error?.message ?? `The server refused with status ${reply.status}.`, reply.status);
}

async function* events(bytes) {
  const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true }; // the connection broke: no [DONE] came
    });
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) if (block.startsWith("data: ")) yield block.slice("data: ".length);
  }
}
