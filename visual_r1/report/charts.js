// Curves: Plotly draws them, this file says what. Every chart has its numbers as a table, and the arrow keys walk it.
const state = { source: "probe", smoothing: 1, seeds: false, choice: {} };
const dashes = { solid: "solid", dash: "dash", dot: "dot" };
const symbols = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon"];

// The same marks in the legend.
const marks = ["M13 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M13.5 2.5h7v7h-7z", "M17 1.5l4.5 4.5l-4.5 4.5l-4.5-4.5z", "M17 2l4.2 7.5h-8.4z", "M15.6 2h2.8v2.6H21v2.8h-2.6V10h-2.8V7.400H13V4.600h2.600z",
  "M14 1.500l3 3l3-3l1.500 1.500l-3 3l3 3l-1.500 1.500l-3-3l-3 3l-1.500-1.500l3-3l-3-3z", "M17 1.500l1.300 3h3.200l-2.600 2l1 3.200l-2.900-1.900l-2.900 1.900l1-3.200l-2.600-2h3.200z", "M15 2h4l2 4l-2 4h-4l-2-4z"];

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isDark = () => document.documentElement.dataset.theme === "dark";
const colour = (index) => { const list = data.colours[isDark() ? "dark" : "light"]; return list[index % list.length]; };
// Shifted by one each time the colours begin anew: no two of 64 lines share both.
const markOf = (index) => (index + Math.floor(index / symbols.length)) % symbols.length;
const faded = (hex, alpha) => hex + Math.round(255 * alpha).toString(16).padStart(2, "0");

// A centred mean over `width` points; a gap stays a gap.
function smooth(values, width) {
  if (width < 2) return values;
  const half = (width - 1) / 2;
  return values.map((value, index) => {
    if (value === null) return null;
    const near = values.slice(Math.max(0, index - half), index + half + 1).filter((one) => one !== null);
    return near.reduce((sum, one) => sum + one, 0) / near.length;
  });
}

const shown = (value, unit) => {
  if (value === null || value === undefined) return "–";
  const scaled = unit === "%" ? 100 * value : value;
  const size = Math.abs(scaled);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return scaled.toExponential(2);
  return scaled.toFixed(size >= 100 ? 0 : size >= 1 ? 1 : unit === "%" ? 1 : 4);
};

// A line in words, step by step: its mean and the ends of its band, all three smoothed over `width` points.
function readings(curve, unit, width) {
  const [mean, low, high] = [curve.mean, curve.low || [], curve.high || []].map((values) => smooth(values, width));
  return mean.map((value, at) => shown(value, unit) + ((low[at] ?? null) === null ? "" : ` [${shown(low[at], unit)}, ${shown(high[at], unit)}]`));
}

// The lines of a chart as it stands: whose, which, and the numbers.
function linesOf(chart) {
  const choice = chart.choices[state.choice[chart.key] || 0];
  const lines = [];
  for (const line of choice.lines) {
    // What only training has is shown whatever the switch says, as nothing else could be.
    const key = state.source === "probe" ? line.probe || line.train : line.train || (line.probe && null);
    for (const [index, curve] of (data.curves[key] || []).entries()) {
      if (curve) lines.push({ index, curve, line, key, entry: data.entries[index] });
    }
  }
  return lines;
}

function traces(chart) {
  const scale = chart.unit === "%" ? 100 : 1;
  const found = [];
  const scaled = (values, width) => smooth(values, width).map((value) => (value === null ? null : value * scale));
  for (const { index, curve, line, entry } of linesOf(chart)) {
    const ink = colour(index);
    const width = state.smoothing;
    const name = entry.label + (line.label ? `, ${line.label}` : "");
    const dash = entry.finished ? dashes[line.dash] : "longdashdot";
    const isMain = line.dash === "solid";
    if (curve.low && isMain) {
      // A band is a closed shape for each stretch without a gap.
      const low = scaled(curve.low, width), high = scaled(curve.high, width);
      let start = 0;
      for (let end = 0; end <= low.length; end++) {
        if (end < low.length && low[end] !== null) continue;
        if (end - start > 1) {
          const steps = curve.steps.slice(start, end);
          found.push({ x: [...steps, ...[...steps].reverse()], y: [...low.slice(start, end), ...high.slice(start, end).reverse()],
            type: "scatter", mode: "none", fill: "toself", fillcolor: faded(ink, isDark() ? 0.26 : 0.17), hoverinfo: "skip" });
        }
        start = end + 1;
      }
    }
    if (state.seeds) for (const seed of curve.seeds || []) {
      found.push({ x: curve.steps, y: scaled(seed, width), type: "scatter", mode: "lines", hoverinfo: "skip",
        line: { color: faded(ink, 0.55), width: 1, dash } });
    }
    const text = readings(curve, chart.unit, width);
    const few = curve.steps.length <= 30;
    found.push({ x: curve.steps, y: scaled(curve.mean, width), type: "scatter", mode: few ? "lines+markers" : "lines", name: plain(name), text,
      line: { color: ink, width: isMain ? 2.2 : 1.6, dash }, connectgaps: false,
      marker: { symbol: symbols[markOf(index)], size: few ? (isMain ? 6 : 4) : 5, color: ink },
      hovertemplate: "%{fullData.name}: %{text}<extra></extra>" });
  }
  return found;
}

