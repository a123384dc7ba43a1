/**
 * The dashboard's page: one document, with nothing from elsewhere and no build. Its script asks for `data` each second while
 * somebody looks, keeps the last three minutes, and draws them. What comes from peers goes into the page as text only; the
 * document's policy forbids everything else.
 */
import { createHash } from "node:crypto"

const style = String.raw`
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --line: #e3e6ea; --text: #1d2228; --quiet: #68717d;
  --one: #2563c9; --two: #c2631a; --good: #1a7f4b; --mind: #a86400; --bad: #c0352b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #111418; --card: #191d23; --line: #2b313a; --text: #e4e8ed; --quiet: #929ba7;
    --one: #6ea3f5; --two: #eda05f; --good: #55c08a; --mind: #e0aa4a; --bad: #f0776c;
  }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: var(--page); color: var(--text); font: 14px/1.45 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; }
main, header { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: 12px; padding-top: 18px; padding-bottom: 14px; }
h1 { font-size: 18px; font-weight: 600; margin: 0; }
h2 { font-size: 12px; font-weight: 500; color: var(--quiet); margin: 0; }
button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: 4px 12px; cursor: pointer; }
button:hover:enabled { border-color: var(--quiet); }
button:disabled { color: var(--quiet); cursor: default; opacity: 0.6; }
button:focus-visible, input:focus-visible { outline: 2px solid var(--one); outline-offset: 1px; }
button.bad { color: var(--bad); }
#servers { display: flex; gap: 6px; flex-wrap: wrap; }
#servers button[aria-pressed="true"] { border-color: var(--one); color: var(--one); }
#status { border-radius: 999px; padding: 2px 11px; font-weight: 600; font-size: 13px; border: 1px solid currentColor;
  color: var(--quiet); }
#status[data-status="ready"] { color: var(--good); }
#status[data-status="saturated"], #status[data-status="suspended"], #status[data-status="draining"] { color: var(--mind); }
#status[data-status="stopped"], #status[data-status="no answer"] { color: var(--bad); }
#acts { display: flex; gap: 6px; }
#facts { display: flex; flex-wrap: wrap; gap: 4px 26px; margin: 0 0 14px; }
#facts div { display: flex; gap: 7px; }
#facts dt { color: var(--quiet); }
#facts dd { margin: 0; overflow-wrap: anywhere; }
#notice { flex: 1; min-width: 0; margin: 0; color: var(--quiet); text-align: right; }
#plots { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 12px; margin-bottom: 16px; }
@media (max-width: 900px) { #plots { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media (max-width: 600px) {
  #plots { grid-template-columns: minmax(0, 1fr); }
  #acts { margin-left: auto; }
  #notice { flex-basis: 100%; order: 1; text-align: left; }
}
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 11px 14px 12px; }
.now { display: flex; gap: 18px; height: 27px; align-items: baseline; white-space: nowrap; }
.now b { font-size: 18px; font-weight: 600; }
.now span { color: var(--quiet); font-size: 12px; }
.now i { display: inline-block; width: 8px; height: 8px; border-radius: 2px; margin-right: 5px; }
.one { background: var(--one); } .two { background: var(--two); }
canvas { display: block; width: 100%; height: 92px; margin-top: 6px; }
#reasons { display: grid; grid-template-columns: auto 1fr auto; gap: 3px 9px; margin: 8px 0 0; align-items: center;
  font-size: 12.5px; max-height: 120px; overflow-y: auto; }
#reasons .bar { height: 9px; min-width: 2px; border-radius: 2px; background: var(--one); }
#reasons .n { text-align: right; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin-top: 6px; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
th { font-size: 12px; font-weight: 500; color: var(--quiet); }
th button { border: 0; padding: 0; background: none; color: inherit; font: inherit; }
th[aria-sort] button { color: var(--one); }
td.n, th.n { text-align: right; }
td.notes { width: 100%; max-width: 0; overflow: hidden; text-overflow: ellipsis; color: var(--quiet); }
th.notes { min-width: 150px; }
/* Kill stays in sight where the table is wider than the window. */
td:last-child, th:last-child { padding-right: 0; text-align: right; position: sticky; right: 0; background: var(--card); }
td button { padding: 1px 9px; font-size: 12.5px; }
.quiet { color: var(--quiet); }
form { max-width: 380px; margin: 16vh auto 0; display: grid; gap: 10px; }
input { font: inherit; color: inherit; background: var(--page); border: 1px solid var(--line); border-radius: 6px;
  padding: 6px 10px; }
footer { color: var(--quiet); font-size: 12px; padding: 14px 0 26px; }
`

