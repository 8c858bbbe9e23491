// Names what the theme leaves unnamed, for screen readers, and lets the keyboard scroll wide tables and code.
function label() {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-code__nav").forEach((nav, place) => nav.setAttribute("aria-label", `Code ${place + 1}`));
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((table) => { table.tabIndex = 0; });
}
label();
new MutationObserver(label).observe(document.body, {childList: true, subtree: true});
