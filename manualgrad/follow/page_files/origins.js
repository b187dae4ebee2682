// Where a number came from: explain(name, n) returns its title, the sum in words, small tables of numbers, the marks on
// the pictures, and the sum that was computed here from the page's numbers.

const mark = (type, array, tile, row, column, height = 1, width = 1) => ({type, array, tile, row, column, height, width});
const index = (q, n) => q.shape.map((_, d) => Math.floor(n / q.shape.slice(d + 1).reduce((a, b) => a * b, 1)) % q.shape[d]);
const sum = list => list.reduce((a, b) => a + b, 0);
const table = (caption, rows, chosen = null, of = "") => ({caption, rows, chosen, of});
const grid = (height, width, f) => Array.from({length: height}, (_, r) => Array.from({length: width}, (_, c) => f(r, c)));

function cellMark(type, array, n) {
  const [tile, row, column] = layout(get(array).shape).place(n);
  return mark(type, array, tile, row, column);
}

function wholeMarks(type, array) {
  const l = layout(get(array).shape);
  return Array.from({length: l.tiles}, (_, t) => mark(type, array, t, 0, 0, l.height, l.width));
}

function explain(name, n) {
  const letters = name.replace(/\d/g, ""), l = +name.replace(/\D/g, ""), q = get(name), at = index(q, n);
  const isConv = CONVS.includes(l), value = q.values[n];
  const makers = {
    x: () => l === 0 ? pixel(at) : l === LAST ? probability(l, n) : CONVS.includes(l - 1) ? pooled(l, n) : rectified(l, n),
    z: () => isConv ? convolved(l, at) : weighted(l, n),
    w: () => isConv ? kernelWeight(l, at) : denseWeight(l, at), b: () => bias(l, n), y: () => target(n),
    maxima: () => maximum(l, n, at), delta: () => l === LAST - 1 ? firstDelta(n) : passed(l, n),
    dx: () => isConv ? collected(l, at) : collectedDense(l, n), spread: () => spreadBack(l, n, at),
    dw: () => isConv ? kernelStep(l, at) : denseStep(l, at), db: () => biasStep(l, n, isConv),
  };
  const origin = {tables: [], marks: [], sum: null, ...makers[letters]()};
  origin.title = `${symbol(name)} at (${at.join(", ")}) = ${format(value)}`;
  origin.value = value;
  origin.marks.push(cellMark("target", name, n));
  return origin;
}

// ----------------------------------------------------------------------------------------------------- forward

function pixel([t, u, r]) {
  const z = get("z0"), [kH, kW] = get("w0").shape, [I, J, K] = z.shape;
  const top = Math.max(0, t - kH + 1), left = Math.max(0, u - kW + 1);
  const height = Math.min(t, I - 1) - top + 1, width = Math.min(u, J - 1) - left + 1;
  return {
    words: `This pixel lies in ${height * width} windows. So ${height * width} numbers of each channel of z⁰ saw it, `
      + `each through another weight of the kernel.`,
    marks: Array.from({length: K}, (_, k) => mark("source", "z0", k, top, left, height, width)),
  };
}

function convolved(l, [i, j, k]) {
  const x = get("x" + l), w = get("w" + l), [kH, kW, R, K] = w.shape, b = get("b" + l).values[k];
  const product = (p, q, r) => at(x, i + p, j + q, r) * at(w, kH - 1 - p, kW - 1 - q, r, k);
  const sums = Array.from({length: R}, (_, r) => sum(grid(kH, kW, (p, q) => product(p, q, r)).flat()));
  const r = sums.reduce((best, s, n) => Math.abs(s) > Math.abs(sums[best]) ? n : best, 0), total = sum(sums) + b;
  const of = R > 1 ? `, channel ${r}` : "";
  return {
    words: R === 1
      ? `Equation (1): the ${kH * kW} products add up to ${format(sums[0])}. With the bias, (17): ${format(sums[0])}${signed(b)} = <b>${format(total)}</b>.`
      : `Equation (1): ${kH * kW * R} products. The tables show the ${kH * kW} of channel ${r}, the largest sum. Channel by channel: `
        + `${format(sums[0])}${sums.slice(1).map(signed).join("")}; with the bias, (17), ${signed(b).trim()}: <b>${format(total)}</b>.`,
    tables: [table(`window of x${UP[l]}${of}`, grid(kH, kW, (p, q) => at(x, i + p, j + q, r))),
             table(`w${UP[l]} of channel ${k}${of ? " for channel " + r : ""}, rotated`, grid(kH, kW, (p, q) => at(w, kH - 1 - p, kW - 1 - q, r, k)), null, "·"),
             table("products", grid(kH, kW, (p, q) => product(p, q, r)), null, "=")],
    marks: [...Array.from({length: R}, (_, c) => mark("source", "x" + l, c, i, j, kH, kW)),
            ...Array.from({length: R}, (_, c) => mark("source", "w" + l, c * K + k, 0, 0, kH, kW)), cellMark("source", "b" + l, k)],
    sum: total,
  };
}

