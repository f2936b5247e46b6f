// Node's cluster with as many workers as its argument says, and the answer of examples/hello. `content-type` and
// `content-length` are set, `date` comes by itself, and `Connection: keep-alive` is left out, as other servers do.
'use strict';
const cluster = require('node:cluster');
const http = require('node:http');

if (cluster.isPrimary) {
  const workers = Number(process.argv[2]);
  for (let i = 0; i < workers; i++) cluster.fork();
  let listening = 0;
  cluster.on('listening', (worker, address) => {
    listening += 1;
    if (listening === workers) console.log(`Serving HTTP on http://127.0.0.1:${address.port}/`);
  });
} else {
  const body = Buffer.from('Hello from wasmcluster!\n');
  const server = http.createServer((request, response) => {
    if (response.shouldKeepAlive) response.removeHeader('connection');
    response.writeHead(200, { 'content-type': 'text/plain; charset=utf-8', 'content-length': body.length });
    response.end(body);
  });
  server.listen(0, '127.0.0.1');
}
