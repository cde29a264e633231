// One picture on the stage: its pixels, who wrote each token, and the brush. Knows no server.

export const METHODS = { hybrid: "Hybrid", ar: "AR", masked: "Masked" };

function canvas(kind, width, height) {
  const made = document.createElement("canvas");
  made.className = kind;
  [made.width, made.height] = [width, height];
  return made;
}

function mixed(from, to, share) {
  return from.map((value, place) => Math.round(value + (to[place] - value) * share));
}

function colour(name) {
  const probe = new OffscreenCanvas(1, 1).getContext("2d");
  probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  probe.fillRect(0, 0, 1, 1);
  return [...probe.getImageData(0, 0, 1, 1).data.slice(0, 3)];
}

export class Lane {
  constructor(model, method) {
    const [rows, columns] = model.grid;
    Object.assign(this, { model, method, rows, columns, png: null, origin: null, at: null });
    this.figure = document.createElement("figure");
    this.frame = document.createElement("div");
    this.frame.className = "frame";
    this.frame.style.setProperty("--aspect", `${model.width} / ${model.height}`);
    this.frame.style.setProperty("--columns", columns);
    this.frame.style.setProperty("--rows", rows);
    this.pixels = canvas("pixels", model.width, model.height);
    this.pixels.setAttribute("role", "img");
    this.pixels.setAttribute("aria-label", "No picture yet");
    this.overlay = canvas("origin", columns, rows);
    this.mask = canvas("mask", columns, rows);
    this.outline = document.createElement("div");
    this.outline.className = "outline";
    this.frame.append(this.pixels, this.overlay, this.mask, this.outline);
    this.caption = document.createElement("figcaption");
    this.figure.append(this.frame, this.caption);
    this.listen();
  }

  waiting(yes) {
    this.frame.classList.toggle("waiting", yes);
  }

  // Shows a PNG in base64; resolves when it is on the canvas.
  async show(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const blob = new Blob([bytes], { type: "image/png" });
    const bitmap = await createImageBitmap(blob);
    const context = this.pixels.getContext("2d");
    context.clearRect(0, 0, this.pixels.width, this.pixels.height);
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    return blob;
  }

  async finish(event, prompt) {
    this.png = await this.show(event.b64_json);
    this.origin = event.origin;
    this.paintOrigin();
    this.pixels.setAttribute("aria-label", `${prompt}, ${METHODS[this.method]}`);
    this.frame.dataset.done = "true";
  }

  paintOrigin() {
    const context = this.overlay.getContext("2d");
    context.clearRect(0, 0, this.columns, this.rows);
    if (!this.origin) return;
    const [ar, first, last] = ["--ar", "--masked-1", "--masked-2"].map(colour);
    const passes = Math.max(...this.origin, 1);
    this.origin.forEach((origin, place) => {
      if (origin < 0) return;
      const rgb = origin === 0 ? ar : mixed(first, last, passes > 1 ? (origin - 1) / (passes - 1) : 0);
      context.fillStyle = `rgb(${rgb})`;
      context.fillRect(place % this.columns, Math.floor(place / this.columns), 1, 1);
    });
  }

  tell(left, right = "") {
    const name = document.createElement("b");
    name.textContent = left;
    const time = document.createElement("span");
    time.className = "time";
    time.textContent = right;
    this.caption.replaceChildren(name, time);
  }

  // The brush. Its strokes are whole tokens, since tokens are what is drawn anew.

  listen() {
    this.mask.addEventListener("pointerdown", (event) => {
      this.mask.setPointerCapture(event.pointerId);
      this.stroke(event);
    });
    this.mask.addEventListener("pointermove", (event) => event.buttons && this.stroke(event));
    this.mask.addEventListener("keydown", (event) => this.key(event));
  }

  brushing(yes, size) {
    this.size = size;
    this.mask.tabIndex = yes ? 0 : -1;
    this.mask.setAttribute("role", "application");
    this.mask.setAttribute("aria-label", "Brush: arrow keys move, Space paints");
    this.move(this.at ?? [Math.floor(this.columns / 2), Math.floor(this.rows / 2)]);
  }

  // Column and row of the brush's corner.
  corner() {
    return this.at.map((place) => place - Math.floor((this.size - 1) / 2));
  }

  move(at) {
    this.at = at;
    const [column, row] = this.corner();
    for (const [name, value] of Object.entries({ column, row, size: this.size })) {
      this.outline.style.setProperty(`--${name}`, value);
    }
  }

  stroke(event) {
    const box = this.mask.getBoundingClientRect();
    this.move([
      Math.floor(((event.clientX - box.left) / box.width) * this.columns),
      Math.floor(((event.clientY - box.top) / box.height) * this.rows),
    ]);
    this.dab();
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (move) {
      this.move([
        Math.min(Math.max(this.at[0] + move[0], 0), this.columns - 1),
        Math.min(Math.max(this.at[1] + move[1], 0), this.rows - 1),
      ]);
      this.mask.setAttribute("aria-label", `Brush at column ${this.at[0] + 1}, row ${this.at[1] + 1}`);
    } else if (event.key === " ") this.dab();
    else return;
    event.preventDefault();
  }

  dab() {
    const context = this.mask.getContext("2d");
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
    context.fillRect(...this.corner(), this.size, this.size);
    this.mask.dispatchEvent(new Event("input", { bubbles: true }));
  }

  clearMask() {
    this.mask.getContext("2d").clearRect(0, 0, this.columns, this.rows);
  }

  painted() {
    const { data } = this.mask.getContext("2d").getImageData(0, 0, this.columns, this.rows);
    return data.some((value, place) => place % 4 === 3 && value > 0);
  }

  // {image, mask} of the shown picture: white where it was brushed.
  async edit() {
    const big = canvas("", this.model.width, this.model.height);
    const context = big.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(this.mask, 0, 0, big.width, big.height);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = "white";
    context.fillRect(0, 0, big.width, big.height);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "black";
    context.fillRect(0, 0, big.width, big.height);
    return { image: this.png, mask: await new Promise((give) => big.toBlob(give, "image/png")) };
  }
}
