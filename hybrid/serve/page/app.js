// The page: the stage, and the drawings that are under way.

import { Refused, draw, servedModel, useToken } from "./api.js";
import { Controls } from "./controls.js";
import { Lane, METHODS } from "./lane.js";
import { anySeed, fromHash, toFields, toHash } from "./settings.js";
import { keep, showHistory, wireShelf } from "./shelf.js";
import { wireSpeech } from "./speech.js";

const LIVE_MS = 300; // after the last letter, a masked preview
const SETTLED_MS = 600; // after the preview, the chosen method
const IDEAS = ["a red apple", "a blue car", "a smiling cat", "hot air balloon", "a green tree", "an umbrella", "a pizza", "a full moon"];

const $ = (id) => document.getElementById(id);
const [form, prompt, stage, lanesBox] = [$("ask"), $("prompt"), $("stage"), $("lanes")];
let model, controls, lanes, running, timer;
let shownHash = "";

function current(compare = false) {
  return { prompt: prompt.value.trim(), ...controls.read(), compare: compare || undefined };
}

function apply(settings) {
  prompt.value = settings.prompt ?? prompt.value;
  controls.write(settings);
}

// Drawing

function setStage(methods) {
  const same = lanes?.length === methods.length && lanes.every((lane, i) => lane.method === methods[i]);
  if (same || (lanes?.length === 1 && methods.length === 1)) {
    lanes.forEach((lane, i) => (lane.method = methods[i]));
    return;
  }
  lanes = methods.map((method) => new Lane(model, method));
  lanesBox.classList.toggle("three", lanes.length > 1);
  lanesBox.replaceChildren(...lanes.map((lane) => lane.figure));
  if (lanes.length > 1) setBrush(false);
  $("brush").disabled = lanes.length > 1 || !model.editing;
}

function setTicks(event) {
  const box = $("ticks");
  const total = event.steps;
  const mine = [...box.querySelectorAll(`.${event.phase}`)];
  if (mine.length !== total) {
    mine.forEach((tick) => tick.remove());
    for (let i = 0; i < total; i++) {
      const tick = document.createElement("i");
      tick.className = event.phase;
      tick.style.setProperty("--late", `${total > 1 ? (100 * i) / (total - 1) : 0}%`);
      box.append(tick);
    }
  }
  [...box.querySelectorAll(`.${event.phase}`)].forEach((tick, i) => tick.classList.toggle("on", i < event.step));
}

function allTicks() {
  $("ticks").querySelectorAll("i").forEach((tick) => tick.classList.add("on"));
}

const say = (text) => ($("status").textContent = text || "\u00a0");
const PHASES = { prefix: "AR row", fill: "masked pass", verify: "tokens checked", refill: "refining pass" };
const inSeconds = (value) => (value < 10 ? `${value.toFixed(2)} s` : `${value.toFixed(1)} s`);

function problem(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text ?? "";
}

function cancel(reason = "") {
  clearTimeout(timer);
  if (!running) return;
  running.abort();
  running = null;
  lanes.forEach((lane) => lane.waiting(false));
  setDrawing(false);
  say(reason);
}

function setDrawing(yes) {
  $("draw").textContent = yes ? "Cancel" : "Draw";
  stage.setAttribute("aria-busy", String(yes));
}

const drawingTime = (seconds) =>
  Object.entries(seconds).reduce((sum, [phase, value]) => (["waited", "previews"].includes(phase) ? sum : sum + value), 0);

async function drawLane(lane, fields, edit, signal) {
  lane.waiting(true);
  lane.tell(METHODS[lane.method], "…");
  $("ticks").replaceChildren();
  for await (const event of draw(fields, { edit, signal })) {
    if (signal.aborted) return null;
    if (event.type.endsWith("partial_image")) {
      lane.waiting(false);
      setTicks(event);
      lane.tell(METHODS[lane.method], `${PHASES[event.phase] ?? event.phase} ${event.step} of ${event.steps}`);
      await lane.show(event.b64_json);
    } else {
      await lane.finish(event, fields.prompt);
      allTicks();
      lane.seconds = drawingTime(event.report.seconds);
      lane.seed = event.seed;
      const passes = [event.report.passes.prefix, event.report.passes.fill].filter(Boolean).join(" + ");
      lane.tell(METHODS[lane.method], `${inSeconds(lane.seconds)} · ${passes} passes`);
      return event;
    }
  }
  if (!signal.aborted) throw new Refused(0, "the server stopped before the picture was finished");
  return null;
}

// Draws what the controls say; `compare` by every method; `rough` a masked preview of it; `linked` what a link says.
// Whether it was finished.
async function start({ compare = false, rough = false, linked = false } = {}) {
  cancel();
  problem();
  const settings = current(compare);
  if (!settings.prompt) {
    say("Say what to draw.");
    prompt.focus();
    return false;
  }
  const mine = (running = new AbortController());
  const edit = !compare && brushed() ? await lanes[0].edit() : null;
  if (mine.signal.aborted) return false;
  const methods = compare ? ["ar", "hybrid", "masked"] : [rough || edit ? "masked" : settings.method];
  setStage(methods);
  setDrawing(true);
  say(rough ? "Drawing a preview…" : `Drawing ${settings.prompt}…`);
  try {
    for (const lane of lanes) {
      const fields = toFields({ ...settings, method: lane.method });
      if (edit) delete fields.method;
      if (!(await drawLane(lane, fields, edit, mine.signal))) return false;
    }
    finished(settings, { compare, rough, linked, edit });
    return true;
  } catch (error) {
    if (mine.signal.aborted) return false;
    lanes.forEach((lane) => lane.waiting(false));
    say("");
    if (error instanceof Refused && error.status === 401) login();
    else problem(error.message);
    return false;
  } finally {
    if (running === mine) {
      running = null;
      setDrawing(false);
    }
  }
}

