"""Hello, and at /client who asks. The bindings are componentize-py's."""

from componentize_py_types import Ok
from wit_world import exports
from wit_world.imports.types import Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam

HELLO = b"Hello from wasmcluster!\n"


def client(request: IncomingRequest) -> bytes:
    """Who sent the request. The server sets these fields: no client can say that it is another."""
    headers = request.headers()
    address, scheme = headers.get("x-real-ip"), headers.get("x-forwarded-proto")
    return b"%s by %s\n" % (address[0] if address else b"unknown", scheme[0] if scheme else b"http")


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        text = client(request) if request.path_with_query() == "/client" else HELLO
        headers = [("content-type", b"text/plain; charset=utf-8"), ("content-length", str(len(text)).encode())]
        response = OutgoingResponse(Fields.from_list(headers))
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        # The stream is a child of the body: it must be gone before the body is finished.
        with body.write() as stream:
            stream.blocking_write_and_flush(text)
        OutgoingBody.finish(body, None)
