"""The handler. It uses nothing of WebAssembly, so the test can call it directly."""


def handle(method: str, path: str) -> tuple[int, str]:
    """The status and the text for a request."""
    if path != "/":
        return 404, f"There is nothing at {path}\n"
    if method not in ("GET", "HEAD"):
        return 405, "Use GET\n"
    return 200, "Hello from Python!\n"
