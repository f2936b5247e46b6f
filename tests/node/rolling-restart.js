// Node's cluster with two workers, and a rolling restart on SIGHUP as its documentation shows it for one worker: it is
// disconnected, and killed when it has not gone after two seconds; then another is forked. Prints its port, then a line
// for each restart that is done.
'use strict';
const cluster = require('node:cluster');
const http = require('node:http');

if (cluster.isPrimary) {
  for (let i = 0; i < 2; i++) cluster.fork();
  let listening = 0;
  cluster.on('listening', (worker, address) => {
    listening += 1;
    if (listening === 2) console.log(`port ${address.port}`);
  });
  const restart = (workers) => {
    const worker = workers.shift();
    if (!worker) return console.log('restarted');
    const timeout = setTimeout(() => worker.kill(), 2000);
    worker.once('exit', () => {
      clearTimeout(timeout);
      cluster.fork().once('listening', () => restart(workers));
    });
    worker.send('shutdown');
    worker.disconnect();
  };
  process.on('SIGHUP', () => restart(Object.values(cluster.workers)));
} else {
  const server = http.createServer((request, response) => response.end('Hello\n')).listen(0, '127.0.0.1');
  process.on('message', (message) => {
    // "Initiate graceful close of any connections to server."
    if (message === 'shutdown') server.close();
  });
}
