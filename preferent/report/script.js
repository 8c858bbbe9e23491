"use strict";

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function short(value) {
  return Number(value.toPrecision(3)).toString().replace("-", "−");
}

function answer(one, choice) {
  const box = element("div", "answer");
  const title = element("h3", "", one.side[0].toUpperCase() + one.side.slice(1));
  if (one.side === choice) title.append(element("span", "won", "preferred"));
  if (typeof one.score === "number") title.append(element("span", "", "score " + short(one.score)));
  if (typeof one.tokens === "number") title.append(element("span", "", one.tokens + " tokens"));
  box.append(title, one.text ? element("p", "", one.text) : element("p", "empty", "empty answer"));
  return box;
}

function example(pair) {
  const card = element("article");
  const facts = [pair.choice === "tie" ? "tie" : "confidence " + pair.confidence.toFixed(2)];
  if (typeof pair.kl === "number") facts.push("KL " + short(pair.kl) + " nats");
  card.append(element("p", "small", "id " + pair.id + " · " + facts.join(" · ")));
  const prompt = element("div", "prompt", pair.prompt);
  prompt.tabIndex = 0;
  prompt.setAttribute("role", "region");
  prompt.setAttribute("aria-label", "Prompt");
  const answers = element("div", "answers");
  for (const one of pair.answers) answers.append(answer(one, pair.choice));
  if (pair.reference) answers.append(answer({ side: "reference", text: pair.reference }, ""));
  card.append(prompt, answers);
  return card;
}

function examples() {
  const pairs = JSON.parse(document.getElementById("pairs").textContent);
  const groups = document.getElementById("groups");
  const list = document.getElementById("examples-list");
  if (!groups) return;
  const names = [...new Set(pairs.map((pair) => pair.group))];
  function show(name) {
    for (const button of groups.children) button.setAttribute("aria-pressed", String(button.dataset.group === name));
    list.replaceChildren(...pairs.filter((pair) => pair.group === name).map(example));
  }
  for (const name of names) {
    const button = element("button", "", name[0].toUpperCase() + name.slice(1));
    button.type = "button";
    button.dataset.group = name;
    button.addEventListener("click", () => show(name));
    groups.append(button);
  }
  show(names[0]);
}

function readable(svg) {
  const [x0, x1, y0, y1] = svg.dataset.range.split(" ").map(Number);
  const [left, right, bottom, top] = svg.dataset.plot.split(" ").map(Number);
  const lines = [...svg.querySelectorAll("polyline[data-name]")].map((line) => ({
    name: line.dataset.name,
    points: line.getAttribute("points").split(" ").map((point) => point.split(",").map(Number)),
  }));
  if (!lines.length) return;
  const cursor = document.createElementNS(svg.namespaceURI, "line");
  cursor.setAttribute("class", "cursor");
  const reading = element("div", "reading");
  const forget = () => { cursor.remove(); reading.remove(); };
  svg.addEventListener("pointerleave", forget);
  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    if (at.x < left - 4 || at.x > right + 4) return forget();
    const nearest = lines.map((line) => line.points.reduce((a, b) => (Math.abs(b[0] - at.x) < Math.abs(a[0] - at.x) ? b : a)));
    const place = nearest[0][0];
    for (const [name, value] of Object.entries({ x1: place, x2: place, y1: top, y2: bottom })) cursor.setAttribute(name, value);
    const rows = nearest.map((point, index) => {
      const x = x0 + ((point[0] - left) / (right - left)) * (x1 - x0);
      const y = y0 + ((bottom - point[1]) / (bottom - top)) * (y1 - y0);
      return element("div", "", lines[index].name + ": " + short(y) + " at " + short(x));
    });
    reading.replaceChildren(...rows);
    svg.append(cursor);
    svg.parentElement.append(reading);
  });
}

examples();
document.querySelectorAll("svg[data-range]").forEach(readable);