const script = String.raw`
"use strict";
const kept = 180;
const storageKey = "socketserver dashboard";
const base = location.pathname.replace(/\/+$/, "");
const $ = (id) => document.getElementById(id);

let token = sessionStorage.getItem(storageKey) || "";
const takeFragment = () => {
  const found = /^#token=(.+)$/.exec(location.hash);
  if (found === null) return;
  // Out of the address, so that it is in no bookmark and no screenshot.
  history.replaceState(null, "", location.pathname + location.search);
  try { token = decodeURIComponent(found[1]); } catch { token = found[1]; }
  sessionStorage.setItem(storageKey, token);
};
takeFragment();

let selected;
let sort = "oldest";
let latest;
const histories = new Map();
const rows = new Map();

const node = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };

// ---- numbers as people read them

const short = (value) => value < 10 ? value.toFixed(1).replace(/\.0$/, "")
  : value < 10000 ? Math.round(value).toLocaleString("en") : compact.format(value);
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const bytes = (value) => {
  let unit = 0;
  while (value >= 999.5 && unit < 4) { value /= 1000; unit++; }
  return (unit > 0 && value < 10 ? value.toFixed(1) : Math.round(value)) + " " + ["B", "kB", "MB", "GB", "TB"][unit];
};
const seconds = (value) => value < 0.001 ? Math.round(value * 1e6) + " µs"
  : value < 1 ? (value < 0.01 ? (value * 1e3).toFixed(1) : Math.round(value * 1e3)) + " ms"
  : (value < 10 ? value.toFixed(1) : Math.round(value)) + " s";
const age = (ms) => {
  const s = Math.floor(ms / 1000);
  return s < 60 ? s + "s" : s < 3600 ? Math.floor(s / 60) + "m " + s % 60 + "s"
    : s < 86400 ? Math.floor(s / 3600) + "h " + Math.floor(s % 3600 / 60) + "m"
    : Math.floor(s / 86400) + "d " + Math.floor(s % 86400 / 3600) + "h";
};

// ---- what is kept of each answer

const sum = (counts, but) => {
  let all = 0;
  for (const key in counts) if (!but.includes(key)) all += counts[key];
  return all;
};

/** The time below which a part of the requests between two histograms stayed. */
const quantile = (q, before, after) => {
  if (!before || !after) return null;
  const total = after.count - before.count;
  if (total <= 0) return null;
  let lower = 0, below = 0;
  for (let i = 0; i < after.bounds.length; i++) {
    const upto = after.counts[i] - (before.counts[i] || 0);
    if (upto >= q * total) {
      const between = lower + (after.bounds[i] - lower) * (q * total - below) / Math.max(upto - below, 1);
      return Math.min(between, after.max);
    }
    lower = after.bounds[i];
    below = upto;
  }
  return after.max;
};

const remember = (at, server) => {
  let points = histories.get(server.name);
  const { stats, latency } = server;
  const before = points && points[points.length - 1];
  // Another program at this address: what was there before is not its past.
  if (!before || before.pid !== server.pid || stats.accepted < before.accepted) histories.set(server.name, points = []);
  const last = points[points.length - 1];
  const point = {
    at, pid: server.pid, latency, accepted: stats.accepted, open: stats.open, inFlight: stats.inFlight,
    queued: stats.queued,
    // A connection can have many requests: the histogram knows, if there is one.
    done: latency ? latency.count : sum(stats.closed, ["Refused", "HandshakeFailed"]),
    bytesRead: stats.bytesRead, bytesWritten: stats.bytesWritten
  };
  const passed = last && (at - last.at) / 1000;
  const rate = (key) => last && passed > 0 ? Math.max(0, point[key] - last[key]) / passed : null;
  point.perSecond = { accepted: rate("accepted"), done: rate("done"), in: rate("bytesRead"), out: rate("bytesWritten") };
  const earlier = points.find((one) => one.at >= at - 10500);
  point.p50 = earlier ? quantile(0.5, earlier.latency, latency) : null;
  point.p99 = earlier ? quantile(0.99, earlier.latency, latency) : null;
  points.push(point);
  if (points.length > kept) points.shift();
};

// ---- plots

const plots = [
  { title: "Connections", show: short, least: 4, series: [["open", (p) => p.open]] },
  { title: "Per second", show: short, least: 1, series: [
    ["accepted", (p) => p.perSecond.accepted], ["requests done", (p) => p.perSecond.done]] },
  { title: "Bytes per second", show: bytes, least: 100, series: [
    ["in", (p) => p.perSecond.in], ["out", (p) => p.perSecond.out]] },
  { title: "Requests", show: short, least: 4, series: [
    ["in flight", (p) => p.inFlight], ["queued", (p) => p.queued]] },
  { title: "Latency of requests, over 10 seconds", show: seconds, least: 0.001, latency: true, series: [
    ["p50", (p) => p.p50], ["p99", (p) => p.p99]] }
];

for (const plot of plots) {
  const card = node("section", "card");
  card.append(node("h2", "", plot.title));
  const now = node("div", "now");
  plot.values = plot.series.map(([name], i) => {
    const one = node("div");
    const value = node("b", "", "–");
    if (plot.series.length > 1) one.append(node("i", i === 0 ? "one" : "two"));
    one.append(value, " ", node("span", "", name));
    now.append(one);
    return value;
  });
  plot.none = node("p", "quiet", "Not measured: provide Metrics.layer() to the server.");
  plot.none.hidden = true;
  plot.canvas = node("canvas");
  plot.canvas.setAttribute("role", "img");
  plot.canvas.setAttribute("aria-label", plot.title);
  plot.now = now;
  card.append(now, plot.none, plot.canvas);
  $("plots").append(card);
}
const reasonsCard = node("section", "card");
reasonsCard.append(node("h2", "", "Close reasons, since the start"));
const reasons = node("div");
reasons.id = "reasons";
reasonsCard.append(reasons);
$("plots").append(reasonsCard);

/** The next number above that is 1, 2 or 5 times a power of ten. */
const round = (value) => {
  const power = Math.pow(10, Math.floor(Math.log10(value)));
  for (const step of [1, 2, 5, 10]) if (value <= step * power * 1.000001) return step * power;
};

const draw = (plot, points) => {
  const { canvas } = plot;
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (width === 0) return;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const colours = getComputedStyle(document.documentElement);
  const colour = (name) => colours.getPropertyValue("--" + name).trim();
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);

  const lines = plot.series.map(([, of]) => points.map(of));
  let most = plot.least;
  for (const line of lines) for (const value of line) if (value !== null && value > most) most = value;
  const top = round(most);
  const upper = 14, lower = height - 2;
  // Latencies are told apart by their magnitude: from 10 µs on, each power of ten is as high as the next.
  const part = (value) => plot.latency ? Math.max(0, Math.log10(value / 1e-5)) / Math.log10(top / 1e-5) : value / top;
  const y = (value) => lower - (lower - upper) * part(value);
  const x = (i) => width - 1 - (points.length - 1 - i) * (width - 2) / (kept - 1);

  pen.lineWidth = 1;
  pen.strokeStyle = colour("line");
  for (const at of [lower, (lower + upper) / 2, upper]) {
    pen.beginPath();
    pen.moveTo(0, Math.round(at) + 0.5);
    pen.lineTo(width, Math.round(at) + 0.5);
    pen.stroke();
  }
  pen.fillStyle = colour("quiet");
  pen.font = "10.5px system-ui, sans-serif";
  pen.fillText(plot.show(top), 0, upper - 4);
  if (plot.latency) pen.fillText(plot.show(Math.sqrt(top * 1e-5)), 0, (lower + upper) / 2 - 4);

  lines.forEach((line, i) => {
    pen.strokeStyle = pen.fillStyle = colour(i === 0 ? "one" : "two");
    pen.lineWidth = 1.5;
    pen.lineJoin = "round";
    let from = 0;
    while (from < line.length) {
      while (from < line.length && line[from] === null) from++;
      let to = from;
      while (to < line.length && line[to] !== null) to++;
      if (to === from) break;
      pen.beginPath();
      for (let j = from; j < to; j++) pen.lineTo(x(j), y(line[j]));
      pen.stroke();
      if (to - from === 1) pen.fillRect(x(from) - 1, y(line[from]) - 1, 2, 2);
      if (i === 0) {
        pen.lineTo(x(to - 1), lower);
        pen.lineTo(x(from), lower);
        pen.globalAlpha = 0.09;
        pen.fill();
        pen.globalAlpha = 1;
      }
      from = to;
    }
  });
};

// ---- the page

const showReasons = (closed) => {
  const all = Object.entries(closed).filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1]);
  const most = all.length === 0 ? 1 : all[0][1];
  reasons.replaceChildren(...all.flatMap(([name, count]) => {
    const bar = node("div", "bar");
    bar.style.width = 100 * count / most + "%";
    return [node("span", "", name), bar, node("span", "n", short(count))];
  }));
  if (all.length === 0) reasons.append(node("span", "quiet", "none has closed"));
};

const showFacts = (server) => {
  const { stats, workers } = server;
  const facts = [
    ["address", server.address],
    ["strategy", server.strategy],
    ["accepted", stats.accepted.toLocaleString("en")],
    ["received", bytes(stats.bytesRead)],
    ["sent", bytes(stats.bytesWritten)]
  ];
  if (workers) facts.push(["workers (" + workers.kind + ")",
    workers.busy + " busy, " + workers.idle + " idle, " + workers.crashed + " crashed"]);
  for (const [name, count] of Object.entries(stats.refused)) if (count > 0) facts.push(["refused by " + name, short(count)]);
  if (stats.dropped > 0) facts.push(["packets dropped", short(stats.dropped)]);
  for (const [name, value] of Object.entries(server.limits)) facts.push(["limit " + name, value.toLocaleString("en")]);
  facts.push(["process", String(server.pid)]);
  $("facts").replaceChildren(...facts.map(([name, value]) => {
    const pair = node("div");
    pair.append(node("dt", "", name), node("dd", "", value));
    return pair;
  }));
};

const notes = (annotations) => Object.entries(annotations)
  .map(([key, value]) => key + "=" + (typeof value === "string" ? value : JSON.stringify(value))).join("  ");

const rowOf = (id) => {
  let row = rows.get(id);
  if (row !== undefined) return row;
  const element = node("tr");
  const cells = ["n", "", "n", "n", "n", "", "notes"].map((name) => node("td", name));
  const kill = node("button", "bad", "Kill");
  kill.addEventListener("click", async () => {
    kill.disabled = true;
    await order({ do: "close", id }, (count) => count === 1 ? "Connection " + id + " was closed." : "It was gone.");
  });
  const last = node("td");
  last.append(kill);
  element.append(...cells, last);
  rows.set(id, row = { element, cells });
  return row;
};

const showConnections = ({ total, shown }) => {
  const wanted = new Set(shown.map(({ id }) => id));
  for (const [id, { element }] of rows) if (!wanted.has(id)) { element.remove(); rows.delete(id); }
  shown.forEach((one, i) => {
    const { cells, element } = rowOf(one.id);
    [String(one.id), one.peer, age(one.ageMs), bytes(one.bytesRead), bytes(one.bytesWritten), one.state,
      notes(one.annotations)].forEach((text, j) => setText(cells[j], text));
    cells[6].title = cells[6].textContent;
    // A row stays the element that it is, and moves only when it has to: a click must find it.
    if ($("connections").children[i] !== element) $("connections").insertBefore(element, $("connections").children[i] || null);
  });
  setText($("count"), total === shown.length ? "Connections: " + total
    : "Connections: " + shown.length + " of " + total.toLocaleString("en"));
  $("empty").hidden = total > 0;
};

const show = () => {
  if (latest === undefined) return;
  const server = latest.servers.find(({ name }) => name === selected) || latest.servers[0];
  if (server.name !== selected) { selected = server.name; }
  const names = latest.servers.map(({ name }) => name);
  if ($("servers").dataset.names !== JSON.stringify(names)) {
    $("servers").dataset.names = JSON.stringify(names);
    $("servers").replaceChildren(...names.length === 1 ? [] : names.map((name) => {
      const button = node("button", "", name);
      button.addEventListener("click", () => { selected = name; forget(); show(); look(); });
      return button;
    }));
  }
  for (const button of $("servers").children) button.setAttribute("aria-pressed", String(button.textContent === selected));
  setText($("name"), names.length === 1 ? server.name : "Servers");
  document.title = server.name + ": " + server.status;
  setText($("status"), server.status);
  $("status").dataset.status = server.status;
  const over = server.status === "draining" || server.status === "stopped";
  $("suspend").hidden = server.status === "suspended";
  $("resume").hidden = server.status !== "suspended";
  $("suspend").disabled = $("drain").disabled = over;

  showFacts(server);
  const points = histories.get(server.name) || [];
  const now = points[points.length - 1];
  for (const plot of plots) {
    const measured = !plot.latency || server.latency !== null;
    plot.none.hidden = measured;
    plot.canvas.hidden = plot.now.hidden = !measured;
    if (!measured) continue;
    plot.series.forEach(([, of], i) => {
      const value = now ? of(now) : null;
      setText(plot.values[i], value === null ? "–" : plot.show(value));
    });
    draw(plot, points);
  }
  showReasons(server.stats.closed);
  if (server.connections) showConnections(server.connections);
};

/** What was said and asked of another server. */
const forget = () => {
  for (const { element } of rows.values()) element.remove();
  rows.clear();
  setText($("count"), "Connections");
  $("empty").hidden = true;
  notice("");
  ask2("Drain");
};
const notice = (text) => setText($("notice"), text);

// ---- asking and telling

const ask = (path, options) => fetch(base + path, {
  cache: "no-store", credentials: "omit", redirect: "error", ...options,
  headers: { authorization: "Bearer " + token }
});

const locked = (why) => {
  sessionStorage.removeItem(storageKey);
  token = "";
  $("app").hidden = true;
  $("unlock").hidden = false;
  setText($("why"), why);
  $("token").focus();
};

let timer;
let looking = false;
let again = false;
/** One question at a time, a second after the last answer; none while nobody looks. */
const look = async () => {
  clearTimeout(timer);
  if (token === "" || document.hidden) return;
  if (looking) { again = true; return; }
  looking = true;
  again = false;
  try {
    const query = new URLSearchParams({ sort });
    if (selected !== undefined) query.set("server", selected);
    const answer = await ask("/data?" + query);
    if (answer.status === 401) { locked("This token is not the one."); return; }
    if (!answer.ok) throw new Error("it answers " + answer.status);
    latest = await answer.json();
    for (const server of latest.servers) remember(latest.at, server);
    $("unlock").hidden = true;
    $("app").hidden = false;
    show();
  } catch (error) {
    if ($("app").hidden) setText($("why"), "No answer: " + error.message);
    setText($("status"), "no answer");
    $("status").dataset.status = "no answer";
  } finally {
    looking = false;
  }
  timer = setTimeout(look, again ? 0 : 1000);
};

const order = async (request, told) => {
  try {
    const answer = await ask("/do", { method: "POST", body: JSON.stringify({ ...request, server: selected }) });
    if (answer.status === 401) { locked("This token is not the one."); return; }
    const result = await answer.json();
    notice(result.ok ? told(result.value) : result.error);
  } catch {
    notice("No answer.");
  }
  look();
};

$("suspend").addEventListener("click", () => order({ do: "suspend" }, () => "Suspended: no new clients."));
$("resume").addEventListener("click", () => order({ do: "resume" }, () => "Resumed."));
let unsure;
const ask2 = (text) => { clearTimeout(unsure); setText($("drain"), text); };
$("drain").addEventListener("click", () => {
  if ($("drain").textContent === "Drain") {
    ask2("Really drain?");
    unsure = setTimeout(() => ask2("Drain"), 4000);
    return;
  }
  ask2("Drain");
  notice("Draining.");
  order({ do: "drain" }, (report) => "Drained in " + age(report.elapsedMs) + ": " + report.completed + " completed, "
    + report.idleClosed + " idle, " + report.interrupted + " interrupted, " + report.killed + " cut.");
  look();
});

const sorts = { age: ["oldest", "newest"], bytes: ["most", "least"] };
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const [first, second] = sorts[button.dataset.by];
    sort = sort === first ? second : first;
    showSort();
    look();
  });
}
const showSort = () => {
  for (const button of document.querySelectorAll("th button")) {
    const head = button.closest("th");
    const [first, second] = sorts[button.dataset.by];
    if (sort === first) head.setAttribute("aria-sort", "descending");
    else if (sort === second) head.setAttribute("aria-sort", "ascending");
    else head.removeAttribute("aria-sort");
    setText(button, button.dataset.name + (sort === first ? " ↓" : sort === second ? " ↑" : ""));
  }
};
showSort();

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  sessionStorage.setItem(storageKey, token);
  setText($("why"), "");
  look();
});
document.addEventListener("visibilitychange", look);
window.addEventListener("hashchange", () => { takeFragment(); look(); });
window.addEventListener("resize", show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
if (token === "") locked(""); else look();
`

