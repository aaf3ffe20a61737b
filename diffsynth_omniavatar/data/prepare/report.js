"use strict";
const { rules, clips, sources, others, unused } = JSON.parse(document.getElementById("report").textContent);
const BINS = 32, WIDTH = 320, HEIGHT = 96, FLOOR = 76, AT_ONCE = 48;
const bounds = rules.map(({ least, most }) => ({ least, most }));
const find = id => document.getElementById(id);

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function number(value) {
  return String(Math.abs(value) < 100 ? Number(value.toPrecision(3)) : Math.round(value));
}

function minutes(some) {
  const seconds = Math.round(some.reduce((sum, clip) => sum + clip.seconds, 0));
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

function time(seconds) {
  return `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(2).padStart(5, "0")}`;
}

function breaks(clip, index) {
  const value = clip.figures[index], { least, most } = bounds[index];
  return value !== null && (least !== null && value < least || most !== null && value > most);
}

/** What is wrong with a clip: a reason of no figure, or else, by the bounds that are tried, places of rules. */
function judge(clip) {
  const isFixed = Object.keys(clip.fixed).length;
  clip.broken = isFixed ? [] : rules.map((_, index) => index).filter(index => breaks(clip, index));
  clip.kept = !clip.broken.length && !isFixed;
}

/** The part of the values that a histogram shows: without the outermost, which its first and last bar take. */
function span(index) {
  const values = clips.map(clip => clip.figures[index]).filter(value => value !== null).sort((a, b) => a - b);
  const given = [rules[index].least, rules[index].most].filter(bound => bound !== null);
  if (!values.length) return null;
  const at = share => values[Math.round(share * (values.length - 1))];
  let low = Math.min(at(0.005), ...given), high = Math.max(at(0.995), ...given);
  if (high - low < 1e-9) { low -= 0.5; high += 0.5; }
  return { low, high, least: values[0], most: values[values.length - 1] };
}

function histogram(index, { low, high }) {
  const counts = Array.from({ length: BINS }, () => [0, 0, 0]);
  for (const clip of clips) {
    const value = clip.figures[index];
    if (value === null) continue;
    const bin = Math.floor((value - low) / (high - low) * BINS);
    counts[Math.min(Math.max(bin, 0), BINS - 1)][clip.kept ? 0 : breaks(clip, index) ? 1 : 2]++;
  }
  const tallest = Math.max(1, ...counts.map(([kept, broken, other]) => kept + broken + other));
  const parts = counts.flatMap((bin, place) => {
    let top = FLOOR;
    return bin.map((count, kind) => {
      const height = count / tallest * (FLOOR - 8);
      top -= height;
      const colour = ["#1f6fb4", "#d1495b", "#bbb"][kind], width = WIDTH / BINS;
      return count ? `<rect x="${place * width}" y="${top}" width="${width - 1}" height="${height}" fill="${colour}"/>` : "";
    });
  });
  const { least, most } = bounds[index];
  for (const bound of [least, most]) {
    if (bound === null) continue;
    const x = Math.min(Math.max((bound - low) / (high - low), 0), 1) * WIDTH;
    parts.push(`<path d="M${Math.min(Math.max(x, 1), WIDTH - 1)} 0V${FLOOR}" stroke="#222" stroke-width="2"/>`);
  }
  const label = (x, anchor, words) => `<text x="${x}" y="${HEIGHT - 5}" text-anchor="${anchor}" fill="#333">${words}</text>`;
  return `<path d="M0 ${FLOOR}H${WIDTH}" stroke="#888"/>${parts.join("")}${label(0, "start", number(low))}`
    + `${label(WIDTH / 2, "middle", number((low + high) / 2))}${label(WIDTH, "end", number(high))}`;
}

/** A slider and a field for one bound; at its outer end the slider lets everything pass. */
function control(index, side, reach) {
  const slider = element("input", { type: "range", min: reach.low, max: reach.high, step: (reach.high - reach.low) / 200 });
  const field = element("input", { type: "number", step: "any" });
  slider.setAttribute("aria-label", `${rules[index].title}, at ${side}`);
  field.setAttribute("aria-label", `${rules[index].title}, at ${side}`);
  slider.oninput = () => {
    const value = Number(slider.value), outermost = side === "least" ? reach.low : reach.high;
    // Figures come rounded to six digits: a bound at the rounded outermost one might reject its own clip.
    const free = side === "least" ? Math.floor(100 * (reach.least - 1e-4 * Math.abs(reach.least))) / 100
      : Math.ceil(100 * (reach.most + 1e-4 * Math.abs(reach.most))) / 100;
    bounds[index][side] = value === outermost ? free : Number(value.toPrecision(3));
    field.value = number(bounds[index][side]);
    show();
  };
  field.oninput = () => {
    if (!Number.isFinite(field.valueAsNumber)) return;
    slider.value = bounds[index][side] = field.valueAsNumber;
    show();
  };
  const reset = () => { slider.value = bounds[index][side]; field.value = number(bounds[index][side]); };
  reset();
  return { line: element("label", {}, element("span", {}, `at ${side}`), slider, field), reset };
}

const cards = rules.flatMap((rule, index) => {
  const reach = span(index);
  if (!reach) return [];
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `histogram of ${rule.title}`);
  const controls = ["least", "most"].filter(side => rule[side] !== null).map(side => control(index, side, reach));
  const count = element("small", {});
  const title = element("b", {}, rule.title[0].toUpperCase() + rule.title.slice(1));
  const unit = rule.unit ? `, ${rule.unit}` : "";
  find("figures").append(element("figure", { className: "figure" },
    element("figcaption", {}, title, unit, element("small", {}, rule.meaning)), svg,
    ...controls.map(({ line }) => line), count));
  const draw = () => {
    svg.innerHTML = histogram(index, reach);
    const all = clips.filter(clip => clip.broken.includes(index));
    const alone = all.filter(clip => clip.broken.length === 1).length;
    const known = clips.filter(clip => clip.figures[index] !== null).length;
    count.textContent = `${all.length} of ${known} clips break it, ${alone} of them nothing else`;
  };
  return [{ draw, reset: () => controls.forEach(one => one.reset()) }];
});

