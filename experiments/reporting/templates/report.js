// Sort tables by a heading, open the run that a link leads to, and show a chart's values.

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const numeric = heading.classList.contains("number");
      const current = heading.getAttribute("aria-sort");
      // People mostly look for the largest number and for the first name.
      const first = numeric ? "descending" : "ascending";
      const other = numeric ? "ascending" : "descending";
      const order = current === first ? other : first;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      sort(table, column, numeric, order === "ascending" ? 1 : -1);
    });
  });
}

// A table has one body per configuration. Its first row has the values.
function sort(table, column, numeric, sign) {
  const key = (body) => {
    const cell = body.rows[0].cells[column];
    return numeric ? parseFloat(cell.dataset.value) : cell.querySelector("summary").textContent;
  };
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (!numeric) return sign * x.localeCompare(y);
    // Missing values come last in both directions.
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
    return sign * (x - y);
  };
  table.append(...[...table.tBodies].sort(compare));
}

function reveal() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const details = target?.closest("details") ?? target?.parentElement.querySelector(":scope > details");
  if (details) {
    details.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", reveal);
reveal();

const tip = document.getElementById("tip");
const hide = () => (tip.hidden = true);
addEventListener("keydown", (event) => event.key === "Escape" && hide());
addEventListener("scroll", hide, { capture: true, passive: true });

for (const chart of document.querySelectorAll(".chart")) {
  const marks = JSON.parse(chart.dataset.marks);
  const range = chart.querySelector("input");
  if (!range) continue;
  const show = (i) => {
    const [x, y, text] = marks[i];
    const box = chart.getBoundingClientRect();
    range.value = i;
    range.setAttribute("aria-valuetext", text);
    chart.style.setProperty("--x", `${100 * x}%`);
    chart.style.setProperty("--y", `${100 * y}%`);
    tip.textContent = chart.dataset.note ? `${text}\n${chart.dataset.note}` : text;
    tip.hidden = false;
    const left = box.left + x * box.width + 12;
    const top = box.top + y * box.height + 12;
    tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${top + tip.offsetHeight > innerHeight ? Math.max(8, top - tip.offsetHeight - 24) : top}px`;
  };
  const nearest = (event) => {
    const box = chart.getBoundingClientRect();
    // Distances along the x axis count more, so that a curve follows the mouse.
    const distance = ([x, y]) =>
      ((x * box.width + box.left - event.clientX) ** 2) + ((y * box.height + box.top - event.clientY) / 3) ** 2;
    let best = 0;
    marks.forEach((mark, i) => distance(mark) < distance(marks[best]) && (best = i));
    show(best);
  };
  chart.addEventListener("pointermove", nearest);
  chart.addEventListener("pointerdown", nearest);
  chart.addEventListener("pointerleave", hide);
  range.addEventListener("focus", () => show(range.valueAsNumber));
  range.addEventListener("input", () => show(range.valueAsNumber));
  range.addEventListener("blur", hide);
}
