// Draws the charts of a report, and while the page is served asks for what is new.
"use strict";

const SHOWN = { responsive: true, displaylogo: false, plotlyServerURL: "" };
const byId = (id) => document.getElementById(id);

async function unpacked(base64) {
  const letters = atob(base64);
  const bytes = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at++) bytes[at] = letters.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function loadPlotly() {
  const script = document.createElement("script");
  script.textContent = await unpacked(byId("plotly").textContent);
  document.head.append(script);
}

function isInView(id) {
  const { top, bottom } = byId(id).getBoundingClientRect();
  return bottom > 0 && top < window.innerHeight;
}

const drawOne = (id, { data, layout }) => Plotly.react(id, data, layout, SHOWN);
const pause = (ms = 0) => new Promise((done) => setTimeout(done, ms));

// Charts in view come first; the others one after another, so that a reader can scroll meanwhile.
async function draw(figures) {
  const there = Object.keys(figures).filter(byId);
  const first = there.filter(isInView);
  for (const id of first) await drawOne(id, figures[id]);
  document.documentElement.dataset.drawn = "first";
  for (const id of there) {
    if (first.includes(id)) continue;
    await pause();
    await drawOne(id, figures[id]);
  }
  document.documentElement.dataset.drawn = "all";
}

// Charts that are there stay, with what was hidden in them; so do parts that were opened.
function replace(body) {
  const fresh = document.createElement("template");
  fresh.innerHTML = body;
  for (const [number, part] of fresh.content.querySelectorAll("details").entries())
    part.open = document.querySelectorAll("#content details")[number]?.open ?? false;
  for (const chart of document.querySelectorAll("#content .chart"))
    fresh.content.querySelector(`#${chart.id}`)?.replaceWith(chart);
  byId("content").replaceChildren(fresh.content);
}

async function update(state) {
  document.title = document.querySelector("h1").textContent = state.title;
  replace(state.body);
  await draw(state.figures);
  const told = document.documentElement.dataset;
  told.updates = Number(told.updates ?? 0) + 1;
}

function tell(text) {
  if (byId("live").textContent !== text) byId("live").textContent = text;
}

async function follow() {
  const between = Number(byId("live").dataset.pause);
  for (let tag = ""; ; await pause(between)) {
    try {
      const answer = await fetch(`data${location.search}`, { headers: { "If-None-Match": tag } });
      if (answer.ok) {
        await update(await answer.json());
        tag = answer.headers.get("ETag");
      } else if (answer.status !== 304) throw new Error(answer.statusText);
      tell("Live: what is new appears by itself.");
    } catch (error) {
      tell("The server does not answer. This is what it told last.");
    }
  }
}

async function main() {
  byId("no-charts").hidden = true;
  try {
    await loadPlotly();
    await draw(JSON.parse(byId("figures").textContent));
  } catch (error) {
    byId("no-charts").hidden = false;
    throw error;
  }
  if (byId("live")) await follow();
}

main();
