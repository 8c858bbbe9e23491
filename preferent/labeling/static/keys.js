// One key for each deed. What a person changed is kept in the browser's storage.

const STORE = "preferent.keys";

export const DEEDS = {
  left: { name: "A is better", keys: ["1", "ArrowLeft"] },
  right: { name: "B is better", keys: ["2", "ArrowRight"] },
  tie: { name: "Tie", keys: ["3"] },
  both_bad: { name: "Both bad", keys: ["4"] },
  skip: { name: "Skip", keys: ["s"] },
  undo: { name: "Undo", keys: ["u", "Backspace"] },
  flag: { name: "Flag", keys: ["f"] },
  note: { name: "Write a note", keys: ["n"] },
  ...Object.fromEntries([..."qwertyioz"].map((key, at) => [`strength_${at + 1}`, { name: "How clear", keys: [key] }])),
  differences: { name: "Mark differences", keys: ["d"] },
  plain: { name: "Plain text", keys: ["p"] },
  help: { name: "Help", keys: ["?"] },
};

const SIGNS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "Space", Backspace: "⌫" };
const RESERVED = ["Enter", " ", "Shift", "Control", "Alt", "AltGraph", "Meta", "CapsLock", "Dead", "Process"];

export function sign(key) {
  return SIGNS[key] ?? key;
}

export class Keys {
  constructor(act) {
    this.act = act;
    this.changed = JSON.parse(localStorage.getItem(STORE) ?? "{}");
    this.capturing = null;
    addEventListener("keydown", (event) => this.press(event));
  }

  get on() {
    return this.changed.off !== true;
  }

  set on(value) {
    this.keep({ ...this.changed, off: !value });
  }

  of(deed) {
    return this.changed[deed] ?? DEEDS[deed].keys;
  }

  keep(changed) {
    this.changed = changed;
    localStorage.setItem(STORE, JSON.stringify(changed));
  }

  // Gives a deed one key alone; a deed that had the key loses it, and is returned.
  assign(deed, key) {
    const former = Object.keys(DEEDS).find((other) => other !== deed && this.of(other).includes(key));
    const taken = former ? { [former]: this.of(former).filter((one) => one !== key) } : {};
    this.keep({ ...this.changed, ...taken, [deed]: [key] });
    return former;
  }

  reset() {
    this.keep({});
  }

  // The next key pressed goes to `take(key)` instead of doing anything; Escape and Tab give null.
  capture(take) {
    this.capturing = take;
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (this.capturing) this.captured(event, key);
    else this.obey(event, key);
  }

  captured(event, key) {
    if (RESERVED.includes(key)) return;
    if (key !== "Tab") event.preventDefault();
    const take = this.capturing;
    this.capturing = null;
    take(key === "Tab" || key === "Escape" ? null : key);
  }

  obey(event, key) {
    if (!this.on || event.repeat || document.querySelector("dialog[open]") || isTyping(event.target)) return;
    const deed = Object.keys(DEEDS).find((one) => this.of(one).includes(key));
    if (!deed) return;
    event.preventDefault();
    this.act(deed);
  }
}

function isTyping(target) {
  return target instanceof HTMLTextAreaElement || (target instanceof HTMLInputElement && target.type === "text");
}
