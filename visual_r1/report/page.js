"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

// Text from runs enters the page here and only as text.
function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== ""));
  return node;
}

async function unpack(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (one) => one.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

/*CHARTS*/

/*BROWSER*/

const wantsDark = matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";
try { theme = localStorage.getItem("theme") || "auto"; } catch { /* a browser may keep nothing for files */ }
function setTheme() {
  document.documentElement.dataset.theme = theme === "auto" ? (wantsDark.matches ? "dark" : "light") : theme;
  for (const button of document.querySelectorAll("[data-theme][aria-pressed]")) button.setAttribute("aria-pressed", String(button.dataset.theme === theme));
  if (document.getElementById("legend")?.children.length) { legend(); drawCharts(); }
}
for (const button of document.querySelectorAll("button[data-theme]")) button.addEventListener("click", () => {
  theme = button.dataset.theme;
  try { localStorage.setItem("theme", theme); } catch { /* as above */ }
  setTheme();
});
wantsDark.addEventListener("change", setTheme);
setTheme();

(async () => {
  try {
    const script = document.createElement("script");
    script.textContent = await unpack("plotly");
    document.head.append(script);
  } catch (error) {
    document.getElementById("bar")?.before(element("p", { class: "note" }, `Charts cannot be drawn by this browser (${error}); their tables are below.`));
  }
  startCharts();
  if (!window.Plotly) for (const details of document.querySelectorAll(".chart details")) details.open = true;
  startRollouts(JSON.parse(await unpack("rollouts-data")));
  document.documentElement.dataset.ready = "true";
})();
