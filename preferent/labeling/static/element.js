// Nodes are made here and nowhere else: texts go in as text, so that no text is ever read as markup.

// element("p", {class: "small", hidden: true, click: handler}, "text", node ...); a function listens to the event that
// its name says.
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function find(id) {
  return document.getElementById(id);
}
