// The page: a photo, prompts by pointer and keyboard, objects, downloads.

import { coco, labels, save } from "./downloads.js";
import { LocalDecoder } from "./local_decoder.js";
import { dot, frame, paint } from "./painting.js";
import { decodeRuns, sampled } from "./rle.js";
import { Unreachable, findEverything, findMasks, sendPhoto } from "./server.js";

const COLORS = ["#1f77ff", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#17a2b8", "#e377c2", "#bcbd22"];
const HOVER = "#ffffff";
const LEAST_DRAG = 6; // pixels of the screen; less is a click
const get = (id) => document.getElementById(id);
const [photoCanvas, maskCanvas, status] = [get("photo"), get("masks"), get("status")];

const here = new LocalDecoder(showWhere);
let photo = null; // { id, blob, name, bitmap, width, height, inputSize }
let objects = []; // { points, labels, box, mask: { size, runs, score }, past }
let active = -1;
let hover = null, drag = null, subtracting = false, wide = 0, high = 0;
let asking = null, wanted = null; // the hover request that runs, and the place it should move to

// ---- the photo

async function open(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    return tell(`${name} is no photo that this browser can read.`, "error");
  }
  photo = { blob, name, bitmap, id: null, width: bitmap.width, height: bitmap.height, inputSize: null };
  [objects, active, hover, wanted] = [[], -1, null, null];
  layOut();
  const sent = photo;
  try {
    await send(sent);
  } catch (error) {
    if (sent === photo) tell(error.message, "error");
  }
  refresh();
}

// Gives a photo its id, or throws.
async function send(sent) {
  tell(`Encoding ${sent.name} ...`, "busy");
  const start = performance.now();
  const told = await sendPhoto(sent.blob);
  if (told.width !== sent.width || told.height !== sent.height) {
    throw new Error(`The server sees ${told.width} x ${told.height} pixels, this browser ${sent.width} x ${sent.height}.`);
  }
  [sent.id, sent.inputSize] = [told.id, told.input_size];
  if (sent !== photo) return; // another one was chosen meanwhile
  if (get("here").checked) here.take(sent);
  const how = told.cached ? "known already" : `encoded in ${Math.round(told.encode_ms)} ms`;
  tell(`${sent.name}, ${sent.width} x ${sent.height}: ${how}, ${since(start)} in all. Click an object.`);
}

// Asks the server; a photo that it no longer has is sent again, once.
async function ask(work) {
  const of = photo;
  if (!of.id) await send(of);
  try {
    return await work(of.id);
  } catch (error) {
    if (error.status !== 404) throw error;
    of.id = null;
    await send(of);
    return work(of.id);
  }
}

function layOut() {
  if (!photo) return;
  const room = get("stage").getBoundingClientRect();
  const scale = Math.min((room.width - 16) / photo.width, (room.height - 16) / photo.height);
  wide = Math.max(1, Math.round(photo.width * scale));
  high = Math.max(1, Math.round(photo.height * scale));
  for (const canvas of [photoCanvas, maskCanvas]) [canvas.width, canvas.height] = [wide, high];
  const pen = photoCanvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(photo.bitmap, 0, 0, wide, high);
  for (const object of objects) object.small = null;
  hover = null;
  draw();
}

// ---- prompts

function place(event) {
  const box = maskCanvas.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  const inside = (share, size) => Math.min(Math.max(share * size, 0), size - 0.01);
  return [inside(x, photo.width), inside(y, photo.height)];
}

maskCanvas.addEventListener("pointerdown", (event) => {
  if (!photo || event.button) return;
  maskCanvas.setPointerCapture(event.pointerId);
  maskCanvas.focus({ preventScroll: true });
  drag = { from: place(event), to: place(event), at: [event.clientX, event.clientY], moved: false };
});

maskCanvas.addEventListener("pointermove", (event) => {
  if (!photo) return;
  if (drag) {
    drag.to = place(event);
    drag.moved ||= Math.hypot(event.clientX - drag.at[0], event.clientY - drag.at[1]) >= LEAST_DRAG;
    draw();
  } else if (event.pointerType === "mouse") {
    wanted = place(event);
    lookUnderPointer();
  }
});

