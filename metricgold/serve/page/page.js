import {Cloud} from "./cloud.js";
import {numpyArray, unzip} from "./npz.js";

const one = selector => document.querySelector(selector), all = selector => [...document.querySelectorAll(selector)];
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const metres = m => `${m.toFixed(m < 1000 ? Math.max(0, 2 - Math.floor(Math.log10(m))) : 0)} m`;
const DIAGONAL_MM = Math.hypot(36, 24), MAP_PIXELS = 1e6, CLOUD_POINTS = 3e5;
const NO_DEPTH = [235, 235, 235], NO_SURFACE = [60, 66, 82];

let photo;  // the file that is shown
let isStated = false;  // whether the camera's field was edited
let result;  // {width, height, depth, uncertainty, camera, facts, files}
let asking;  // AbortController of the request under way
let at, points = [];  // pixels [x, y]: the pointer, and those that were set
let cloud;

// --- the server -------------------------------------------------------------------------------------------

async function ask(path, options = {}) {
  const token = one("#token").value;
  const answer = await fetch(path, {...options, headers: token ? {Authorization: `Bearer ${token}`} : {}});
  if (answer.ok) return answer;
  one("#token-field").hidden = answer.status !== 401 && !token;
  if (answer.status === 401) one("#token").focus();
  throw new Error((await answer.json().catch(() => ({}))).error || `the server answered ${answer.status}`);
}

function askForDepth(formats, options) {
  const query = new URLSearchParams(formats.map(format => ["format", format])), form = new FormData();
  if (one("#preset").value) query.set("preset", one("#preset").value);
  if (isStated && one("#focal").value) query.set(one("#unit").value, one("#focal").value);
  form.set("image", photo);
  return ask(`v1/depth?${query}`, {...options, method: "POST", body: form});
}

async function greet() {
  const model = await (await ask("v1/model")).json();
  one("#model").textContent = `${model.name}, digest ${model.digest.slice(0, 12)}`;
  one("#preset").replaceChildren(one("#preset").options[0], ...model.presets.map(name => new Option(name, name)));
  one("#downloads").replaceChildren(...model.formats.map(format => {
    const button = document.createElement("button");
    button.type = "button", button.textContent = format, button.dataset.format = format;
    button.addEventListener("click", () => tell(() => download(button)));
    return button;
  }));
}

async function tell(work) {  // does it and shows its fault, if it has one
  one("#fault").hidden = true;
  try {
    return await work();
  } catch (fault) {
    if (fault.name === "AbortError") return;
    one("#state").textContent = "", one("#fault").textContent = fault.message, one("#fault").hidden = false;
  }
}

const predict = () => tell(async () => {
  if (!photo) return;
  asking?.abort();
  asking = new AbortController();
  one("#result").hidden = true, one("#state").textContent = `${photo.name}: depth is on its way …`;
  const answer = await askForDepth(["npz", "json"], {signal: asking.signal});
  result = read(unzip(await answer.arrayBuffer()));
  one("#state").textContent = photo.name;
  await show();
});

function read(files) {
  const named = suffix => [...files].find(([name]) => name.endsWith(suffix));
  const [npzName, npz] = named(".depth.npz"), [jsonName, json] = named(".json"), arrays = unzip(npz);
  const {shape: [height, width], data: depth} = numpyArray(arrays.get("planar_depth_m.npy"));
  const uncertainty = numpyArray(arrays.get("uncertainty.npy")).data;
  const k = arrays.has("intrinsics.npy") && numpyArray(arrays.get("intrinsics.npy")).data;
  const camera = k && {fx: k[0], cx: k[2], fy: k[4], cy: k[5]};
  const facts = JSON.parse(new TextDecoder().decode(json));
  return {width, height, depth, uncertainty, camera, facts, files: {npz: [npzName, npz], json: [jsonName, json]}};
}

async function download(button) {
  const format = button.dataset.format;
  let [name, content] = result.files[format] || [];
  if (!content) {
    button.disabled = true;
    try {
      const answer = await askForDepth([format]);
      name = decodeURIComponent(answer.headers.get("Content-Disposition").split("filename*=UTF-8''")[1]);
      content = await answer.blob();
    } finally {
      button.disabled = false;
    }
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content])), link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// --- pictures ---------------------------------------------------------------------------------------------

function ramp(name) {  // [r, g, b] of a share from 0 to 1
  const stops = document.body.dataset[name].split(", ").map(hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16)));
  return share => {
    const place = clamp(share, 0, 1) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(place));
    return stops[i].map((low, channel) => low + (place - i) * (stops[i + 1][channel] - low));
  };
}

const MAPS = {
  depth: {values: () => result.depth, colour: ramp("depthColours"), share: ([low, high]) => m => Math.log(m / low) / Math.log(high / low), label: metres},
  uncertainty: {values: () => result.uncertainty, colour: ramp("uncertaintyColours"), share: ([, high]) => u => u / high, label: u => `${(100 * u).toPrecision(3)} %`},
};