/** The document. */
export const page = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Dashboard</title>
<style>${style}</style>
<body>
<form id="unlock" class="card" hidden>
  <h1>Dashboard</h1>
  <label for="token" class="quiet">The token that the program was given</label>
  <input id="token" type="password" autocomplete="off" required>
  <button>Open</button>
  <span id="why" role="status" class="quiet"></span>
</form>
<div id="app" hidden>
  <header>
    <h1 id="name"></h1>
    <nav id="servers"></nav>
    <span id="status" role="status"></span>
    <p id="notice" role="status"></p>
    <div id="acts">
      <button id="suspend">Suspend</button>
      <button id="resume" hidden>Resume</button>
      <button id="drain" class="bad">Drain</button>
    </div>
  </header>
  <main>
    <dl id="facts"></dl>
    <div id="plots"></div>
    <section class="card">
      <h2 id="count"></h2>
      <div class="scroll">
        <table>
          <thead>
            <tr>
              <th class="n">id</th>
              <th>peer</th>
              <th class="n"><button data-by="age" data-name="age"></button></th>
              <th class="n" colspan="2"><button data-by="bytes" data-name="bytes in, out"></button></th>
              <th>state</th>
              <th class="notes">annotations</th>
              <th></th>
            </tr>
          </thead>
          <tbody id="connections"></tbody>
        </table>
      </div>
      <p id="empty" class="quiet" hidden>No connection is open.</p>
    </section>
    <footer>Asked each second while this page is looked at; the plots are of the last three minutes.</footer>
  </main>
</div>
<script>${script}</script>
`

const hash = (source: string): string => `'sha256-${createHash("sha256").update(source).digest("base64")}'`

/** The document runs its own script and asks where it came from, and can do nothing else. */
export const policy = [
  "default-src 'none'",
  `script-src ${hash(script)}`,
  `style-src ${hash(style)}`,
  "connect-src 'self'",
  "img-src data:",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'"
].join("; ")