maskCanvas.addEventListener("pointerup", (event) => {
  if (!drag) return;
  const { from, to, moved } = drag;
  drag = null;
  if (moved) {
    const [x0, x1] = [from[0], to[0]].sort((a, b) => a - b);
    const [y0, y1] = [from[1], to[1]].sort((a, b) => a - b);
    if (x1 - x0 >= 1 && y1 - y0 >= 1) change((object) => ({ ...object, box: [x0, y0, x1, y1], points: [], labels: [] }));
  } else {
    const label = event.shiftKey !== subtracting ? 0 : 1;
    change((object) => ({ ...object, points: [...object.points, to], labels: [...object.labels, label] }));
  }
  draw();
});

maskCanvas.addEventListener("pointercancel", () => { drag = null; draw(); });
maskCanvas.addEventListener("pointerleave", () => { [hover, wanted] = [null, null]; draw(); });

// One mask at a time; when it is there, the latest place is asked for.
async function lookUnderPointer() {
  if (asking || !wanted || !photo.id || active >= 0) return;
  const at = wanted, of = photo;
  wanted = null;
  asking = decode((work) => work(of.id), { points: [at] }, { wide, high });
  try {
    const start = performance.now();
    const found = await asking;
    if (of === photo && active < 0 && !drag && (!found.small || found.small.length === wide * high)) {
      hover = found;
      tell(`Decoded in ${told(found, start)}`);
    }
  } catch (error) {
    if (error instanceof Unreachable) tell(error.message, "error");
  }
  asking = null;
  draw();
  lookUnderPointer();
}

// The mask of a prompt: in this browser where that can be, else by the server. Whatever fails here
// is done there. `view`: the size of the screen, where no more of the mask is needed.
async function decode(ask, prompt, view = null) {
  const size = [photo.height, photo.width];
  if (get("here").checked && here.has(photo.id, prompt)) {
    try {
      const { score, decode_ms, runs, sampled: small } = await here.mask(photo.id, prompt, view);
      return { size, runs, small, score, decode_ms, where: "in your browser" };
    } catch (error) {
      here.stop(error.message);
    }
  }
  const found = await ask((id) => findMasks(id, prompt));
  const [{ counts, score }] = found.masks;
  return { size: found.size, runs: decodeRuns(counts), score, decode_ms: found.decode_ms, where: "by the server" };
}

function told({ decode_ms, where }, start) {
  return `${Math.round(decode_ms)} ms ${where}, ${since(start)} in all.`;
}

// Changes the active object's prompt, makes one where there is none, and asks for its mask.
async function change(edit) {
  if (!photo) return;
  const fresh = active < 0;
  const before = fresh ? { points: [], labels: [], box: null, mask: null, past: [] } : objects[active];
  const next = { ...edit(before), past: [...before.past, before], small: null };
  if (fresh) active = objects.push(next) - 1;
  else objects[active] = next;
  const index = active, of = photo;
  [hover, wanted] = [null, null];
  refresh();
  const prompt = { points: next.points, labels: next.labels, boxes: next.box ? [next.box] : [] };
  const start = performance.now();
  tell("Decoding ...", "busy");
  try {
    const found = await decode(ask, prompt);
    if (of !== photo || objects[index] !== next) return; // no longer wanted
    next.mask = found;
    next.small = null;
    tell(`Score ${found.score.toFixed(2)}, decoded in ${told(found, start)}`);
  } catch (error) {
    if (of !== photo || objects[index] !== next) return;
    tell(error.message, "error");
    if (!(error instanceof Unreachable)) restore(index, before);
  }
  refresh();
}

function restore(index, before) {
  if (before.points.length || before.box || before.mask) objects[index] = { ...before, small: null };
  else {
    objects.splice(index, 1);
    active = Math.min(active, objects.length - 1);
  }
}

function undo() {
  const object = objects[active];
  if (!object) return;
  if (object.past.length) restore(active, object.past[object.past.length - 1]);
  else { objects.splice(active, 1); active = objects.length - 1; }
  tell("Undone.");
  refresh();
}

function newObject() {
  if (objects[active]?.mask) active = -1;
  refresh();
}

function clear() {
  [objects, active, hover] = [[], -1, null];
  tell("Cleared.");
  refresh();
}

