"use strict";
// The page follows from `data`, which Python wrote, and `state`, which the reader changes.

const element = (id) => document.getElementById(id);
const numFrames = data.frames.length;
const THRESHOLDS = { min: 0, max: Math.max(0.5, data.threshold), step: 0.005 };

// --------------------------------------------------------------------------------------------------------- state

const state = {
  selector: data.selectors[0],
  threshold: data.threshold,
  budget: numTokens,
  model: data.models.find((model) => model.chosen),
  frame: 0,
  playing: !matchMedia("(prefers-reduced-motion: reduce)").matches,
  picked: null, // the place under the pointer, if any
};
let mask = keep(state.selector.key, state.threshold);
let runs = runsOf(mask);
let numKept = count(mask);

const byThreshold = () => state.selector.unit === "threshold";
const tubeletOf = (frame) => Math.floor(frame / data.tubeletSize);

function select() {
  mask = keep(state.selector.key, byThreshold() ? state.threshold : state.budget);
  runs = runsOf(mask);
  numKept = count(mask);
  writeFigures();
  drawStrip();
  drawScreen();
}

// ------------------------------------------------------------------------------------------------------- pictures

const images = data.frames.map((source) => Object.assign(new Image(), { src: source }));
const screen = element("screen").getContext("2d");
const theme = {};

/** Frame `frame` with the dropped patches of its tubelet greyed, or filled with what was last kept there. */
function paint(context, frame) {
  const { width, height } = context.canvas;
  const [w, h] = [width / gw, height / gh];
  const [sw, sh] = [images[frame].naturalWidth / gw, images[frame].naturalHeight / gh];
  const t = tubeletOf(frame);
  const dropped = new Path2D();
  context.drawImage(images[frame], 0, 0, width, height);
  for (let place = 0; place < numPlaces; place++) {
    const [x, y] = [place % gw, Math.floor(place / gw)];
    const head = runs.heads[t * numPlaces + place];
    if (head === t) continue;
    if (head >= 0 && element("fill").checked) {
      const shown = images[head * data.tubeletSize + (frame % data.tubeletSize)];
      context.drawImage(shown, x * sw, y * sh, sw, sh, x * w, y * h, w, h);
    } else {
      dropped.rect(x * w, y * h, w, h);
    }
  }
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "hsl(0 0% 50%)";
  context.fill(dropped);
  context.globalCompositeOperation = "source-over";
  context.fillStyle = theme.wash;
  context.fill(dropped);
  outlinePicked(context, t, w, h);
}

/** The picked place, in every tubelet of the run that is on the screen. */
function outlinePicked(context, t, w, h) {
  if (state.picked === null) return;
  const head = runs.heads[tubeletOf(state.frame) * numPlaces + state.picked];
  if (head < 0 || runs.heads[t * numPlaces + state.picked] !== head) return;
  const line = Math.max(2, w / 10);
  context.lineWidth = line;
  context.strokeStyle = theme.mark;
  const [x, y] = [(state.picked % gw) * w, Math.floor(state.picked / gw) * h];
  context.strokeRect(x + line / 2, y + line / 2, w - line, h - line);
}

function drawScreen() {
  paint(screen, state.frame);
  writePlace();
  const t = tubeletOf(state.frame);
  element("frame").value = state.frame;
  element("frame").setAttribute("aria-valuetext", `frame ${state.frame + 1} of ${numFrames}`);
  element("time").textContent = `${data.seconds[state.frame].toFixed(2)} s`;
  cells.forEach((cell, i) => cell.button.setAttribute("aria-current", String(i === t)));
}

function drawStrip() {
  cells.forEach((cell, t) => {
    const kept = keptIn(t);
    paint(cell.context, t * data.tubeletSize);
    cell.bar.style.height = `${(100 * kept) / numPlaces}%`;
    cell.count.textContent = kept;
    cell.button.setAttribute("aria-label", describeTubelet(t));
  });
}

const keptIn = (t) => count(mask.subarray(t * numPlaces, (t + 1) * numPlaces));

