// The stand-in page: unpaired it shows a QR reference; paired, it runs its scripts and serves the commands of
// window.standIn, which life.mjs calls. A profile is paired when its IndexedDB holds a pairing, and only then.
import { Emitter, Socket, makeRequire } from './modules.js';
import { ownWid, pairing } from './records.js';
import * as storage from './storage.js';

const randomText = () => btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(24))));

let paired = await storage.findPairing();
const fresh = pairing(randomText(), ''); // the keys shown in the QR before anybody is paired
const cmd = new Emitter();
cmd.refreshQR = () => {};
const socket = new Socket(logout);
const account = {
  ref: `2@${randomText()}`,
  keys: () => paired ?? fresh,
  user: () => paired?.user,
  wid: () => paired?.wid,
};

// The phone or the client ended the session: storage is cleared, whatsapp-web.js told, and the page starts anew.
async function logout() {
  await storage.wipe();
  cmd.trigger('logout');
  setTimeout(() => location.replace('/?post_logout=1'), 0);
}

async function pair(user, seed) {
  socket.setState('PAIRING');
  paired = pairing(seed, user);
  await storage.savePairing(paired);
  localStorage.setItem('last-wid-md', JSON.stringify(ownWid(seed)._serialized));
  socket.setState('CONNECTED');
  socket.synced();
}

async function runScripts() {
  const assets = await (await fetch('/assets.json', { cache: 'no-store' })).json();
  const run = (asset) =>
    new Promise((resolve, reject) => {
      const script = document.createElement('script');
      script.src = asset.url;
      script.async = false;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${asset.url} did not run`));
      document.head.append(script);
    });
  await Promise.all(assets.filter((asset) => asset.run).map(run));
}

window.require = makeRequire(socket, cmd, account);
window.standIn = {
  identity: () => ({ paired: paired !== undefined, user: paired?.user, seed: paired?.seed }),
  scripts: paired === undefined ? Promise.resolve() : runScripts(),
  pair,
  registerWorker: storage.registerWorker,
  fillCaches: storage.fillCaches,
  addRecords: (count) => storage.addRecords(paired.seed, count),
  fillLocal: (count) => storage.fillLocal(paired.seed, count),
  verify: () => storage.verify(paired.seed),
  writeJournal: (report) => storage.writeJournal(paired.seed, report),
};
document.querySelector('#app').textContent = paired ? `Chats of ${paired.user}` : account.ref;
socket.setState(paired ? 'CONNECTED' : 'UNPAIRED');
if (paired) socket.synced();
window.Debug = { VERSION: '2.3000.1017054665' };
