"""What is answered. Nothing here belongs to WebAssembly, so that the test calls it as it is."""


def handle(method: str, path: str) -> tuple[int, str]:
    """The status and the text for a request."""
    if path != "/":
        return 404, f"There is nothing at {path}\n"
    if method not in ("GET", "HEAD"):
        return 405, "Only GET is answered here\n"
    return 200, "Hello from Python!\n"
