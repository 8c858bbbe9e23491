// The page on which people choose the better of two answers, or say whether one answer is good.

import { openSession, patiently, request } from "/static/api.js";
import { Clock } from "/static/clock.js";
import { find, keepOnly } from "/static/element.js";
import { Help } from "/static/help.js";
import { Keys } from "/static/keys.js";
import { Outbox } from "/static/outbox.js";
import { Question } from "/static/question.js";

const CHOICES = {
  ...{ left: "A is better", right: "B is better", tie: "tie", both_bad: "both bad", skip: "skipped" },
  ...{ up: "thumb up", down: "thumb down" },
};
const TITLES = { pairs: "Which answer is better?", thumbs: "Is this answer good?" };
const ANSWERED =
  "That question was already answered in another tab or window. That answer stands; this one was not saved.";
const BEHIND = "The last question was answered in another tab or window. This is the next one.";
const STATES = { saved: "saved", saving: "saving", unsaved: "not saved", alone: "no server" };
const TROUBLES = {
  unsaved:
    "Not saved: the server does not answer. Your answer is kept in this browser " +
    "and will be sent as soon as the server is back.",
  alone: "The server does not answer. This page will continue as soon as it is back.",
};
const WRONG_LINK = "The link is incomplete or belongs to other questions.";
const NO_LINK = "The page was opened without a link, or the link is no longer valid.";
const SECTIONS = ["question", "end", "closed"];
const FIRST_GLANCE_MILLISECONDS = 300;

const clock = new Clock();
const question = new Question();
const keys = new Keys(act);
const help = new Help(keys);

let outbox = null;
let undoable = 0;
let isWaiting = false;
let shownAt = 0;

function section(name) {
  for (const id of SECTIONS) find(id).hidden = id !== name;
}

function tell(words) {
  find("notice").textContent = words;
  find("notice").hidden = !words;
}

function announce(words) {
  find("announcement").textContent = words;
}

function showState(state) {
  find("state").textContent = STATES[state];
  find("state").dataset.state = state;
  find("trouble").hidden = !(state in TROUBLES);
  find("trouble-words").textContent = TROUBLES[state] ?? "";
  find("retry").hidden = state !== "unsaved";
}

function wait(whether) {
  isWaiting = whether;
  question.wait(whether);
}

// Show the state of a queue: its question, or the end. `notice` is shown; `spoken` is only announced.
function show(queue, { notice = "", spoken = notice } = {}) {
  wait(false);
  tell(notice);
  undoable = queue.undoable;
  find("undo").disabled = !undoable;
  find("progress").max = Math.max(queue.total, 1);
  find("progress").value = queue.done;
  const left = Math.max(queue.total - queue.done, 0);
  find("count").textContent = queue.about ? `${queue.done}, about ${left} left` : `${queue.done} of ${queue.total}`;
  document.title = `${queue.done}/${queue.total} ${TITLES[keys.asks]}`;
  if (queue.item) showItem(queue, spoken);
  else showEnd(queue);
}

function showItem({ item, total, previous, about }, spoken) {
  section("question");
  question.show(item, previous);
  if (previous) tell(`Undone. Your answer was: ${wording(previous)}. Answer again.`);
  const before = previous ? find("notice").textContent : spoken;
  announce(`${before} Question ${item.number} of ${about ? "about " : ""}${total}.`.trim());
  clock.start();
  shownAt = performance.now();
}

function wording({ choice, strength }) {
  return strength ? `${CHOICES[choice]} (${question.wordsFor(strength)})` : CHOICES[choice];
}

function showEnd({ done, total, enough }) {
  section("end");
  question.item = null;
  const all = total ? `You answered all ${total} questions.` : "There is nothing to answer yet.";
  find("end-words").textContent = enough ? `Your ${done} answers are enough; the other questions need none.` : all;
  announce(find("end-words").textContent);
}

function focusTop() {
  scrollTo(0, 0);
  find(question.item ? "title" : "end-title").focus({ preventScroll: true });
}

function close(words) {
  section("closed");
  question.item = null;
  find("progress").parentElement.hidden = true;
  find("state").textContent = "";
  delete find("state").dataset.state;
  find("trouble").hidden = true;
  tell("");
  find("undo").disabled = true;
  find("closed-words").textContent = words;
  find("closed-title").focus();
}

function alone() {
  showState("alone");
}

