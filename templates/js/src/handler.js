// What is answered. Nothing here belongs to WebAssembly: Request, Response and URL are those of the
// web, which Node has too, so the test calls it as it is.

export async function handle(request) {
    const { pathname } = new URL(request.url);
    if (pathname !== '/') {
        return new Response(`There is nothing at ${pathname}\n`, { status: 404 });
    }
    return new Response('Hello from JavaScript!\n');
}
