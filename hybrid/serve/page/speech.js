// The microphone button: words while one speaks, and once more when one has spoken.

import { transcribe } from "./api.js";
import { listen } from "./mic.js";

async function words(recording, last) {
  try {
    return await transcribe(recording);
  } catch (error) {
    if (error.status !== 429 || !last) throw error;
    await new Promise((wake) => setTimeout(wake, 1000)); // what was said last is not said again
    return transcribe(recording);
  }
}

// `heard(text, last)` gets what was understood so far; `failed(message)` why nothing is.
export function wireSpeech(button, { heard, say, failed }) {
  let stop = null;
  let starting = false; // the browser asks for permission
  let asking = false;

  async function end(lastWords) {
    const ending = stop;
    stop = null;
    button.setAttribute("aria-pressed", "false");
    await ending(lastWords);
  }

  async function understand(recording, last) {
    if (asking && !last) return;
    asking = true;
    try {
      const text = (await words(recording, last)).trim();
      if (text) heard(text, last);
      else if (last) say("Nothing was heard.");
    } catch (error) {
      if (error.status === 429 && !last) return; // many speak; the next recording holds these words too
      if (stop) end(false);
      failed(error.message);
    } finally {
      asking = false;
    }
  }

  button.addEventListener("click", async () => {
    if (stop) return end(true);
    if (starting) return;
    starting = true;
    failed("");
    try {
      stop = await listen(understand);
      button.setAttribute("aria-pressed", "true");
      say("Listening. Press again when you have said it.");
    } catch (error) {
      failed(error.message);
    } finally {
      starting = false;
    }
  });
}
