// Two conveniences on a page that is whole without them: numbers under the pointer, and light or dark by hand.
"use strict";

const root = document.documentElement;
const theme = document.getElementById("theme");
const remember = {
  // A browser may keep nothing for a file from disk.
  read() { try { return localStorage.getItem("minillm-ray-theme"); } catch { return null; } },
  write(value) { try { localStorage.setItem("minillm-ray-theme", value); } catch { /* then not */ } },
};
const known = remember.read();
if (known === "light" || known === "dark") root.dataset.theme = known;
theme.hidden = false;
theme.addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remember.write(root.dataset.theme);
});

function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e4) return Math.round(value).toLocaleString("en");
  return size < 1e-4 ? value.toExponential(3) : value.toPrecision(4);
}

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - points[low - 1][0] < points[low][0] - x ? points[low - 1] : points[low];
}

function draw(svg, name, attributes) {
  const shape = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
  shape.style.display = "none";
  svg.append(shape);
  return shape;
}

// 14, 24 and 8 below are the margins that the figures are drawn with.
function readOut(figure) {
  const svg = figure.querySelector("svg");
  const curves = JSON.parse(svg.dataset.curves);
  const longest = curves.reduce((one, other) => (other.length > one.length ? other : one));
  const outputs = [...figure.querySelectorAll("output")];
  const still = outputs.map((output) => output.textContent);
  const { width, height } = svg.viewBox.baseVal;
  const pointer = draw(svg, "path", { class: "pointer" });
  const steps = draw(svg, "text", { class: "x at", y: height - 8 });

  function show(event) {
    const box = svg.getBoundingClientRect();
    const here = nearest(longest, (event.clientX - box.left) * width / box.width);
    curves.forEach((points, index) => { outputs[index].textContent = number(nearest(points, here[0])[1]); });
    pointer.setAttribute("d", `M${here[0]} 14V${height - 24}`);
    steps.setAttribute("x", Math.min(Math.max(here[0], 60), width - 40));
    steps.textContent = here.slice(2).map((step) => step.toLocaleString("en")).join("–");
    pointer.style.display = steps.style.display = "";
  }
  function rest() {
    outputs.forEach((output, index) => { output.textContent = still[index]; });
    pointer.style.display = steps.style.display = "none";
  }
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", rest);
  svg.addEventListener("pointercancel", rest);
}
document.querySelectorAll("figure").forEach(readOut);

const readout = document.getElementById("readout");
document.addEventListener("click", (event) => {
  document.querySelector(".chosen")?.classList.remove("chosen");
  const token = event.target.closest(".response b");
  readout.hidden = !token;
  if (!token) return;
  token.classList.add("chosen");
  readout.textContent = `“${token.textContent}”  ${token.title}`;
});
