// What a drawing is asked for with, in the controls and in a link's hash. Knows no server.

const NAMES = { prompt: "p", seed: "seed", method: "method", ar_fraction: "ar", steps: "steps", guidance: "guidance" };
const NUMBERS = new Set(["seed", "ar_fraction", "steps", "guidance"]);

// {prompt, seed, method, ar_fraction, steps, guidance, compare} as a hash; what is undefined is left out.
export function toHash(settings) {
  const query = new URLSearchParams();
  for (const [name, key] of Object.entries(NAMES)) {
    if (settings[name] !== undefined) query.set(key, settings[name]);
  }
  if (settings.compare) query.set("compare", "1");
  return `#${query}`;
}

export function fromHash(hash) {
  const query = new URLSearchParams(hash.replace(/^#/, ""));
  const settings = {};
  for (const [name, key] of Object.entries(NAMES)) {
    if (!query.has(key)) continue;
    const value = NUMBERS.has(name) ? Number(query.get(key)) : query.get(key);
    if (!Number.isNaN(value)) settings[name] = value;
  }
  if (query.get("compare") === "1") settings.compare = true;
  return settings;
}

// What the API takes: a method's own fields only.
export function toFields({ prompt, seed, method, ar_fraction, steps, guidance }) {
  const fields = { prompt, seed, method };
  if (method === "hybrid" && ar_fraction !== undefined) fields.ar_fraction = ar_fraction;
  if (method !== "ar" && steps !== undefined) fields.steps = steps;
  if (guidance !== undefined) fields.guidance = guidance;
  return fields;
}

export const anySeed = () => Math.floor(Math.random() * 2 ** 31);

const KEPT = 24;
const KEY = "hybrid-history";

// Finished drawings, newest first: {hash, prompt, picture (data URL), note}.
export function readHistory() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? [];
  } catch {
    return [];
  }
}

export function remember(entry) {
  const entries = [entry, ...readHistory().filter((old) => old.hash !== entry.hash || old.note !== entry.note)];
  for (let count = KEPT; count > 0; count = Math.floor(count / 2)) {
    try {
      localStorage.setItem(KEY, JSON.stringify(entries.slice(0, count)));
      break;
    } catch {
      // The browser's store is full: keep fewer.
    }
  }
  return readHistory();
}

export function forget() {
  localStorage.removeItem(KEY);
}