function pooled(l, n) {
  const z = get("z" + (l - 1)), argmax = get("argmax" + (l - 1)), [i, j, k] = index(argmax, n);
  const place = argmax.values[n], p = place >> 1, q = place & 1, best = at(z, 2 * i + p, 2 * j + q, k);
  const from = l < LAST && get("x" + l).shape.length === 1 ? ` F, equation (5): row ${i}, column ${j}, channel ${k} is number ${n}.` : "";
  return {
    words: (best > 0 ? `The largest of the four is ${format(best)}. R leaves it as it is: <b>${format(best)}</b>.`
      : "None of the four is positive. R makes them 0, and of equal numbers the first counts as the maximum: <b>0</b>.") + from,
    tables: [table(`window of z${UP[l - 1]}, channel ${k}`, grid(2, 2, (a, c) => at(z, 2 * i + a, 2 * j + c, k)), [p, q]),
             table("R of it", grid(2, 2, (a, c) => Math.max(0, at(z, 2 * i + a, 2 * j + c, k))), [p, q], "→")],
    marks: ["z", "maxima"].flatMap(a => [mark("source", a + (l - 1), k, 2 * i, 2 * j, 2, 2), mark("place", a + (l - 1), k, 2 * i + p, 2 * j + q)]),
    sum: Math.max(0, best),
  };
}

function maximum(l, n, [i, j, k]) {
  const [, J, C] = get("argmax" + l).shape, I = get("argmax" + l).shape[0], row = i >> 1, column = j >> 1;
  if (row >= I || column >= J) return {words: "No window reaches this place."};
  const isPlace = !Number.isNaN(get("maxima" + l).values[n]), next = (row * J + column) * C + k;
  return {
    words: isPlace ? "The maximum of its window came from here." : "The maximum of its window came from another place.",
    marks: [mark("source", "maxima" + l, k, 2 * row, 2 * column, 2, 2), cellMark("source", "x" + (l + 1), next),
            mark("source", "z" + l, k, 2 * row, 2 * column, 2, 2)],
  };
}

// The five largest products of a sum, in words.
const factor = v => v < 0 ? `(${format(v)})` : format(v);

function products(left, right) {
  const all = left.map((v, n) => [v * right[n], v, right[n], n]).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0]));
  const shown = all.slice(0, 5), rest = sum(all.slice(5).map(p => p[0]));
  return {
    total: sum(all.map(p => p[0])),
    text: shown.map(([, a, b], m) => `${m ? " + " + factor(a) : format(a)}·${factor(b)}`).join("")
      + (all.length > 5 ? `${signed(rest)} from ${all.length - 5} others` : ""),
  };
}

function weighted(l, j) {
  const x = get("x" + l), w = get("w" + l), [I] = w.shape, b = get("b" + l).values[j];
  const column = Array.from({length: I}, (_, i) => at(w, i, j)), p = products([...x.values], column);
  return {
    words: `Equation (6): ${I} products, the five largest first: ${p.text} = ${format(p.total)}. With the bias, (17): `
      + `${format(p.total)}${signed(b)} = <b>${format(p.total + b)}</b>.`,
    marks: [...wholeMarks("source", "x" + l), mark("source", "w" + l, 0, j, 0, 1, I), cellMark("source", "b" + l, j)],
    sum: p.total + b,
  };
}

function rectified(l, n) {
  const z = get("z" + (l - 1)).values[n];
  return {words: z >= 0 ? `z${UP[l - 1]} is ${format(z)}, not negative: it stays, <b>${format(z)}</b>.` : `z${UP[l - 1]} is ${format(z)}, negative: <b>0</b>.`,
          marks: [cellMark("source", "z" + (l - 1), n)], sum: Math.max(0, z)};
}

function probability(l, n) {
  const z = get("z" + (l - 1)).values, e = [...z].map(Math.exp), total = sum(e), x = get("x" + l).values[n], y = get("y").values;
  const cost = y[n] === 1 ? ` It is the right digit, so J = −log ${format(x)} = <b>${format(-Math.log(x))}</b>.` : "";
  return {words: `Digit ${n}: e^${format(z[n])} = ${format(e[n])}; all ten add up to ${format(total)}; `
    + `${format(e[n])} / ${format(total)} = <b>${format(e[n] / total)}</b>.${cost}`,
    marks: [...wholeMarks("source", "z" + (l - 1)), cellMark("source", "y", n)], sum: e[n] / total};
}

