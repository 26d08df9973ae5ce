// The stand-in's storage: IndexedDB as WhatsApp Web divides it, CacheStorage, localStorage and a cookie.
import * as records from './records.js';

const CACHE = 'wa-static-v1';
const PARALLEL_FETCHES = 6;
const BATCH = 250;
const PREKEYS = 800;
const MAX_ERRORS = 20;
const DATABASES = {
  wawc: { user: 'key' },
  'signal-storage': { prekey: 'keyId' },
  'model-storage': { message: 'id', contact: 'id', journal: 'n' },
};
const open = new Map();

const settle = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const committed = (transaction) =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });

async function database(name) {
  if (!open.has(name)) {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => {
      for (const [store, keyPath] of Object.entries(DATABASES[name])) {
        const created = request.result.createObjectStore(store, { keyPath });
        if (store === 'message') {
          created.createIndex('rowId', 'rowId', { unique: true });
          created.createIndex('internalId', 'internalId');
          created.createIndex('t', 't');
        }
      }
    };
    open.set(name, settle(request));
  }
  return open.get(name);
}

async function put(name, store, rows, durability = 'relaxed') {
  const transaction = (await database(name)).transaction(store, 'readwrite', { durability });
  const target = transaction.objectStore(store);
  for (const row of rows) target.put(row);
  await committed(transaction);
}

async function putMany(name, store, make, from, to) {
  for (let start = from; start < to; start += BATCH) {
    const rows = [];
    for (let i = start; i < Math.min(start + BATCH, to); i++) rows.push(make(i));
    await put(name, store, rows);
  }
}

async function readAll(name, store, index) {
  const target = (await database(name)).transaction(store).objectStore(store);
  return settle((index ? target.index(index) : target).getAll());
}

async function get(name, store, key) {
  return settle((await database(name)).transaction(store).objectStore(store).get(key));
}

export const findPairing = () => get('wawc', 'user', 'pairing');

// How much of everything was stored so far: what a later life has to find.
const NOTHING = { key: 'progress', messages: 0, contacts: 0, prekeys: 0, localKeys: 0, cached: 0 };
const progress = async () => (await get('wawc', 'user', 'progress')) ?? NOTHING;
const advance = async (fields) => put('wawc', 'user', [{ ...(await progress()), ...fields }], 'strict');

export const savePairing = (row) => put('wawc', 'user', [row], 'strict');

const cookieValue = (seed) => encodeURIComponent(records.localValue(seed, 1_000_000));

/** Register the service worker and return once it controls this page; throws when its installation fails. */
export async function registerWorker() {
  const registration = await navigator.serviceWorker.register('/sw.js');
  const worker = registration.installing ?? registration.waiting ?? registration.active;
  await new Promise((resolve, reject) => {
    const check = () => {
      if (navigator.serviceWorker.controller) resolve();
      if (worker.state === 'redundant') reject(new Error('the service worker failed to install'));
    };
    navigator.serviceWorker.addEventListener('controllerchange', check);
    worker.addEventListener('statechange', check);
    check();
  });
}

/** Put every script into CacheStorage, a few at a time. Returns {entries, bytes}. */
export async function fillCaches() {
  const assets = await (await fetch('/assets.json', { cache: 'no-store' })).json();
  const cache = await caches.open(CACHE);
  const queue = [...assets];
  const drain = async () => {
    for (let asset = queue.shift(); asset !== undefined; asset = queue.shift()) {
      const response = await fetch(asset.url);
      if (!response.ok) throw new Error(`${asset.url}: HTTP ${response.status}`);
      const { headers } = response;
      await cache.put(asset.url, asset.whole ? new Response(await response.arrayBuffer(), { headers }) : response);
    }
  };
  await Promise.all(Array.from({ length: PARALLEL_FETCHES }, drain));
  await advance({ cached: assets.length });
  return { entries: (await cache.keys()).length, bytes: assets.reduce((sum, asset) => sum + asset.bytes, 0) };
}

/** Add *count* messages, and a tenth as many contacts; Signal keys the first time. Returns the new totals. */
export async function addRecords(seed, count) {
  const done = await progress();
  const messages = done.messages + count;
  const next = { messages, contacts: Math.floor(messages / 10), prekeys: PREKEYS };
  await putMany('signal-storage', 'prekey', (i) => records.prekey(seed, i), done.prekeys, next.prekeys);
  await putMany('model-storage', 'contact', (i) => records.contact(seed, i), done.contacts, next.contacts);
  await putMany('model-storage', 'message', (i) => records.message(seed, i), done.messages, next.messages);
  await advance(next);
  return next;
}