function rangeOf(values) {  // 1st and 99th percentile, at least a ratio of 1.21 apart
  const step = Math.max(1, Math.floor(values.length / 20000)), known = [];
  for (let i = step >> 1; i < values.length; i += step) if (Number.isFinite(values[i]) && values[i] > 0) known.push(values[i]);
  known.sort((a, b) => a - b);
  if (!known.length) return [1, 10];
  const [low, high] = [known[Math.floor(.01 * (known.length - 1))], known[Math.ceil(.99 * (known.length - 1))]];
  const middle = Math.sqrt(low * high);
  return [Math.min(low, middle / 1.1), Math.max(high, middle * 1.1)];
}

function sampled(mostPixels) {  // columns and rows of an even sample of the pixels
  const {width, height} = result, scale = Math.min(1, Math.sqrt(mostPixels / (width * height)));
  const middles = (length, num) => Array.from({length: num}, (_, i) => Math.floor((2 * i + 1) * length / (2 * num)));
  return [middles(width, Math.max(1, Math.round(width * scale))), middles(height, Math.max(1, Math.round(height * scale)))];
}

function drawMap() {
  const {values, colour, share, label} = MAPS[one("[name=map]:checked").value], numbers = values();
  const range = rangeOf(numbers), shareOf = share(range), [columns, rows] = sampled(MAP_PIXELS), canvas = one("#map");
  canvas.width = columns.length, canvas.height = rows.length;
  const context = canvas.getContext("2d"), picture = context.createImageData(columns.length, rows.length);
  const table = Array.from({length: 256}, (_, i) => colour(i / 255));
  let place = 0;
  for (const y of rows) for (const x of columns) {
    const value = numbers[y * result.width + x];
    const rgb = value > 0 && Number.isFinite(value) ? table[clamp(Math.round(255 * shareOf(value)), 0, 255)] : value === Infinity ? NO_SURFACE : NO_DEPTH;
    picture.data.set(rgb, place), picture.data[place + 3] = 255, place += 4;
  }
  context.putImageData(picture, 0, 0);
  const bar = one("#bar").getContext("2d"), [low, high] = range;
  for (let i = 0; i < 255; i++) bar.fillStyle = `rgb(${colour(i / 254).map(Math.round)})`, bar.fillRect(i, 0, 1, 1);
  one("#low").textContent = label === metres ? label(low) : label(0), one("#high").textContent = label(high);
}

async function showPhotograph() {  // its pixels, or none where this browser cannot decode it
  const image = one("#photograph");
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(photo);
  try {
    await image.decode();
  } catch {
    image.src = one("#map").toDataURL();
    return false;
  }
  return image.naturalWidth === result.width && image.naturalHeight === result.height;
}

function showCloud(hasColours) {
  const {width, depth, camera} = result, canvas = one("#cloud");
  cloud ??= new Cloud(canvas);
  const why = !cloud.gl ? "This browser has no WebGL: download the points as glb or ply." : camera ? "" : "A panorama has no pinhole camera, and no points.";
  canvas.hidden = Boolean(why);
  if (why) return one("#cloud-note").textContent = why;
  const [columns, rows] = sampled(CLOUD_POINTS), source = document.createElement("canvas");
  source.width = columns.length, source.height = rows.length;
  const context = source.getContext("2d");
  context.drawImage(hasColours ? one("#photograph") : one("#map"), 0, 0, source.width, source.height);
  const pixels = context.getImageData(0, 0, source.width, source.height).data, places = [], colours = [];
  rows.forEach((y, row) => columns.forEach((x, column) => {
    const point = pointAt([x, y]);
    if (!point) return;
    const i = 4 * (row * columns.length + column);
    places.push(...point), colours.push(pixels[i], pixels[i + 1], pixels[i + 2]);
  }));
  cloud.show(new Float32Array(places), new Uint8Array(colours));
}

async function show() {
  const isKnown = result.uncertainty.some(Number.isFinite), field = one("[name=map][value=uncertainty]");
  field.disabled = !isKnown;
  if (!isKnown) one("[name=map][value=depth]").checked = true;
  describeCamera();
  drawMap();
  at = undefined, points = [], look();
  one("#result").hidden = false;
  showCloud(await showPhotograph());
}

// --- the camera -------------------------------------------------------------------------------------------

const FROM = {exif: "by the file's EXIF", argument: "as you say", fov_deg: "assumed: the file does not say", none: "none"};

function focalIn(unit) {
  const {width, height, facts: {focal_px: px}} = result;
  return {focal_px: px, focal_35mm: px * DIAGONAL_MM / Math.hypot(width, height), fov_deg: 2 * Math.atan(Math.max(width, height) / 2 / px) * 180 / Math.PI}[unit];
}

