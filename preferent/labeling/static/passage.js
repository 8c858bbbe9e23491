// A text as it is looked at: laid out as Markdown, plain letter by letter, or with its differences marked.

import { element } from "/static/element.js";
import { markdown } from "/static/markdown.js";

export function passage(text, asMarkdown) {
  if (!text.trim()) return absent(text);
  return asMarkdown ? markdown(text) : element("div", { class: "plain" }, text);
}

// `own` is the kind of the runs that only this text has: "removed" for the first of the two, "added" for the second.
export function marked(text, runs, own) {
  if (!text.trim()) return absent(text);
  const tag = own === "removed" ? "del" : "ins";
  const shown = runs.filter((run) => run.kind === "same" || run.kind === own);
  const nodes = shown.map((run) => (run.kind === own ? element(tag, {}, run.text) : run.text));
  return element("div", { class: "plain" }, ...nodes);
}

function absent(text) {
  const words = text ? `Nothing but blanks (${text.length} of them)` : "Empty: nothing was written";
  return element("p", { class: "absent" }, words);
}
