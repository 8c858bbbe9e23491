// Measure how long a question was looked at: the time for which the page was visible.

export class Clock {
  constructor() {
    this.start();
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.sum += performance.now() - this.since;
      this.since = performance.now();
    });
  }

  start() {
    this.sum = 0;
    this.since = performance.now();
  }

  seconds() {
    return (this.sum + (document.hidden ? 0 : performance.now() - this.since)) / 1000;
  }
}
