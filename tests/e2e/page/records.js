// What the stand-in stores, as pure functions of (seed, kind, number): so a later life can check every byte
// without having kept a copy anywhere.

const SYLLABLES = ('ba be bi bo da de di do fa fe ga go ha he ka ki la le li lo ma me mi mo na ne no pa pe po ra re ri ro '
  + 'sa se si so ta te ti to va ve vi wa we ya yo za zi ch sh th').split(' ');
const WORDS = 3000;
const BASE64 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';

// xoshiro128**, seeded from the text's FNV-1a hash: the same numbers in every Chrome.
function generator(text) {
  let hash = 0x811c9dc5;
  const state = new Uint32Array(4);
  for (let i = 0; i < 4; i++) {
    for (let j = 0; j < text.length; j++) hash = Math.imul(hash ^ text.charCodeAt(j), 0x01000193);
    hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d) ^ (i + 1);
    state[i] = hash;
  }
  const rotl = (x, k) => (x << k) | (x >>> (32 - k));
  const next = () => {
    const result = Math.imul(rotl(Math.imul(state[1], 5), 7), 9) >>> 0;
    const t = state[1] << 9;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= t;
    state[3] = rotl(state[3], 11);
    return result;
  };
  for (let i = 0; i < 8; i++) next();
  const below = (n) => next() % n;
  return {
    below,
    chance: (percent) => below(100) < percent,
    bytes: (n) => Uint8Array.from({ length: n }, () => next() >>> 24),
    hex: (n) => Array.from({ length: n }, () => below(16).toString(16).toUpperCase()).join(''),
    base64: (n) => Array.from({ length: n }, () => BASE64[below(64)]).join('') + '=',
    // Few words are frequent and most are rare, as in real text.
    words: (n) => Array.from({ length: n }, () => VOCABULARY[Math.floor(WORDS * (next() / 2 ** 32) ** 3)]).join(' '),
  };
}

const VOCABULARY = makeVocabulary();

function makeVocabulary() {
  let x = 1;
  const step = (n) => (x = (Math.imul(x, 1103515245) + 12345) >>> 0) % n;
  return Array.from({ length: WORDS }, () =>
    Array.from({ length: 1 + step(4) }, () => SYLLABLES[(step(1 << 16) >>> 4) % SYLLABLES.length]).join(''),
  );
}

const wid = (user, server = 'c.us') => ({ server, user, _serialized: `${user}@${server}` });

function phone(seed, kind, n) {
  return `49${String(1500000000 + generator(`${seed}/${kind}/${n}`).below(99999999))}`;
}

export const ownWid = (seed) => wid(phone(seed, 'me', 0));

// A chat message as WhatsApp Web keeps it: a row of plain attributes, the body mostly as an encrypted blob.
export function message(seed, i) {
  const r = generator(`${seed}/message/${i}`);
  const chat = wid(phone(seed, 'contact', r.below(60)), r.chance(30) ? 'g.us' : 'c.us');
  const fromMe = r.chance(40);
  const id = `${fromMe}_${chat._serialized}_3EB0${r.hex(18)}_${i}`;
  const type = r.chance(82) ? 'chat' : ['image', 'ptt', 'sticker', 'document'][r.below(4)];
  const row = {
    id,
    rowId: i,
    internalId: `${chat._serialized}_in_${String(i).padStart(9, '0')}`,
    t: 1_750_000_000 + i * 41 + r.below(40),
    type,
    from: fromMe ? ownWid(seed) : chat,
    to: fromMe ? chat : ownWid(seed),
    self: fromMe ? 'out' : 'in',
    ack: fromMe ? 1 + r.below(3) : 0,
    invis: false,
    star: r.chance(1),
    isNewMsg: true,
    notifyName: r.words(2),
    kicNotified: false,
    recvFresh: true,
    isFromTemplate: false,
    messageSecret: r.bytes(32),
    pollInvalidated: false,
    links: [],
    mentionedJidList: r.chance(5) ? [wid(phone(seed, 'contact', r.below(60)))] : [],
  };
  if (type === 'chat') {
    const text = r.words(3 + r.below(28));
    if (r.chance(30)) row.body = text;
    else row.msgRowOpaqueData = { _keyId: 1, iv: r.bytes(16), _data: r.bytes(text.length + 16), _scheme: 1 };
  } else {
    row.media = {
      mimetype: { image: 'image/jpeg', ptt: 'audio/ogg; codecs=opus', sticker: 'image/webp' }[type] ?? 'application/pdf',
      size: 4_000 + r.below(900_000),
      filehash: r.base64(43),
      encFilehash: r.base64(43),
      mediaKey: r.bytes(32),
      mediaKeyTimestamp: row.t,
      directPath: `/v/t62.7118-24/${r.below(99999999)}_${r.below(999999999)}_n.enc?ccb=11-4&oh=${r.hex(40)}&oe=${r.hex(8)}`,
      thumbnail: r.bytes(type === 'image' ? 700 + r.below(1500) : 90),
    };
  }
  return row;
}

export function contact(seed, i) {
  const r = generator(`${seed}/contact-row/${i}`);
  const id = `${phone(seed, 'contact', i)}.${i}@c.us`;
  return {
    id,
    name: r.words(2),
    shortName: r.words(1),
    pushname: r.words(1),
    type: 'in',
    isAddressBookContact: r.below(2),
    isBusiness: r.chance(8),
    syncToAddressbook: r.chance(50),
    statusMute: false,
    profilePic: r.chance(60) ? r.base64(80) : null,
  };
}

// Keys of the Signal protocol: what makes a profile a login, and what never compresses.
export function prekey(seed, i) {
  const r = generator(`${seed}/prekey/${i}`);
  return { keyId: i, keyPair: { pubKey: r.bytes(33), privKey: r.bytes(32) }, uploaded: i % 3 !== 0 };
}

export function pairing(seed, user) {
  const r = generator(`${seed}/pairing`);
  const pair = () => ({ pubKey: r.bytes(32), privKey: r.bytes(32) });
  return {
    key: 'pairing',
    user,
    seed,
    wid: ownWid(seed),
    noise: pair(),
    identity: pair(),
    advSecret: r.base64(43),
    registrationId: r.below(16380),
  };
}

export function localValue(seed, i) {
  const r = generator(`${seed}/local/${i}`);
  return i % 2 ? JSON.stringify({ value: r.words(6), at: 1_750_000_000 + r.below(9_999_999) }) : r.base64(40 + r.below(200));
}

// What is written while Chrome waits to be killed: about 2 KiB each, so that LevelDB rolls over its log.
export function journalEntry(seed, i) {
  const r = generator(`${seed}/journal/${i}`);
  return { n: i, id: `${seed}_${r.hex(20)}`, body: r.words(40), blob: r.bytes(1700) };
}

// Deep equality of what IndexedDB gives back and what it was given.
export function same(a, b) {
  if (a === b) return true;
  if (a === null || b === null || typeof a !== 'object' || typeof b !== 'object') return false;
  if (ArrayBuffer.isView(a) || ArrayBuffer.isView(b)) {
    return ArrayBuffer.isView(a) && ArrayBuffer.isView(b) && a.length === b.length && a.every((v, i) => v === b[i]);
  }
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length && keys.every((key) => same(a[key], b[key]));
}
