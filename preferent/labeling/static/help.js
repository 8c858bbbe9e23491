// The help: what the choices mean, and which key does what, to be changed here.

import { element, find } from "/static/element.js";
import { DEEDS, sign } from "/static/keys.js";

export class Help {
  constructor(keys) {
    this.keys = keys;
    this.dialog = find("help-dialog");
    find("help-close").addEventListener("click", () => this.dialog.close());
    find("keys-on").addEventListener("change", (event) => {
      keys.on = event.target.checked;
      this.draw();
    });
    find("keys-reset").addEventListener("click", () => {
      keys.reset();
      this.draw("The usual keys are back.");
    });
    this.dialog.addEventListener("close", () => keys.capture(null));
  }

  open() {
    this.draw();
    this.dialog.showModal();
  }

  // The keys in the table and on every button that names its key.
  draw(notice = "") {
    const deeds = Object.keys(DEEDS).filter((deed) => !deed.startsWith("strength") || strength(deed));
    find("keys").tBodies[0].replaceChildren(...deeds.map((deed) => this.row(deed)));
    find("keys-on").checked = this.keys.on;
    find("keys-notice").textContent = notice;
    for (const hint of document.querySelectorAll("[data-key]")) {
      hint.textContent = this.keys.on ? sign(this.keys.of(hint.dataset.key)[0] ?? "") : "";
      hint.hidden = !hint.textContent;
    }
  }

  row(deed) {
    const name = strength(deed) ? `${DEEDS[deed].name}: ${strength(deed).firstChild.textContent}` : DEEDS[deed].name;
    const signs = this.keys.of(deed).flatMap((key) => [element("kbd", {}, sign(key)), " "]);
    const rest = element("span", { class: "unseen" }, ` the key for: ${name}`);
    const change = element("button", { type: "button", click: () => this.change(deed, change) }, "Change", rest);
    const keys = element("td", {}, ...(signs.length ? signs : ["none"]));
    return element("tr", { "data-deed": deed }, element("th", { scope: "row" }, name), keys, element("td", {}, change));
  }

  change(deed, button) {
    button.textContent = "Press a key";
    find("keys-notice").textContent = `Press the new key for: ${DEEDS[deed].name}. Escape leaves it as it is.`;
    this.keys.capture((key) => {
      const former = key === null ? undefined : this.keys.assign(deed, key);
      this.draw(former ? `${sign(key)} was the key for: ${DEEDS[former].name}. It no longer is.` : "");
      find("keys").querySelector(`[data-deed="${deed}"] button`).focus();
    });
  }
}

// The button of a strength, if the deed is one that is asked for here.
function strength(deed) {
  const place = deed.startsWith("strength") ? Number(deed.at(-1)) : 0;
  return find("strengths").querySelectorAll("button")[place - 1];
}
