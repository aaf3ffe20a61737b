const data = JSON.parse(document.getElementById("data").textContent), by = id => document.getElementById(id);
const state = { sort: data.sort, down: true, shown: null };
const colours = ["#1f6fb4", "#d1495b", "#3a7d44", "#8a5a9e", "#b07d2b"];
const text = value => value == null ? "" : Number(Number(value).toPrecision(4)).toString();
function better(name) { return data.lower.includes(name) ? 1 : data.higher.includes(name) ? -1 : 0; }
function option(select, value, words) {
  const item = document.createElement("option");
  item.value = value; item.textContent = words ?? value; select.append(item);
}
function visible() {
  const words = by("words").value.toLowerCase(), name = by("figure").value;
  const low = parseFloat(by("low").value), high = parseFloat(by("high").value);
  const kept = data.clips.filter(clip => {
    const value = clip.values[name];
    if (!clip.name.toLowerCase().includes(words)) return false;
    if (!isNaN(low) && !(value != null && value >= low)) return false;
    return isNaN(high) || (value != null && value <= high);
  });
  const of = clip => state.sort === "" ? clip.name : clip.values[state.sort];
  return kept.sort((a, b) => {
    const [x, y] = [of(a), of(b)];
    if (x == null || y == null) return (x == null) - (y == null);
    return (x < y ? -1 : x > y ? 1 : 0) * (state.down ? -1 : 1);
  });
}
function list() {
  const clips = visible(), body = by("clips").tBodies[0];
  body.replaceChildren(...clips.map(clip => {
    const row = document.createElement("tr");
    for (const words of [clip.name, ...data.figures.map(name => text(clip.values[name]))]) row.insertCell().textContent = words;
    row.tabIndex = 0; row.classList.toggle("shown", clip === state.shown);
    row.onclick = () => show(clip);
    row.onkeydown = event => { if (event.key === "Enter") show(clip); };
    return row;
  }));
  by("count").textContent = `${clips.length} of ${data.clips.length} clips`;
  for (const head of by("clips").tHead.rows[0].cells) {
    head.ariaSort = head.dataset.name === state.sort ? (state.down ? "descending" : "ascending") : "none";
    head.querySelector("span").textContent = head.ariaSort === "none" ? "" : state.down ? " ▼" : " ▲";
  }
  return clips;
}
function sortBy(name) {
  state.down = state.sort === name ? !state.down : name !== "" && better(name) >= 0;
  state.sort = name; list();
}
function videos() { return [...by("videos").querySelectorAll("video")]; }
function show(clip) {
  stop(); state.shown = clip; list();
  by("name").textContent = clip.name;
  by("videos").replaceChildren(...clip.videos.map(([title, path], index) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const video = document.createElement("video");
    caption.textContent = title; video.src = path; video.muted = index > 0; video.preload = "auto"; video.playsInline = true;
    const refuse = () => { caption.textContent = `${title}: this browser cannot play ${path.split(".").pop()} files of this kind`; };
    video.onerror = refuse;
    video.onloadedmetadata = () => { if (!video.videoWidth) refuse(); };  // as of HEVC, of which it plays the sound alone
    figure.append(caption, video); return figure;
  }));
  by("curve").replaceChildren();
  for (const name of Object.keys(clip.curves)) option(by("curve"), name);
  if (state.curve in clip.curves) by("curve").value = state.curve;
  by("lacks").textContent = clip.missing.length ? `Not measured: ${clip.missing.join("; ")}.` : "";
  draw();
}
function start() {
  const [first, ...others] = videos();
  if (first && first.ended) first.currentTime = 0;
  for (const other of others) if (first.currentTime < other.duration) other.currentTime = first.currentTime;
  for (const video of videos()) video.play().catch(() => {});
  by("play").textContent = "Pause";
}
function stop() { for (const video of videos()) video.pause(); by("play").textContent = "Play"; }
function seek(seconds) { for (const video of videos()) video.currentTime = seconds; }
function curves() {
  const name = by("curve").value, found = state.shown ? state.shown.curves : {};
  const pair = name.startsWith("reference_") ? name.slice(10) : "reference_" + name;
  return (name.startsWith("reference_") ? [pair, name] : [name, pair]).filter(key => key in found).map(key => [key, found[key]]);
}
function draw() {
  const canvas = by("plot"), context = canvas.getContext("2d"), ratio = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== width * ratio || canvas.height !== height * ratio) {
    canvas.width = width * ratio; canvas.height = height * ratio;
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0); context.clearRect(0, 0, width, height);
  const shown = curves(), values = shown.flatMap(([, curve]) => curve.filter(value => value != null));
  if (!values.length) return;
  let [low, high] = values.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
  if (high - low < 1e-9) { low -= 1; high += 1; }
  const frames = shown[0][1].length, [left, right, top, bottom] = [60, width - 10, 24, height - 22];
  const x = frame => left + (frame + .5) / frames * (right - left), y = value => bottom - (value - low) / (high - low) * (bottom - top);
  context.font = "12px system-ui, sans-serif"; context.fillStyle = "#333"; context.lineWidth = 1; context.strokeStyle = "#ddd";
  for (let step = 0; step <= 4; step++) {
    const value = low + (high - low) * step / 4;
    context.beginPath(); context.moveTo(left, y(value)); context.lineTo(right, y(value)); context.stroke();
    context.textAlign = "right"; context.fillText(text(value), left - 6, y(value) + 4);
  }
  context.textAlign = "center";
  const second = Math.max(1, Math.ceil(frames / data.rate / 10));
  for (let at = 0; at * data.rate < frames; at += second) context.fillText(at + " s", x(at * data.rate), height - 6);
  shown.forEach(([name, curve], index) => {
    context.strokeStyle = context.fillStyle = colours[index]; context.lineWidth = 1.6; context.beginPath();
    let pen = false;
    curve.forEach((value, frame) => {
      if (value == null) { pen = false; return; }
      if (pen) context.lineTo(x(frame), y(value)); else context.moveTo(x(frame), y(value));
      pen = true;
    });
    context.stroke(); context.textAlign = "left"; context.fillText(index ? "reference" : name, left + 4 + 190 * index, 14);
  });
  const first = videos()[0];
  if (first) {
    const at = left + Math.min(first.currentTime * data.rate / frames, 1) * (right - left);
    context.strokeStyle = "#000"; context.beginPath(); context.moveTo(at, top); context.lineTo(at, bottom); context.stroke();
  }
}
function follow() {
  const [first, ...others] = videos();
  if (first && first.duration) {
    if (!first.paused) for (const other of others) {
      if (!other.ended && !other.seeking && Math.abs(other.currentTime - first.currentTime) > .06) other.currentTime = first.currentTime;
    }
    if (state.drawn !== first.currentTime) {
      state.drawn = first.currentTime;
      by("place").value = first.currentTime / first.duration;
      draw();
    }
    if (first.ended && by("play").textContent === "Pause") stop();
  }
  requestAnimationFrame(follow);
}
for (const head of by("clips").tHead.rows[0].cells) head.querySelector("button").onclick = () => sortBy(head.dataset.name);
for (const name of data.figures) option(by("figure"), name);
if (data.sort) by("figure").value = data.sort;
for (const id of ["words", "figure", "low", "high"]) by(id).oninput = list;
by("play").onclick = () => { const first = videos()[0]; if (first) first.paused ? start() : stop(); };
by("place").oninput = () => { const first = videos()[0]; if (first && first.duration) seek(by("place").value * first.duration); };
by("sound").onchange = () => { const first = videos()[0]; if (first) first.muted = !by("sound").checked; };
by("curve").oninput = () => { state.curve = by("curve").value; draw(); };
by("plot").onclick = event => {
  const first = videos()[0], shown = curves();
  if (first && shown.length) seek((event.offsetX - 60) / (by("plot").clientWidth - 70) * shown[0][1].length / data.rate);
};
addEventListener("resize", draw);
state.down = state.sort !== "" && better(state.sort) >= 0;
const clips = list();
if (clips.length) show(clips[0]);
follow();
