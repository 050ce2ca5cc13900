"use strict";

// A click on a heading sorts a table by that column: ascending, descending, then in network order.
const names = new Intl.Collator("en", { numeric: true });
const number = (text) => parseFloat(text.replace("−", "-").replace(/(\d),(?=\d{3})/g, "$1").replace(/^[^\d+-]+/, ""));
const area = (text) => { const [height, width = height] = text.split("x"); return height * width; };
const by = (value) => (a, b) => (value(a) - value(b)) || names.compare(a, b);
for (const table of document.querySelectorAll("table.data:not(.overview)")) {
  const body = table.tBodies[0];
  const made = [...body.rows];
  const headings = [...[...table.tHead.rows].at(-1).cells];
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

// Show the images of the chosen prompt and seed.
const choices = ["prompt", "seed"].map((id) => document.getElementById(id)).filter(Boolean);
for (const choice of choices) {
  choice.addEventListener("change", () => {
    for (const set of document.querySelectorAll(".set")) {
      set.hidden = choices.some((one) => set.dataset[one.id] !== one.value);
    }
    markOverflows();
  });
}

// A click enlarges an image. Arrow keys show the next image of the same set.
const zoom = document.getElementById("zoom");
let enlarged = null;
const enlarge = (button) => {
  enlarged = button;
  const [from, to] = [button.querySelector("img"), zoom.querySelector("img")];
  to.src = from.src;
  to.alt = from.alt;
  to.className = from.naturalHeight <= 256 ? "pixels" : "";
  zoom.querySelector(".caption").textContent = from.alt;
};
for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", () => { enlarge(button); zoom.showModal(); });
}
zoom?.addEventListener("click", (event) => { if (event.target === zoom || event.target.closest(".close button")) zoom.close(); });
zoom?.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  const all = [...enlarged.closest(".set").querySelectorAll(".zoom")];
  enlarge(all[(all.indexOf(enlarged) + step + all.length) % all.length]);
});

// Say where something scrolls sideways.
function markOverflows() {
  for (const box of document.querySelectorAll(".scroll, .drawing")) {
    box.classList.toggle("overflows", box.scrollWidth > box.clientWidth + 2);
  }
}
markOverflows();
addEventListener("resize", markOverflows);
for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", markOverflows);

// Print folded parts too.
const folded = [];
addEventListener("beforeprint", () => {
  folded.push(...document.querySelectorAll("details:not([open])"));
  folded.forEach((one) => { one.open = true; });
});
addEventListener("afterprint", () => folded.splice(0).forEach((one) => { one.open = false; }));