function finished(settings, { compare, rough, linked, edit }) {
  if (rough) return say("A preview; the picture follows.");
  if (compare) {
    $("ticks").replaceChildren(); // they told of the last lane alone
    const [ar, ...others] = lanes;
    const told = others.map((lane) => `${METHODS[lane.method]} ${(ar.seconds / lane.seconds).toFixed(1)}× as fast as AR`);
    for (const lane of others) {
      lane.tell(METHODS[lane.method], `${inSeconds(lane.seconds)} · ${(ar.seconds / lane.seconds).toFixed(1)}×`);
    }
    say(`${told.join(", ")}.`);
  } else {
    say(`Done in ${inSeconds(lanes[0].seconds)}, seed ${settings.seed}.`);
  }
  if (edit) lanes[0].clearMask();
  shownHash = toHash(settings);
  if (location.hash !== shownHash) history[linked ? "replaceState" : "pushState"](null, "", shownHash);
  const best = lanes.find((lane) => lane.method === "hybrid") ?? lanes[0];
  keep(best, settings, shownHash, edit ? "in-painted" : compare ? "compared" : "");
}

// Live drawing: a masked preview soon after the last letter, the chosen method once one stops. Same seed throughout.
function typed() {
  cancel();
  problem();
  if (!$("live").checked || !prompt.value.trim() || brushed()) return;
  const preview = model.methods.includes("masked") && controls.method !== "masked";
  timer = setTimeout(async () => {
    const drawn = await start({ rough: preview });
    if (drawn && preview) timer = setTimeout(start, SETTLED_MS);
  }, LIVE_MS);
}

// In-painting

const brushing = () => $("brush").getAttribute("aria-pressed") === "true";
const brushed = () => brushing() && lanes.length === 1 && lanes[0].png !== null && lanes[0].painted();

function setBrush(yes) {
  $("brush").setAttribute("aria-pressed", String(yes));
  stage.classList.toggle("brushing", yes);
  $("brushing").hidden = !yes;
  if (lanes?.length === 1) lanes[0].brushing(yes, Number($("brushsize").value));
}

// Links

function follow() {
  if (location.hash === shownHash || !location.hash) return;
  const settings = fromHash(location.hash);
  if (!settings.prompt) return;
  shownHash = location.hash;
  setBrush(false);
  apply(settings);
  start({ compare: settings.compare, linked: true });
}

// Wiring

function login() {
  const dialog = $("login");
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      useToken($("token").value);
      done();
      if (!model) open();
    }, { once: true });
  });
}

function toggle(button, name) {
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(on));
  stage.classList.toggle(name, on);
  return on;
}

function wire() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) cancel("Cancelled.");
    else start();
  });
  prompt.addEventListener("input", typed);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cancel("Cancelled.");
  });
  $("compare").addEventListener("click", () => start({ compare: true }));
  $("dice").addEventListener("click", () => {
    $("seed").value = anySeed();
    if (prompt.value.trim()) start();
  });
  $("reset").addEventListener("click", () => apply({ prompt: prompt.value, seed: Number($("seed").value) }));
  $("overlay").addEventListener("click", () => ($("legend").hidden = !toggle($("overlay"), "overlay")));
  $("crisp").addEventListener("click", () => toggle($("crisp"), "crisp"));
  $("brush").addEventListener("click", () => setBrush(!brushing()));
  $("brushsize").addEventListener("input", () => setBrush(true));
  $("clear").addEventListener("click", () => lanes.forEach((lane) => lane.clearMask()));
  $("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the hash is the picture's
    stage.focus();
  });
  wireShelf(say, () => shownHash);
  wireSpeech($("mic"), {
    say,
    failed: (message) => {
      if (message) say("");
      problem(message);
    },
    heard: (text, last) => {
      const better = text !== prompt.value;
      prompt.value = text;
      if (last) start();
      else if (better) typed();
    },
  });
  window.addEventListener("hashchange", follow);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => lanes.forEach((lane) => lane.paintOrigin()));
}

async function open() {
  try {
    model = await servedModel();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return login();
    return problem(error.message);
  }
  const [rows, columns] = model.grid;
  $("about").textContent = `${model.id} · ${model.width}×${model.height} pixels, ${rows * columns} tokens`;
  $("compare").disabled = !["ar", "hybrid", "masked"].every((method) => model.methods.includes(method));
  $("prompt").maxLength = model.limits.prompt;
  $("live").checked = rows * columns <= 400;
  for (const idea of (model.classes ?? IDEAS).slice(0, 12)) {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = idea;
    chip.addEventListener("click", () => {
      prompt.value = idea;
      start();
    });
    $("ideas").append(chip);
  }
  controls = new Controls(model);
  setStage([controls.usual]);
  apply({});
  wire();
  showHistory();
  say("Ready.");
  follow();
}

open();
