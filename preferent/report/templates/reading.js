// A line of values beside the pointer, for every chart that says its ranges.

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

document.querySelectorAll("svg[data-range]").forEach(readable);