async function everything() {
  const of = photo, start = performance.now();
  tell("Looking for everything: this takes a while ...", "busy");
  get("everything").disabled = true;
  try {
    const found = await ask(findEverything);
    if (of !== photo) return;
    objects = found.masks.map(({ counts, predicted_iou, point_coords }) => ({
      points: [], labels: [], box: null, past: [], small: null,
      mask: { size: found.size, runs: decodeRuns(counts), score: predicted_iou },
      seed: point_coords,
    }));
    active = -1;
    tell(`${objects.length} masks in ${since(start)}.`);
  } catch (error) {
    if (of === photo) tell(error.message, "error");
  }
  refresh();
}

// ---- what is seen

function draw() {
  const pen = maskCanvas.getContext("2d");
  pen.clearRect(0, 0, wide, high);
  if (!photo) return;
  const picture = pen.createImageData(wide, high), scale = [wide / photo.width, high / photo.height];
  objects.forEach((object, index) => {
    if (!object.mask) return;
    object.small ||= sampled(object.mask, wide, high);
    paint(picture.data, object.small, colorOf(index), index === active ? 150 : 110, wide);
  });
  if (hover) paint(picture.data, hover.small ||= sampled(hover, wide, high), HOVER, 110, wide);
  pen.putImageData(picture, 0, 0);
  const object = objects[active];
  if (object?.box) frame(pen, object.box, colorOf(active), scale);
  object?.points.forEach(([x, y], index) => dot(pen, x, y, object.labels[index] ? "#16a34a" : "#dc2626", scale));
  if (drag?.moved) frame(pen, [...drag.from, ...drag.to], "#ffffff", scale);
}

function refresh() {
  const some = objects.some((object) => object.mask);
  get("undo").disabled = active < 0;
  get("object").disabled = !objects[active]?.mask;
  get("clear").disabled = !objects.length;
  get("everything").disabled = !photo;
  get("png").disabled = get("coco").disabled = !some;
  const list = get("objects");
  list.replaceChildren(...objects.map((object, index) => {
    const button = document.createElement("button");
    const color = document.createElement("i");
    color.style.background = colorOf(index);
    button.append(color, `${index + 1}`);
    button.title = object.mask ? `score ${object.mask.score.toFixed(2)}` : "no mask yet";
    button.className = index === active ? "active" : "";
    button.addEventListener("click", () => { active = index; refresh(); });
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  draw();
}

// Which decoder answers: the switch is off for good where this browser cannot.
function showWhere() {
  const off = here.state === "off";
  get("here").disabled = off;
  if (off) get("here").checked = false;
  get("where").title = here.reason ? `The server decodes: ${here.reason}` : "Masks need no round trip";
  if (photo && get("here").checked) here.take(photo);
  get("where").classList.toggle("ready", get("here").checked && here.has(photo?.id, {}));
}

function colorOf(index) { return COLORS[index % COLORS.length]; }
function since(start) { return `${Math.round(performance.now() - start)} ms`; }
function tell(text, kind = "") { [status.textContent, status.className] = [text, kind]; }

// ---- buttons, keys, files

const stem = () => photo.name.replace(/\.[^.]*$/, "");
get("undo").addEventListener("click", undo);
get("object").addEventListener("click", newObject);
get("clear").addEventListener("click", clear);
get("everything").addEventListener("click", everything);
get("png").addEventListener("click", async () => {
  try {
    save(await labels(photo, objects), `${stem()}-masks.png`);
  } catch (error) {
    tell(error.message, "error");
  }
});
get("coco").addEventListener("click", () => save(new Blob([coco(photo, objects)], { type: "application/json" }), `${stem()}-coco.json`));
get("here").addEventListener("change", showWhere);
get("mode").addEventListener("click", () => {
  subtracting = !subtracting;
  get("mode").textContent = subtracting ? "Take away" : "Add";
  get("mode").setAttribute("aria-pressed", String(subtracting));
});
get("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) open(file, file.name);
  event.target.value = "";
});
document.querySelector("label.button").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); get("file").click(); }
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey ? event.key !== "z" : false) return;
  const work = { z: undo, n: newObject, e: () => photo && everything(), Escape: clear }[event.key];
  if (work) { event.preventDefault(); work(); }
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) open(file, file.name || "pasted.png");
});
document.addEventListener("dragover", (event) => { event.preventDefault(); get("stage").classList.add("drop"); });
document.addEventListener("dragleave", () => get("stage").classList.remove("drop"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  get("stage").classList.remove("drop");
  const [file] = event.dataTransfer.files;
  if (file) open(file, file.name);
});
new ResizeObserver(layOut).observe(get("stage"));
refresh();
showWhere();
here.start();
