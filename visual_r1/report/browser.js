// The rollout browser: completions of one run and step, filtered; a probe example followed through the steps.
const browsing = { run: 0, step: 0, source: "p", limit: 12 };
let rollouts = null;

// A long text scrolls in its place, by the keyboard too, or one completion that never ends would bury the others.
const LONG = 2000;

function textOf(row) {
  const isLong = row.p.reduce((sum, [, text]) => sum + text.length, 0) > LONG;
  const attributes = isLong ? { class: "text long", tabindex: "0", role: "region", "aria-label": "A long completion, scrolls" } : { class: "text" };
  if (!row.p.length) return element("p", { class: "note" }, "nothing: an empty completion");
  return element("p", attributes, ...row.p.map(([kind, text]) =>
    kind.endsWith("r") ? element("span", { class: kind[0] }, element("mark", {}, text)) : element("span", { class: kind }, text)));
}

function factsOf(row, extra = "") {
  const facts = [element("b", { class: row.ok ? "good" : "bad" }, row.ok ? "✓ right" : "✗ wrong"), row.c ? `answer ${row.c}` : "no readable answer", `${row.n} tokens`];
  if (row.k) facts.push(`${row.k} reflecting phrase${row.k > 1 ? "s" : ""}`);
  if (row.cut) facts.push("cut at the limit");
  if (row.ch) facts.push("changed since the visit before");
  for (const [term, score] of Object.entries(row.sc || {})) facts.push(`${term} ${score}`);
  if (row.adv !== undefined && row.adv !== null) facts.push(`advantage ${row.adv > 0 ? "+" : ""}${row.adv}`);
  return element("div", { class: "facts" }, extra, ...facts.map((one) => (typeof one === "string" ? element("span", {}, one) : one)));
}

function imagesOf(example) {
  if (!example.images.length) return element("div", { class: "images" }, element("div", { class: "noimage" }, "no image in this file: the example has none, or “Left out” says why"));
  return element("div", { class: "images" }, ...example.images.map((index) => {
    const image = element("img", { src: rollouts.images[index], alt: `Image of ${example.id}` });
    image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 200));
    return image;
  }));
}

function follow(exampleIndex) {
  const run = rollouts.runs[browsing.run];
  const visits = run.steps.flatMap(({ step, rows }) => rows.filter((row) => row.s === "p" && row.e === exampleIndex).map((row) => ({ step, row })));
  return element("div", { class: "follow" }, element("h4", {}, `The same example at ${visits.length} steps of ${run.label}`),
    ...visits.map(({ step, row }) => element("div", { class: "completion" }, factsOf(row, element("b", {}, `step ${step}`)), textOf(row))));
}

function cardOf(rows) {
  const example = rollouts.examples[rows[0].e];
  const body = element("div", {},
    element("p", { class: "question" }, example.question),
    element("div", { class: "facts" }, element("span", {}, example.id), element("span", {}, example.category), element("b", {}, `solution ${example.solution}`)),
    ...rows.map((row) => element("div", { class: "completion" }, factsOf(row), textOf(row))));
  if (rows[0].s === "p") {
    const button = element("button", { type: "button", "aria-expanded": "false" }, "follow through the steps");
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!open));
      if (open) body.querySelector(".follow").remove(); else body.append(follow(rows[0].e));
    });
    body.append(button);
  }
  return element("li", { class: "card" }, imagesOf(example), body);
}

const control = (id) => document.getElementById(id);

// Groups of rows that share a prompt; of the probe each has one.
function chosen() {
  const step = rollouts.runs[browsing.run].steps[browsing.step];
  const words = control("find").value.trim().toLowerCase();
  const fits = (row) => row.s === browsing.source
    && (!control("wrong").checked || !row.ok) && (!control("reflects").checked || row.k > 0)
    && (!control("changed").checked || row.ch) && (!control("cut").checked || row.cut)
    && (!words || row.p.map((piece) => piece[1]).join("").toLowerCase().includes(words) || rollouts.examples[row.e].question.toLowerCase().includes(words));
  const groups = new Map();
  for (const row of step ? step.rows.filter(fits) : []) {
    const key = row.s === "p" ? `e${row.e}` : `g${row.g}`;
    groups.set(key, [...(groups.get(key) || []), row]);
  }
  const found = [...groups.values()];
  const most = (rows, key) => Math.max(...rows.map((row) => row[key] ?? -Infinity));
  const orders = { longest: "n", reflecting: "k", advantage: "adv" };
  const key = orders[control("order").value];
  if (key) { found.forEach((rows) => rows.sort((a, b) => (b[key] ?? -Infinity) - (a[key] ?? -Infinity))); found.sort((a, b) => most(b, key) - most(a, key)); }
  return found;
}

function showRollouts() {
  const run = rollouts.runs[browsing.run];
  const hasSource = (step) => step.rows.some((row) => row.s === browsing.source);
  const steps = run.steps.map((one, index) => ({ index, step: one.step, ok: hasSource(one) })).filter((one) => one.ok);
  if (!steps.some((one) => one.index === browsing.step)) browsing.step = steps.length ? steps[steps.length - 1].index : 0;
  control("step").replaceChildren(...steps.map((one) => element("option", { value: one.index }, `step ${one.step}`)));
  control("step").value = browsing.step;
  const place = steps.findIndex((one) => one.index === browsing.step);
  control("earlier").disabled = place <= 0;
  control("later").disabled = place < 0 || place >= steps.length - 1;
  control("changed").disabled = browsing.source !== "p";
  const found = steps.length ? chosen() : [];
  const num = found.reduce((sum, rows) => sum + rows.length, 0);
  control("count").textContent = steps.length ? `${num} completion${num === 1 ? "" : "s"} of ${found.length} question${found.length === 1 ? "" : "s"}` : "This run has none of these on record.";
  control("cards").replaceChildren(...found.slice(0, browsing.limit).map(cardOf));
  control("more").hidden = found.length <= browsing.limit;
  control("more").textContent = `show ${Math.min(12, found.length - browsing.limit)} more of ${found.length}`;
}

function startRollouts(unpacked) {
  rollouts = unpacked;
  if (!rollouts.runs.length) return;
  control("run").replaceChildren(...rollouts.runs.map((run, index) => element("option", { value: index }, run.label)));
  // A run that was followed through steps tells more than one that was only asked.
  browsing.run = Math.max(0, rollouts.runs.findIndex((run) => run.steps.length > 1));
  control("run").value = browsing.run;
  browsing.step = rollouts.runs[browsing.run].steps.length - 1;
  const again = (change) => (event) => { change(event.target); browsing.limit = 12; showRollouts(); };
  control("run").addEventListener("change", again((target) => { browsing.run = Number(target.value); browsing.step = rollouts.runs[browsing.run].steps.length - 1; }));
  control("kind").addEventListener("change", again((target) => { browsing.source = target.value; if (target.value !== "p") control("changed").checked = false; }));
  control("step").addEventListener("change", again((target) => { browsing.step = Number(target.value); }));
  const move = (by) => () => { const options = [...control("step").options]; const at = options.findIndex((one) => Number(one.value) === browsing.step); browsing.step = Number(options[at + by].value); browsing.limit = 12; showRollouts(); };
  control("earlier").addEventListener("click", move(-1));
  control("later").addEventListener("click", move(1));
  for (const id of ["wrong", "reflects", "changed", "cut", "order"]) control(id).addEventListener("change", again(() => {}));
  control("find").addEventListener("input", again(() => {}));
  control("more").addEventListener("click", () => { browsing.limit += 12; showRollouts(); });
  showRollouts();
}
