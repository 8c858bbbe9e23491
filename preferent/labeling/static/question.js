// The question on the page: a prompt, its two answers or its one, and the choice.

import { difference } from "/static/difference.js";
import { element, find } from "/static/element.js";
import { marked, passage } from "/static/passage.js";

const VIEWS = "preferent.views";
const SCROLLED = ["prompt", "left-text", "right-text", "answer-text"];
const STRENGTHS = ["slightly", "clearly", "much"];
const ROLES = { instruction: "Instruction", system: "System", user: "User", assistant: "Assistant" };

export class Question {
  constructor() {
    this.item = null;
    this.views = { differences: false, plain: false, ...JSON.parse(localStorage.getItem(VIEWS) ?? "{}") };
    this.strength = null;
    addEventListener("resize", reach);
  }

  wordsFor(strength) {
    return this.strengths.length === STRENGTHS.length ? STRENGTHS[strength - 1] : String(strength);
  }

  // Add a button for each strength of this folder's scale, if it has one.
  offer(strengths) {
    this.strengths = strengths ?? [];
    const buttons = this.strengths.map((value, at) => {
      const words = this.wordsFor(value);
      const attributes = { type: "button", "aria-pressed": "false", "data-strength": String(value) };
      const hint = element("kbd", { "data-key": `strength_${at + 1}` });
      return element("button", { ...attributes, click: () => this.toggleStrength(value) }, words, " ", hint);
    });
    find("strengths").append(...buttons);
    find("strengths").hidden = !buttons.length;
  }

  // Choose a strength. Choosing it again clears it.
  toggleStrength(value) {
    this.setStrength(this.strength === value ? null : value);
  }

  setStrength(value) {
    this.strength = value;
    for (const button of document.querySelectorAll("[data-strength]")) {
      button.setAttribute("aria-pressed", String(button.dataset.strength === String(this.strength)));
    }
  }

  get note() {
    return find("note").value.trim();
  }

  show(item, previous) {
    this.item = item;
    find("number").textContent = `Question ${item.number}`;
    find("note").value = previous?.note ?? "";
    this.setStrength(null);
    this.flagged(item.flagged === true);
    this.choose(previous?.choice ?? null);
    this.draw();
    for (const box of scrolled()) box.scrollTop = 0;
    // The last turn of a conversation is the one to answer.
    if (item.prompt.length > 1) find("prompt").scrollTop = find("prompt").scrollHeight;
  }

  draw() {
    const { item, views } = this;
    find("plain").setAttribute("aria-pressed", String(views.plain));
    find("prompt").replaceChildren(...turns(item.prompt, !views.plain));
    find("prompt").hidden = !item.prompt.length;
    if (item.answer === undefined) this.drawPair();
    else find("answer-text").replaceChildren(passage(item.answer, !views.plain));
    reach();
  }

  drawPair() {
    const { item, views } = this;
    find("differences").setAttribute("aria-pressed", String(views.differences));
    find("legend").hidden = !views.differences;
    const runs = views.differences ? difference(item.left, item.right) : null;
    const draw = (side, own) =>
      find(`${side}-text`).replaceChildren(runs ? marked(item[side], runs, own) : passage(item[side], !views.plain));
    draw("left", "removed");
    draw("right", "added");
  }

  toggle(view) {
    this.views[view] = !this.views[view];
    localStorage.setItem(VIEWS, JSON.stringify(this.views));
    this.draw();
  }

  // Mark a choice that is being saved or that an undo brought back; null marks none.
  choose(choice) {
    for (const side of ["left", "right"].filter(find)) {
      find(side).classList.toggle("chosen", choice === side);
      find(side).querySelector(".yours").hidden = choice !== side;
    }
    for (const button of document.querySelectorAll("[data-choice]")) {
      button.classList.toggle("chosen", button.dataset.choice === choice);
    }
  }

  flagged(isFlagged) {
    find("flag").disabled = isFlagged;
    find("flag").firstChild.textContent = isFlagged ? "Flagged " : "Flag ";
  }

  // Nothing can be chosen while a choice is being saved.
  wait(isWaiting) {
    find("question").classList.toggle("waiting", isWaiting);
    find("question").setAttribute("aria-busy", String(isWaiting));
  }
}

function scrolled() {
  return SCROLLED.map(find).filter(Boolean);
}

// Make boxes with long texts focusable, so that keys can scroll them.
function reach() {
  for (const box of scrolled()) {
    if (box.scrollHeight > box.clientHeight) box.setAttribute("tabindex", "0");
    else box.removeAttribute("tabindex");
  }
}

// Return the turns of a conversation, each with its role. A single text from the user needs no role.
function turns(prompt, asMarkdown) {
  const alone = prompt.length === 1 && prompt[0].role === "user";
  return prompt.map(({ role, text }) => {
    const name = alone ? [] : [element("p", { class: "role" }, ROLES[role] ?? role)];
    return element("div", { class: alone ? "turn" : "turn spoken" }, ...name, passage(text, asMarkdown));
  });
}
