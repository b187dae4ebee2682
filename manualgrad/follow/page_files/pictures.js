// A picture of a quantity: one canvas of tiles, and an SVG over it for marks.
// Tiles: images (H, W, C) have C; kernels (kH, kW, C_in, C_out) have C_in rows of C_out; matrices and rows have one.

const GAP = 1;  // cells between two tiles

function layout(shape) {
  if (shape.length === 1) {
    const width = Math.min(shape[0], 32), height = Math.ceil(shape[0] / width);
    return {tiles: 1, columns: 1, height, width, index: (t, r, c) => r * width + c, place: n => [0, Math.floor(n / width), n % width]};
  }
  if (shape.length === 2) {  // a row of the picture is a column of the matrix
    const [I, J] = shape;
    return {tiles: 1, columns: 1, height: J, width: I, index: (t, r, c) => c * J + r, place: n => [0, n % J, Math.floor(n / J)]};
  }
  if (shape.length === 3) {
    const [H, W, C] = shape;
    return {tiles: C, columns: null, height: H, width: W, index: (t, r, c) => (r * W + c) * C + t,
            place: n => [n % C, Math.floor(n / C / W), Math.floor(n / C) % W]};
  }
  const [kH, kW, R, K] = shape;
  return {tiles: R * K, columns: K, height: kH, width: kW, index: (t, r, c) => (r * kW + c) * R * K + t,
          place: n => [n % (R * K), Math.floor(n / (R * K) / kW), Math.floor(n / (R * K)) % kW]};
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const rgb = name => style.getPropertyValue(name).trim().split(/\s+/).map(Number);
  return {zero: rgb("--zero"), plus: rgb("--plus"), minus: rgb("--minus"), blank: rgb("--blank")};
}

// 0 is the paper's colour; every other number has a tint of at least a tenth.
function colour(v, largest, c) {
  if (Number.isNaN(v)) return `rgb(${c.blank})`;
  const share = v === 0 || largest === 0 ? 0 : 0.1 + 0.9 * Math.abs(v) / largest, end = v < 0 ? c.minus : c.plus;
  return `rgb(${c.zero.map((z, n) => Math.round(z + share * (end[n] - z)))})`;
}

function inkOn(background) {
  const [red, green, blue] = background.match(/\d+/g).map(Number);
  return 0.3 * red + 0.59 * green + 0.11 * blue > 140 ? "#111418" : "#ffffff";
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
  return [low, high];
}

class Picture {
  constructor(figure) {
    this.figure = figure;
    this.name = figure.dataset.array;
    this.pair = figure.dataset.pair;  // another quantity with which the colour scale is shared
    figure.classList.add("kind-" + kind(this.name));
    figure.innerHTML = `<figcaption><b></b> <span class="shape"></span> <span class="range"></span></figcaption>
      <div class="plate" tabindex="0" role="application"><canvas aria-hidden="true"></canvas><svg aria-hidden="true"></svg></div>`;
    this.plate = figure.querySelector(".plate");
    this.canvas = figure.querySelector("canvas");
    this.svg = figure.querySelector("svg");
    figure.querySelector("b").textContent = figure.dataset.caption || symbol(this.name);
  }

