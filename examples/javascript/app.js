// Hello, whatever the request: the least that a JavaScript guest can do. One that componentize-js
// makes lives for one request: a second one would wait for its answer for ever.

const BODY = 'Hello from wasmcluster!\n';

addEventListener('fetch', (event) => {
    const headers = { 'content-type': 'text/plain; charset=utf-8', 'content-length': String(BODY.length) };
    event.respondWith(new Response(BODY, { headers }));
});
