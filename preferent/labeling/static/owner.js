// The owner's page: progress, the answers of each annotator, and agreement. It is live while it is visible.

import { openSession, patiently, request, Unreachable } from "/static/api.js";
import { element, find, keepOnly } from "/static/element.js";

const HIDDEN = "Hidden, so that it does not influence anybody who still answers questions.";
const NO_AGREEMENT = "No question has been answered by two people yet, so agreement is not known.";
const POLL_MILLISECONDS = 2000;
const CHOICES = {
  ...{ left: "Left is better", right: "Right is better", tie: "Tie", both_bad: "Both bad", skip: "Skipped" },
  ...{ up: "Thumb up", down: "Thumb down" },
};
const REVEAL = { pairs: "Reveal the win rate", thumbs: "Reveal the share of each model" };

let shown = "";
let isRevealed = false;
let isClosed = false;
let asks = "pairs";

function percent(share) {
  return share === null || share === undefined ? "–" : `${Math.round(share * 100)} %`;
}

function decimal(value) {
  return value === null || value === undefined ? "–" : value.toFixed(2).replace("-", "−");
}

function between(interval, shape) {
  return interval ? `, 95 % interval ${shape(interval[0])} to ${shape(interval[1])}` : "";
}

function figure(name, value) {
  const shown = element("dd", {}, element("strong", {}, value));
  return element("div", { class: "figure" }, element("dt", {}, name), shown);
}

function number(text) {
  return element("td", { class: "num" }, text);
}

function bar(share, name) {
  return element("progress", { max: "1", value: String(share || 0), "aria-label": name });
}

function person(row) {
  const gold = row.gold_total ? `${row.gold_right} of ${row.gold_total}` : "–";
  const time = row.median_seconds == null ? "–" : `${row.median_seconds.toFixed(1)} s`;
  const done = bar(row.total ? row.done / row.total : 0, `Progress of ${row.name}`);
  const progress = element("td", {}, done, element("span", { class: "small" }, ` ${row.done} of ${row.total}`));
  const habits = asks === "pairs" ? [row.left_share, row.tie_share] : [row.up_share];
  const numbers = [...habits.map(percent), String(row.skips), time, gold, ago(row.last)];
  const name = element("th", { scope: "row" }, element("bdi", {}, row.name));
  return element("tr", {}, name, progress, ...numbers.map(number));
}

// `last` is a time in seconds since 1970.
function ago(last) {
  if (last === null) return "–";
  const seconds = Math.max(0, Date.now() / 1000 - last);
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return seconds < 86400 ? `${Math.floor(seconds / 3600)} h ago` : `${Math.floor(seconds / 86400)} d ago`;
}

function choice([name, count], total) {
  const words = CHOICES[name] ?? name;
  const share = total ? count / total : 0;
  const head = element("th", { scope: "row" }, words);
  const picture = element("td", {}, bar(share, words));
  return element("tr", {}, head, number(String(count)), number(percent(share)), picture);
}

function agreementWords(agreement) {
  if (!agreement?.pairs) return NO_AGREEMENT;
  const pairs = agreement.pairs === 1 ? "one pair of answers" : `${agreement.pairs} pairs of answers`;
  const same = `Two people gave the same answer in ${percent(agreement.percent)} of ${pairs} to the same question.`;
  const alpha = decimal(agreement.krippendorff) + between(agreement.interval, decimal);
  return `${same} Krippendorff’s alpha is ${alpha}; 0 is chance, 1 is perfect.`;
}

function twoPeople([pair, kappa]) {
  const names = pair.split("|").flatMap((name, at) => [at ? " and " : "", element("bdi", {}, name)]);
  return element("tr", {}, element("th", { scope: "row" }, ...names), number(decimal(kappa)));
}

