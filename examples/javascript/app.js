// Hello, and at /client who asks. A guest that componentize-js makes lives for one request: a second one would wait for its
// answer for ever.

const HELLO = 'Hello from wasmcluster!\n';

// The server sets these fields: no client can say that it is another.
function client({ headers }) {
    return `${headers.get('x-real-ip') ?? 'unknown'} by ${headers.get('x-forwarded-proto') ?? 'http'}\n`;
}

addEventListener('fetch', (event) => {
    const text = new URL(event.request.url).pathname === '/client' ? client(event.request) : HELLO;
    const headers = { 'content-type': 'text/plain; charset=utf-8', 'content-length': String(text.length) };
    event.respondWith(new Response(text, { headers }));
});
