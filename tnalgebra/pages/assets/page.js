"use strict";
// Every data set of the page: its table, its plots, and the filter and the cursor that they share.

const PALETTE = [
  "#3b78c3", "#d9603b", "#2f9e62", "#b8860b", "#8e5bbf", "#c2477f", "#1a9aa8", "#7a7f87", "#6f8f1f", "#e0983a", "#5c5cd6", "#a0522d",
];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "triangle-down", "cross", "star", "pentagon", "hexagon2"];
const FIRST_ROWS = 25;
const COARSE = matchMedia("(pointer: coarse)").matches;

const decimals = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const thousands = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const FORMATS = {
  text: String,
  code: String,
  count: (value) => thousands.format(value),
  percent: (value) => decimals.format(value),
  change: (value) => (value >= 0.005 ? "+" : "") + decimals.format(Math.abs(value) < 0.005 ? 0 : value),
  short: (value) => String(Number(value.toPrecision(4))),
};
const show = (column, row) => {
  const value = column.values[row];
  if (value === null) return "";
  return typeof value === "number" ? FORMATS[column.form](value) : value;
};

const make = (tag, attributes = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
};
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// plotly reads a little HTML in its texts
const literal = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const shortened = (text) => (text.length > 30 ? text.slice(0, 17) + "…" + text.slice(-12) : text);

const copyButton = (text) => {
  const button = make("button", { type: "button", textContent: "Copy" });
  button.setAttribute("aria-label", `Copy ${text}`);
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text).then(() => { button.textContent = "Copied"; }, () => { button.textContent = "Select it"; });
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
};

// the library of plots takes a second to start, so that it is started with the first plot, after the text is shown
const startPlotly = () => {
  if (!window.Plotly) document.head.append(make("script", { textContent: document.getElementById("plotly").textContent }));
};

class DatasetView {
  constructor(element, data) {
    Object.assign(this, data, { element, hidden: new Set(), whole: false, cursor: null, words: [], focus: null, onchoose: null });
    this.count = this.columns[0]?.values.length ?? 0;
    this.byName = Object.fromEntries(this.columns.map((column) => [column.name, column]));
    this.numeric = new Map(this.columns.map((column) => [column, column.values.some((value) => typeof value === "number")]));
    this.table_columns = this.columns.filter((column) => column.shown);
    this.sorted = this.sort ? { column: this.byName[this.sort], down: false } : null;
    this.texts = Array.from({ length: this.count }, (_, row) =>
      this.columns.map((column) => show(column, row)).join(" ").toLowerCase());
    this.groups = this.series ? [...new Set(this.byName[this.series].values)] : [null];
    this.buildControls();
    this.buildPanels();
    this.buildTable();
    this.update();
  }

  buildControls() {
    this.menus = [];
    const controls = make("div", { className: "controls" });
    if (this.count > 5) {
      const input = make("input", { type: "search", placeholder: "words of a row" });
      input.addEventListener("input", () => { this.words = input.value.toLowerCase().split(/\s+/).filter(Boolean); this.update(); });
      controls.append(make("label", {}, "Filter", input));
    }
    for (const column of this.columns.filter((column) => column.choose)) {
      const values = [...new Set(column.values.filter((value) => value !== null).map(String))];
      if (values.length < 2) continue;
      const select = make("select", {}, make("option", { value: "", textContent: "all" }));
      values.forEach((value, number) => select.append(make("option", { value: String(number + 1), textContent: shortened(value), title: value })));
      select.value = String(values.indexOf(column.choose) + 1 || "");
      select.addEventListener("change", () => this.update());
      controls.append(make("label", {}, column.name, select));
      this.menus.push({ column, select, choose: (value) => { select.value = String(values.indexOf(value) + 1); }, chosen: () => (select.value === "" ? null : values[select.value - 1]) });
    }
    this.counted = make("span", { className: "kind" });
    this.counted.setAttribute("role", "status");
    if (this.count > 5) controls.append(this.counted);
    if (controls.childElementCount) this.element.append(controls);
    if (this.panels.length && this.groups.length > 1) {
      const legend = make("div", { className: "legend" });
      legend.setAttribute("role", "group");
      legend.setAttribute("aria-label", `Show or hide: ${this.series}`);
      this.groups.forEach((group, number) => {
        const swatch = make("i");
        swatch.style.background = PALETTE[number % PALETTE.length];
        const button = make("button", { type: "button", title: String(group ?? "") }, swatch, shortened(String(group ?? "none")));
        button.setAttribute("aria-pressed", "true");
        button.addEventListener("click", () => {
          const hide = !this.hidden.has(number);
          hide ? this.hidden.add(number) : this.hidden.delete(number);
          button.setAttribute("aria-pressed", String(!hide));
          this.update();
        });
        legend.append(button);
      });
      this.element.append(legend);
    }
  }