/** Set *count* localStorage keys and one cookie. */
export async function fillLocal(seed, count) {
  for (let i = 0; i < count; i++) localStorage.setItem(`WA${i}`, records.localValue(seed, i));
  document.cookie = `wa_ul=${cookieValue(seed)}; max-age=31536000; secure; samesite=lax`;
  await advance({ localKeys: count });
}

/** Append to the journal for ever, one durable transaction an entry; *report(total, written)* after each commit. */
export async function writeJournal(seed, report) {
  const found = (await readAll('model-storage', 'journal')).length;
  for (let n = found; ; n++) {
    await put('model-storage', 'journal', [records.journalEntry(seed, n)], 'strict');
    report(n + 1, n + 1 - found);
  }
}

/**
 * Check everything that was ever stored, byte for byte.
 * Returns counts of what was found right, and `errors` (the first few) for what is missing, altered or unexpected.
 */
export async function verify(seed) {
  const errors = [];
  const complain = (text) => errors.length < MAX_ERRORS && errors.push(text);
  const expected = await progress();
  const compare = (what, rows, wanted, make) => {
    if (rows.length !== wanted) complain(`${what}: ${rows.length} rows, ${wanted} expected`);
    const right = rows.filter((row, i) => records.same(row, make(i)) || complain(`${what} ${i} differs`) === 0);
    return right.length;
  };
  const byNumber = (rows) => rows.sort((a, b) => Number(a.id.match(/(\d+)@c\.us$/)[1]) - Number(b.id.match(/(\d+)@c\.us$/)[1]));
  const journal = await readAll('model-storage', 'journal');
  const found = {
    messages: compare('message', await readAll('model-storage', 'message', 'rowId'), expected.messages,
      (i) => records.message(seed, i)),
    contacts: compare('contact', byNumber(await readAll('model-storage', 'contact')), expected.contacts,
      (i) => records.contact(seed, i)),
    prekeys: compare('prekey', await readAll('signal-storage', 'prekey'), expected.prekeys,
      (i) => records.prekey(seed, i)),
    journal: compare('journal', journal, journal.length, (i) => records.journalEntry(seed, i)),
    localKeys: verifyLocal(seed, expected.localKeys, complain),
    ...(await verifyCaches(expected.cached, complain)),
    controlled: navigator.serviceWorker.controller !== null,
  };
  return { ...found, errors };
}

function verifyLocal(seed, count, complain) {
  let right = 0;
  for (let i = 0; i < count; i++) {
    if (localStorage.getItem(`WA${i}`) === records.localValue(seed, i)) right++;
    else complain(`localStorage key WA${i} is missing or differs`);
  }
  if (count > 0 && !document.cookie.split('; ').includes(`wa_ul=${cookieValue(seed)}`)) complain('cookie is missing');
  return right;
}

async function sha256(body) {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', body));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

async function verifyCaches(count, complain) {
  const found = { cacheEntries: 0, cacheBytes: 0 };
  const cache = await caches.open(CACHE);
  const entries = (await cache.keys()).length;
  if (entries !== count) complain(`CacheStorage: ${entries} entries, ${count} expected`);
  if (entries === 0) return found;
  const assets = await (await fetch('/assets.json', { cache: 'no-store' })).json();
  for (const asset of assets) {
    // A body that Chrome can't read, or finds damaged by its own checksum, rejects.
    const body = await cache.match(asset.url).then((response) => response?.arrayBuffer()).catch(() => undefined);
    if (body !== undefined && (await sha256(body)) === asset.sha256) {
      found.cacheEntries++;
      found.cacheBytes += body.byteLength;
    } else {
      complain(`CacheStorage entry ${asset.url} is missing or differs`);
    }
  }
  return found;
}

/** What a logout does to the page's own storage: all of it goes. */
export async function wipe() {
  localStorage.clear();
  for (const name of await caches.keys()) await caches.delete(name);
  for (const [name, opened] of open) {
    (await opened).close();
    await settle(indexedDB.deleteDatabase(name));
  }
  open.clear();
}
