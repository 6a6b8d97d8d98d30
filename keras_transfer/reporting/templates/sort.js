
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells];
  const box = table.closest(".sorting"), status = box.querySelector("[role=status]");
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return "v" in cell.dataset ? (cell.dataset.v === "" ? null : +cell.dataset.v) : cell.textContent;
  };
  const order = new Intl.Collator(undefined, { numeric: true });
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const up = heading.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
    const rows = [...body.rows].map(row => [valueOf(row, column), row]);
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null)
      : sign * (typeof a === "number" ? a - b : order.compare(a, b)));
    body.append(...rows.map(([, row]) => row));
    for (const other of headings) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    status.textContent = `sorted by ${heading.textContent}, ${up ? "ascending" : "descending"}`;
  }));
  const search = box.querySelector("input[type=search]");
  if (search) search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    let matches = 0;
    for (const row of body.rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      matches += !row.hidden;
    }
    status.textContent = `${matches} of ${body.rows.length} rows`;
  });
}
