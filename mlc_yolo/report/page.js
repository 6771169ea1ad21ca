// Tables sort by a button in each heading. Without scripts the page is complete, only its tables keep their order.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const numbers = (row, column) => parseFloat(row.cells[column].dataset.value);
  const names = new Intl.Collator(undefined, { numeric: true });
  const compare = (a, b, column) => {
    if (column === 0) return names.compare(a.cells[0].textContent, b.cells[0].textContent);
    return numbers(a, column) - numbers(b, column);
  };
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      // Names first from A to Z, numbers first from the largest.
      const first = column === 0 ? "ascending" : "descending";
      const order = heading.getAttribute("aria-sort") === null ? first
        : heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const each of headings) each.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", order);
      const missing = (row) => column > 0 && Number.isNaN(numbers(row, column)); // stays at the end
      const rows = [...body.rows];
      rows.sort((a, b) => missing(a) - missing(b) || (order === "ascending" ? 1 : -1) * (compare(a, b, column) || 0));
      body.append(...rows);
    });
  });
}
