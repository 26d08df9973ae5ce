// One life of one user's Chrome, driven by the real whatsapp-web.js with LocalAuth, against the stand-in page.
//
//   node life.mjs --data-path DIR --port PORT --spki HASH [--user NAME] --expect qr|ready --steps STEP[,STEP...]
//
// Steps, done in order once the client is where --expect says:
//   pair            the page is told to pair as --user with --seed; waits for 'authenticated' and 'ready'
//   worker          register the service worker; it serves scripts from CacheStorage
//   caches          put all scripts into CacheStorage
//   add=N           add N messages and what belongs to them to IndexedDB
//   pause=MS        do nothing for so long
//   local=N         set N localStorage keys and a cookie
//   reload          reload the page, wait for 'ready' and for the page's scripts
//   verify          check every record, cache entry and key
//   write           append to a journal in IndexedDB until Chromium is killed; every durable entry is reported
//   logout          client.logout()
//   phone-logout    the session is ended from the phone: the profile is removed while Chrome runs on, and a new QR shows
// After the last step Chromium is closed, unless it is gone. Standard output has one JSON object a line, with `event`
// and `at_ms` since the start. The exit code is 0 when every step did what it says, else 1 with an `error` event.
// Standard input must stay open: when it closes, Chromium is ended, so that none outlives its test.
import { existsSync, readdirSync, readlinkSync, readFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import whatsapp from 'whatsapp-web.js';

const { values: options } = parseArgs({
  options: {
    'data-path': { type: 'string' },
    port: { type: 'string' },
    spki: { type: 'string' },
    user: { type: 'string', default: 'user' },
    seed: { type: 'string', default: 'seed' },
    expect: { type: 'string' },
    steps: { type: 'string', default: '' },
    'timeout-ms': { type: 'string', default: '60000' },
  },
});
const timeoutMs = Number(options['timeout-ms']);
const profile = path.resolve(options['data-path'], 'session');
const started = performance.now();
const timings = {};
const failures = [];
let leaving = false; // from a logout or a kill on, calls into the page may fail because it goes away

const round = (ms) => Math.round(ms * 10) / 10;
const say = (event, fields = {}) =>
  process.stdout.write(`${JSON.stringify({ event, at_ms: round(performance.now() - started), ...fields })}\n`);

const client = new whatsapp.Client({
  authStrategy: new whatsapp.LocalAuth({ dataPath: options['data-path'] }),
  webVersionCache: { type: 'none' },
  puppeteer: {
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    headless: true,
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      // Only the page's own server exists; its certificate is trusted by its key, which unlike
      // --ignore-certificate-errors lets Chrome keep the HTTP cache and the code caches as in production.
      `--host-resolver-rules=MAP web.whatsapp.com 127.0.0.1:${options.port}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1`,
      `--ignore-certificate-errors-spki-list=${options.spki}`,
    ],
  },
});

