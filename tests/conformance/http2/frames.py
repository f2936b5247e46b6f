"""RFC 9113 sections 4.1, 4.2 and 5.5: the form and the size of frames, and what is unknown."""

import wire
from case import case
from peer import Skip
from wire import DEFAULT_FRAME_SIZE, FRAME_SIZE_ERROR, PROTOCOL_ERROR, frame

# More than this is not sent to see whether it is too much.
SENT_AT_ONCE = 2**20


def too_large(peer):
    """The least payload that is larger than the server takes."""
    size = peer.server_settings.get(wire.MAX_FRAME_SIZE, DEFAULT_FRAME_SIZE) + 1
    if size > SENT_AT_ONCE:
        raise Skip(f"the server takes frames of {size - 1} bytes")
    return bytes(size)


@case("4.1", "a frame of an unknown type is ignored, on stream 0")
def unknown_type(server):
    peer = server.connect()
    peer.send(frame(wire.UNKNOWN_TYPE, 0xFF, 0, b"what is this"))
    peer.expect_ignored()


@case("4.1", "a frame of an unknown type is ignored, on an open stream")
def unknown_type_on_a_stream(server):
    peer = server.connect()
    peer.request(1, server.routes.count or "/", method="POST", end=False)
    peer.send(frame(wire.UNKNOWN_TYPE, 0xFF, 1, b"what is this") + wire.data(1, b"body", end=True))
    # A server without a place for bodies may refuse the method.
    peer.expect_answer(status=200 if server.routes.count else None)


@case("4.1", "flags that a frame's type does not have are ignored: PING")
def unknown_flags_of_ping(server):
    peer = server.connect()
    peer.send(frame(wire.PING, 0xFE, 0, b"the same"))
    peer.must(lambda: b"the same" in peer.pongs, "PING ACK")


@case("4.1", "flags that a frame's type does not have are ignored: HEADERS")
def unknown_flags_of_headers(server):
    peer = server.connect()
    peer.send(wire.headers(1, peer.fields(), flags=0x52))
    peer.expect_answer()


@case("4.1", "flags that a frame's type does not have are ignored: SETTINGS, WINDOW_UPDATE")
def unknown_flags_of_others(server):
    peer = server.connect()
    peer.send(frame(wire.SETTINGS, 0xFE), frame(wire.WINDOW_UPDATE, 0xFF, 0, b"\0\0\0\1"))
    peer.must(lambda: peer.acknowledged == 2, "SETTINGS ACK")
    peer.expect_ignored()


@case("4.1", "the reserved bit of a stream identifier is ignored")
def reserved_bit(server):
    peer = server.connect()
    peer.send(frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, 1 << 31 | 1, wire.as_block(peer.fields())))
    peer.expect_answer()


@case("4.1", "frames that come byte by byte are as good as any")
def frames_byte_by_byte(server):
    peer = server.connect()
    for byte in wire.headers(1, peer.fields()) + wire.ping(b"bytewise"):
        peer.send(bytes([byte]))
    peer.expect_answer()
    peer.must(lambda: b"bytewise" in peer.pongs, "PING ACK")


@case("4.2", "DATA of 16384 bytes is taken", needs="count")
def largest_data(server):
    peer = server.connect()
    peer.request(1, server.routes.count, method="POST", end=False)
    peer.send(wire.data(1, bytes(DEFAULT_FRAME_SIZE), end=True))
    body = peer.expect_answer().body
    peer.check_that(body.strip() == b"16384", f"a count of 16384, not {body}")


@case("4.2", "HEADERS of 16384 bytes is taken, or its stream refused")
def largest_headers(server):
    peer = server.connect()
    block = wire.as_block(peer.fields())
    left = DEFAULT_FRAME_SIZE - len(block)
    # Several, because servers have limits for one, too.
    while left > 1100:
        block += wire.literal("x-large", "v" * 1000)
        left = DEFAULT_FRAME_SIZE - len(block)
    block += wire.literal("x-large", "v" * (left - len(wire.literal("x-large", "")) - (1 if left > 140 else 0)))
    assert len(block) == DEFAULT_FRAME_SIZE, len(block)
    peer.stream(1)
    peer.send(wire.headers(1, block))
    stream = peer.stream(1)
    peer.must(lambda: stream.is_over, "an answer or RST_STREAM")
    peer.check_that(stream.status in (None, 200, 400, 431), "200, 400 or 431")
    peer.expect_ignored(3)


@case("4.2", "DATA that is too large is a FRAME_SIZE_ERROR")
def data_too_large(server):
    peer = server.connect()
    peer.request(1, server.routes.never or "/", method="POST", end=False)
    peer.send(wire.data(1, too_large(peer), end=True))
    peer.must(lambda: peer.failed or peer.stream(1).reset is not None, "FRAME_SIZE_ERROR")
    peer.expect_stream_error(1, FRAME_SIZE_ERROR)


@case("4.2", "HEADERS that is too large is a FRAME_SIZE_ERROR of the connection")
def headers_too_large(server):
    peer = server.connect()
    payload = too_large(peer)
    block = wire.as_block(peer.fields())
    filler = len(payload) - len(block) - len(wire.literal("x-large", "")) - 2
    peer.send(wire.headers(1, block + wire.literal("x-large", "v" * filler)))
    peer.expect_connection_error(FRAME_SIZE_ERROR)


@case("4.2", "SETTINGS that is too large is a FRAME_SIZE_ERROR of the connection")
def settings_too_large(server):
    peer = server.connect()
    count = len(too_large(peer)) // 6 + 1
    peer.send(wire.settings([(0xFFFF, 0)] * count))
    peer.expect_connection_error(FRAME_SIZE_ERROR)


@case("4.2", "an unknown frame that is too large is a FRAME_SIZE_ERROR")
def unknown_frame_too_large(server):
    peer = server.connect()
    peer.send(frame(wire.UNKNOWN_TYPE, 0, 0, too_large(peer)))
    peer.expect_connection_error(FRAME_SIZE_ERROR)


@case("4.2", "no frame of the server is larger than the client takes", needs="large")
def frames_of_the_server_are_bounded(server):
    # What comes is checked against the limit in each case.
    peer = server.connect({wire.INITIAL_WINDOW_SIZE: 2**20})
    peer.allow(0, 2**20)
    peer.request(1, server.routes.large)
    peer.expect_answer()


@case("5.5", "a frame of an unknown type within a header block is a PROTOCOL_ERROR of the connection")
def unknown_type_in_a_block(server):
    peer = server.connect()
    fields = peer.fields()
    peer.send(
        wire.headers(1, fields[:2], complete=False), frame(wire.UNKNOWN_TYPE, 0, 1), wire.continuation(1, fields[2:])
    )
    peer.expect_connection_error(PROTOCOL_ERROR)
