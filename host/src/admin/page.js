// Shows what /status and /events say. Everything is put in as text, never as markup: names come from elsewhere.
'use strict';

const SAMPLES = 60;
const MAX_EVENTS = 50;
/** Rates of workers are those of so many milliseconds: one second's would reorder the rows all the time. */
const WINDOW = 5000;
const by = (id) => document.getElementById(id);
const lines = { rate: [], errors: [] };
let before = null;
/** What workers had counted in the last seconds, the oldest first. */
const samples = [];
/** Workers as they are shown. */
let shown = [];
let sort = null;

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

const share = (cores) => cores === undefined ? '–' : `${number(cores * 100)} %`;

/** The columns of workers: what each is sorted by, how that is shown, and whether the smallest is first unless asked otherwise. */
const columns = {
  slot: { of: (worker) => worker.slot, isAscending: true },
  process: { of: (worker) => worker.pid, show: (pid) => pid ?? '–', isAscending: true },
  generation: { of: (worker) => worker.generation },
  state: {
    of: (worker) => worker.role === 'successor' ? `${worker.state}, to take over` : worker.state, isAscending: true,
  },
  up: { of: (worker) => worker.id === null ? null : worker.uptime_ms, show: (ms) => ms === null ? '–' : age(ms) },
  rate: { of: (worker) => worker.rate, show: number },
  cpu: { of: (worker) => worker.cpu, show: share },
  'in-flight': { of: (worker) => worker.in_flight, show: number },
  connections: { of: (worker) => worker.connections, show: number },
  'guest-memory': { of: (worker) => worker.guest_memory_bytes, show: size },
  rss: { of: (worker) => worker.rss_bytes, show: size },
  restarts: { of: (worker) => worker.restarts, show: number },
};
const buttons = [...by('columns').querySelectorAll('button')];

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

/** Adds what each worker does per second, since it was first seen in the last seconds. */
function withRates(now, workers) {
  while (samples.length > 1 && now - samples[0].at > WINDOW) samples.shift();
  const measured = workers.map((worker) => {
    const then = samples.find((sample) => sample.workers.has(worker.id));
    if (!then) return worker;
    const was = then.workers.get(worker.id);
    const rate = (field) => Math.max(0, worker[field] - was[field]) / ((now - then.at) / 1000);
    return { ...worker, rate: rate('requests'), cpu: rate('guest_cpu_ms') / 1000 };
  });
  const living = workers.filter((worker) => worker.id !== null);
  samples.push({ at: now, workers: new Map(living.map((worker) => [worker.id, worker])) });
  return measured;
}

/** The order of workers is kept in the page's address, as `#sort=cpu,descending`, so that it can be passed on. */
function readSort() {
  const [, column, direction] = /^#sort=([a-z-]+),(ascending|descending)$/.exec(location.hash) ?? [];
  sort = Object.hasOwn(columns, column) ? { column, direction } : { column: 'slot', direction: 'ascending' };
  showWorkers();
}

function sortBy(column) {
  const directions = columns[column].isAscending ? ['ascending', 'descending'] : ['descending', 'ascending'];
  const direction = directions[sort.column === column && sort.direction === directions[0] ? 1 : 0];
  history.replaceState(null, '', `#sort=${column},${direction}`);
  readSort();
}

function showWorkers() {
  const { of } = columns[sort.column];
  const sign = sort.direction === 'ascending' ? 1 : -1;
  const compare = (one, other) => {
    const [a, b] = [of(one), of(other)];
    // Those without a value are at the end, whatever the direction.
    if ((a ?? null) === null || (b ?? null) === null) return ((a ?? null) === null) - ((b ?? null) === null);
    return a < b ? -sign : a > b ? sign : 0;
  };
  for (const button of buttons) {
    const heading = button.parentElement;
    if (button.dataset.column === sort.column) heading.setAttribute('aria-sort', sort.direction);
    else heading.removeAttribute('aria-sort');
  }
  by('workers').replaceChildren(...[...shown].sort(compare).map((worker) => row(buttons.map((button) => {
    const { of, show = String } = columns[button.dataset.column];
    return show(of(worker));
  }))));
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
  if (before) {
    const seconds = (now - before.at) / 1000;
    const rate = (now, before) => Math.max(0, now - before) / seconds;
    const requests = rate(totals.requests, before.totals.requests);
    const errors = rate(totals.errors, before.totals.errors);
    by('rate').textContent = number(requests);
    by('errors').textContent = number(errors);
    draw('rate', requests);
    draw('errors', errors);
  }
  before = { at: now, totals };
  shown = withRates(now, workers);
  showWorkers();
  by('generations').replaceChildren(...totals.by_generation.map((it) => row([
    it.generation === current ? `${it.generation}, served now` : it.generation,
    number(it.requests), number(it.errors), number(it.traps), number(it.timeouts), number(it.aborted),
  ])));
  const { reload } = status;
  by('warned').hidden = !status.problems.length;
  by('problems').replaceChildren(...status.problems.map(warning));
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

function moment(time) {
  const when = document.createElement('time');
  when.dateTime = time;
  when.textContent = new Date(time).toLocaleTimeString('en-GB');
  return when;
}

// What the log warned of: which request, which version, how often.
function warning({ time, message, count, worker, generation, request, method, path }) {
  const who = request ? `request ${request} ${method ?? ''} ${path ?? ''}`.trim() : worker === null ? '' : `worker ${worker}`;
  const about = [who, generation === null ? '' : `generation ${generation}`, count > 1 ? `${number(count)} times` : ''];
  const item = document.createElement('li');
  item.append(moment(time), [about.filter(Boolean).join(', '), message].filter(Boolean).join(': '));
  return item;
}

function happened(message) {
  const { time, event, ...rest } = JSON.parse(message.data);
  const said = Object.entries(rest).filter(([, value]) => value !== null && String(value) !== '')
    .map(([key, value]) => `${key.replaceAll('_', ' ')} ${Array.isArray(value) ? value.join(' ') : value}`);
  const item = document.createElement('li');
  if (time) {
    item.append(moment(time));
  }
  item.append(`${event.replaceAll('_', ' ')}${said.length ? `: ${said.join(', ')}` : ''}`);
  const list = by('events');
  list.querySelector('.none')?.remove();
  list.prepend(item);
  while (list.children.length > MAX_EVENTS) list.lastElementChild.remove();
}

for (const button of buttons) button.addEventListener('click', () => sortBy(button.dataset.column));
addEventListener('hashchange', readSort);
readSort();
new EventSource('events').onmessage = happened;
poll();
