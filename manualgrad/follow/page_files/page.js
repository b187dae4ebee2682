// The page: pictures in their stations, the number that is looked at, the slider, and the progress line.

const pictures = [...document.querySelectorAll("figure[data-array]")].map(figure => new Picture(figure));
const stations = [...document.querySelectorAll("section.station")].map(section => ({
  section,
  lens: section.querySelector(".lens"),
  pictures: pictures.filter(p => section.contains(p.figure)),
  shown: section.dataset.shown,
  n: null,  // the index of the number that is looked at; null: the largest of the picture
}));

function largestOf(name) {
  return get(name).values.reduce((best, v, n, all) => !(Math.abs(v) <= Math.abs(all[best])) ? n : best, 0);
}

// -------------------------------------------------------------------------------------- the number looked at

function look(station, name, n) {
  if (name !== undefined) { station.shown = name; station.n = n; }
  const index = station.n ?? (station.section.id === "J" ? DATA.label : largestOf(station.shown)), origin = explain(station.shown, index);
  for (const picture of station.pictures) picture.mark(origin.marks.filter(m => m.array === picture.name));
  station.lens.innerHTML = `<h4><span class="chip kind-${kind(station.shown)}">${origin.title}</span></h4>`
    + `<p>${origin.words}</p>` + `<div class="tables">${origin.tables.map(numbers).join("")}</div>`;
  Object.assign(station.lens.dataset, {name: station.shown, index, value: origin.value, sum: origin.sum ?? ""});
}

function numbers({caption, rows, chosen, of}) {
  const ink = colours(), largest = Math.max(...rows.flat().map(v => Math.abs(v) || 0));
  const cell = (v, r, c) => `<td style="background:${colour(v, largest, ink)};color:${inkOn(colour(v, largest, ink))}"${chosen && chosen[0] === r && chosen[1] === c ? ' class="chosen"' : ""}>${format(v, 2)}</td>`;
  return `${of ? `<span class="sign">${of}</span>` : ""}<table><caption>${caption}</caption>${rows.map((row, r) => `<tr>${row.map((v, c) => cell(v, r, c)).join("")}</tr>`).join("")}</table>`;
}

const STEPS_OF_KEYS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
for (const station of stations) {
  for (const picture of station.pictures) {
    const atPointer = event => {
      const n = picture.indexAt(event.clientX, event.clientY);
      if (n !== null) look(station, picture.name, n);
    };
    picture.plate.addEventListener("pointermove", event => { if (event.pointerType === "mouse") atPointer(event); });
    picture.plate.addEventListener("click", atPointer);  // a tap, which leaves scrolling to the finger
    picture.plate.addEventListener("keydown", event => {
      const step = STEPS_OF_KEYS[event.key];
      if (!step) return;
      event.preventDefault();
      const isHere = station.shown === picture.name, from = isHere ? station.n ?? largestOf(picture.name) : largestOf(picture.name);
      look(station, picture.name, isHere ? picture.moved(from, ...step) : from);
    });
  }
}

// ------------------------------------------------------------------------------------------- state of training

const slider = document.getElementById("steps");

function draw() {
  for (const picture of pictures) picture.draw();
  for (const station of stations) look(station);
  for (const element of document.querySelectorAll("[data-now]")) element.textContent = valueOf(element.dataset.now);
  const dot = document.getElementById("dot");
  if (dot) {
    const [x, y] = curvePoint(DATA.states[state].step);
    dot.setAttribute("cx", x);
    dot.setAttribute("cy", y);
  }
}

function valueOf(name) {
  const now = DATA.states[state], x = [...get("x" + LAST).values], guess = x.indexOf(Math.max(...x));
  return {step: now.step.toLocaleString("en"), steps: now.step === 1 ? "step" : "steps", cost: format(now.cost), after: format(now.cost_after),
          right: `${(100 * x[DATA.label]).toFixed(1)} %`, guess, sure: `${(100 * x[guess]).toFixed(1)} %`}[name];
}

if (slider) {
  slider.addEventListener("input", () => {
    state = +slider.value;
    slider.setAttribute("aria-valuetext", `${DATA.states[state].step} steps of training`);
    draw();
  });
}

// The curve: steps on a logarithmic scale, from 0 (at 1/2) to the last.
function curvePoint(step, cost) {
  const last = DATA.costs.length, place = s => Math.log(s + 0.5), highest = Math.max(...DATA.costs);
  const c = cost ?? smoothed(step);
  return [4 + 192 * (place(step) - place(0)) / (place(last) - place(0)), 66 - 50 * c / highest].map(v => v.toFixed(1));
}

function smoothed(step) {  // the mean cost of the batches around a step
  const width = Math.max(1, Math.round(step / 10)), some = DATA.costs.slice(Math.max(0, Math.min(step, DATA.costs.length - 1) - width + 1), step + width);
  return sum(some) / some.length;
}

const curve = document.getElementById("curve");
if (curve) {
  const points = DATA.costs.map((c, n) => n).filter(n => n < 40 || n % 5 === 0);
  curve.innerHTML = `<path class="raw" d="M${points.map(n => curvePoint(n, DATA.costs[n]).join(" ")).join("L")}"/>
    <path d="M${points.map(n => curvePoint(n).join(" ")).join("L")}"/><path class="axis" d="M4 66H196"/>
    ${DATA.states.map(s => `<text x="${curvePoint(s.step)[0]}" y="78">${s.step}</text>`).join("")}
    <text class="top" x="198" y="9">cost of a batch, ${format(DATA.costs[0])} to ${format(smoothed(DATA.costs.length - 1))}</text><circle id="dot" r="4"/>`;
}

// --------------------------------------------------------------------------------------------------- progress

const links = new Map([...document.querySelectorAll(".progress a")].map(a => [a.hash.slice(1), a]));
const places = [...document.querySelectorAll("[data-place]")];

function findPlace() {
  const line = window.innerHeight * 0.4, passed = places.filter(p => p.getBoundingClientRect().top <= line);
  const here = (passed.pop() || places[0]).id;
  for (const [id, a] of links) {
    if (id === here && !a.hasAttribute("aria-current")) {
      a.setAttribute("aria-current", "step");
      const bar = a.closest(".progress");
      if (bar.scrollWidth > bar.clientWidth) bar.scrollTo({left: a.offsetLeft - bar.clientWidth / 2});
    } else if (id !== here) a.removeAttribute("aria-current");
  }
}

let waiting = false;
const onceAFrame = f => () => {
  if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; f(); }); }
};
window.addEventListener("scroll", onceAFrame(findPlace), {passive: true});
let width = window.innerWidth;  // a phone's bars change the height at every scroll
window.addEventListener("resize", onceAFrame(() => { if (window.innerWidth !== width) { width = window.innerWidth; draw(); } findPlace(); }));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
findPlace();