function rate(row) {
  const [a, b] = [row.model_a, row.model_b].map((name) => element("bdi", {}, name));
  const words = ` wins ${percent(row.win_rate)} against `;
  const interval = between(row.interval, percent);
  const counts = `${interval}. ${row.win} won, ${row.tie} tied, ${row.loss} lost; a tie counts as half.`;
  return element("p", { class: "sentence" }, a, words, b, counts);
}

function thumbRate(row) {
  const words = ` got ${percent(row.up_share)} thumbs up`;
  const counts = `${between(row.interval, percent)}. ${row.up} up, ${row.down} down.`;
  return element("p", { class: "sentence" }, element("bdi", {}, row.model || "Answers without a model"), words, counts);
}

function showRates({ win_rate, thumb_rates, until }) {
  const rates = win_rate ?? thumb_rates;
  const none = element("p", {}, "There are no answers to count yet.");
  const stop = until ? [element("p", { class: "sentence" }, until)] : [];
  find("rates").replaceChildren(...stop, ...(rates.length ? rates.map(win_rate ? rate : thumbRate) : [none]));
}

function show(overview) {
  const { agreement, annotators, choices } = overview;
  const total = Object.values(choices).reduce((sum, count) => sum + count, 0);
  find("figures").replaceChildren(
    figure("questions", String(overview.items)),
    figure("answers", String(overview.votes)),
    ...(overview.left === null ? [] : [figure("left, about", String(overview.left))]),
    figure("people", String(annotators.length)),
    figure("flags", String(overview.flags)),
    figure("agreement", agreement?.pairs ? percent(agreement.percent) : "–"),
  );
  find("people").tBodies[0].replaceChildren(...annotators.map(person));
  find("choices").tBodies[0].replaceChildren(...Object.entries(choices).map((entry) => choice(entry, total)));
  find("agreement-words").textContent = agreementWords(agreement);
  const kappas = Object.entries(agreement?.cohen ?? {});
  find("cohen").tBodies[0].replaceChildren(...kappas.map(twoPeople));
  find("cohen-scroll").hidden = !kappas.length;
  if ((overview.win_rate ?? overview.thumb_rates) && isRevealed) showRates(overview);
  find("results").hidden = false;
}

function close() {
  isClosed = true;
  find("results").hidden = true;
  find("closed").hidden = false;
  find("state").textContent = "";
}

function showState(isLive) {
  find("state").textContent = isLive ? "live" : "the server does not answer";
  find("state").dataset.state = isLive ? "saved" : "unsaved";
}

async function poll() {
  try {
    const { status, body } = await request(`/api/overview${isRevealed ? "?reveal=1" : ""}`);
    if (status !== 200) return close();
    showState(true);
    const text = JSON.stringify(body) + Math.floor(Date.now() / 60_000);
    if (text !== shown) show(body);
    shown = text;
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    showState(false);
  }
}

// Send one request at a time, and none while the page is hidden.
async function follow() {
  if (!document.hidden) await poll();
  if (!isClosed) setTimeout(follow, POLL_MILLISECONDS);
}

function reveal() {
  isRevealed = !isRevealed;
  find("reveal").setAttribute("aria-pressed", String(isRevealed));
  find("reveal").textContent = isRevealed ? "Hide it again" : REVEAL[asks];
  if (!isRevealed) find("rates").replaceChildren(element("p", {}, HIDDEN));
  shown = "";
  poll();
}

async function write() {
  try {
    const { status, body } = await request("/api/export", {});
    find("written").textContent = status === 200 ? `Written: ${body.text}` : body.error;
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    find("written").textContent = "The server does not answer; nothing was written.";
  }
}

async function start() {
  find("reveal").addEventListener("click", reveal);
  find("write").addEventListener("click", write);
  addEventListener("hashchange", () => location.hash.length > 1 && location.reload());
  const { status, body } = await patiently(openSession, () => showState(false));
  if (status !== 200 || !body.owner) return close();
  asks = body.asks;
  keepOnly(asks);
  find("reveal").textContent = REVEAL[asks];
  find("tools").hidden = body.annotator === null;
  return follow();
}

start();