const target = n => ({words: get("y").values[n] ? `The digit is a ${n}: its target is 1.` : `The digit is not a ${n}: the target is 0.`});
const bias = (l, k) => ({words: CONVS.includes(l) ? `The bias of channel ${k}, added at every position.` : `The bias of number ${k} of z${UP[l]}.`,
                         marks: CONVS.includes(l) ? [mark("source", "z" + l, k, 0, 0, ...get("z" + l).shape)] : [cellMark("source", "z" + l, k)]});

function readBy(l, [c, t, u]) {  // the pixels of x^l that a weight of a kernel multiplies
  const [kH, kW] = get("w" + l).shape, [I, J] = get("z" + l).shape;
  return mark("source", "x" + l, u, kH - 1 - c, kW - 1 - t, I, J);
}

function kernelWeight(l, at) {
  const [I, J] = get("z" + l).shape;
  return {words: `This weight multiplies ${I}×${J} pixels of x${UP[l]}, one for each number of channel ${at[3]} of z${UP[l]}.`,
          marks: [readBy(l, at), mark("source", "z" + l, at[3], 0, 0, I, J), mark("source", "delta" + l, at[3], 0, 0, I, J)]};
}

const denseWeight = (l, [i, j]) => ({words: `This weight leads from number ${i} of x${UP[l]} to number ${j} of z${UP[l]}.`,
  marks: ["x", "dx"].map(a => [a + l, i]).concat(["z", "delta"].map(a => [a + l, j])).filter(([a]) => a in DATA.states[state].q)
    .map(([a, n]) => cellMark("source", a, n))});

// ---------------------------------------------------------------------------------------------------- backward

function firstDelta(n) {
  const x = get("x" + LAST).values[n], y = get("y").values[n], value = -DATA.eta * (x - y);
  return {words: `−η (x − y) = −${DATA.eta} · (${format(x)} − ${y}) = <b>${format(value)}</b>. `
    + (value > 0 ? "Adding it makes this digit more probable." : "Adding it makes this digit less probable."),
    marks: [cellMark("source", "x" + LAST, n), cellMark("source", "y", n)], sum: value};
}

function collectedDense(l, k) {
  const delta = get("delta" + l), w = get("w" + l), J = w.shape[1];
  const p = products([...delta.values], Array.from({length: J}, (_, j) => at(w, k, j)));
  return {words: `Equations (20) and (7): ${J} products δ${UP[l]}·w${UP[l]}, the five largest first: ${p.text} = <b>${format(p.total)}</b>.`,
          marks: [...wholeMarks("source", "delta" + l), mark("source", "w" + l, 0, 0, k, J, 1)], sum: p.total};
}

function spreadBack(l, n, [i, j, k]) {
  const argmax = get("argmax" + l), [I, J, C] = argmax.shape, row = i >> 1, column = j >> 1;
  if (row >= I || column >= J) return {words: "No window reaches this place, so nothing comes back to it: <b>0</b>.", sum: 0};
  const m = (row * J + column) * C + k, place = argmax.values[m], p = place >> 1, q = place & 1;
  const isPlace = p === (i & 1) && q === (j & 1), dx = get("dx" + (l + 1)).values[m];
  return {
    words: isPlace ? `The maximum of this window came from here, so it gets all that comes back: <b>${format(dx)}</b>.`
      : `The maximum of this window came from another place, which gets the ${format(dx)}. Here: <b>0</b>.`,
    tables: [table("what P⁻¹ makes of it", grid(2, 2, (a, b) => a === p && b === q ? dx : 0), [i & 1, j & 1])],
    marks: [cellMark("source", "dx" + (l + 1), m), mark("source", "maxima" + l, k, 2 * row, 2 * column, 2, 2),
            mark("source", "spread" + l, k, 2 * row, 2 * column, 2, 2)],
    sum: isPlace ? dx : 0,
  };
}

function passed(l, n) {
  const isConv = CONVS.includes(l), arrives = isConv ? "spread" + l : "dx" + (l + 1);
  const v = get(arrives).values[n], z = get("z" + l).values[n], slope = z > 0 ? 1 : z < 0 ? 0 : DATA.subgradient;
  return {words: `z${UP[l]} is ${format(z)} here, so by (10) ∂R/∂z is ${slope === 0.5 ? "½" : slope}: ${format(v)} · ${slope} = <b>${format(v * slope)}</b>.`,
          marks: [cellMark("source", arrives, n), cellMark("source", "z" + l, n), ...(isConv ? [cellMark("source", "maxima" + l, n)] : [])],
          sum: v * slope};
}