  buildPanels() {
    if (!this.panels.length) return;
    const grid = make("div", { className: "panels" });
    for (const panel of this.panels) {
      panel.element = make("div", { className: "plot", tabIndex: 0 });
      panel.element.setAttribute("role", "group");
      panel.element.setAttribute("aria-label", `Plot: ${panel.title}. The arrow keys step through its rows.`);
      panel.element.style.minHeight = `${this.heightOf(panel)}px`;
      panel.element.addEventListener("keydown", (event) => this.step(event));
      const box = make("div", { className: panel.kind === "cells" ? "panel wide" : "panel" }, panel.element);
      if (this.panels.length > 1) box.prepend(make("div", { className: "title", textContent: panel.title }));
      grid.append(box);
    }
    this.readout = make("p", { className: "readout" }, COARSE ? "Tap a point to read its row." : "Point at a row to read it; drag to zoom, double click to zoom out.");
    this.readout.setAttribute("aria-live", "polite");
    this.element.append(grid, this.readout);
    this.visible = false;
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      this.draw();
    }, { rootMargin: "300px" }).observe(grid);
  }

  buildTable() {
    const head = make("tr");
    for (const column of this.table_columns) {
      const button = make("button", { type: "button", textContent: column.name });
      button.addEventListener("click", () => this.sortBy(column));
      const cell = make("th", { scope: "col", className: this.numeric.get(column) ? "right" : "" }, button);
      column.head = cell;
      head.append(cell);
    }
    this.body = make("tbody");
    this.body.addEventListener("click", (event) => {
      const line = event.target.closest("tr");
      if (!line || event.target.closest("button")) return;
      this.point(Number(line.dataset.row));
      this.onchoose?.(Number(line.dataset.row));
    });
    const scroll = make("div", { className: "scroll", tabIndex: 0 }, make("table", {}, make("thead", {}, head), this.body));
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", `Table: ${this.title}`);
    this.sorted?.column.head.setAttribute("aria-sort", "ascending");
    this.more = make("button", { type: "button", className: "more" });
    this.more.addEventListener("click", () => { this.whole = !this.whole; this.fillTable(); });
    if (this.folded) this.element.append(make("details", {}, make("summary", { textContent: "Table" }), scroll, this.more));
    else this.element.append(scroll, this.more);
  }

  sortBy(column) {
    const down = this.sorted?.column === column && !this.sorted.down;
    this.sorted = { column, down };
    for (const other of this.table_columns) other.head.removeAttribute("aria-sort");
    column.head.setAttribute("aria-sort", down ? "descending" : "ascending");
    this.fillTable();
  }

  update() {
    const groupOf = this.series ? this.byName[this.series].values : null;
    const chosen = this.menus.map((menu) => [menu.column, menu.chosen()]).filter(([, value]) => value !== null);
    this.rows = [];
    for (let row = 0; row < this.count; row++) {
      if (groupOf && this.hidden.has(this.groups.indexOf(groupOf[row]))) continue;
      if (chosen.some(([column, value]) => String(column.values[row]) !== value)) continue;
      if (this.words.every((word) => this.texts[row].includes(word))) this.rows.push(row);
    }
    this.counted.textContent = `${thousands.format(this.rows.length)} of ${thousands.format(this.count)} rows`;
    this.fillTable();
    if (this.visible) this.draw();
  }

  fillTable() {
    if (this.sorted) {
      const { column, down } = this.sorted;
      const sign = down ? -1 : 1;
      this.rows.sort((a, b) => {
        const [x, y] = [column.values[a], column.values[b]];
        const [first, second] = [typeof x === "number", typeof y === "number"];
        if (first && second) return sign * (x - y) || a - b;
        if (first !== second) return first ? -1 : 1; // whatever is not a number comes last
        return sign * String(x ?? "").localeCompare(String(y ?? ""), "en", { numeric: true }) || a - b;
      });
    } else this.rows.sort((a, b) => a - b);
    const rows = this.focus ? this.rows.filter((row) => this.focus.has(row)) : this.rows;
    const shown = this.whole ? rows : rows.slice(0, FIRST_ROWS);
    this.body.replaceChildren(...shown.map((row) => {
      const line = make("tr", { className: row === this.cursor ? "cursor" : "" });
      line.dataset.row = row;
      for (const column of this.table_columns) {
        const text = show(column, row);
        const cell = make("td", { className: this.numeric.get(column) ? "right" : "text", textContent: text, title: text.length > 40 ? text : "" });
        if (column.form === "code" && text) cell.replaceChildren(copyButton(text), make("code", { textContent: text }));
        line.append(cell);
      }
      return line;
    }));
    this.more.hidden = rows.length <= FIRST_ROWS;
    this.more.textContent = this.whole ? `Show ${FIRST_ROWS} rows` : `Show all ${thousands.format(rows.length)} rows`;
  }

  // Plots

  heightOf(panel) {
    if (panel.kind !== "cells") return 320;
    return Math.max(260, 20 * new Set(this.byName[panel.y].values).size + 140);
  }

  describe(row) {
    const names = this.columns.filter((column) => !this.numeric.get(column) && column.shown && column.form !== "code");
    return names.map((column) => show(column, row)).filter(Boolean);
  }

  hover(panel, row) {
    const numbers = [...new Set([panel.x, panel.y, panel.z])].map((name) => this.byName[name]).filter((column) => column && this.numeric.get(column));
    const lines = [...this.describe(row), ...numbers.map((column) => `${column.name}: ${show(column, row)}`)];
    return lines.map((line) => literal(line.length > 60 ? line.slice(0, 59) + "…" : line)).join("<br>");
  }

  axis(name, other = {}) {
    const column = this.byName[name];
    const base = { title: { text: literal(name), font: { size: 12 }, standoff: 6 }, gridcolor: style("--line"), zerolinecolor: style("--line"), linecolor: style("--line"), automargin: true };
    if (this.numeric.get(column)) return { ...base, ...other };
    const present = new Set(this.rows.map((row) => column.values[row]));
    const values = [...new Set(column.values)].filter((value) => present.has(value)).map(String);
    return {
      ...base, showticklabels: values.length <= 40, type: "category", categoryorder: "array", categoryarray: values,
      tickmode: "array", tickvals: values, ticktext: values.map((value) => literal(shortened(value))), tickfont: { size: 10 },
    };
  }

  traces(panel) {
    const [x, y] = [this.byName[panel.x], this.byName[panel.y]];
    if (panel.kind === "cells") return [this.cells(panel, x, y)];
    const groupOf = this.series ? this.byName[this.series].values : null;
    return this.groups.map((group, number) => {
      let rows = groupOf ? this.rows.filter((row) => groupOf[row] === group) : [...this.rows];
      rows.sort((a, b) => a - b);
      if (panel.kind === "lines" && this.numeric.get(x)) rows.sort((a, b) => x.values[a] - x.values[b] || a - b);
      const colour = PALETTE[number % PALETTE.length];
      return {
        type: "scatter", mode: panel.kind === "lines" ? "lines+markers" : "markers",
        x: rows.map((row) => this.place(panel.x, row)), y: rows.map((row) => this.place(panel.y, row)), customdata: rows,
        text: rows.map((row) => this.hover(panel, row)), hovertemplate: "%{text}<extra></extra>",
        marker: { color: colour, size: 7, symbol: SYMBOLS[number % SYMBOLS.length], opacity: 0.85 },
        line: { color: colour, width: 1.5, dash: number < PALETTE.length ? "solid" : "dot" },
      };
    });
  }

  cells(panel, x, y) {
    const z = this.byName[panel.z];
    const [across, down] = [x, y].map((column) => [...new Set([...this.rows].sort((a, b) => a - b).map((row) => column.values[row]))]);
    const grid = down.map(() => across.map(() => []));
    for (const row of this.rows) {
      if (typeof z.values[row] === "number") grid[down.indexOf(y.values[row])][across.indexOf(x.values[row])].push(row);
    }
    const mean = (rows) => (rows.length ? rows.reduce((sum, row) => sum + z.values[row], 0) / rows.length : null);
    const values = grid.map((line) => line.map(mean));
    const largest = Math.max(...values.flat().map(Math.abs), 1e-9);
    const note = (rows) => (rows.length > 1 ? `<br>mean of ${rows.length} rows: ${FORMATS[z.form](mean(rows))}` : "");
    return {
      type: "heatmap", x: across.map(String), y: down.map(String), z: values, zmin: -largest, zmax: largest, xgap: 1, ygap: 1,
      customdata: grid.map((line) => line.map((rows) => rows[0] ?? null)),
      text: grid.map((line) => line.map((rows) => (rows.length ? this.hover(panel, rows[0]) + note(rows) : ""))),
      hovertemplate: "%{text}<extra></extra>", hoverongaps: false,
      ...(across.length * down.length <= 400 && innerWidth > 640 ? { texttemplate: "%{z:.1f}", textfont: { size: 10 } } : {}),
      colorscale: [[0, "#c0392b"], [0.5, style("--field")], [1, "#2471a3"]],
      colorbar: { title: { text: literal(panel.z), side: "right" }, thickness: 12, outlinewidth: 0 },
    };
  }

  draw() {
    startPlotly();
    this.visible = true;
    for (const panel of this.panels) {
      const { x, y, size, shapes } = this.marks(panel);
      const rings = { type: "scatter", mode: "markers", x, y, hoverinfo: "skip", marker: { size, symbol: "circle-open", color: style("--ink"), line: { width: 2 } } };
      const layout = {
        height: this.heightOf(panel), margin: { l: 56, r: 14, t: 30, b: 52 }, showlegend: false, hovermode: "closest",
        dragmode: COARSE ? false : "zoom", modebar: { bgcolor: "rgba(0,0,0,0)", color: style("--soft"), activecolor: style("--accent") },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: style("--ink"), family: "system-ui, sans-serif" },
        hoverlabel: { bgcolor: style("--field"), bordercolor: style("--line"), font: { color: style("--ink"), size: 12 }, align: "left" },
        xaxis: this.axis(panel.x), yaxis: this.axis(panel.y, panel.log ? { type: "log", exponentformat: "power" } : {}),
        shapes, uirevision: "same",
      };
      if (panel.kind === "cells") layout.yaxis.autorange = "reversed";
      const config = { displaylogo: false, responsive: true, modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]] };
      const first = !panel.element.on;
      Plotly.react(panel.element, [...this.traces(panel), rings], layout, config);
      if (first) {
        const rowOf = (event) => event.points[0].customdata ?? null;
        panel.element.on("plotly_hover", (event) => { if (rowOf(event) !== null) this.point(rowOf(event)); });
        panel.element.on("plotly_click", (event) => { if (rowOf(event) !== null) { this.point(rowOf(event)); this.onchoose?.(rowOf(event)); } });
      }
    }
  }

  // the place of a row in a panel, as plotly takes it; null where it has none
  place(name, row) {
    const column = this.byName[name];
    const value = column.values[row];
    return this.numeric.get(column) ? (typeof value === "number" ? value : null) : String(value);
  }

  // rings around the rows in focus and the one under the cursor, which has a vertical line too
  marks(panel) {
    const present = new Set(this.rows);
    const rows = [...(this.focus ?? []), ...(this.cursor === null ? [] : [this.cursor])].filter((row) => present.has(row));
    const x = present.has(this.cursor) ? this.place(panel.x, this.cursor) : null;
    const line = { type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: style("--ink"), width: 1, dash: "dot" } };
    return {
      x: rows.map((row) => this.place(panel.x, row)), y: rows.map((row) => this.place(panel.y, row)),
      size: rows.map((row) => (row === this.cursor ? 16 : 12)), shapes: x === null ? [] : [line],
    };
  }

  // shows the rows of one value of a menu's column, and of them those in focus
  choose(name, value, focus) {
    this.menus.find((menu) => menu.column.name === name)?.choose(value);
    this.focus = focus;
    this.update();
  }

  point(row) {
    if (row === this.cursor) return;
    this.cursor = row;
    for (const line of this.body.children) line.classList.toggle("cursor", Number(line.dataset.row) === row);
    if (!this.panels.length) return;
    const numbers = this.table_columns.filter((column) => this.numeric.get(column) && column.values[row] !== null);
    this.readout.replaceChildren(make("strong", { textContent: this.describe(row).join(" · ") }),
      ` ${numbers.map((column) => `${column.name}: ${show(column, row)}`).join(", ")} `,
      ...this.columns.filter((column) => column.form === "code").map((column) => make("code", { textContent: show(column, row) })));
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => {
      if (!this.visible) return;
      for (const panel of this.panels) {
        const { x, y, size, shapes } = this.marks(panel);
        Plotly.update(panel.element, { x: [x], y: [y], "marker.size": [size] }, { shapes }, [panel.element.data.length - 1]);
      }
    });
  }

  step(event) {
    const ways = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    if (!(event.key in ways) || !this.rows.length) return;
    event.preventDefault();
    const at = this.rows.indexOf(this.cursor);
    this.point(this.rows[at < 0 ? 0 : Math.min(this.rows.length - 1, Math.max(0, at + ways[event.key]))]);
  }
}

const datasets = JSON.parse(document.getElementById("datasets").textContent);
const views = [...document.querySelectorAll("[data-dataset]")].map((element) => new DatasetView(element, datasets[element.dataset.dataset]));
const redraw = () => { for (const view of views) if (view.visible) view.draw(); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
const inPart = (view) => !view.element.closest("[hidden]");
addEventListener("beforeprint", () => { for (const view of views) if (view.panels.length && inPart(view)) view.draw(); });
addEventListener("afterprint", redraw);

// a menu shows one part of a section; plots that were drawn before get the width that the window has now
for (const section of document.querySelectorAll(".parts")) {
  const menu = section.querySelector("select");
  const parts = section.querySelectorAll(".part");
  const choosePart = () => {
    parts.forEach((part, number) => { part.hidden = number !== menu.selectedIndex; });
    for (const view of views) {
      if (view.visible && parts[menu.selectedIndex].contains(view.element)) for (const panel of view.panels) Plotly.Plots.resize(panel.element);
    }
  };
  menu.addEventListener("change", choosePart);
  choosePart(); // a browser that goes back to the page keeps what was chosen
}