  draw() {
    const q = get(this.name), l = this.layout = layout(q.shape), ink = colours();
    const [low, high] = extent(q.values), [low2, high2] = this.pair ? extent(get(this.pair).values) : [0, 0];
    const largest = Math.max(-low, high, -low2, high2, 0);
    this.figure.querySelector(".shape").textContent = q.shape.join("×");
    const ends = low >= 0 ? [0, high] : [low, high], stops = ends[0] < 0 && ends[1] > 0 ? [ends[0], 0, ends[1]] : ends;
    const gradient = stops.map(v => colour(v, largest, ink)).join(",");
    this.figure.querySelector(".range").innerHTML =
      `${format(ends[0])} <i style="background:linear-gradient(90deg,${gradient})"></i> ${format(ends[1])}`;
    this.plate.setAttribute("aria-label", `${symbol(this.name)}, shape ${q.shape.join(" by ")}, from ${format(low)} to `
      + `${format(high)}. Arrow keys choose a number.`);

    const room = this.figure.parentElement.clientWidth, phone = room < 500;
    const most = l.height === 1 && l.width <= 10 ? 22 : l.width <= 10 ? (phone ? 14 : 18) : l.width <= 32 ? 11 : 8;
    const wide = columns => columns * l.width + (columns - 1) * GAP;
    const least = phone ? 4.5 : 7;  // pixels of a cell
    this.columns = l.columns || Math.max(1, Math.min(l.tiles, Math.floor((room / least + GAP) / (l.width + GAP))));
    if (!l.columns && l.tiles > 1) this.columns = Math.ceil(l.tiles / Math.ceil(l.tiles / this.columns));
    const rows = Math.ceil(l.tiles / this.columns);
    this.cellsWide = wide(this.columns);
    this.cellsHigh = rows * l.height + (rows - 1) * GAP;
    const cell = Math.min(most, room / this.cellsWide), width = cell * this.cellsWide, height = cell * this.cellsHigh;
    this.plate.style.width = `${width}px`;
    this.plate.style.height = `${height}px`;
    const dots = Math.max(1, Math.round(cell * (window.devicePixelRatio || 1)));  // of the canvas in a cell
    this.canvas.width = dots * this.cellsWide;
    this.canvas.height = dots * this.cellsHigh;
    const pen = this.canvas.getContext("2d");
    for (let t = 0; t < l.tiles; t++) {
      const [top, left] = this.corner(t);
      for (let r = 0; r < l.height; r++) for (let c = 0; c < l.width; c++) {
        const n = l.index(t, r, c);
        if (n >= q.values.length) continue;
        pen.fillStyle = colour(q.values[n], largest, ink);
        pen.fillRect((left + c) * dots, (top + r) * dots, dots, dots);
      }
    }
    this.svg.setAttribute("viewBox", `0 0 ${this.cellsWide} ${this.cellsHigh}`);
    const frames = [];
    for (let t = 0; t < l.tiles; t++) frames.push(this.rectangle("frame", t, 0, 0, l.height, l.width));
    if (q.shape.length === 1 && q.values.length === get("y").values.length)  // a number for each digit
      q.values.forEach((v, n) => frames.push(`<text x="${n + 0.5}" y="0.7" fill="${inkOn(colour(v, largest, ink))}">${n}</text>`));
    this.svg.innerHTML = `<g>${frames.join("")}</g><g class="marks"></g>`;
  }

  corner(t) {
    return [Math.floor(t / this.columns) * (this.layout.height + GAP), t % this.columns * (this.layout.width + GAP)];
  }

  rectangle(type, t, r, c, height, width) {
    const [top, left] = this.corner(t);
    return `<rect class="${type}" x="${left + c}" y="${top + r}" width="${width}" height="${height}"/>`;
  }

  mark(marks) {
    this.svg.querySelector(".marks").innerHTML =
      marks.map(m => this.rectangle(m.type, m.tile, m.row, m.column, m.height, m.width)).join("");
  }

  // Index of the number at a point of the window, or null between tiles.
  indexAt(x, y) {
    const box = this.plate.getBoundingClientRect(), l = this.layout;
    const column = Math.floor((x - box.left) / box.width * this.cellsWide), row = Math.floor((y - box.top) / box.height * this.cellsHigh);
    const tile = Math.floor(row / (l.height + GAP)) * this.columns + Math.floor(column / (l.width + GAP));
    const r = row % (l.height + GAP), c = column % (l.width + GAP);
    if (row < 0 || column < 0 || r >= l.height || c >= l.width || tile >= l.tiles) return null;
    const n = l.index(tile, r, c);
    return n < get(this.name).values.length ? n : null;
  }

  // Index of the next number in the direction of an arrow key; from a tile's border into the next tile.
  moved(n, down, right) {
    const l = this.layout;
    let [t, r, c] = l.place(n);
    r += down; c += right;
    if (c < 0 && t > 0) { t--; c = l.width - 1; }
    if (c >= l.width && t < l.tiles - 1) { t++; c = 0; }
    if (r < 0 && t >= this.columns) { t -= this.columns; r = l.height - 1; }
    if (r >= l.height && t + this.columns < l.tiles) { t += this.columns; r = 0; }
    if (r < 0 || c < 0 || r >= l.height || c >= l.width) return n;
    const next = l.index(t, r, c);
    return next < get(this.name).values.length ? next : n;
  }
}