async function refresh(notice = "") {
  const before = question.item;
  const { status, body } = await patiently(() => request("/api/queue"), alone);
  if (!notice && (isWaiting || question.item !== before)) return; // a vote was faster, and its response is newer
  if (status === 401) return expired();
  if (status !== 200) return close(body.error);
  if (!outbox.waiting().length) showState("saved");
  const isBehind = question.item && body.item?.item !== question.item.item;
  if (notice || isBehind || !question.item) show(body, { notice: notice || (isBehind ? BEHIND : "") });
}

function expired() {
  const words = "The link that this page was opened with is no longer valid.";
  const kept = " Your last answer is kept in this browser and will be sent when you open the new link.";
  close(outbox.waiting().length ? words + kept : words);
}

// Show the server's response to an action of the outbox.
async function settled({ path, body: action }, status, body) {
  if (path === "/api/flag") return settledFlag(action, status, body);
  const isVote = path === "/api/vote";
  const notice = status === 409 && isVote ? ANSWERED : `The server refused this, and it was not saved: ${body.error}`;
  if (status === 200) show(body, { spoken: isVote ? "Saved." : "" });
  else if (body.queue) show(body.queue, { notice });
  else await refresh(notice);
  focusTop();
}

function settledFlag(action, status, body) {
  if (status !== 200) tell(`The server refused the flag: ${body.error}`);
  else if (action.item === question.item?.item) question.flagged(true);
  announce(status === 200 ? "Flagged." : find("notice").textContent);
}

async function send(path, body) {
  const isBlocking = path !== "/api/flag";
  if (isBlocking) wait(true);
  if (!(await outbox.put(path, body))) return expired();
  if (!isBlocking || !isWaiting) return;
  wait(false); // another tab sent it and has the response
  await refresh();
}

function vote(choice) {
  if (isWaiting || !question.item) return;
  question.choose(choice);
  const strength = choice === "left" || choice === "right" ? question.strength : null;
  const seconds = Math.round(clock.seconds() * 1000) / 1000;
  send("/api/vote", { item: question.item.item, choice, strength, note: question.note, seconds });
}

function undo() {
  if (!isWaiting && undoable) send("/api/undo", {});
}

function flag() {
  if (question.item && !find("flag").disabled) send("/api/flag", { item: question.item.item, note: question.note });
}

function act(action) {
  if (action === "help") help.open();
  else if (action === "undo") undo();
  else if (!question.item) return;
  else if (action in CHOICES) vote(action);
  else if (action === "flag") flag();
  else if (action === "note") find("note").focus();
  else if (action.startsWith("strength")) press(question.strengths[Number(action.at(-1)) - 1]);
  else question.toggle(action);
}

function press(strength) {
  if (strength !== undefined) question.toggleStrength(strength);
}

async function lookAgain() {
  await refresh();
  if (question.item) focusTop();
  else tell("There are no new questions yet.");
}

// Return whether a click is an answer, not the second of a double click nor one meant for the previous question.
function isMeant(event) {
  return event.detail === 0 || (event.detail === 1 && performance.now() - shownAt > FIRST_GLANCE_MILLISECONDS);
}

function listen() {
  for (const button of document.querySelectorAll("[data-choice]")) {
    button.addEventListener("click", (event) => isMeant(event) && vote(button.dataset.choice));
  }
  for (const side of ["left", "right"].filter(find)) {
    find(side).addEventListener("click", (event) => {
      if (isMeant(event) && getSelection().isCollapsed) vote(side);
    });
  }
  for (const action of ["undo", "flag", "help", "differences", "plain"].filter(find)) {
    find(action).addEventListener("click", () => act(action));
  }
  find("note").addEventListener("keydown", (event) => {
    if (event.key === "Escape") find("title").focus();
  });
  find("again").addEventListener("click", lookAgain);
  find("retry").addEventListener("click", () => outbox?.wake());
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && outbox && !isWaiting && find("closed").hidden) refresh();
  });
  addEventListener("hashchange", () => location.hash.length > 1 && location.reload());
}

// Make the page one that asks about pairs, or about single answers.
function become(asks) {
  keepOnly(asks);
  keys.asks = asks;
  help.draw();
  listen();
}

async function start() {
  const { status, body } = await patiently(openSession, alone);
  become(body.asks ?? "pairs");
  if (status !== 200) {
    return close(location.hash.length > 1 ? WRONG_LINK : NO_LINK);
  }
  question.offer(body.strengths);
  help.draw();
  find("annotator").textContent = body.annotator ?? "";
  find("owner").hidden = !body.owner;
  outbox = new Outbox(`${body.folder}.${body.annotator}`, { state: showState, settled });
  if (outbox.waiting().length && !(await outbox.drain())) return expired();
  return refresh();
}

start();
