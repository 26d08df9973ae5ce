// Restores and makes RemoteAuth zips by whatsapp-web.js's own methods, without a browser.
//   node remoteauth.mjs extract DATAPATH ZIP     what a client does at its start: DATAPATH/RemoteAuth-x is then the profile
//   node remoteauth.mjs compress DATAPATH        what it backs up: prints the path of the zip
import fs from 'node:fs';
import path from 'node:path';
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const RemoteAuth = require('whatsapp-web.js/src/authStrategies/RemoteAuth.js');
const [, , action, dataPath, zip] = process.argv;

const store = {
    sessionExists: async () => action === 'extract',
    extract: async ({ path: to }) => fs.copyFileSync(zip, to),
    save: async () => {},
    delete: async () => {},
};
const strategy = new RemoteAuth({ clientId: 'x', dataPath, store, backupSyncIntervalMs: 60000 });
strategy.client = { options: { puppeteer: {} } };

if (action === 'extract') {
    await strategy.beforeBrowserInitialized();
    console.log(strategy.userDataDir);
} else {
    strategy.userDataDir = path.join(dataPath, 'RemoteAuth-x');
    strategy.sessionName = 'RemoteAuth-x';
    console.log(await strategy.compressSession());
}
