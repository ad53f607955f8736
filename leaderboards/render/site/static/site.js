// Tables sort and search by DataTables, charts are drawn by Plotly; without either, or without JavaScript, the pages read as they are.
"use strict";

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
    const tools = element.closest("section").querySelector(".tools");
    if (tools) addTools(tools, table);
  }
}

function addTools(tools, table) {
  const found = tools.querySelector("output");
  const count = () => {
    const [shown, all] = [table.rows({ search: "applied" }).count(), table.rows().count()];
    found.textContent = shown === all ? "" : `${shown} of ${all} rows`;
  };
  tools.hidden = false;
  tools.querySelector("input[type=search]").addEventListener("input", event => { table.search(event.target.value).draw(); count(); });
  const boxes = [...tools.querySelectorAll("input[type=checkbox]")];
  const hides = element => boxes.some(box => box.checked && JSON.parse(element.dataset.marks || "[]").includes(box.value));
  table.search.fixed("marks", (text, data, index) => !hides(table.row(index).node()));
  for (const box of boxes) box.addEventListener("change", () => {
    table.draw();
    count();
    for (const item of tools.closest("section").querySelectorAll("li[data-marks]")) item.hidden = hides(item);
  });
}

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function theme() {
  const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, title: { standoff: 12 } };
  const font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("--text") };
  return {
    font, paper_bgcolor: "transparent", plot_bgcolor: "transparent", margin: { l: 56, r: 16, t: 28, b: 52 },
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
      all.parentElement.hidden = !outside;
      if (outside && all.checked) {
        for (const axis of [xaxis, yaxis]) delete axis.range;
        delete chart.layout.annotations; // names stand apart only within the frame
      }
      const layout = { ...chart.layout, template: { layout: theme() }, dragmode: touch.matches ? false : "zoom" };
      caption.textContent = chart.caption;
      Plotly.react(plot, chart.data, layout, { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] });
      // The picture alone: what is inside an image, as Plotly's buttons would be, is not read out.
      const picture = plot.querySelector(".main-svg");
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", `Chart: ${chart.title}`);
    };
    const choices = [...figure.querySelectorAll("input[type=radio]")];
    const chosen = () => Math.max(0, choices.findIndex(choice => choice.checked));
    for (const choice of [...choices, all]) choice.addEventListener("change", () => draw(chosen()));
    for (const query of [dark, narrow]) query.addEventListener("change", () => draw(chosen()));
    figure.hidden = false;
    draw(chosen());
  }
}

if (window.DataTable) enhanceTables();
if (window.Plotly) enhanceCharts();