function complaint(clip, index) {
  const { complaint, title, unit } = rules[index];
  return `${complaint}: ${title} ${number(clip.figures[index])}${unit && " " + unit}`;
}

function clipCard(clip) {
  const card = element("div", { className: clip.kept ? "clip kept" : "clip" });
  if (clip.strip) card.append(element("img", { src: clip.strip, loading: "lazy", alt: "eight frames of the clip" }));
  const name = clip.video ? element("a", { href: clip.video }, clip.name) : element("b", {}, clip.name);
  const size = clip.size ? `, ${clip.size[1]}x${clip.size[0]}` : "", split = clip.split ? `, ${clip.split}` : "";
  const where = `${time(clip.start)}, ${number(clip.seconds)} s${size}${split}`;
  card.append(element("p", {}, name, " ", element("span", { className: "quiet" }, `${where} \u2014 ${clip.source}`)));
  const reasons = [...Object.values(clip.fixed), ...clip.broken.map(index => complaint(clip, index))];
  for (const reason of reasons) card.append(element("p", { className: "reason" }, reason));
  const rows = rules.flatMap(({ title, unit }, index) => clip.figures[index] === null ? [] : [element("tr", {},
    element("th", {}, title), element("td", {}, `${number(clip.figures[index])}${unit && " " + unit}`))]);
  const more = clip.prompt ? [element("p", {}, clip.prompt)] : [];
  if (rows.length || more.length) {
    card.append(element("details", {}, element("summary", { className: "quiet" }, "figures"), ...more, element("table", {}, ...rows)));
  }
  return card;
}

/** Fills a place with the first of many things, and more at each click: a page of thousands opens at once. */
function pager(place, make) {
  let waiting = [];
  const button = element("button", { type: "button" });
  const more = () => {
    place.append(...waiting.splice(0, AT_ONCE).map(make));
    button.hidden = !waiting.length;
    button.textContent = `Show more (${waiting.length} left)`;
  };
  button.onclick = more;
  (place.closest(".wide") ?? place).after(button);
  return things => { waiting = [...things]; place.replaceChildren(); more(); };
}

const showClips = pager(find("clips"), clipCard);
const STATES = {
  all: () => true,
  kept: clip => clip.kept,
  rejected: clip => !clip.kept,
  "newly kept": clip => clip.kept && !clip.wasKept,
  "newly rejected": clip => !clip.kept && clip.wasKept,
};

function listClips() {
  const state = STATES[find("state").value], reason = find("reason").value;
  const words = find("words").value.toLowerCase();
  const chosen = clips.filter(clip => state(clip)
    && (!reason || reason in clip.fixed || clip.broken.some(index => rules[index].figure === reason))
    && (!words || `${clip.name} ${clip.source} ${clip.prompt}`.toLowerCase().includes(words)));
  find("found").textContent = `${chosen.length} of ${clips.length} clips`;
  showClips(chosen);
}

function listReasons() {
  const counts = rules.map((rule, index) => [rule.complaint, clips.filter(clip => clip.broken.includes(index)).length]);
  counts.push(...Object.entries(others).map(([key, words]) => [words, clips.filter(clip => key in clip.fixed).length + (unused[key] ?? 0)]));
  const shown = counts.filter(([, count]) => count).sort((a, b) => b[1] - a[1]);
  const none = element("tr", {}, element("td", {}, "nothing is rejected"));
  find("reasons").replaceChildren(...!shown.length ? [none] : shown.map(([words, count]) => {
    const bar = element("div", {});
    bar.style.width = `${100 * count / shown[0][1]}%`;
    return element("tr", {}, element("td", {}, words), element("td", {}, bar), element("td", {}, String(count)));
  }));
}

function flags() {
  return rules.flatMap((rule, index) => [["least", "min"], ["most", "max"]].flatMap(([side, word]) =>
    bounds[index][side] === rule[side] ? [] : [`--${word}_${rule.figure} ${bounds[index][side]}`])).join(" ");
}

function show() {
  clips.forEach(judge);
  const kept = clips.filter(clip => clip.kept);
  find("count").textContent = `${kept.length} of ${clips.length} clips, ${minutes(kept)} of ${minutes(clips)} minutes`;
  find("flags").textContent = flags();
  find("reset").hidden = !flags();
  cards.forEach(card => card.draw());
  listReasons();
  listClips();
}

clips.forEach(judge);
for (const clip of clips) clip.wasKept = clip.kept;
find("reason").append(...rules.map(({ figure, complaint }) => element("option", { value: figure }, complaint)),
  ...Object.entries(others).map(([key, words]) => element("option", { value: key }, words)));
for (const id of ["state", "reason", "words"]) find(id).oninput = listClips;
find("reset").onclick = () => {
  rules.forEach(({ least, most }, index) => Object.assign(bounds[index], { least, most }));
  cards.forEach(card => card.reset());
  show();
};
pager(find("files"), cells => element("tr", {}, ...cells.map(cell => element("td", {}, cell))))(sources);
show();