/** The name of the client's next event among *events*; rejects after the time limit. Call it before the cause. */
function next(...events) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no '${events}' event within ${timeoutMs} ms`)), timeoutMs);
    for (const event of events) {
      client.once(event, () => {
        clearTimeout(timer);
        resolve(event);
      });
    }
  });
}

async function timed(name, work) {
  const from = performance.now();
  const result = await work();
  timings[`${name}_ms`] = round((timings[`${name}_ms`] ?? 0) + performance.now() - from);
  return result;
}

const inPage = (call, ...args) =>
  client.pupPage.evaluate((name, list) => window.standIn[name](...list), call, args);

const scripts = () => client.pupPage.evaluate(() => window.standIn.scripts.then(() => true));

/** How many files under the profile Chromium's processes hold open. */
function heldOpen() {
  const group = client.pupBrowser.process().pid;
  let held = 0;
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      const fields = readFileSync(`/proc/${pid}/stat`, 'latin1').replace(/^.*\) /s, '').split(' ');
      if (Number(fields[2]) !== group) continue;
      for (const fd of readdirSync(`/proc/${pid}/fd`)) {
        if (readlinkSync(`/proc/${pid}/fd/${fd}`).startsWith(`${profile}/`)) held++;
      }
    } catch (error) {
      if (!['ENOENT', 'ESRCH', 'EACCES'].includes(error.code)) throw error; // it ended while we looked
    }
  }
  return held;
}

const leftBehind = () => (existsSync(profile) ? readdirSync(profile) : []);

const steps = {
  async pair() {
    const ready = Promise.all([next('authenticated'), next('ready')]);
    await inPage('pair', options.user, options.seed);
    await ready;
  },
  worker: () => inPage('registerWorker'),
  caches: async () => say('caches', await inPage('fillCaches')),
  add: async (count) => say('records', await inPage('addRecords', Number(count))),
  pause: (ms) => new Promise((resolve) => setTimeout(resolve, Number(ms))),
  local: (count) => inPage('fillLocal', Number(count)),
  async reload() {
    const ready = next('ready');
    await client.pupPage.reload({ waitUntil: 'load' });
    await ready;
    await scripts();
  },
  async verify() {
    say('verified', { identity: await inPage('identity'), ...(await inPage('verify')) });
  },
  async write() {
    const gone = new Promise((resolve) => client.pupBrowser.once('disconnected', resolve));
    await client.pupPage.exposeFunction('reportDurable', (total, written) => say('durable', { total, written }));
    client.pupPage
      .evaluate(() => window.standIn.writeJournal(window.reportDurable))
      .catch((error) => leaving || failures.push(`writing: ${error.message}`));
    leaving = true;
    await gone;
    say('gone');
  },
  async logout() {
    const held = heldOpen();
    leaving = true;
    await client.logout();
    say('removed', { held_open: held, left: leftBehind() });
  },
  async 'phone-logout'() {
    let held = 0;
    client.once('disconnected', () => (held = heldOpen())); // emitted just before LocalAuth removes the profile
    const qr = next('qr');
    leaving = true;
    await client.pupPage.evaluate(() => void window.require('WAWebSocketModel').Socket.logout());
    await qr;
    say('removed', { held_open: held, held_after: heldOpen(), left: leftBehind() });
  },
};

function onUnhandled(error) {
  const text = String(error?.message ?? error);
  const away = /Target closed|Session closed|detached|context was destroyed|Connection closed|auth timeout/i;
  if (leaving && away.test(text)) say('page_gone', { message: text });
  else failures.push(`unhandled: ${error?.stack ?? text}`);
}

async function main() {
  const known = options.steps.split(',').filter(Boolean).map((step) => step.split('='));
  const unknown = known.find(([name]) => !(name in steps));
  if (unknown || !['qr', 'ready'].includes(options.expect)) throw new Error(`bad --steps or --expect: ${unknown}`);
  for (const event of ['qr', 'authenticated', 'ready', 'auth_failure', 'disconnected']) {
    client.on(event, (value) => say(event, { value: value ?? null }));
  }
  await timed('start', async () => {
    const first = next('qr', 'ready');
    await Promise.all([client.initialize(), first]);
    say('chromium', { pid: client.pupBrowser.process().pid, version: await client.pupBrowser.version() });
    if ((await first) !== options.expect) throw new Error(`'${await first}' came first, not '${options.expect}'`);
  });
  if (options.expect === 'ready') {
    await timed('scripts', scripts);
    say('scripts');
  }
  for (const [name, argument] of known) {
    await timed(name, () => steps[name](argument));
    say('step', { name, ms: timings[`${name}_ms`] });
  }
  await timed('close', () => client.destroy());
}

process.on('unhandledRejection', onUnhandled);
process.stdin.resume().once('end', () => {
  client.pupBrowser?.process()?.kill('SIGKILL');
  process.exit(1);
});
try {
  await main();
} catch (error) {
  failures.push(error?.stack ?? String(error));
  client.pupBrowser?.process()?.kill('SIGKILL');
}
for (const failure of failures) say('error', { message: failure });
say('end', { timings: { ...timings, total_ms: round(performance.now() - started) } });
process.exit(failures.length > 0 ? 1 : 0);
