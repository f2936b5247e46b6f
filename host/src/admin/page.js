// Shows what /status and /events say. Everything is put in as text, never as markup: names come from elsewhere.
'use strict';

const SAMPLES = 60;
const MAX_EVENTS = 50;
const by = (id) => document.getElementById(id);
const lines = { rate: [], errors: [] };
let before = null;

const number = (value) => value === null || value === undefined ? '–'
  : value.toLocaleString('en', { maximumFractionDigits: value < 10 ? 1 : 0 });
const time = (ms) => ms === null || ms === undefined ? '–'
  : ms < 1000 ? `${number(ms)} ms` : `${number(ms / 1000)} s`;
const size = (bytes) => `${number(bytes / 1048576)} MiB`;
const age = (ms) => {
  const seconds = Math.floor(ms / 1000);
  return seconds < 60 ? `${seconds} s` : seconds < 3600 ? `${Math.floor(seconds / 60)} min`
    : seconds < 86400 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} d`;
};

function row(cells) {
  const tr = document.createElement('tr');
  for (const cell of cells) {
    const td = document.createElement('td');
    td.textContent = cell;
    tr.append(td);
  }
  return tr;
}

function draw(id, value) {
  const values = lines[id];
  values.push(value);
  if (values.length > SAMPLES) values.shift();
  const most = Math.max(...values, 1e-9);
  const points = values.map((value, at) => `${at * 120 / (SAMPLES - 1)},${27 - 26 * value / most}`);
  by(`${id}-line`).firstElementChild.setAttribute('points', points.join(' '));
}

function show(status) {
  const now = performance.now();
  const { totals, workers } = status;
  const sum = (field) => workers.reduce((all, worker) => all + worker[field], 0);
  const state = by('state');
  state.textContent = status.state;
  state.className = `state ${{ running: 'good', degraded: 'bad', stopping: 'bad' }[status.state] || 'busy'}`;
  by('name').textContent = status.name;
  document.title = `${status.name} · ${status.state}`;
  const { current, source, digest } = status.generation;
  by('version').textContent = current ? `generation ${current} · ${source} · ${digest.slice(0, 19)}` : String(source);
  by('in-flight').textContent = number(sum('in_flight'));
  by('connections').textContent = number(sum('connections'));
  by('memory').textContent = size(sum('rss_bytes'));
  by('crashes').textContent = number(totals.crashes);
  by('p50').textContent = time(totals.latency_ms.p50);
  by('p99').textContent = time(totals.latency_ms.p99);
  const rates = new Map();
  if (before) {
    const seconds = (now - before.at) / 1000;
    const rate = (now, before) => Math.max(0, now - before) / seconds;
    const requests = rate(totals.requests, before.totals.requests);
    const errors = rate(totals.errors, before.totals.errors);
    by('rate').textContent = number(requests);
    by('errors').textContent = number(errors);
    draw('rate', requests);
    draw('errors', errors);
    for (const worker of workers) {
      const then = before.workers.find((other) => other.id === worker.id);
      if (then) rates.set(worker.id, rate(worker.requests, then.requests));
    }
  }
  before = { at: now, totals, workers };
  by('workers').replaceChildren(...workers.map((worker) => row([
    worker.slot, worker.pid ?? '–', worker.generation,
    worker.role === 'successor' ? `${worker.state}, to take over` : worker.state,
    worker.id === null ? '–' : age(worker.uptime_ms), number(rates.get(worker.id)), number(worker.in_flight),
    number(worker.connections), size(worker.rss_bytes), number(worker.restarts),
  ])));
  by('generations').replaceChildren(...totals.by_generation.map((it) => row([
    it.generation === current ? `${it.generation}, served now` : it.generation,
    number(it.requests), number(it.errors), number(it.traps), number(it.timeouts), number(it.aborted),
  ])));
  const { reload } = status;
  by('reload').hidden = !reload;
  if (reload) {
    const which = reload.generation === null ? 'The next generation' : `Generation ${reload.generation}`;
    by('reload-words').textContent = `${which}: ${reload.phase.replace('_', ' ')}, ${reload.rolled} of ${reload.of} slots`;
    by('reload-progress').value = reload.of ? reload.rolled / reload.of : 0;
  }
}

function lost() {
  by('state').textContent = 'not reachable';
  by('state').className = 'state bad';
}

async function poll() {
  try {
    const response = await fetch('status', { cache: 'no-store' });
    if (response.ok) show(await response.json()); else lost();
  } catch {
    lost();
  }
  setTimeout(poll, 1000);
}

function happened(message) {
  const { time, event, ...rest } = JSON.parse(message.data);
  const said = Object.entries(rest).filter(([, value]) => value !== null && String(value) !== '')
    .map(([key, value]) => `${key.replaceAll('_', ' ')} ${Array.isArray(value) ? value.join(' ') : value}`);
  const item = document.createElement('li');
  if (time) {
    const when = document.createElement('time');
    when.dateTime = time;
    when.textContent = new Date(time).toLocaleTimeString('en-GB');
    item.append(when);
  }
  item.append(`${event.replaceAll('_', ' ')}${said.length ? `: ${said.join(', ')}` : ''}`);
  const list = by('events');
  list.querySelector('.none')?.remove();
  list.prepend(item);
  while (list.children.length > MAX_EVENTS) list.lastElementChild.remove();
}

new EventSource('events').onmessage = happened;
poll();
