// Lay out a text: as Markdown, as plain text, or with its differences marked.

import { element } from "/static/element.js";
import { markdown } from "/static/markdown.js";

export function passage(text, asMarkdown) {
  if (!text.trim()) return absent(text);
  return asMarkdown ? markdown(text) : element("div", { class: "plain" }, text);
}

// `own` is the kind of the runs that only this text has: "removed" for the first text, "added" for the second.
export function marked(text, runs, own) {
  if (!text.trim()) return absent(text);
  const tag = own === "removed" ? "del" : "ins";
  const shown = runs.filter((run) => run.kind === "same" || run.kind === own);
  const nodes = shown.map((run) => (run.kind === own ? element(tag, {}, run.text) : run.text));
  return element("div", { class: "plain" }, ...nodes);
}

function absent(text) {
  const words = text ? `Only white space (${text.length} characters)` : "Empty: there is no text";
  return element("p", { class: "absent" }, words);
}
