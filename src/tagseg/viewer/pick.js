// The pick page: shows one image at a time, sends every pick at once, and says so where it was not saved.
"use strict";
const find = (id) => document.getElementById(id);
let candidates = [], items = [], at = 0, busy = false;

function show() {
  const item = items[at], row = find("row");
  const done = items.filter((one) => one.pick !== null).length;
  find("progress").textContent = `image ${at + 1} of ${items.length} · ${done} picked`;
  find("name").textContent = item.id;
  find("tags").textContent = item.tags.join(", ");
  document.title = `${done} of ${items.length} picked`;
  row.replaceChildren(panel("photo", null, item), ...candidates.map((name, k) => panel(name, k + 1, item)));
}

function panel(name, key, item) {
  const button = document.createElement("button"), image = document.createElement("img");
  const label = document.createElement("span");
  image.src = `/picture/${at}/${encodeURIComponent(name)}`;
  image.alt = `${name} of ${item.id}`;
  label.className = "label";
  if (key === null) {
    button.disabled = true;
  } else {
    const mark = document.createElement("kbd");
    mark.textContent = key;
    label.append(mark, " ");
    button.onclick = () => pick(name);
    button.setAttribute("aria-pressed", String(item.pick === name));
    if (item.pick === name) button.className = "picked";
  }
  label.append(name);
  button.append(image, label);
  return button;
}

async function pick(name) {
  if (busy) return say("the last pick is still being saved: press again");
  busy = true;
  const number = at, item = items[number];
  try {
    const answer = await fetch("/pick", {
      method: "POST", headers: { "content-type": "application/json" },
      body: JSON.stringify({ number, pick: name, before: item.pick }),
    });
    if (answer.status === 409) {
      item.pick = (await answer.json()).pick;
      say(`another window picked ${item.pick ?? "nothing"} meanwhile: look again`);
    } else if (!answer.ok) {
      say(`not saved: ${await answer.text()}`);
    } else {
      item.pick = (await answer.json()).pick;
      say("");
      if (name !== null && at === number && at < items.length - 1) at += 1;
    }
  } catch (error) {
    say("not saved: tagseg pick no longer answers; start it again, your earlier picks are kept");
  }
  busy = false;
  show();
}

function say(text) { find("said").textContent = text; }

function go(to) {
  if (to < 0 || to >= items.length) return;
  at = to;
  say("");
  show();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !items.length) return;
  const move = event.key === "ArrowLeft" || event.key === "ArrowRight";
  if (event.repeat && !move) return; // a key that is held down picks once
  const digit = Number.parseInt(event.key, 10);
  if (event.key === "ArrowLeft") go(at - 1);
  else if (event.key === "ArrowRight") go(at + 1);
  else if (event.key === "n") go(items.findIndex((one, k) => k > at && one.pick === null));
  else if (digit === 0) pick(null);
  else if (digit >= 1 && digit <= candidates.length) pick(candidates[digit - 1]);
  else return;
  event.preventDefault();
});

fetch("/items.json").then((answer) => answer.json()).then((found) => {
  ({ candidates, items } = found);
  find("last").textContent = candidates.length;
  const first = items.findIndex((one) => one.pick === null);
  at = Math.max(first, 0);
  if (items.length) show();
  else say("there is no image to look at");
}).catch(() => say("tagseg pick no longer answers: start it again"));
