"""Hello, whatever the request: the least that a Python guest can do. The bindings are componentize-py's."""

from componentize_py_types import Ok
from wit_world import exports
from wit_world.imports.types import Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam

BODY = b"Hello from wasmcluster!\n"
HEADERS = [
    ("content-type", b"text/plain; charset=utf-8"),
    ("content-length", str(len(BODY)).encode()),
]


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        response = OutgoingResponse(Fields.from_list(HEADERS))
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        # The stream is a child of the body: it must be gone before the body is finished.
        with body.write() as stream:
            stream.blocking_write_and_flush(BODY)
        OutgoingBody.finish(body, None)
