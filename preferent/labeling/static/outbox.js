// Actions that are not acknowledged yet. Each is written to the browser's storage before it is sent. Its own key makes
// the server apply it once; its own entry keeps tabs from overwriting one another.

import { request, Unreachable } from "/static/api.js";

const PAUSES_SECONDS = [0.5, 1, 2, 4, 8, 15];

// Return a random UUID. crypto.randomUUID exists only on secure origins, and a team's server is often plain HTTP.
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

export class Outbox {
  // `owner` identifies this annotator of this folder among all that the browser has seen at this address.
  // Calls `on.state("saved" | "saving" | "unsaved")`, and `on.settled(action, status, body)` for each action that the
  // server accepted or refused.
  constructor(owner, on) {
    this.prefix = `preferent.outbox.${owner}.`;
    this.on = on;
    this.count = 0;
    this.draining = null;
    this.wake = () => {};
    addEventListener("online", () => this.wake());
  }

  waiting() {
    return Object.keys(localStorage)
      .filter((name) => name.startsWith(this.prefix))
      .sort();
  }

  put(path, body) {
    const action = { path, body: { key: uuid(), ...body } };
    const place = [Date.now(), this.count++].map((number) => String(number).padStart(15, "0")).join(".");
    localStorage.setItem(`${this.prefix}${place}.${action.body.key}`, JSON.stringify(action));
    return this.drain();
  }

  // Send all, oldest first, however long it takes. Return false if the session is no longer valid.
  drain() {
    this.draining ??= this.sendAll().finally(() => (this.draining = null));
    return this.draining;
  }

  async sendAll() {
    let failures = 0;
    for (let name = this.waiting()[0]; name !== undefined; name = this.waiting()[0]) {
      const action = JSON.parse(localStorage.getItem(name));
      if (action === null) continue; // another tab was faster
      if (!failures) this.on.state("saving");
      try {
        const { status, body } = await request(action.path, action.body);
        if (status === 401) return false;
        localStorage.removeItem(name);
        failures = 0;
        await this.on.settled(action, status, body);
      } catch (error) {
        if (!(error instanceof Unreachable)) throw error;
        this.on.state("unsaved");
        await this.pause(PAUSES_SECONDS[Math.min(failures++, PAUSES_SECONDS.length - 1)]);
      }
    }
    this.on.state("saved");
    return true;
  }

  pause(seconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, seconds * 1000);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
