// The sliders, the method and the seed: what they say, and what a link makes them say. Knows no server.

import { METHODS } from "./lane.js";
import { anySeed } from "./settings.js";

const $ = (id) => document.getElementById(id);
const SLIDERS = { fraction: "ar_fraction", steps: "steps", guidance: "guidance" };
const MOST_STEPS = 32;

export class Controls {
  // `touched` holds the sliders that do not stand at the model's own setting.
  constructor(model) {
    this.model = model;
    this.touched = new Set();
    $("fraction").step = 1 / model.grid[0];
    for (const radio of this.radios()) {
      radio.disabled = !model.methods.includes(radio.value);
      radio.addEventListener("change", () => this.tell());
    }
    for (const id of Object.keys(SLIDERS)) {
      $(id).addEventListener("input", () => {
        this.touched.add(id);
        this.tell();
      });
    }
  }

  radios = () => [...document.querySelectorAll("input[name=method]")];

  get method() {
    return this.radios().find((radio) => radio.checked).value;
  }

  get usual() {
    const { defaults, methods } = this.model;
    return METHODS[defaults.method] && methods.includes(defaults.method) ? defaults.method : methods[0];
  }

  read() {
    const settings = { seed: Number($("seed").value) || 0, method: this.method };
    for (const id of this.touched) settings[SLIDERS[id]] = Number($(id).value);
    return settings;
  }

  write(settings) {
    $("seed").value = settings.seed ?? anySeed();
    const method = this.model.methods.includes(settings.method) ? settings.method : this.usual;
    this.radios().forEach((radio) => (radio.checked = radio.value === method));
    this.touched.clear();
    for (const [id, name] of Object.entries(SLIDERS)) {
      if (settings[name] !== undefined) this.touched.add(id);
      $(id).max = { fraction: 1, steps: MOST_STEPS, guidance: 10 }[id];
      $(id).value = settings[name] ?? this.model.defaults[name];
    }
    this.tell();
  }

  // What each slider stands at, and which of them count for the method.
  tell() {
    const places = this.model.grid[0] * this.model.grid[1];
    const share = { hybrid: Number($("fraction").value), ar: 1, masked: 0 }[this.method];
    const left = places - Math.round(share * places);
    $("steps").max = Math.max(1, Math.min(MOST_STEPS, left));
    const texts = {
      fraction: `${Math.round(Number($("fraction").value) * 100)} %`,
      steps: $("steps").value,
      guidance: Number($("guidance").value).toFixed(1),
    };
    const own = { ...texts, guidance: "" }; // the two models may have a guidance each
    for (const id of Object.keys(SLIDERS)) {
      const text = this.touched.has(id) ? texts[id] : [own[id], "model's own"].filter(Boolean).join(" · ");
      document.querySelector(`output[for=${id}]`).value = text;
      $(id).setAttribute("aria-valuetext", text);
    }
    for (const [id, off] of [["fraction", this.method !== "hybrid"], ["steps", left === 0]]) {
      $(id).disabled = off;
      $(id).parentElement.classList.toggle("off", off);
    }
  }
}
