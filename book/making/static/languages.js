// The list of all languages: a field that filters its rows, and a box that a keyboard can scroll.
(() => {
  const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();

  function build(box) {
    const rows = [...box.querySelectorAll("tbody tr")].map((row) => [row, plain(row.cells[0].innerText + " " + row.cells[1].innerText)]);
    const field = document.createElement("input");
    Object.assign(field, { type: "search", id: "language-filter", placeholder: "Hausa, or ha" });
    const label = document.createElement("label");
    label.htmlFor = field.id;
    label.textContent = "Find a language";
    const count = document.createElement("span");
    count.setAttribute("role", "status");
    const bar = document.createElement("div");
    bar.className = "language-filter";
    bar.append(label, field, count);
    box.before(bar);
    const show = () => {
      const wanted = plain(field.value.trim());
      let shown = 0;
      for (const [row, text] of rows) {
        row.hidden = !text.includes(wanted);
        shown += !row.hidden;
      }
      count.textContent = `${shown} of ${rows.length} languages`;
    };
    field.addEventListener("input", show);
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "All languages");
    show();
  }

  const start = () => document.querySelectorAll(".all-languages").forEach(build);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
