"use strict";
// What all pages share: a view that the address keeps, and tables that sort and filter.
const shared = (() => {
  const state = new URLSearchParams(location.hash.slice(1).includes("=") ? location.hash.slice(1) : "");

  function remember(changes) {
    for (const [key, value] of Object.entries(changes)) value ? state.set(key, value) : state.delete(key);
    const text = state.toString();
    try {
      history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
    } catch {
      // A page within another has no address of its own.
    }
  }

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== false && value !== null) node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  }

  // Rows by a value, unknown ones last.
  function ordered(rows, value, descending) {
    const order = rows.map((row) => [value(row), row]);
    order.sort(([a], [b]) => {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      const numbers = Number.isFinite(Number(a)) && Number.isFinite(Number(b));
      const by = numbers ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return descending ? -by : by;
    });
    return order.map(([, row]) => row);
  }

  // A button in a heading, which sorts up, then down.
  function sortable(head, sort) {
    const button = make("button", { type: "button" }, head.textContent.trim());
    button.addEventListener("click", () => sort(head.getAttribute("aria-sort") === "ascending"));
    head.replaceChildren(button);
  }

  function mark(heads, sorted, descending) {
    for (const head of heads)
      if (head === sorted) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
  }

  // A link within the page: the address keeps what it says of the tables.
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    const target = link && document.getElementById(link.getAttribute("href").slice(1));
    if (!target || !state.size || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    target.tabIndex = -1;
    target.focus({ preventScroll: true });
    target.scrollIntoView();
  });

  return { state, remember, make, ordered, sortable, mark };
})();

// Pages with several tables, of a comparison and of all runs: each sorts, and one filter is for all.
(() => {
  const { state, remember, make, ordered, sortable, mark } = shared;

  for (const table of document.querySelectorAll("table[data-sorts]")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const names = heads.map((head) => head.textContent.trim());
    const value = (cell) => ("value" in cell.dataset ? cell.dataset.value || undefined : cell.textContent.trim());
    const sort = (index, descending) => {
      body.append(...ordered([...body.rows], (row) => value(row.cells[index]), descending));
      mark(heads, heads[index], descending);
    };
    heads.forEach((head, index) =>
      sortable(head, (descending) => {
        sort(index, descending);
        remember({ [table.id]: names[index], [`${table.id}-down`]: descending ? "1" : "" });
      }),
    );
    const before = names.indexOf(state.get(table.id));
    if (before >= 0) sort(before, state.get(`${table.id}-down`) === "1");
  }

  const tools = document.getElementById("filter");
  if (!tools) return;
  const rows = [...document.querySelectorAll("[data-row]")];
  const contents = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const several = rows.filter((row) => row.tagName === "TR"); // those of a plot repeat them
  const counter = make("output", { "aria-live": "polite" });
  const search = make("input", { type: "search", placeholder: tools.dataset.example, "aria-label": "Filter rows" });

  function filter(text) {
    const words = text.toLowerCase().split(/\s+/).filter((word) => word && word !== "-");
    for (const row of rows) {
      const content = contents.get(row);
      row.hidden = !words.every((word) => (word[0] === "-" ? !content.includes(word.slice(1)) : content.includes(word)));
    }
    for (const part of document.querySelectorAll("[data-part]")) {
      part.hidden = !part.querySelector("[data-row]:not([hidden])");
      const fold = part.querySelector("details");
      if (words.length && fold) fold.open = true;
    }
    const shown = several.filter((row) => !row.hidden).length;
    counter.textContent = shown === several.length ? `${shown} rows` : `${shown} of ${several.length} rows`;
  }
  search.addEventListener("input", () => {
    filter(search.value);
    remember({ q: search.value });
  });
  search.value = state.get("q") || "";
  filter(search.value);
  tools.append(search, counter);
  tools.hidden = false;
})();
