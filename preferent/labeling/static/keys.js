// The keys of each action: of all, of those about pairs, and of those about one answer. Changes are kept in the
// browser's storage.

const STORE = "preferent.keys";

export const ACTIONS = {
  left: { name: "A is better", keys: ["1", "ArrowLeft"], asks: "pairs" },
  right: { name: "B is better", keys: ["2", "ArrowRight"], asks: "pairs" },
  tie: { name: "Tie", keys: ["3"], asks: "pairs" },
  both_bad: { name: "Both bad", keys: ["4"], asks: "pairs" },
  up: { name: "Thumb up", keys: ["1", "ArrowLeft"], asks: "thumbs" },
  down: { name: "Thumb down", keys: ["2", "ArrowRight"], asks: "thumbs" },
  skip: { name: "Skip", keys: ["s"] },
  undo: { name: "Undo", keys: ["u", "Backspace"] },
  flag: { name: "Flag", keys: ["f"] },
  note: { name: "Write a note", keys: ["n"] },
  ...Object.fromEntries(
    [..."qwertyioz"].map((key, at) => [`strength_${at + 1}`, { name: "How clear", keys: [key], asks: "pairs" }]),
  ),
  differences: { name: "Mark differences", keys: ["d"], asks: "pairs" },
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
    this.asks = "pairs";
    this.changed = JSON.parse(localStorage.getItem(STORE) ?? "{}");
    this.capturing = null;
    addEventListener("keydown", (event) => this.press(event));
  }

  get actions() {
    return Object.keys(ACTIONS).filter((action) => [this.asks, undefined].includes(ACTIONS[action].asks));
  }

  get on() {
    return this.changed.off !== true;
  }

  set on(value) {
    this.keep({ ...this.changed, off: !value });
  }

  of(action) {
    return this.changed[action] ?? ACTIONS[action].keys;
  }

  keep(changed) {
    this.changed = changed;
    localStorage.setItem(STORE, JSON.stringify(changed));
  }

  // Assign one key to an action. An action that had the key loses it and is returned.
  assign(action, key) {
    const former = this.actions.find((other) => other !== action && this.of(other).includes(key));
    const taken = former ? { [former]: this.of(former).filter((other) => other !== key) } : {};
    this.keep({ ...this.changed, ...taken, [action]: [key] });
    return former;
  }

  reset() {
    this.keep({});
  }

  // Pass the next key to `take(key)` instead of acting on it. Escape and Tab pass null.
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
    const action = this.actions.find((name) => this.of(name).includes(key));
    if (!action) return;
    event.preventDefault();
    this.act(action);
  }
}

function isTyping(target) {
  return target instanceof HTMLTextAreaElement || (target instanceof HTMLInputElement && target.type === "text");
}
