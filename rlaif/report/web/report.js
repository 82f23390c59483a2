"use strict";
// What a page does beyond showing: tables that sort, filter and copy, arms switched on and off, samples by outcome,
// values under the pointer, dark mode. Every control is made here, so that a page without scripts has none.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const words = (node) => node.textContent.replace(/\s+/g, " ").trim();

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function button(text, act, attributes = {}) {
    const node = make("button", { type: "button", ...attributes }, text);
    node.addEventListener("click", () => act(node));
    return node;
  }

  const press = (node, on) => node.setAttribute("aria-pressed", String(on));

  // ---- Tables -------------------------------------------------------------------------------------------------

  // A cell's own text, and the interval or note below it.
  function pieces(cell) {
    const copy = cell.cloneNode(true);
    const below = all(".range", copy).map((node) => (node.remove(), words(node)));
    return [words(copy), below.filter(Boolean).join("; ")];
  }

  const DURATION = /^(?:(\d+) h ?)?(?:(\d+) min ?)?(?:(\d+(?:\.\d+)?) s)?$/;
  const SIZES = { B: 1, kB: 1e3, MB: 1e6, GB: 1e9 };

  // The value of a cell that begins with a number: seconds of a duration, bytes of a size; NaN of anything else.
  function amount(text) {
    const plain = text.replace(/\u2212/g, "-").replace(/(\d),(?=\d{3})/g, "$1");
    const time = plain && plain.match(DURATION);
    if (time) return 3600 * (time[1] || 0) + 60 * (time[2] || 0) + Number(time[3] || 0);
    const found = plain.match(/^(<\s*)?([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?: (B|kB|MB|GB)\b)?/i);
    if (!found) return NaN;
    return Number(found[2]) * (SIZES[found[3]] || 1) * (found[1] ? 0.999 : 1);
  }

  const order = (x, y) => (x < y ? -1 : x > y ? 1 : 0);
  const lowest = (text) => (Number.isNaN(amount(text)) ? -Infinity : amount(text));
  // Tablesort wants the greater one first.
  Tablesort.extend("value", () => false, (a, b) => order(lowest(b), lowest(a)));
  Tablesort.extend("words", () => false, (a, b) => b.localeCompare(a, "en", { numeric: true }));

  function sortable(table, body, tools) {
    const before = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    const missing = (row, place) => {
      const text = row.cells[place].dataset.sort;
      return !text || text === "\u2013" || (heads[place].classList.contains("n") && Number.isNaN(amount(text)));
    };
    for (const head of heads) {
      head.dataset.sortMethod = !words(head) ? "none" : head.classList.contains("n") ? "value" : "words";
    }
    const restore = button("Original order", () => {
      for (const head of heads) head.removeAttribute("aria-sort");
      body.append(...before);
      restore.hidden = true;
    });
    restore.hidden = true;
    tools.append(restore);
    table.addEventListener("beforeSort", () => {
      for (const cell of all("td:not([data-sort])", body)) cell.dataset.sort = pieces(cell)[0];
    });
    table.addEventListener("afterSort", () => {
      const place = heads.findIndex((head) => head.hasAttribute("aria-sort"));
      body.append(...[...body.rows].filter((row) => missing(row, place)));
      restore.hidden = false;
    });
    new Tablesort(table);
    table.classList.add("sortable");
  }

  function filter(table, body, tools, name) {
    const input = make("input", { type: "search", placeholder: "Filter rows", "aria-label": `Filter rows: ${name}` });
    const count = make("span", { role: "status" });
    const rows = [...body.rows].map((row) => [row, words(row).toLowerCase()]);
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let kept = 0;
      for (const [row, text] of rows) {
        const found = wanted.every((word) => text.includes(word));
        row.classList.toggle("out", !found);
        kept += found;
      }
      table.classList.toggle("narrowed", wanted.length > 0);
      count.textContent = wanted.length ? `${kept} of ${rows.length}` : "";
    });
    tools.append(input, count);
  }

  const shown = (row) => !row.classList.contains("out") && !row.classList.contains("off");

  // Heads, and the rows that are shown in their order, each cell as [text, what stands below it].
  function grid(table) {
    return [table.tHead.rows[0], ...[...table.tBodies[0].rows].filter(shown)].map((row) => [...row.cells].map(pieces));
  }

  function markdown(table) {
    const escaped = (text) => text.replace(/[\\|`*<>[\]]/g, "\\$&");
    const cell = ([text, below]) => escaped(below ? `${text} (${below})` : text);
    const [heads, ...rows] = grid(table).map((row) => row.map(cell));
    const right = [...table.tHead.rows[0].cells].map((head) => (head.classList.contains("n") ? "---:" : "---"));
    return [heads, right, ...rows].map((row) => `| ${row.join(" | ")} |\n`).join("");
  }

  // RFC 4180. What stands below values has a column of its own; text that a spreadsheet would run is quoted with '.
  function csv(table) {
    const [heads, ...rows] = grid(table);
    const split = heads.map((_, place) => rows.some((row) => row[place][1]));
    const cells = (row, second) => row.flatMap((cell, place) => (split[place] ? [cell[0], second(cell)] : [cell[0]]));
    const safe = (text) => (/^([=@\t\r]|[+-](?![\d.]))/.test(text) ? `'${text}` : text);
    const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
    const lines = [cells(heads, ([text]) => `${text} (range)`), ...rows.map((row) => cells(row, ([, below]) => below))];
    return lines.map((line) => `${line.map((text) => quoted(safe(text))).join(",")}\r\n`).join("");
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = make("textarea", { class: "aside" }, text);
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }

  function copier(label, write) {
    return button(label, async (node) => {
      await copy(write());
      node.textContent = "Copied";
      setTimeout(() => (node.textContent = label), 1200);
    }, { "aria-live": "polite" });
  }

  const FILTERED_FROM = 6;

  function equip(table) {
    const body = table.tBodies[0];
    if (!table.tHead || !body || !body.rows.length) return;
    const section = table.closest("section");
    const title = section && section.querySelector("h2, h3");
    const tools = make("div", { class: "tools" });
    if (body.rows.length >= FILTERED_FROM) filter(table, body, tools, title ? words(title) : "table");
    if (body.rows.length > 1 && !table.classList.contains("fixed")) sortable(table, body, tools);
    tools.append(copier("Copy as Markdown", () => markdown(table)), copier("CSV", () => csv(table)));
    (table.closest(".scroll") || table).before(tools);
  }

  // ---- Arms ---------------------------------------------------------------------------------------------------

  const UNFOLDED = 12;

  function arms() {
    const known = JSON.parse(document.querySelector("main").dataset.arms || "[]");
    if (known.length < 2) return;
    const off = new Set();
    const told = make("summary", { role: "button" });
    const chips = known.map(([key, label, colour]) => {
      const chip = button("", () => (off.has(key) ? off.delete(key) : off.add(key), apply()), { class: "chip", "data-key": key });
      if (colour) chip.append(make("i", { class: `swatch ${colour}` }));
      chip.append(label);
      return chip;
    });
    const every = (keys) => () => (off.clear(), keys.forEach((key) => off.add(key)), apply());
    function apply() {
      for (const node of all("[data-arm]")) {
        node.classList.toggle("off", node.dataset.arm.split(" ").some((key) => off.has(key)));
      }
      for (const chip of chips) press(chip, !off.has(chip.dataset.key));
      told.textContent = `Arms shown: ${known.length - off.size} of ${known.length}`;
    }
    const box = make("details", { class: "arms" }, told);
    const find = make("input", { type: "search", placeholder: "Find an arm", "aria-label": "Find an arm" });
    find.addEventListener("input", () => {
      for (const chip of chips) chip.hidden = !words(chip).toLowerCase().includes(find.value.toLowerCase());
    });
    const group = make("div", { class: "chips", role: "group", "aria-label": "Arms in plots and tables" });
    if (known.length > UNFOLDED) group.append(find);
    group.append(button("All", every([])), button("None", every(known.map(([key]) => key))), ...chips);
    box.append(group);
    box.open = known.length <= UNFOLDED && matchMedia("(min-width: 760px)").matches;
    document.querySelector("main > header").after(box);
    apply();
  }

  // ---- Samples ------------------------------------------------------------------------------------------------

  function choices(section) {
    const kinds = new Map();
    const samples = all("[data-kinds]", section);
    const of = (sample) => sample.dataset.kinds.split("|").filter(Boolean);
    for (const kind of samples.flatMap(of)) kinds.set(kind, (kinds.get(kind) || 0) + 1);
    if (!kinds.size || samples.length < 2) return;
    let wanted = null;
    const chips = [[null, samples.length], ...kinds].map(([kind, count]) =>
      button(`${kind || "all"} (${count})`, () => ((wanted = kind), apply()), { class: "chip", "data-kind": kind || "" }));
    function apply() {
      for (const sample of samples) sample.classList.toggle("out", wanted !== null && !of(sample).includes(wanted));
      for (const chip of chips) press(chip, chip.dataset.kind === (wanted || ""));
      // What is left may lie in a folded part.
      for (const part of all("details.more", section)) {
        const left = all("[data-kinds]:not(.out)", part).length;
        part.classList.toggle("out", !left);
        if (wanted !== null && left) part.open = true;
      }
    }
    section.querySelector("h2").after(make("div", { class: "chips", role: "group", "aria-label": "Samples shown" }, ...chips));
    apply();
  }

  // ---- Values under the pointer -------------------------------------------------------------------------------

  const tip = make("div", { class: "tip", role: "tooltip" });

  function place(text, event) {
    tip.textContent = text;
    tip.hidden = !text;
    if (!text) return;
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, room))}px`;
    tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
  }

  const plain = (value, percent) => (percent ? `${(100 * value).toFixed(1)}%` : String(Number(value.toPrecision(3))));

  // [left, right, bottom, top] of a panel in the figure's units, the values there, and whether they are shares.
  const panel = (axes) => axes.dataset.axes.split(" ").map(Number);
  const vertices = new WeakMap();

  function points(line) {
    if (!vertices.has(line)) {
      const path = line.querySelector("path");
      const numbers = path ? path.getAttribute("d").match(/-?[\d.]+/g).map(Number) : [];
      vertices.set(line, numbers.flatMap((x, place) => (place % 2 ? [] : [[x, numbers[place + 1]]])));
    }
    return vertices.get(line);
  }

  // The nearest vertex of a curve within 24 pixels of the pointer, as text.
  function curveValue(svg, event) {
    const matrix = svg.getScreenCTM();
    if (!matrix) return "";
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
    const axes = all("[data-axes]", svg).find((node) => {
      const [left, right, bottom, top] = panel(node);
      return at.x >= left && at.x <= right && at.y <= bottom && at.y >= top;
    });
    if (!axes) return "";
    let best = [24 / matrix.a, ""];
    const [left, right, bottom, top, x0, x1, y0, y1, xShare, yShare] = panel(axes);
    for (const line of all("[data-line]:not(.off)", axes)) {
      for (const [x, y] of points(line)) {
        const away = Math.hypot(x - at.x, y - at.y);
        if (away >= best[0]) continue;
        const step = x0 + ((x - left) / (right - left)) * (x1 - x0);
        const value = y0 + ((y - bottom) / (top - bottom)) * (y1 - y0);
        const name = line.dataset.line ? `${line.dataset.line}: ` : "";
        best = [away, `${name}${plain(value, yShare)} at ${plain(step, xShare)}`];
      }
    }
    return best[1];
  }

  function hover() {
    // The script's hints take the place of the browser's own.
    for (const title of all("figure svg title, .scroll svg title")) {
      const owner = title.parentNode;
      owner.dataset.tip = title.textContent;
      title.remove();
    }
    tip.hidden = true;
    document.body.append(tip);
    document.addEventListener("pointermove", (event) => {
      const svg = event.target.closest && event.target.closest("svg");
      if (!svg) return tip.hidden || place("", event);
      const owner = event.target.closest("[data-tip]");
      const vertex = owner && !("line" in owner.dataset) ? "" : curveValue(svg, event);
      place(vertex || (owner ? owner.dataset.tip : ""), event);
    });
  }

  // ---- Theme and paper ----------------------------------------------------------------------------------------

  function theme() {
    const root = document.documentElement;
    const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    const name = () => (dark() ? "Light mode" : "Dark mode");
    const toggle = button(name(), (node) => {
      root.dataset.theme = dark() ? "light" : "dark";
      node.textContent = name();
    }, { class: "theme" });
    document.querySelector("main > header").prepend(toggle);
  }

  all("main table").forEach(equip);
  arms();
  all("main section").forEach(choices);
  hover();
  theme();
})();
