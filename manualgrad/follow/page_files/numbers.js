"use strict";
// The numbers of the page: float32 and uint8 arrays from the JSON, by name.

const DATA = JSON.parse(document.getElementById("data").textContent);
const CONVS = DATA.convs, LAST = DATA.layers;  // convolutions f⁰, f¹, ...; L
let state = 0;  // index into DATA.states

function decode(packed) {
  if (!packed.values) {
    const text = atob(packed.f32 || packed.u8), bytes = Uint8Array.from(text, c => c.charCodeAt(0));
    packed.values = packed.u8 ? bytes : new Float32Array(bytes.buffer);
  }
  return packed;
}

// {shape, values} of a quantity. "maxima0" is R(z⁰) at the places of the maxima, and NaN elsewhere;
// "flip/wrong/dx1" is dx1 of a mistake, and "flip/difference/dx1" is wrong less right.
function get(name) {
  const q = DATA.states[state].q;
  if (name in q) return decode(q[name]);
  if (name.startsWith("maxima")) return maxima(name.slice(6));
  const [mistake, side, quantity] = name.split("/"), both = DATA.mistakes[mistake];
  if (side !== "difference") return decode(both[side][quantity]);
  const right = decode(both.right[quantity]), wrong = decode(both.wrong[quantity]);
  return {shape: right.shape, values: right.values.map((v, n) => wrong.values[n] - v)};
}

function maxima(l) {
  const z = get("z" + l), argmax = get("argmax" + l), [H, W, C] = z.shape, [I, J] = argmax.shape;
  const values = new Float32Array(H * W * C).fill(NaN);
  for (let i = 0; i < I; i++) for (let j = 0; j < J; j++) for (let k = 0; k < C; k++) {
    const place = argmax.values[(i * J + j) * C + k];
    const n = ((2 * i + (place >> 1)) * W + 2 * j + (place & 1)) * C + k;
    values[n] = Math.max(z.values[n], 0);
  }
  return {shape: z.shape, values};
}

const at = (q, ...index) => q.values[index.reduce((n, i, d) => n * q.shape[d] + i, 0)];

// ------------------------------------------------------------------------------------------ names and numbers

const UP = "⁰¹²³⁴⁵⁶⁷⁸⁹";
function symbol(name) {
  const last = name.split("/").pop(), [, letters, digit] = last.match(/^([a-z]+)(\d*)$/);
  const l = digit === "" ? "" : UP[digit], next = digit === "" ? "" : UP[+digit + 1];
  const back = `δ${l} ∂${CONVS.includes(+digit) ? "C" : "D"}/∂x${l}`;
  const inner = CONVS.includes(+digit + 1) ? "" : "F⁻¹";
  const spread = `P⁻¹(${inner}${inner && "("}δ${next} ∂${inner ? "D" : "C"}/∂x${next}${inner && ")"})`;
  return {delta: "δ" + l, dw: "Δw" + l, db: "Δb" + l, dx: back, spread, maxima: `R(z${l}) at the maxima`}[letters]
    || letters + l;
}

function kind(name) {
  const letters = name.split("/").pop().replace(/\d/g, "");
  return {x: "x", y: "x", z: "z", maxima: "x", w: "w", b: "w", dw: "w", db: "w"}[letters] || "delta";
}

function format(v, digits = 3) {
  if (Number.isNaN(v)) return "";
  if (v === 0) return "0";
  const size = Math.abs(v), small = size < 1e-3 || size >= 1e5;
  return (small ? v.toExponential(digits - 2) : v.toPrecision(digits)).replace("e+", "e").replaceAll("-", "−");
}

const signed = v => (v < 0 ? " − " : " + ") + format(Math.abs(v));
