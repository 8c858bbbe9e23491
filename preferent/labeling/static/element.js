// Create nodes. No other module does. Texts are inserted as text, never parsed as markup.

// element("p", {class: "small", hidden: true, click: handler}, "text", node ...). A property whose value is a function
// is an event listener.
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

// Remove from a page what belongs to questions of another kind: `asks` is "pairs" or "thumbs".
export function keepOnly(asks) {
  for (const node of document.querySelectorAll("[data-asks]")) if (node.dataset.asks !== asks) node.remove();
}

export function find(id) {
  return document.getElementById(id);
}
