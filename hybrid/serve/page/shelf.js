// What is kept of finished drawings on the page: the history, the download, the link.

import { forget, readHistory, remember } from "./settings.js";

const $ = (id) => document.getElementById(id);

export function showHistory(entries = readHistory()) {
  $("past").hidden = entries.length === 0;
  $("history").replaceChildren(
    ...entries.map(({ hash, prompt, picture, note }) => {
      const [item, link, image, text] = ["li", "a", "img", "span"].map((tag) => document.createElement(tag));
      link.href = hash;
      link.title = note ? `${prompt} (${note})` : prompt;
      image.src = picture;
      image.alt = "";
      text.textContent = prompt;
      link.append(image, text);
      item.append(link);
      return item;
    }),
  );
}

export function keep(lane, settings, hash, note) {
  const link = $("download");
  if (link.href) URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(lane.png);
  const words = settings.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  link.download = `${words.slice(0, 50) || "picture"}-${settings.seed}.png`;
  link.removeAttribute("aria-disabled");
  showHistory(remember({ hash, prompt: settings.prompt, picture: lane.pixels.toDataURL(), note }));
}

// `shownHash()` is of the picture on the stage.
export function wireShelf(say, shownHash) {
  $("forget").addEventListener("click", () => {
    forget();
    showHistory();
  });
  $("copy").addEventListener("click", async () => {
    const link = location.origin + location.pathname + shownHash();
    try {
      await navigator.clipboard.writeText(link);
      say("The link is copied.");
    } catch {
      window.prompt("The link to this picture:", link);
    }
  });
}
