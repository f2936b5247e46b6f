// What `ws`, the client of Node.js, makes of the test guest `sdk`:
//
//   NODE_PATH=FOLDER/node_modules node client.js ADDRESS

'use strict';

const assert = require('node:assert');
const { once } = require('node:events');
const WebSocket = require('ws');

const PATIENCE = 120_000; // milliseconds
const [address] = process.argv.slice(2);
const at = (path) => `ws://${address}/websocket/${path}`;

async function open(path, ...options) {
  const socket = new WebSocket(at(path), ...options);
  await once(socket, 'open');
  return socket;
}

async function closes(socket, message) {
  socket.send(message);
  const [code, reason] = await once(socket, 'close');
  return [code, reason.toString()];
}

async function says(socket, message, options) {
  socket.send(message, options);
  const [data, isBinary] = await once(socket, 'message');
  return isBinary ? data : data.toString();
}

async function main() {
  // It offers to compress, which is not taken.
  const socket = await open('echo', { perMessageDeflate: true });
  assert.strictEqual(socket.extensions, '');
  for (const text of ['', 'h\u00e9llo', 'x'.repeat(70_000)]) assert.strictEqual(await says(socket, text), text);
  const bytes = Buffer.alloc(1 << 20, 'wasm');
  assert.ok(bytes.equals(await says(socket, bytes)));
  socket.send('one ', { fin: false });
  socket.send('two ', { fin: false });
  assert.strictEqual(await says(socket, 'three', { fin: true }), 'one two three');
  socket.ping('there?');
  assert.strictEqual((await once(socket, 'pong'))[0].toString(), 'there?');
  assert.deepStrictEqual(await closes(socket, 'close 3999 bye'), [3999, 'bye']);

  assert.deepStrictEqual(await closes(await open('echo'), 'trap'), [1011, '']);
  assert.strictEqual((await closes(await open('echo'), Buffer.alloc((1 << 20) + 1)))[0], 1009);
  assert.strictEqual((await open('protocols', ['other', 'chat.v2', 'chat.v1'])).protocol, 'chat.v2');
  const refused = new WebSocket(at('refuse'));
  const [, response] = await once(refused, 'unexpected-response');
  assert.strictEqual(response.statusCode, 403);

  await Promise.all(Array.from({ length: 100 }, async (_, number) => {
    const socket = await open('echo');
    for (let turn = 0; turn < 50; turn++) assert.strictEqual(await says(socket, `${number} ${turn}`), `${number} ${turn}`);
    socket.close(1000, 'done');
    assert.deepStrictEqual((await once(socket, 'close')).map(String), ['1000', 'done']);
  }));
  console.log('well');
  process.exit(0);
}

setTimeout(() => { throw new Error('it takes too long'); }, PATIENCE).unref();
main();
