"use strict";
// Finds and orders the videos of the index.

const list = document.getElementById("videos");
const find = document.getElementById("find");
const order = document.getElementById("order");
const entries = list ? [...list.children] : [];

const ORDERS = {
  name: () => 0, // as written
  most: (a, b) => b.dataset.kept - a.dataset.kept,
  least: (a, b) => a.dataset.kept - b.dataset.kept,
};

function arrange() {
  const wanted = find.value.trim().toLowerCase();
  for (const entry of entries) entry.hidden = !entry.dataset.name.toLowerCase().includes(wanted);
  list.replaceChildren(...[...entries].sort(ORDERS[order.value]));
  const found = entries.filter((entry) => !entry.hidden).length;
  document.getElementById("found").textContent =
    found === entries.length ? `${found} videos` : `${found} of ${entries.length} videos`;
}

if (list) {
  find.form.addEventListener("submit", (event) => event.preventDefault());
  find.addEventListener("input", arrange);
  order.addEventListener("change", arrange);
  arrange();
}