function describeCamera() {
  const {facts, width, height} = result, lens = facts.focal_px &&
    `${focalIn("focal_35mm").toFixed(1)} mm on 35 mm film, ${focalIn("focal_px").toFixed(1)} px, ${focalIn("fov_deg").toFixed(1)}° over the longer side`;
  const parts = [`${width} × ${height}`, facts.camera_name, lens || `panorama (${facts.panorama})`, FROM[facts.focal_from]];
  one("#camera").textContent = parts.filter(Boolean).join(" · ") + (facts.scale_assumed ? " · the scale of depth is assumed with it" : "");
  one("#by-exif").hidden = !isStated;
  if (!isStated) one("#focal").value = lens ? focalIn(one("#unit").value).toFixed(2) : "";
}

// --- the pointer ------------------------------------------------------------------------------------------

function pointAt([x, y]) {  // [x, y, z] in metres, or none
  const z = result.depth[y * result.width + x], {fx, fy, cx, cy} = result.camera || {};
  return fx && z > 0 && Number.isFinite(z) ? [(x + .5 - cx) / fx * z, (y + .5 - cy) / fy * z, z] : undefined;
}

function look() {  // shows what is at the pointer and between the points
  const reading = one("#reading"), distance = one("#distance");
  for (const output of [reading, distance]) delete output.dataset.metres;
  if (at) {
    const i = at[1] * result.width + at[0], m = result.depth[i], u = result.uncertainty[i], where = `at ${at[0]}, ${at[1]}`;
    const known = m > 0 && Number.isFinite(m);
    reading.textContent = known ? `${metres(m)}${u > 0 ? ` ± ${(100 * u).toPrecision(2)} %` : ""} ${where}` : `${m === Infinity ? "no surface" : "no depth"} ${where}`;
    if (known) reading.dataset.metres = m;
  } else reading.textContent = "Point at a picture for the metres there.";
  const [from, to] = points.map(pointAt);
  if (from && to) {
    const apart = Math.hypot(...from.map((value, axis) => value - to[axis]));
    distance.textContent = `${metres(apart)} between the points`, distance.dataset.metres = apart;
  } else if (points.length === 2) distance.textContent = "no distance: one of the points has no depth or no camera";
  else distance.textContent = points.length ? "Click a second point." : "Click two points for the distance between them.";
  all(".mark").forEach(mark => mark.remove());
  const share = ([x, y]) => [(x + .5) / result.width, (y + .5) / result.height];
  for (const view of all(".view")) {
    [...points.map(point => [point, "mark set"]), ...at ? [[at, "mark"]] : []].forEach(([point, name]) => {
      const mark = document.createElement("i"), [left, top] = share(point);
      mark.className = name, mark.style.left = `${100 * left}%`, mark.style.top = `${100 * top}%`, view.append(mark);
    });
    const line = view.querySelector("line"), ends = points.length === 2 ? points.map(share) : [[0, 0], [0, 0]];
    ends.forEach(([x, y], i) => (line.setAttribute(`x${i + 1}`, x), line.setAttribute(`y${i + 1}`, y)));
  }
}

function setPoint() {
  points = points.length === 2 ? [at] : [...points, at];
  look();
}

function pixelOf(event) {
  const view = event.target.closest(".view"), box = view?.getBoundingClientRect();
  if (!view || !result) return;
  const place = (value, start, length, num) => clamp(Math.floor((value - start) / length * num), 0, num - 1);
  return [place(event.clientX, box.left, box.width, result.width), place(event.clientY, box.top, box.height, result.height)];
}

const views = one("#views");
views.addEventListener("pointermove", event => (at = pixelOf(event) || at) && look());
views.addEventListener("click", event => (at = pixelOf(event)) && setPoint());
views.addEventListener("focus", () => {
  if (result && !at && views.matches(":focus-visible")) at = [result.width >> 1, result.height >> 1], look();
});
views.addEventListener("keydown", event => {
  const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (way && at) {
    const step = event.shiftKey ? 10 : 1;
    at = [clamp(at[0] + step * way[0], 0, result.width - 1), clamp(at[1] + step * way[1], 0, result.height - 1)];
    look();
  } else if ((event.key === "Enter" || event.key === " ") && at) setPoint();
  else if (event.key === "Escape") points = [], look();
  else return;
  event.preventDefault();
});

// --- the form ---------------------------------------------------------------------------------------------

function take(file) {
  if (!file) return;
  photo = file, isStated = false;
  predict();
}

one("#ask").addEventListener("submit", event => event.preventDefault());
one("#file").addEventListener("change", ({target}) => take(target.files[0]));
one("#preset").addEventListener("change", predict);
one("#focal").addEventListener("change", ({target}) => (isStated = target.value !== "", predict()));
one("#unit").addEventListener("change", () => isStated ? predict() : result && describeCamera());
one("#by-exif").addEventListener("click", () => (isStated = false, predict()));
one("#token").addEventListener("change", () => tell(greet).then(predict));
one("#maps").addEventListener("change", drawMap);
document.addEventListener("dragover", event => (event.preventDefault(), one("#drop").classList.add("over")));
document.addEventListener("dragleave", () => one("#drop").classList.remove("over"));
document.addEventListener("drop", event => {
  event.preventDefault(), one("#drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});
tell(greet);
