// What was done and not yet acknowledged. Each deed is written to the browser's storage before it is sent, under a key
// of its own (the server does a key's deed once), in an entry of its own (tabs do not overwrite one another).

import { request, Unreachable } from "/static/api.js";

const PAUSES_SECONDS = [0.5, 1, 2, 4, 8, 15];

// A random UUID; crypto.randomUUID is there only on secure origins, and a team's server is often plain HTTP.
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

export class Outbox {
  // `owner` tells this annotator of this folder from any other that the browser has seen at this address.
  // Calls `on.state("saved" | "saving" | "unsaved")`, and `on.settled(deed, status, body)` for each deed that the
  // server took or refused.
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
    const deed = { path, body: { key: uuid(), ...body } };
    const place = [Date.now(), this.count++].map((number) => String(number).padStart(15, "0")).join(".");
    localStorage.setItem(`${this.prefix}${place}.${deed.body.key}`, JSON.stringify(deed));
    return this.drain();
  }

  // Send all, oldest first, for as long as it takes; false where the session is no longer valid.
  drain() {
    this.draining ??= this.sendAll().finally(() => (this.draining = null));
    return this.draining;
  }

  async sendAll() {
    let failures = 0;
    for (let name = this.waiting()[0]; name !== undefined; name = this.waiting()[0]) {
      const deed = JSON.parse(localStorage.getItem(name));
      if (deed === null) continue; // another tab was quicker
      if (!failures) this.on.state("saving");
      try {
        const { status, body } = await request(deed.path, deed.body);
        if (status === 401) return false;
        localStorage.removeItem(name);
        failures = 0;
        await this.on.settled(deed, status, body);
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