// Plotly reads a little HTML in names; a run's name is none.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function layout(chart) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), tickfont: { size: 11 }, automargin: true };
  const all = linesOf(chart);
  const isAccuracy = chart.key === "accuracy" || chart.key === "categories";
  const shapes = chart.key === "accuracy" && data.chance !== null ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 100 * data.chance, y1: 100 * data.chance, line: { color: css("--soft"), width: 1.2, dash: "dash" } }] : [];
  const annotations = shapes.length ? [{ xref: "paper", x: 1, xanchor: "right", y: 100 * data.chance, yanchor: "bottom", text: "chance", showarrow: false, font: { size: 11, color: css("--soft") } }] : [];
  const isShare = chart.unit === "%";
  const tops = all.flatMap(({ curve }) => [...curve.mean, ...(curve.high || [])]).filter((one) => one !== null);
  // The lines decide the height: a band over two seeds may be many times as wide as all that happens.
  const values = all.flatMap(({ curve }) => smooth(curve.mean, state.smoothing)).filter((one) => one !== null);
  const least = Math.min(0, ...values), most = Math.max(...values), room = 0.3 * (most - least) || 1;
  const top = isShare ? Math.min(1.02, 1.12 * Math.max(0.04, ...tops)) * 100 : Math.min(most + room, Math.max(most + 0.05 * room, 1.05 * Math.max(...tops)));
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "x unified", shapes, annotations,
    font: { family: "system-ui, 'DejaVu Sans', sans-serif", size: 12, color: css("--ink") },
    margin: { l: 42, r: 10, t: 8, b: 36 },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { size: 12, color: css("--ink") } },
    xaxis: { ...axis, title: { text: "optimizer step", font: { size: 11, color: css("--soft") }, standoff: 4 }, zeroline: false, tickformat: "d", nticks: 7 },
    yaxis: { ...axis, ...(isAccuracy ? { range: [0, 102] } : isShare ? { range: [0, top] } : { range: [least < 0 ? least - 0.1 * room : 0, top] }), nticks: 6, exponentformat: "e" },
  };
}

function tableOf(chart) {
  const lines = linesOf(chart);
  const steps = [...new Set(lines.flatMap(({ curve }) => curve.steps))].sort((a, b) => a - b);
  const head = ["step", ...lines.map(({ entry, line }) => entry.label + (line.label ? `, ${line.label}` : ""))];
  const columns = lines.map(({ curve }) => ({ steps: curve.steps, texts: readings(curve, chart.unit, 1) }));
  const rows = steps.map((step) => [String(step), ...columns.map(({ steps, texts }) => texts[steps.indexOf(step)] ?? "–")]);
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.map(([first, ...rest]) => element("tr", {}, element("th", { scope: "row" }, first), ...rest.map((text) => element("td", {}, text))))));
  return element("div", { class: "table", tabindex: "0", role: "region", "aria-label": `${chart.title} as a table` }, table);
}

function drawChart(chart) {
  const card = document.getElementById(`chart-${chart.key}`);
  const plot = card.querySelector(".plot"), details = card.querySelector("details"), kind = card.querySelector(".kind");
  const lines = linesOf(chart);
  const keys = new Set(lines.map(({ key }) => (key.startsWith("probe/") ? "held-out probe" : "training rollouts")));
  const noBand = lines.some(({ curve, line }) => curve.low && line.dash !== "solid") ? " Bands of the broken lines: in the values and the table." : "";
  kind.textContent = lines.length ? `Shown: ${[...keys].join(" and ")}.${noBand}` : "";
  details.querySelector("summary").textContent = state.smoothing > 1 ? "as a table, not smoothed" : "as a table";
  card.querySelector(".read").textContent = "";
  card.dataset.lines = lines.length;
  if (!lines.length) {
    if (window.Plotly) Plotly.purge(plot);
    plot.replaceChildren(element("p", { class: "absent" }, state.source === "probe" ? "Not measured in these runs." : "Not measured on training rollouts."));
  } else if (window.Plotly) {
    if (plot.querySelector(".absent")) plot.replaceChildren();
    Plotly.react(plot, traces(chart), layout(chart), { responsive: true, displayModeBar: false, doubleClick: "reset" });
  }
  plot.setAttribute("aria-label", `${chart.title}, ${lines.length} lines; arrow keys read the values, the table below has them all`);
  if (details.open) details.querySelector(".table").replaceWith(tableOf(chart));
}

