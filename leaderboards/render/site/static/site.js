// Tables sort and search by DataTables, charts are drawn by Plotly; without either, or without JavaScript, the pages read as they are.
// Every control has a name: what differs from the page as it was written is in the address, "#board.q=trades&chart=cost".
"use strict";

const controls = [...document.querySelectorAll("main [name]")].filter(element => "defaultValue" in element || element.tagName === "SELECT");
const refreshers = []; // draw a table or a chart as its controls are
const isBox = control => control.type === "checkbox";
const isChoice = control => isBox(control) || control.type === "radio";

function differs(control) {
  if (isChoice(control)) return control.checked !== control.defaultChecked && (isBox(control) || control.checked);
  return control.value !== (control.defaultValue || "");
}

function saveState(typing) {
  const state = new URLSearchParams(controls.filter(differs).map(control => [control.name, control.value]));
  const address = `#${state}`;
  if (address === (location.hash || "#")) return;
  history[typing ? "replaceState" : "pushState"](null, "", address);
}

function loadState() {
  if (location.hash && !location.hash.includes("=")) return; // leads to a part of the page
  const state = new URLSearchParams(location.hash.slice(1));
  for (const control of controls) {
    const isNamed = state.has(control.name, control.value);
    if (isBox(control)) control.checked = isNamed !== control.defaultChecked;
    else if (isChoice(control)) control.checked = state.has(control.name) ? isNamed : control.defaultChecked;
    else control.value = state.get(control.name) || "";
  }
  for (const refresh of refreshers) refresh();
}

const blankLast = sign => (a, b) => (a === "") - (b === "") || sign * (a - b);

function enhanceTables() {
  DataTable.type("measured", { order: { asc: blankLast(1), desc: blankLast(-1) } });
  for (const element of document.querySelectorAll("table.data")) {
    const table = new DataTable(element, {
      paging: false, info: false, autoWidth: false, layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
      order: [], // as the page has it
      columnDefs: [
        { targets: "score", type: "measured", orderSequence: ["desc", "asc"] },
        { targets: "count", type: "measured", orderSequence: ["asc", "desc"] },
        { targets: "published", orderable: false },
        { targets: "text", type: "string" },
      ],
    });
    const tools = document.getElementsByName(`${element.id}.q`)[0]?.closest(".tools");
    if (tools) addTools(tools, table);
    addChooser(element, table);
  }
}

function addTools(tools, table) {
  const search = tools.querySelector("[type=search]"), sorting = tools.querySelector("[type=text]"), output = tools.querySelector("output");
  const boxes = [...tools.querySelectorAll("[type=checkbox]")], facets = [...tools.querySelectorAll("select")];
  const isHidden = row => boxes.some(box => box.checked && JSON.parse(row.dataset.marks || "[]").includes(box.value));
  const isWanted = row => facets.every(facet => !facet.value || row.dataset[facet.dataset.facet.toLowerCase()] === facet.value);
  table.search.fixed("controls", (text, data, index) => !isHidden(table.row(index).node()) && isWanted(table.row(index).node()));
  tools.hidden = false;
  const refresh = () => {
    const order = sorting.value ? [sorting.value.split(" ")] : [];
    if (String(table.order()) !== String(order)) table.order(order);
    table.search(search.value).draw();
    const [shown, all] = [table.rows({ search: "applied" }).count(), table.rows().count()];
    output.textContent = shown === all ? "" : `${shown} of ${all} rows`;
    for (const item of tools.closest("section").querySelectorAll("li[data-marks]")) item.hidden = isHidden(item);
  };
  refreshers.push(refresh);
  tools.addEventListener("input", event => { refresh(); saveState(event.target === search); });
  table.on("order.dt", () => {
    const order = table.order().map(([column, way]) => way && `${column} ${way}`).filter(Boolean).join();
    if (order === sorting.value) return;
    sorting.value = order;
    saveState();
  });
}

function addChooser(element, table) {
  const chooser = document.querySelector(`.columns[data-table="${element.id}"]`);
  if (!chooser) return;
  const boxes = [...chooser.querySelectorAll("input")];
  const heads = new Map(table.columns().header().toArray().map((head, column) => [head.dataset.key, column]));
  for (const box of boxes) box.hidden = false;
  const refresh = () => {
    for (const box of boxes) table.column(heads.get(box.value)).visible(box.checked);
    element.classList.toggle("chosen", boxes.some(differs)); // a phone then shows what was chosen
  };
  refreshers.push(refresh);
  chooser.addEventListener("input", () => { refresh(); saveState(); });
}

// A point has the id of its row; in a chart of rows its height is the number of the row.
const rowOf = (plot, table, point) => document.getElementById(`${table}-${plot.layout.yaxis.ticktext ? `r${point.y}` : point.id}`);

