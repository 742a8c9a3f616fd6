"use strict";
// Which tokens are kept, by the rules of onereel.tokens on the scores and rankings that it computed. Tokens are in
// order (t, h, w); a mask holds 1 where a token is kept.

const data = JSON.parse(document.getElementById("data").textContent);
const [gt, gh, gw] = data.grid;
const numPlaces = gh * gw;
const numTokens = gt * numPlaces;

function decode(text, ArrayType) {
  return new ArrayType(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

const adjacent = decode(data.adjacent, Float32Array);
const anchored = decode(data.anchored, Float32Array);
const rankings = new Map(
  Object.entries(data.rankings).map(([key, text]) => [key, decode(text, Int32Array)]),
);
const scores = new Map(
  Object.entries(data.scores).map(([key, text]) => [key, decode(text, Float32Array)]),
);

/** The first tubelet is always kept. */
function firstTubelet() {
  return new Uint8Array(numTokens).fill(1, 0, numPlaces);
}

function keepAdjacent(threshold) {
  const mask = firstTubelet();
  const limit = Math.fround(threshold); // differences are float32, and so is what they are compared with
  for (let i = 0; i < adjacent.length; i++) mask[numPlaces + i] = adjacent[i] > limit ? 1 : 0;
  return mask;
}

/** Row k(k-1)/2 + j of `anchored` holds the differences of tubelet k from a head j < k. */
function keepAnchored(threshold) {
  const mask = firstTubelet();
  const limit = Math.fround(threshold);
  const heads = new Uint16Array(numPlaces);
  for (let k = 1; k < gt; k++) {
    for (let place = 0; place < numPlaces; place++) {
      const row = (k * (k - 1)) / 2 + heads[place];
      if (anchored[row * numPlaces + place] > limit) {
        mask[k * numPlaces + place] = 1;
        heads[place] = k;
      }
    }
  }
  return mask;
}

/** The first tokens of a ranking: one ranking serves every budget. */
function keepFirst(key, budget) {
  const mask = new Uint8Array(numTokens);
  for (const token of rankings.get(key).subarray(0, budget)) mask[token] = 1;
  return mask;
}

/** As many places, at all times, as come nearest to the budget. */
function keepPlaces(budget) {
  const mask = new Uint8Array(numTokens);
  const places = rankings.get("tube").subarray(0, Math.max(1, Math.round(budget / gt)));
  for (const place of places) for (let t = 0; t < gt; t++) mask[t * numPlaces + place] = 1;
  return mask;
}

const own = data.own && decode(data.own, Uint8Array); // what the run's selector kept, if there is a run

/** The mask of a selector; `setting` is a threshold or a budget in tokens. */
function keep(key, setting) {
  if (key === "own") return own.slice();
  if (key === "adjacent") return keepAdjacent(setting);
  if (key === "anchored") return keepAnchored(setting);
  if (key === "tube") return keepPlaces(setting);
  if (key === "all") return new Uint8Array(numTokens).fill(1);
  return keepFirst(key, setting);
}

const count = (mask) => mask.reduce((sum, kept) => sum + kept, 0);

/** Per token: the tubelet that its place last kept (-1: none yet), and how many each kept one stands for. */
function runsOf(mask) {
  const heads = new Int16Array(numTokens).fill(-1);
  const lengths = new Uint16Array(numTokens);
  for (let i = 0; i < numTokens; i++) {
    const place = i % numPlaces;
    if (mask[i]) heads[i] = (i - place) / numPlaces;
    else if (i >= numPlaces) heads[i] = heads[i - numPlaces];
    if (heads[i] >= 0) lengths[heads[i] * numPlaces + place] += 1;
  }
  return { heads, lengths };
}

/** Multiply-adds of a forward: the formula of VisionTransformer.macs. */
function macs({ embedDim, depth, extraTokens }, numKept, numEmbedded) {
  const n = numKept + extraTokens;
  const blocks = depth * (12 * n * embedDim ** 2 + 2 * n ** 2 * embedDim);
  return blocks + numEmbedded * data.patchValues * embedDim;
}
