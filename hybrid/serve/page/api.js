// The server's API: one streamed drawing at a time per call, the served model, speech. Knows no page.

const TOKEN = "hybrid-token";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function authorised(headers = {}) {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { ...headers, Authorization: `Bearer ${token}` } : headers;
}

export function useToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

async function checked(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refused(response.status, body?.error?.message ?? `the server answered ${response.status}`);
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: authorised(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "the server cannot be reached");
  }
  return checked(response);
}

export async function servedModel() {
  return (await (await ask("/v1/models")).json()).data[0];
}

// What a recording asks to draw; empty where nothing was understood.
export async function transcribe(recording) {
  const form = new FormData();
  form.append("file", recording, "speech.wav");
  return (await (await ask("/v1/audio/transcriptions", { method: "POST", body: form })).json()).prompt;
}

// Draws and yields {type, …} events. `edit` is {image, mask} as blobs, for in-painting.
export async function* draw(fields, { edit = null, signal } = {}) {
  let request;
  if (edit) {
    const form = new FormData();
    for (const [name, value] of Object.entries({ ...fields, stream: true })) form.append(name, String(value));
    form.append("image", edit.image, "image.png");
    form.append("mask", edit.mask, "mask.png");
    request = ask("/v1/images/edits", { method: "POST", body: form, signal });
  } else {
    const body = JSON.stringify({ ...fields, stream: true });
    const headers = { "Content-Type": "application/json" };
    request = ask("/v1/images/generations", { method: "POST", headers, body, signal });
  }
  const reader = (await request).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const data = text.slice(0, end).split("\n").find((line) => line.startsWith("data: "));
      const event = JSON.parse(data.slice(6));
      if (event.type === "error") throw new Refused(500, event.error.message);
      yield event;
    }
  }
}