const cells = Array.from({ length: gt }, (_, t) => {
  const button = element("cell").content.firstElementChild.cloneNode(true);
  const canvas = button.querySelector("canvas");
  canvas.width = gw * Math.ceil(192 / gw);
  canvas.height = (canvas.width / gw) * gh;
  button.addEventListener("click", () => show(t * data.tubeletSize));
  for (const event of ["pointerenter", "focus"]) {
    button.addEventListener(event, () => say(describeTubelet(t)));
  }
  for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => say(""));
  element("strip").append(button);
  return {
    button,
    context: canvas.getContext("2d"),
    bar: button.querySelector(".level"),
    count: button.querySelector(".count"),
  };
});

// ---------------------------------------------------------------------------------------------------------- words

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}\u00a0%`;
const whole = (number) => number.toLocaleString("en");
const giga = (number) => (number < 1e10 ? (number / 1e9).toPrecision(3) : (number / 1e9).toFixed(1));
const say = (text) => (element("detail").textContent = text || element("detail").dataset.idle);

function describeTubelet(t) {
  const counts = new Map();
  for (let i = t * numPlaces; i < (t + 1) * numPlaces; i++) {
    if (mask[i]) counts.set(runs.lengths[i], (counts.get(runs.lengths[i]) ?? 0) + 1);
  }
  const lengths = [...counts].sort((a, b) => a[0] - b[0]).map(([run, n]) => `${run} (${n}×)`);
  const told = lengths.length ? ` Run lengths in tubelets: ${lengths.join(", ")}.` : "";
  const first = t * data.tubeletSize + 1;
  const last = first + data.tubeletSize - 1;
  const frames = last > first ? `frames ${first} to ${last}` : `frame ${first}`;
  return `Tubelet ${t + 1}, ${frames}: ${keptIn(t)} of ${numPlaces} patches kept.${told}`;
}

function describePlace(place) {
  const t = tubeletOf(state.frame);
  const head = runs.heads[t * numPlaces + place];
  if (head < 0) return "Dropped, and nothing was kept here before";
  const length = runs.lengths[head * numPlaces + place];
  const span = length > 1 ? `tubelets ${head + 1} to ${head + length}` : `tubelet ${head + 1} alone`;
  return head === t ? `Kept: stands for ${span}` : `Dropped: the token of tubelet ${head + 1} stands for ${span}`;
}

function writePlace() {
  const place = element("place");
  place.hidden = state.picked === null;
  if (place.hidden) return;
  place.textContent = describePlace(state.picked);
  place.classList.toggle("top", state.picked >= numPlaces / 2);
}

function writeFigures() {
  const { selector, model } = state;
  const dense = macs(model, numTokens, numTokens);
  const cost = macs(model, numKept, selector.needsEmbeddings ? numTokens : numKept);
  element("headline").textContent = percent(numKept / numTokens);
  element("kept").textContent = percent(numKept / numTokens);
  element("tokens").textContent = `${whole(numKept)} of ${whole(numTokens)}`;
  element("macs").textContent = `${giga(cost)} GMACs`;
  element("flops").textContent = `${giga(2 * cost)} GFLOPs (2 × MACs)`;
  element("dense").textContent = `dense: ${giga(dense)} GMACs`;
  element("speed").textContent = `${(dense / cost).toFixed(dense / cost < 10 ? 2 : 1)}×`;
  element("rule").textContent = selector.rule;
  element("source").textContent = selector.source;
  writeSlider();
}

function writeSlider() {
  const { selector } = state;
  const slider = element("slider");
  slider.disabled = selector.unit === "none";
  element("published").hidden = selector.published === null;
  if (byThreshold()) {
    Object.assign(slider, THRESHOLDS, { value: state.threshold });
    element("setting").textContent = `Threshold ${state.threshold.toFixed(3)}`;
    element("meaning").textContent = `${(state.threshold * data.greyLevels).toFixed(1)} of 255 grey levels`;
  } else {
    const step = selector.unit === "places" ? gt : 1;
    Object.assign(slider, { max: numTokens, min: step, step, value: numKept });
    element("setting").textContent = `Budget ${whole(numKept)} tokens`;
    element("meaning").textContent = `of ${whole(numTokens)}`;
  }
  slider.setAttribute("aria-valuetext", `${element("setting").textContent}, ${percent(numKept / numTokens)} kept`);
  if (selector.published) element("published").textContent = selector.published.label;
  drawCurve();
}

/** Above the slider: the kept share at every threshold, or the scores from the highest to the lowest. */
function drawCurve() {
  const { key } = state.selector;
  if (!curves.has(key)) curves.set(key, curveOf(key));
  const points = curves.get(key).map((y, i) => `${i},${(100 - 100 * y).toFixed(1)}`);
  element("area").setAttribute("points", points.length ? `0,100 ${points.join(" ")} 100,100` : "");
  const { value, min, max } = element("slider");
  element("here").style.left = `${(100 * (value - min)) / (max - min)}%`;
  const scored = points.length ? "Scores, from the highest to the lowest" : "No scores";
  element("axis").textContent = byThreshold() ? "Kept share at every threshold" : scored;
}

const curves = new Map();
function curveOf(key) {
  const shares = Array.from({ length: 101 }, (_, i) => i / 100);
  if (byThreshold()) return shares.map((x) => count(keep(key, x * THRESHOLDS.max)) / numTokens);
  if (!scores.has(key)) return [];
  const falling = scores.get(key).slice().sort().reverse();
  return shares.map((x) => falling[Math.round(x * (numTokens - 1))] / (falling[0] || 1));
}

// --------------------------------------------------------------------------------------------------------- events

function show(frame) {
  state.frame = (frame + numFrames) % numFrames;
  drawScreen();
  if (state.picked !== null) drawStrip();
}

let timer = 0;
function play(playing) {
  state.playing = playing;
  clearInterval(timer);
  if (playing) timer = setInterval(() => show(state.frame + 1), 1000 * data.secondsPerFrame);
  element("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  element("play").dataset.playing = playing;
}

function step(by) {
  play(false);
  show(state.frame + by);
}

function pick(place) {
  if (place === state.picked) return;
  state.picked = place;
  drawScreen();
  drawStrip();
}

function choose(selector) {
  // The next budget is what is kept now, so that selectors compare at equal cost; "all" sets none.
  if (state.selector.key !== "all") state.budget = numKept;
  state.selector = selector;
  select();
}

function set(value) {
  state[byThreshold() ? "threshold" : "budget"] = value;
  select();
}

function onKey(event) {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || target.closest("select")) return;
  const actions = { ",": () => step(-1), ".": () => step(1), f: () => element("fill").click() };
  if (!target.closest("input[type=range], input[type=radio]")) {
    Object.assign(actions, { ArrowLeft: actions[","], ArrowRight: actions["."] });
  }
  if (!target.closest("button, a, summary, input:not([type=range])")) {
    actions[" "] = () => play(!state.playing);
  }
  if (!(key in actions)) return;
  event.preventDefault();
  actions[key]();
}

function readTheme() {
  const style = getComputedStyle(document.body);
  for (const name of ["wash", "mark"]) theme[name] = style.getPropertyValue(`--${name}`);
}

/** The place of the canvas that a pointer is at. */
function placeAt({ offsetX, offsetY }) {
  const { clientWidth, clientHeight } = screen.canvas;
  const column = Math.min(gw - 1, Math.max(0, Math.floor((gw * offsetX) / clientWidth)));
  return gw * Math.min(gh - 1, Math.max(0, Math.floor((gh * offsetY) / clientHeight))) + column;
}

function listen() {
  element("slider").addEventListener("input", ({ target }) => set(Number(target.value)));
  element("published").addEventListener("click", () => set(state.selector.published.value));
  element("frame").addEventListener("input", ({ target }) => step(target.value - state.frame));
  element("play").addEventListener("click", () => play(!state.playing));
  element("fill").addEventListener("change", select);
  element("model").addEventListener("change", ({ target }) => {
    state.model = data.models[target.selectedIndex];
    writeFigures();
  });
  document.querySelectorAll("input[name=selector]").forEach((radio, i) =>
    radio.addEventListener("change", () => choose(data.selectors[i])),
  );
  for (const event of ["pointermove", "pointerdown"]) {
    screen.canvas.addEventListener(event, (pointer) => pick(placeAt(pointer)));
  }
  // A finger leaves when it is lifted, and what it pointed at is still to be read.
  screen.canvas.addEventListener("pointerleave", ({ pointerType }) => {
    if (pointerType === "mouse") pick(null);
  });
  document.addEventListener("keydown", onKey);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readTheme();
    select();
  });
}

Promise.all(images.map((image) => image.decode())).then(() => {
  [screen.canvas.width, screen.canvas.height] = [images[0].naturalWidth, images[0].naturalHeight];
  readTheme();
  listen();
  select();
  play(state.playing);
  document.body.dataset.ready = "";
});
