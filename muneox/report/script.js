"use strict";
// Figures are plain Plotly data with named colours (`$c0`, `$c0/0.2`). The style sheet defines each colour for a light and
// for a dark page, and a change of theme redraws all figures.
const root = document.documentElement;
const figures = JSON.parse(document.getElementById("figures").textContent);
const system = window.matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
let paper = null; // width of a figure in pixels during printing

function colours() {
  const style = getComputedStyle(root);
  const known = {};
  return (name) => {
    if (!(name in known)) known[name] = style.getPropertyValue("--" + name).trim();
    return known[name];
  };
}

function resolve(value, colour) {
  if (typeof value === "string" && value.startsWith("$")) {
    const [name, opacity] = value.slice(1).split("/");
    const hex = colour(name);
    if (opacity === undefined) return hex;
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return `rgba(${r}, ${g}, ${b}, ${opacity})`;
  }
  if (Array.isArray(value)) return value.map((item) => resolve(item, colour));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(item, colour)]));
  }
  return value;
}

function axis(own, type, colour) {
  const line = { gridcolor: colour("grid"), zerolinecolor: colour("muted"), linecolor: colour("line"), automargin: true };
  const merged = { zeroline: false, ...line, ...own };
  if (type && type !== (own.type || "linear")) {
    merged.type = type;
    delete merged.range;
    delete merged.tickvals;
    delete merged.dtick;
    merged.autorange = true;
  }
  return merged;
}

function draw(figure) {
  const colour = colours();
  const narrow = figure.plot.clientWidth < 520;
  const { layout, views } = figure.spec;
  const data = resolve(figure.spec.data, colour);
  const grouped = new Set(views.flatMap((view) => view[1]));
  const shown = new Set(views.length ? views[figure.view][1] : []);
  data.forEach((trace, i) => { trace.visible = !grouped.has(i) || shown.has(i); });
  Plotly.react(figure.plot, data, {
    ...resolve(layout, colour),
    xaxis: axis(resolve(layout.xaxis || {}, colour), figure.types.x, colour),
    yaxis: axis(resolve(layout.yaxis || {}, colour), figure.types.y, colour),
    height: paper ? Math.min(figure.spec.height, 400) : figure.spec.height,
    width: paper || undefined,
    autosize: !paper,
    margin: { l: narrow ? 46 : 64, r: 12, t: 12, b: 48 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: narrow ? 11 : 13, color: colour("text") },
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("text") } },
    hovermode: "closest",
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, font: { size: narrow ? 10 : 12 } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("muted"), activecolor: colour("accent") },
    uirevision: `${figure.types.x} ${figure.types.y}`,
  }, { responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover",
       modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]] });
}

function theme(name) {
  root.dataset.theme = name;
  document.getElementById("theme").textContent = name === "dark" ? "Light" : "Dark";
  figures.forEach((figure) => figure.plot && draw(figure));
}

function control(figure, button) {
  const which = button.dataset.axis;
  const own = (figure.spec.layout[which + "axis"] || {}).type || "linear";
  figure.types[which] = own;
  button.setAttribute("aria-pressed", String(own === "log"));
  button.addEventListener("click", () => {
    figure.types[which] = figure.types[which] === "log" ? "linear" : "log";
    button.setAttribute("aria-pressed", String(figure.types[which] === "log"));
    draw(figure);
  });
}

for (const [i, spec] of figures.entries()) {
  const element = document.getElementById(spec.name);
  const figure = { spec, plot: element.querySelector(".plot"), view: 0, types: {} };
  figures[i] = figure;
  element.querySelectorAll("button[data-axis]").forEach((button) => control(figure, button));
  element.querySelectorAll("select").forEach((select) => {
    figure.view = select.selectedIndex;
    select.addEventListener("change", () => { figure.view = select.selectedIndex; draw(figure); });
  });
  element.querySelectorAll("button.reset").forEach((button) => button.addEventListener("click", () => {
    Plotly.relayout(figure.plot, { "xaxis.autorange": true, "yaxis.autorange": true });
  }));
}

document.getElementById("theme").addEventListener("click", () => {
  chosen = root.dataset.theme === "dark" ? "light" : "dark";
  theme(chosen);
});
system.addEventListener("change", () => { if (!chosen) theme(system.matches ? "dark" : "light"); });

// Print in the light theme and with all tables open.
let before = null;
window.addEventListener("beforeprint", () => {
  before = { theme: root.dataset.theme, folded: [...document.querySelectorAll("details:not([open])")] };
  before.folded.forEach((details) => { details.open = true; });
  paper = 670; // fits on A4 and on letter paper
  theme("light");
});
window.addEventListener("afterprint", () => {
  before.folded.forEach((details) => { details.open = false; });
  paper = null;
  theme(before.theme);
});

theme(system.matches ? "dark" : "light");
root.dataset.drawn = String(figures.length);