// The keyboard's hover: one step left or right, read out below the chart.
function walk(chart, plot, event) {
  const lines = linesOf(chart);
  const steps = [...new Set(lines.flatMap(({ curve }) => curve.steps))].sort((a, b) => a - b);
  const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length };
  if (!(event.key in moves) || !steps.length) return;
  event.preventDefault();
  const at = Math.min(steps.length - 1, Math.max(0, (plot.at ?? -1) + moves[event.key]));
  plot.at = at;
  const step = steps[at];
  if (window.Plotly) Plotly.Fx.hover(plot, plot.data.flatMap((trace, curveNumber) => {
    const pointNumber = trace.text ? trace.x.indexOf(step) : -1;
    return pointNumber < 0 || trace.y[pointNumber] === null ? [] : [{ curveNumber, pointNumber }];
  }));
  const words = lines.map(({ entry, line, curve }) => `${entry.label}${line.label ? ` ${line.label}` : ""} ${readings(curve, chart.unit, state.smoothing)[curve.steps.indexOf(step)] ?? "–"}`);
  plot.parentElement.querySelector(".read").textContent = `Step ${step}${state.smoothing > 1 ? `, mean of ${state.smoothing} points` : ""}: ${words.join("; ")}`;
}

function makeChart(chart) {
  const choice = chart.choices.length > 1 ? element("select", { "aria-label": `What ${chart.title} shows` }, ...chart.choices.map((one, index) => element("option", { value: index }, one.label))) : "";
  if (choice) choice.addEventListener("change", () => { state.choice[chart.key] = Number(choice.value); drawChart(chart); });
  const plot = element("div", { class: "plot", tabindex: "0", role: "img" });
  plot.addEventListener("keydown", (event) => walk(chart, plot, event));
  const details = element("details", {}, element("summary", {}, "as a table"), element("div", { class: "table" }));
  details.addEventListener("toggle", () => { if (details.open) details.querySelector(".table").replaceWith(tableOf(chart)); });
  const unit = element("span", { class: "unit" }, chart.unit ? ` ${chart.unit}` : "");
  return element("div", { class: "chart", id: `chart-${chart.key}` },
    element("div", { class: "head" }, element("h3", {}, chart.title, unit), choice),
    element("p", { class: "note" }, chart.note, " ", element("span", { class: "kind" })),
    plot, element("p", { class: "note read", "aria-live": "polite" }), details);
}

const drawCharts = () => data.charts.forEach(drawChart);

function legend() {
  const list = document.getElementById("legend");
  list.replaceChildren(...data.entries.map((entry, index) => {
    const sample = element("span", {});
    const dash = entry.finished ? "" : ' stroke-dasharray="7 3 2 3"';
    sample.innerHTML = `<svg width="34" height="12" aria-hidden="true"><line x1="0" y1="6" x2="34" y2="6" stroke="${colour(index)}" stroke-width="2.4"${dash}/><path d="${marks[markOf(index)]}" fill="${colour(index)}"/></svg>`;
    return element("li", {}, sample, entry.label, element("span", { class: "note" }, entry.about));
  }));
}

function startCharts() {
  if (!data.charts.length) return;
  for (const chart of data.charts) document.getElementById(chart.place).append(makeChart(chart));
  const bar = document.getElementById("bar");
  const source = element("select", { id: "source" }, element("option", { value: "probe" }, "held-out probe"), element("option", { value: "train" }, "training rollouts"));
  source.addEventListener("change", () => { state.source = source.value; drawCharts(); });
  const smoothing = element("select", { id: "smoothing" }, ...[[1, "none"], [3, "3 points"], [7, "7 points"], [15, "15 points"], [31, "31 points"]].map(([value, text]) => element("option", { value }, text)));
  smoothing.addEventListener("change", () => { state.smoothing = Number(smoothing.value); drawCharts(); });
  const seeds = element("input", { type: "checkbox", id: "seeds" });
  seeds.addEventListener("change", () => { state.seeds = seeds.checked; drawCharts(); });
  bar.append(element("label", {}, "Measured on", source), element("label", {}, "Smoothing", smoothing), element("label", {}, seeds, "each seed"));
  legend();
  drawCharts();
}