function pointOf(plot, row) {
  const id = row.id.replace(/.*-/, "");
  const place = line => (plot.layout.yaxis.ticktext ? [...line.y].findIndex(y => `r${y}` === id) : (line.ids || []).indexOf(id));
  const curveNumber = plot.data.findLastIndex(line => place(line) >= 0);
  return curveNumber < 0 ? [] : [{ curveNumber, pointNumber: place(plot.data[curveNumber]) }];
}

function linkPoints(plot, table) {
  const rows = document.querySelectorAll(`[id="${table}"] tbody tr`);
  const mark = row => { for (const other of rows) other.classList.toggle("marked", other === row); };
  plot.on("plotly_hover", event => mark(rowOf(plot, table, event.points[0])));
  plot.on("plotly_unhover", () => mark(null));
  plot.on("plotly_click", event => {
    const row = rowOf(plot, table, event.points[0]);
    row?.scrollIntoView({ block: "center" });
    row?.querySelector("a").focus();
  });
  for (const row of rows) for (const [begin, end] of [["mouseenter", "mouseleave"], ["focusin", "focusout"]]) {
    row.addEventListener(begin, () => { Plotly.Fx.hover(plot, pointOf(plot, row)); mark(row); });
    row.addEventListener(end, () => { Plotly.Fx.unhover(plot); mark(null); });
  }
}

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function theme() {
  const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, automargin: true, title: { standoff: 12 } };
  const font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("--text") };
  return {
    font, height: 420, hovermode: "closest", legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom" }, paper_bgcolor: "transparent", plot_bgcolor: "transparent", margin: { l: 56, r: 16, t: 28, b: 52 },
    xaxis: axis, yaxis: axis, hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font },
    modebar: { bgcolor: "transparent", color: colour("--soft"), activecolor: colour("--text") },
  };
}

// Rows of one method differ at the ends of their names. What Plotly takes for markup is escaped, and is one letter.
function cut(name) {
  const letters = name.match(/&\w+;|./gsu) || [];
  return letters.length > 20 ? [...letters.slice(0, 11), "…", ...letters.slice(-8)].join("") : name;
}

function enhanceCharts() {
  const dark = matchMedia("(prefers-color-scheme: dark)"), touch = matchMedia("(pointer: coarse)"), narrow = matchMedia("(max-width: 30rem)");
  for (const figure of document.querySelectorAll("figure.charts")) {
    const text = figure.querySelector("script").textContent;
    const plot = figure.querySelector(".plot"), caption = figure.querySelector("figcaption"), all = figure.querySelector("input[type=checkbox]");
    const draw = place => {
      // Colours are names of the page's own properties, as they are at this moment.
      const chart = JSON.parse(text, (key, value) => /color$/.test(key) && String(value).startsWith("--") ? colour(value) : value)[place];
      const { xaxis, yaxis } = chart.layout;
      if (narrow.matches && yaxis.ticktext) yaxis.ticktext = yaxis.ticktext.map(cut);
      const outside = !yaxis.ticktext && yaxis.range && chart.data.some(line => line.y.some(value => value < yaxis.range[0]));
      if (all) all.parentElement.hidden = !outside;
      if (outside && all?.checked) {
        for (const axis of [xaxis, yaxis]) delete axis.range;
        delete chart.layout.annotations; // names stand apart only within the frame
      }
      const scatter = [{ hovertemplate: "%{x}, %{y:.4~g}<extra>%{fullData.name}</extra>" }];
      const layout = { height: 420, ...chart.layout, template: { layout: theme(), data: { scatter } }, dragmode: touch.matches ? false : "zoom" };
      // On a phone a long legend would leave no room for the points, whose marks are in the table too.
      if (narrow.matches && chart.data.length > 4) layout.showlegend = false;
      caption.textContent = chart.caption;
      Plotly.react(plot, chart.data, layout, { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] });
      // The picture alone: what is inside an image, as Plotly's buttons would be, is not read out.
      const picture = plot.querySelector(".main-svg");
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", `Chart: ${chart.title}`);
    };
    const choices = [...figure.querySelectorAll("input[type=radio]")];
    const chosen = () => Math.max(0, choices.findIndex(choice => choice.checked));
    const refresh = () => draw(chosen());
    for (const choice of [...choices, all].filter(Boolean)) choice.addEventListener("change", () => { refresh(); saveState(); });
    for (const query of [dark, narrow]) query.addEventListener("change", refresh);
    refreshers.push(refresh);
    figure.hidden = false;
    refresh();
    if (figure.dataset.table) linkPoints(plot, figure.dataset.table);
  }
}

if (window.DataTable) enhanceTables();
if (window.Plotly) enhanceCharts();
addEventListener("popstate", loadState);
loadState();
