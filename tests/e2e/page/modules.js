// The part of WhatsApp Web's module system (window.require) that whatsapp-web.js of the pinned version touches
// on its way to 'qr', 'authenticated' and 'ready'. Only surfaces; what lasts is in storage.js.

/** Backbone-like events, as WhatsApp's models and collections have them: on() takes several names. */
export class Emitter {
  #listeners = new Map();

  on(names, listener) {
    for (const name of names.split(' ')) {
      if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
      this.#listeners.get(name).add(listener);
    }
  }

  off(name, listener) {
    this.#listeners.get(name)?.delete(listener);
  }

  trigger(name, ...args) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) listener(...args);
  }
}

/** The connection's state. 'change:hasSynced' reaches also those who listen only after the sync is done. */
export class Socket extends Emitter {
  state = 'OPENING';
  hasSynced = false;

  constructor(logout) {
    super();
    this.logout = logout;
  }

  on(names, listener) {
    super.on(names, listener);
    if (names === 'change:hasSynced' && this.hasSynced) setTimeout(listener, 0);
  }

  setState(state) {
    this.state = state;
    this.trigger('change:state', this, state);
  }

  synced() {
    this.hasSynced = true;
    this.trigger('change:hasSynced', this, true);
  }

  takeover() {}
}

class Conn extends Emitter {
  constructor(account) {
    super();
    this.account = account;
    this.ref = account.ref;
    this.battery = 100;
    this.plugged = true;
  }

  serialize() {
    return { ref: this.ref, pushname: this.account.user(), platform: 'android', connected: true };
  }
}

class Collection extends Emitter {
  get() {
    return undefined;
  }

  async getMessagesById() {
    return { messages: [] };
  }
}

const encodeB64 = (bytes) => btoa(String.fromCharCode(...bytes));

/**
 * Build window.require.
 * *account* has ref, keys() -> {noise, identity, advSecret, registrationId}, user() and wid().
 */
export function makeRequire(socket, cmd, account) {
  const modules = {
    WAWebSocketModel: { Socket: socket },
    WAWebCmd: { Cmd: cmd },
    WAWebConnModel: { Conn: new Conn(account) },
    WAWebOfflineHandler: { OfflineMessageHandler: { getOfflineDeliveryProgress: () => 100 } },
    WAWebAltDeviceLinkingApi: {},
    WABase64: { encodeB64 },
    WAWebCompanionRegClientUtils: { DEVICE_PLATFORM: '1' },
    WAWebAdvSignatureApi: {},
    WAWebUserPrefsInfoStore: { waNoiseInfo: { get: async () => ({ staticKeyPair: account.keys().noise }) } },
    WAWebSignalStoreApi: {
      waSignalStore: {
        getRegistrationInfo: async () => ({
          registrationId: account.keys().registrationId,
          identityKeyPair: account.keys().identity,
        }),
      },
    },
    WAWebUserPrefsMultiDevice: { getADVSecretKey: () => account.keys().advSecret },
    WAWebUserPrefsMeUser: { getMaybeMePnUser: () => account.wid(), getMaybeMeLidUser: () => undefined },
    WAWebCollections: { Msg: new Collection(), Chat: new Collection() },
    WAWebSyncGatingUtils: {},
    WAWebCallCollection: {},
    WAWebAddonReactionTableMode: { reactionTableMode: { bulkUpsert() {} } },
    WAWebAddonPollVoteTableMode: { pollVoteTableMode: { bulkUpsert() {} } },
    WAWebBackendJobsCommon: { mediaTypeFromProtobuf: () => null },
    WAWebE2EProtoUtils: { typeAttributeFromProtobuf: () => 'text' },
  };
  return (name) => {
    if (!(name in modules)) throw new Error(`the stand-in page has no module ${name}`);
    return modules[name];
  };
}
