// The handler. It uses only Request, Response and URL of the web platform, which Node has too, so the
// test can call it without WebAssembly.

export async function handle(request) {
    const { pathname } = new URL(request.url);
    if (pathname !== '/') {
        return new Response(`There is nothing at ${pathname}\n`, { status: 404 });
    }
    return new Response('Hello from JavaScript!\n');
}
