// Examples: pairs of answers with what every judge said. Texts are shown as texts (`textContent`), whatever is in them.

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function short(value) {
  return Number(value.toPrecision(3)).toString().replace("-", "−");
}

function capital(text) {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}

// What the sides of a comparison are called, where they are not the models of a run.
const { models } = JSON.parse(document.getElementById("pairs").textContent);

function named(side) {
  return (models[side] ?? side) === side ? capital(side) : models[side];
}

// A text as it is, or as runs that both answers have and those that only this one has (`mark` is ins or del).
function passage(text, runs, mark) {
  if (!text) return element("p", "empty", "empty answer");
  const made = element("p", "", runs ? undefined : text);
  made.dir = "auto";
  const own = mark === "ins" ? "added" : "removed";
  for (const run of runs ?? []) {
    if (run.kind === "same") made.append(run.text);
    else if (run.kind === own) made.append(element(mark, "", run.text));
  }
  return made;
}

function answer(one, choice) {
  const box = element("div", "answer");
  const title = element("h3", "", named(one.side));
  if (one.side === choice) title.append(element("span", "won", "preferred"));
  if (typeof one.score === "number") title.append(element("span", "", "score " + short(one.score)));
  if (typeof one.tokens === "number") title.append(element("span", "", one.tokens + (one.tokens === 1 ? " token" : " tokens")));
  if (one.repeated) title.append(element("span", "often", "its most frequent answer"));
  box.append(title, passage(one.text));
  return box;
}

// Puts word differences of the tuned and the base answer into their boxes, or takes them out.
function differences(boxes, on) {
  const tuned = boxes.find(([one]) => one.side === "tuned");
  const base = boxes.find(([one]) => one.side === "base");
  const runs = on ? difference(base[0].text, tuned[0].text) : undefined;
  tuned[1].lastChild.replaceWith(passage(tuned[0].text, runs, "ins"));
  base[1].lastChild.replaceWith(passage(base[0].text, runs, "del"));
}

function preference(choice) {
  return { tie: "tie", "both bad": "both bad", "no verdict": "no verdict" }[choice] ?? (models[choice] ?? choice) + " preferred";
}

// What one judge said, its reasons below.
function verdict(said, titles) {
  const item = element("li");
  const head = element("p");
  head.append(element("b", "", titles[said.judge] ?? said.judge));
  if (said.annotator) head.append(" ", element("bdi", "", said.annotator));
  head.append(": ", element("span", "said", preference(said.choice)));
  const facts = [];
  if (said.choice !== "tie" && typeof said.confidence === "number") facts.push("confidence " + said.confidence.toFixed(2));
  if (said.strength) facts.push("strength " + said.strength);
  if (said.flagged) facts.push("flagged");
  for (const [first, choice] of said.orders ?? []) facts.push((models[first] ?? first) + " first: " + preference(choice));
  if (facts.length) head.append(element("span", "small", " · " + facts.join(" · ")));
  item.append(head);
  for (const words of [said.words, said.note]) {
    if (!words) continue;
    const quote = element("blockquote", "", words);
    quote.dir = "auto";
    item.append(quote);
  }
  return item;
}

function example(pair, titles, marked) {
  const card = element("article");
  const facts = ["id " + pair.id];
  if (typeof pair.kl === "number") facts.push("KL " + short(pair.kl) + " nats");
  const prompt = element("div", "prompt", pair.prompt);
  prompt.tabIndex = 0;
  prompt.dir = "auto";
  prompt.setAttribute("role", "group");
  prompt.setAttribute("aria-label", "Prompt");
  const answers = element("div", "answers");
  const boxes = pair.answers.map((one) => [one, answer(one, pair.choice)]);
  answers.append(...boxes.map(([, box]) => box));
  if (pair.reference) answers.append(answer({ side: "reference", text: pair.reference }, ""));
  const verdicts = element("ul", "verdicts");
  verdicts.append(...pair.verdicts.map((said) => verdict(said, titles)));
  const toggle = element("button", "toggle", "Word differences");
  toggle.type = "button";
  const show = (on) => {
    toggle.setAttribute("aria-pressed", String(on));
    differences(boxes, on);
  };
  toggle.addEventListener("click", () => show(toggle.getAttribute("aria-pressed") !== "true"));
  show(marked);
  const top = element("div", "top");
  top.append(element("p", "small", facts.join(" · ")), toggle);
  card.append(top, prompt, answers, verdicts);
  return card;
}

function examples() {
  const { pairs, titles } = JSON.parse(document.getElementById("pairs").textContent);
  const groups = document.getElementById("groups");
  if (!groups) return;
  const list = document.getElementById("examples-list");
  const all = document.querySelector("#all-differences input");
  const names = [...new Set(pairs.map((pair) => pair.group))];
  let shown = names[0];
  function show(name) {
    shown = name;
    for (const button of groups.children) button.setAttribute("aria-pressed", String(button.dataset.group === name));
    const there = pairs.filter((pair) => pair.group === name);
    list.replaceChildren(...there.map((pair) => example(pair, titles, all.checked)));
  }
  for (const name of names) {
    const count = pairs.filter((pair) => pair.group === name).length;
    const button = element("button", "", capital(name) + " (" + count + ")");
    button.type = "button";
    button.dataset.group = name;
    button.addEventListener("click", () => show(name));
    groups.append(button);
  }
  all.parentElement.hidden = false;
  all.addEventListener("change", () => show(shown));
  show(shown);
}

examples();