function collected(l, [t, u, v]) {
  const delta = get("delta" + l), w = get("w" + l), [kH, kW, , K] = w.shape, [I, J] = delta.shape;
  const inside = (a, b) => t - kH + 1 + a >= 0 && t - kH + 1 + a < I && u - kW + 1 + b >= 0 && u - kW + 1 + b < J;
  const d = (a, b, k) => inside(a, b) ? at(delta, t - kH + 1 + a, u - kW + 1 + b, k) : NaN;
  const sums = Array.from({length: K}, (_, k) => sum(grid(kH, kW, (a, b) => inside(a, b) ? d(a, b, k) * at(w, a, b, v, k) : 0).flat()));
  const k = sums.reduce((best, s, n) => Math.abs(s) > Math.abs(sums[best]) ? n : best, 0);
  const top = Math.max(0, t - kH + 1), left = Math.max(0, u - kW + 1);
  const height = Math.min(t, I - 1) - top + 1, width = Math.min(u, J - 1) - left + 1;
  return {
    words: `Equation (2): ${height * width} positions of each of the ${K} channels of z${UP[l]} saw this pixel. The tables show channel ${k}, `
      + `the largest sum. Channel by channel: ${format(sums[0])}${sums.slice(1).map(signed).join("")} = <b>${format(sum(sums))}</b>.`,
    tables: [table(`δ${UP[l]} of these positions, channel ${k}`, grid(kH, kW, (a, b) => d(a, b, k))),
             table(`w${UP[l]} of channel ${k} for channel ${v}, not rotated`, grid(kH, kW, (a, b) => at(w, a, b, v, k)), null, "·"),
             table("products", grid(kH, kW, (a, b) => d(a, b, k) * at(w, a, b, v, k)), null, "=")],
    marks: Array.from({length: K}, (_, c) => [mark("source", "delta" + l, c, top, left, height, width), mark("source", "w" + l, v * K + c, 0, 0, kH, kW)]).flat(),
    sum: sum(sums),
  };
}

function kernelStep(l, [c, t, u, v]) {
  const delta = get("delta" + l), x = get("x" + l), [kH, kW] = get("w" + l).shape, [I, J] = delta.shape, terms = [];
  for (let i = 0; i < I; i++) for (let j = 0; j < J; j++) {
    const d = at(delta, i, j, v);
    if (d !== 0) terms.push([d, at(x, i + kH - 1 - c, j + kW - 1 - t, u)]);
  }
  const p = products(terms.map(a => a[0]), terms.map(a => a[1]));
  return {words: `Equation (3): ${I * J} products δ${UP[l]}·x${UP[l]}, of which ${terms.length} have a δ${UP[l]} that is not 0: `
    + `${terms.length ? p.text : "none"} = <b>${format(p.total)}</b>.`,
    marks: [mark("source", "delta" + l, v, 0, 0, I, J), readBy(l, [c, t, u]), cellMark("source", "w" + l, ((c * kW + t) * get("w" + l).shape[2] + u) * get("w" + l).shape[3] + v)],
    sum: p.total};
}

function denseStep(l, [i, j]) {
  const x = get("x" + l).values[i], d = get("delta" + l).values[j];
  return {words: `Equations (21) and (8): x${UP[l]} · δ${UP[l]} = ${format(x)} · ${factor(d)} = <b>${format(x * d)}</b>.`,
          marks: [cellMark("source", "x" + l, i), cellMark("source", "delta" + l, j), cellMark("source", "w" + l, i * get("w" + l).shape[1] + j)], sum: x * d};
}

function biasStep(l, k, isConv) {
  const delta = get("delta" + l), [I, J] = delta.shape;
  if (!isConv) return {words: `Equation (18): Δb${UP[l]} is δ${UP[l]}, <b>${format(delta.values[k])}</b>.`, marks: [cellMark("source", "delta" + l, k)], sum: delta.values[k]};
  const total = sum(grid(I, J, (i, j) => at(delta, i, j, k)).flat());
  return {words: `Equation (18): the sum of all ${I * J} numbers of channel ${k} of δ${UP[l]}: <b>${format(total)}</b>.`,
          marks: [mark("source", "delta" + l, k, 0, 0, I, J)], sum: total};
}
