"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const root = document.documentElement;
const hidden = new Set(); // numbers of the runs that are not shown
const drawn = new Set();

const named = (key) => figures[key].data.filter((trace) => trace.showlegend !== false);

function constant(key) { // an axis from 0, where plotly would zoom into the rounding of one value
  const values = figures[key].data.flatMap((trace) => Array.from(trace.y)).filter((value) => Number.isFinite(value));
  const most = values.reduce((a, b) => Math.max(a, b), -Infinity), least = values.reduce((a, b) => Math.min(a, b), Infinity);
  return most > 0 && most - least <= 1e-6 * most ? { range: [0, 1.5 * most], type: "linear" } : {};
}

function layout(key) {
  const style = getComputedStyle(root);
  const line = style.getPropertyValue("--line").trim();
  const log = document.querySelector(`[data-log="${key}"]`);
  const axis = { gridcolor: line, zeroline: false, linecolor: line, automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: style.getPropertyValue("--soft").trim(), size: 11 },
    margin: { l: 46, r: 8, t: 8, b: 34 },
    xaxis: { ...axis, title: { text: "step", standoff: 4 }, nticks: 6 },
    yaxis: { ...axis, title: { text: figures[key].unit }, type: log && log.checked ? "log" : "linear", ...constant(key) },
    showlegend: named(key).length > 1,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", font: { size: 10 } },
    hovermode: "x unified",
    hoverlabel: { bgcolor: style.getPropertyValue("--card").trim() },
  };
}

function draw(key) {
  const data = figures[key].data.map((trace) => ({ ...trace, visible: !hidden.has(trace.meta) }));
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
  const plot = document.getElementById(key); // a long legend stands above the lines, not in their place
  plot.style.height = `${270 + 15 * Math.max(0, named(key).length - 3)}px`;
  Plotly.react(plot, data, layout(key), config);
  drawn.add(key);
}

const redraw = () => drawn.forEach(draw);
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      watcher.unobserve(entry.target);
      draw(entry.target.id);
    }
  }
}, { rootMargin: "400px" });
document.querySelectorAll(".plot").forEach((plot) => watcher.observe(plot));
document.querySelectorAll("[data-log]").forEach((box) => box.addEventListener("change", () => draw(box.dataset.log)));
document.querySelectorAll(".show").forEach((box) => box.addEventListener("change", () => {
  const run = Number(box.dataset.run);
  box.checked ? hidden.delete(run) : hidden.add(run);
  redraw();
}));

const dark = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
function theme() {
  root.dataset.theme = chosen || (dark.matches ? "dark" : "light");
  redraw();
}
dark.addEventListener("change", theme);
document.getElementById("theme").addEventListener("click", () => {
  chosen = root.dataset.theme === "dark" ? "light" : "dark";
  theme();
});
theme();

// Few pixels are shown large, as they are.
function enlarge(element, width) {
  if (!element.classList.contains("spectrogram") && width && width < 160) {
    element.classList.add("small");
    if (element.tagName === "IMG") element.width = width * Math.floor(160 / width);
  }
}

// Media are decoded when they are first shown.
function load(place) {
  place.querySelectorAll("[data-src]").forEach((element) => {
    if (element.tagName === "IMG") element.addEventListener("load", () => enlarge(element, element.naturalWidth));
    else element.addEventListener("loadedmetadata", () => enlarge(element, element.videoWidth));
    element.src = element.dataset.src;
    element.removeAttribute("data-src");
  });
}

document.querySelectorAll(".stream").forEach((stream) => {
  const slider = stream.querySelector("input[type=range]");
  const steps = slider.dataset.steps.split(",").map(Number);
  const show = () => {
    const step = steps[Number(slider.value)];
    stream.querySelector("output").textContent = step;
    stream.querySelectorAll(".block").forEach((block) => {
      const all = [...block.querySelectorAll(".items")];
      const until = all.filter((items) => Number(items.dataset.step) <= step); // a run without this step shows the one before
      const shown = until.length ? until[until.length - 1] : null;
      all.forEach((items) => {
        items.hidden = items !== shown;
        if (items.hidden) items.querySelectorAll("video, audio").forEach((element) => element.pause());
      });
      if (shown) load(shown);
    });
  };
  slider.addEventListener("input", show);
  show();
});
document.querySelectorAll("section > .items").forEach(load);

const filter = document.getElementById("filter");
if (filter) filter.addEventListener("input", () => {
  const wanted = filter.value.toLowerCase();
  document.querySelectorAll("#all-settings tbody tr").forEach((row) => {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
});
document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", async () => {
  const text = button.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(text); // a page from disk may not write: it is marked, to be copied by hand
  }
}));
