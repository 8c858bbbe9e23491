// Render Markdown as nodes: headings, lists, tables, quotes, code, bold, italics. Elements are created and given texts,
// never markup: HTML stays text, a link becomes its words and its address, a picture its description and its address.
// Nothing can be clicked and nothing is fetched. The time depends on a text's length, not on its content.

import { element } from "/static/element.js";

const DEEPEST = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(\S.*)$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?: +|$)/;
const COLUMNS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)+\|?[ \t]*$/;
const LINK = /(!?)\[([^[\]]*)\]\(([^()]*(?:\([^()]*\)[^()]*)*)\)/y;
const PUNCTUATION = /[!-/:-@[-`{-~]/;

export function markdown(text) {
  const box = element("div", { class: "markdown" });
  blocks(text.split(/\r\n|\r|\n/), box, 0);
  return box;
}

function starts(lines, at) {
  const line = lines[at];
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((start) => start.test(line)) || isTable(lines, at);
}

function isTable(lines, at) {
  return lines[at].includes("|") && at + 1 < lines.length && COLUMNS.test(lines[at + 1]);
}

// Each reader takes the lines from `at` on, appends the nodes, and returns the next line.
function blocks(lines, parent, depth) {
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) at++;
    else if (depth > DEEPEST) at = paragraph(lines, at, parent);
    else if (FENCE.test(line)) at = code(lines, at, parent);
    else if (HEADING.test(line)) at = heading(lines, at, parent);
    else if (RULE.test(line)) at = rule(at, parent);
    else if (QUOTE.test(line)) at = quote(lines, at, parent, depth);
    else if (ITEM.test(line)) at = list(lines, at, parent, depth);
    else if (isTable(lines, at)) at = table(lines, at, parent);
    else at = paragraph(lines, at, parent);
  }
}

function paragraph(lines, at, parent) {
  const first = at++;
  while (at < lines.length && lines[at].trim() && !starts(lines, at)) at++;
  parent.append(inline(lines.slice(first, at).join("\n"), element("p", { dir: "auto" })));
  return at;
}

function code(lines, at, parent) {
  const fence = FENCE.exec(lines[at])[1];
  const first = ++at;
  while (at < lines.length && !(lines[at].trim().startsWith(fence) && FENCE.test(lines[at]))) at++;
  parent.append(element("pre", { dir: "auto" }, element("code", {}, lines.slice(first, at).join("\n"))));
  return at + 1;
}

function heading(lines, at, parent) {
  const [, signs, words] = HEADING.exec(lines[at]);
  parent.append(inline(words.trim(), element("p", { class: `heading level-${signs.length}`, dir: "auto" })));
  return at + 1;
}

function rule(at, parent) {
  parent.append(element("hr"));
  return at + 1;
}

function quote(lines, at, parent, depth) {
  const inner = [];
  for (; at < lines.length && QUOTE.test(lines[at]); at++) inner.push(lines[at].replace(QUOTE, ""));
  const box = element("blockquote", { dir: "auto" });
  blocks(inner, box, depth + 1);
  parent.append(box);
  return at;
}

function list(lines, at, parent, depth) {
  const marker = ITEM.exec(lines[at])[2];
  const ordered = /\d/.test(marker);
  const numbering = ordered ? { start: String(parseInt(marker)) } : {};
  const box = element(ordered ? "ol" : "ul", { ...numbering, dir: "auto" });
  const isNext = (line) => line !== undefined && ITEM.exec(line)?.[2].at(-1) === marker.at(-1) && !RULE.test(line);
  while (isNext(lines[at])) {
    const [inner, end] = listItem(lines, at);
    const item = element("li", { dir: "auto" });
    blocks(inner, item, depth + 1);
    box.append(item);
    at = end < lines.length && !lines[end].trim() && isNext(lines[end + 1]) ? end + 1 : end;
  }
  parent.append(box);
  return at;
}

// Return the lines of one item without their indentation, and the next line.
function listItem(lines, at) {
  const [start, indent, own] = ITEM.exec(lines[at]);
  const width = indent.length + own.length;
  const depthOf = (line) => line.length - line.trimStart().length;
  const isInside = (line) => line !== undefined && line.trim() !== "" && depthOf(line) >= width;
  const goesOn = (place) => lines[place - 1].trim() !== "" && !starts(lines, place);
  const inner = [lines[at].slice(start.length)];
  for (at++; at < lines.length; at++) {
    const line = lines[at];
    if (line.trim() ? !isInside(line) && !goesOn(at) : !isInside(lines[at + 1])) break;
    inner.push(line.slice(Math.min(width + 1, depthOf(line))));
  }
  return [inner, at];
}

function table(lines, at, parent) {
  const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|");
  const row = (line, tag) =>
    element("tr", {}, ...cells(line).map((words) => inline(words.trim(), element(tag, { dir: "auto" }))));
  const body = element("tbody");
  const box = element("table", {}, element("thead", {}, row(lines[at], "th")), body);
  for (at += 2; at < lines.length && lines[at].includes("|"); at++) body.append(row(lines[at], "td"));
  parent.append(element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table" }, box));
  return at;
}

// Append the words of a text to a parent and return the parent. `unclosed` holds the marks without a closing mark.
function inline(text, parent, depth = 0) {
  const unclosed = new Set();
  let plain = "";
  let at = 0;
  const flush = () => {
    if (plain) parent.append(plain);
    plain = "";
  };
  while (at < text.length) {
    const match = depth > DEEPEST ? null : span(text, at, unclosed);
    if (match?.make) {
      flush();
      parent.append(match.make(depth + 1));
    } else plain += match ? match.literal : text[at];
    at = match ? match.end : at + 1;
  }
  flush();
  return parent;
}

// Return what starts at a position of a text, if anything: {end, literal} or {end, make(depth)}.
function span(text, at, unclosed) {
  const sign = text[at];
  if (sign === "\\") return PUNCTUATION.test(text[at + 1] ?? "") ? { end: at + 2, literal: text[at + 1] } : null;
  if (sign === "`") return codeSpan(text, at, unclosed);
  if (sign === "*" || sign === "_") {
    const twice = text[at + 1] === sign ? emphasis(text, at, sign + sign, "strong", unclosed) : null;
    return twice ?? emphasis(text, at, sign, "em", unclosed);
  }
  if (sign === "[" || (sign === "!" && text[at + 1] === "[")) return link(text, at);
  return null;
}

function codeSpan(text, at, unclosed) {
  let end = at;
  while (text[end] === "`") end++;
  const fence = text.slice(at, end);
  if (unclosed.has(fence)) return { end, literal: fence };
  for (let close = text.indexOf(fence, end); close >= 0; ) {
    let after = close;
    while (text[after] === "`") after++;
    if (after - close === fence.length) {
      return { end: after, make: () => element("code", {}, text.slice(end, close)) };
    }
    close = text.indexOf(fence, after);
  }
  unclosed.add(fence);
  return { end, literal: fence };
}

function emphasis(text, at, sign, tag, unclosed) {
  const first = at + sign.length;
  const isWord = (letter) => letter !== undefined && /[\p{L}\p{N}]/u.test(letter);
  if (unclosed.has(sign) || !text[first]?.trim() || (sign[0] === "_" && isWord(text[at - 1]))) return null;
  for (let close = text.indexOf(sign, first + 1); close >= 0; close = text.indexOf(sign, close + 1)) {
    const after = text[close + sign.length];
    if (text[close - 1].trim() && after !== sign[0] && !(sign[0] === "_" && isWord(after))) {
      const words = text.slice(first, close);
      return { end: close + sign.length, make: (depth) => inline(words, element(tag), depth) };
    }
  }
  unclosed.add(sign);
  return null;
}

function link(text, at) {
  LINK.lastIndex = at;
  const found = LINK.exec(text);
  if (!found) return null;
  const [whole, picture, words, address] = found;
  const make = (depth) => {
    const shown = picture ? element("span", {}, `[picture: ${words}]`) : inline(words, element("span"), depth);
    return element("span", { class: "link" }, shown, element("span", { class: "address" }, ` (${address})`));
  };
  return { end: at + whole.length, make };
}
