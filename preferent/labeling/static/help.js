// The help dialog: the meaning of the choices, and the keys, which can be changed here.

import { element, find } from "/static/element.js";
import { ACTIONS, sign } from "/static/keys.js";

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
      this.draw("The default keys are restored.");
    });
    this.dialog.addEventListener("close", () => keys.capture(null));
  }

  open() {
    this.draw();
    this.dialog.showModal();
  }

  // Show the keys in the table and on every button that names its key.
  draw(notice = "") {
    const actions = this.keys.actions.filter((action) => !action.startsWith("strength") || strength(action));
    find("keys").tBodies[0].replaceChildren(...actions.map((action) => this.row(action)));
    find("keys-on").checked = this.keys.on;
    find("keys-notice").textContent = notice;
    for (const hint of document.querySelectorAll("[data-key]")) {
      hint.textContent = this.keys.on ? sign(this.keys.of(hint.dataset.key)[0] ?? "") : "";
      hint.hidden = !hint.textContent;
    }
  }

  row(action) {
    const level = strength(action);
    const name = level ? `${ACTIONS[action].name}: ${level.firstChild.textContent}` : ACTIONS[action].name;
    const signs = this.keys.of(action).flatMap((key) => [element("kbd", {}, sign(key)), " "]);
    const rest = element("span", { class: "unseen" }, ` the key for: ${name}`);
    const change = element("button", { type: "button", click: () => this.change(action, change) }, "Change", rest);
    const keys = element("td", {}, ...(signs.length ? signs : ["none"]));
    const head = element("th", { scope: "row" }, name);
    return element("tr", { "data-action": action }, head, keys, element("td", {}, change));
  }

  change(action, button) {
    button.textContent = "Press a key";
    find("keys-notice").textContent = `Press the new key for: ${ACTIONS[action].name}. Escape cancels.`;
    this.keys.capture((key) => {
      const former = key === null ? undefined : this.keys.assign(action, key);
      this.draw(former ? `${sign(key)} was the key for: ${ACTIONS[former].name}. It no longer is.` : "");
      find("keys").querySelector(`[data-action="${action}"] button`).focus();
    });
  }
}

// Return the button of a strength, if the action is a strength of this folder's scale.
function strength(action) {
  const place = action.startsWith("strength") ? Number(action.at(-1)) : 0;
  return find("strengths").querySelectorAll("button")[place - 1];
}
