"use strict";

// A click on a heading sorts the table by that column: ascending, descending, then in network order.
const names = new Intl.Collator("en", { numeric: true });
const number = (text) => parseFloat(text.replace("−", "-").replace(/(\d),(?=\d{3})/g, "$1"));
const area = (text) => { const [height, width = height] = text.split("x"); return height * width; };
const by = (value) => (a, b) => (value(a) - value(b)) || names.compare(a, b);
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const made = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const order = { none: "ascending", ascending: "descending", descending: null }[heading.ariaSort ?? "none"];
      headings.forEach((one) => one.removeAttribute("aria-sort"));
      if (order) heading.setAttribute("aria-sort", order);
      const text = (row) => row.cells[column].textContent.trim();
      const compare = by(made.some((row) => /^\d+x\d+$/.test(text(row))) ? area : number);
      const sign = order === "descending" ? -1 : 1;
      const rows = order ? [...made].sort((a, b) =>
        (text(a) === "–") - (text(b) === "–") || sign * compare(text(a), text(b))) : made;
      body.append(...rows);
    });
  });
}

// Save a figure without its tooltips, in black on a transparent background.
for (const button of document.querySelectorAll("button[data-save]")) {
  button.hidden = false;
  button.setAttribute("aria-label", `Save the figure as SVG: ${button.dataset.save}`);
  button.addEventListener("click", () => {
    const copy = button.closest("figure").querySelector("svg").cloneNode(true);
    copy.querySelector(".marks").remove();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
    link.download = button.dataset.save;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

// Print folded parts too.
const folded = [];
addEventListener("beforeprint", () => {
  folded.push(...document.querySelectorAll("details:not([open])"));
  folded.forEach((one) => { one.open = true; });
});
addEventListener("afterprint", () => folded.splice(0).forEach((one) => { one.open = false; }));
