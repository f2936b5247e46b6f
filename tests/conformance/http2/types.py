"""RFC 9113 section 6: each type of frame, with the wrong stream, length, padding or values. Windows are in flow.py."""

import struct

import wire
from case import case
from wire import FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, PROTOCOL_ERROR, frame

PADDED_FIELDS_END = wire.PADDED | wire.END_HEADERS | wire.END_STREAM


def expect_connection_error(server, sent, *codes):
    """For one frame on a fresh connection."""
    peer = server.connect()
    peer.send(sent)
    peer.expect_connection_error(*codes)


def open_upload(server):
    """A connection with an open request on stream 1, whose body is awaited."""
    peer = server.connect()
    peer.request(1, server.routes.never or "/", method="POST", end=False)
    return peer


# DATA.


@case("6.1", "DATA on stream 0 is a PROTOCOL_ERROR of the connection")
def data_on_stream_0(server):
    expect_connection_error(server, wire.data(0, b"nobody's"), PROTOCOL_ERROR)


@case("6.1", "DATA with padding as long as its payload is a PROTOCOL_ERROR of the connection")
def data_padding_too_long(server):
    peer = open_upload(server)
    peer.send(frame(wire.DATA, wire.PADDED | wire.END_STREAM, 1, b"\x05" + bytes(4)))
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("6.1", "padded DATA that has no room for the padding's length is an error of the connection")
def data_without_padding_length(server):
    peer = open_upload(server)
    peer.send(frame(wire.DATA, wire.PADDED | wire.END_STREAM, 1))
    peer.expect_connection_error(PROTOCOL_ERROR, FRAME_SIZE_ERROR)


@case("6.1", "padding is no part of the body", needs="echo")
def padded_data(server):
    peer = server.connect()
    peer.request(1, server.routes.echo, method="POST", end=False)
    peer.send(wire.data(1, b"one ", padding=0), wire.data(1, padding=255), wire.data(1, b"two", end=True, padding=7))
    peer.expect_answer(body=b"one two")


# HEADERS.


@case("6.2", "HEADERS on stream 0 is a PROTOCOL_ERROR of the connection")
def headers_on_stream_0(server):
    peer = server.connect()
    peer.send(wire.headers(0, peer.fields()))
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("6.2", "padding of HEADERS is no part of the block")
def padded_headers(server):
    peer = server.connect()
    peer.stream(1)
    peer.send(frame(wire.HEADERS, PADDED_FIELDS_END, 1, b"\x09" + wire.as_block(peer.fields()) + bytes(9)))
    peer.expect_answer()


@case("6.2", "padding and priority of HEADERS are no part of the block")
def padded_headers_with_priority(server):
    peer = server.connect()
    peer.stream(1)
    payload = b"\x03" + struct.pack(">IB", 0, 7) + wire.as_block(peer.fields()) + bytes(3)
    peer.send(frame(wire.HEADERS, PADDED_FIELDS_END | wire.WITH_PRIORITY, 1, payload))
    peer.expect_answer()


@case("6.2", "HEADERS with padding longer than what is left is a PROTOCOL_ERROR of the connection")
def headers_padding_too_long(server):
    peer = server.connect()
    block = wire.as_block(peer.fields())
    peer.send(frame(wire.HEADERS, PADDED_FIELDS_END, 1, bytes([len(block) + 1]) + block))
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("6.2", "padded HEADERS that has no room for the padding's length is an error of the connection")
def headers_without_padding_length(server):
    expect_connection_error(server, frame(wire.HEADERS, PADDED_FIELDS_END, 1), PROTOCOL_ERROR, FRAME_SIZE_ERROR)


@case("6.2", "HEADERS that has no room for its priority is an error of the connection")
def headers_without_priority(server):
    flags = wire.WITH_PRIORITY | wire.END_HEADERS | wire.END_STREAM
    expect_connection_error(server, frame(wire.HEADERS, flags, 1, b"\0\0\0"), PROTOCOL_ERROR, FRAME_SIZE_ERROR)


# PRIORITY.


@case("6.3", "PRIORITY on stream 0 is a PROTOCOL_ERROR of the connection")
def priority_on_stream_0(server):
    expect_connection_error(server, wire.priority(0, 1), PROTOCOL_ERROR)


@case("6.3", "PRIORITY of other than 5 bytes is a FRAME_SIZE_ERROR of the stream")
def priority_of_another_length(server):
    for payload in (bytes(4), bytes(6)):
        peer = server.connect_held()
        peer.send(frame(wire.PRIORITY, 0, 1, payload))
        peer.expect_stream_error(1, FRAME_SIZE_ERROR)


# RST_STREAM.


@case("6.4", "RST_STREAM on stream 0 is a PROTOCOL_ERROR of the connection")
def rst_stream_on_stream_0(server):
    expect_connection_error(server, wire.rst_stream(0), PROTOCOL_ERROR)


@case("6.4", "RST_STREAM of other than 4 bytes is a FRAME_SIZE_ERROR of the connection")
def rst_stream_of_another_length(server):
    for payload in (bytes(3), bytes(5)):
        peer = open_upload(server)
        peer.send(frame(wire.RST_STREAM, 0, 1, payload))
        peer.expect_connection_error(FRAME_SIZE_ERROR)


@case("6.4", "RST_STREAM ends an upload: nothing more comes on it, the connection goes on")
def rst_stream_ends_an_upload(server):
    peer = open_upload(server)
    peer.send(wire.data(1, b"begun"), wire.rst_stream(1))
    peer.expect_alive()
    frames = len(peer.log)
    peer.quiet()
    peer.check_that(len(peer.log) == frames, "nothing behind RST_STREAM")
    peer.expect_ignored(3)


# SETTINGS.


@case("6.5", "SETTINGS on a stream is a PROTOCOL_ERROR of the connection")
def settings_on_a_stream(server):
    expect_connection_error(server, frame(wire.SETTINGS, 0, 1), PROTOCOL_ERROR)


@case("6.5", "SETTINGS of another length than a multiple of 6 is a FRAME_SIZE_ERROR of the connection")
def settings_of_another_length(server):
    expect_connection_error(server, frame(wire.SETTINGS, 0, 0, bytes(5)), FRAME_SIZE_ERROR)


@case("6.5", "SETTINGS ACK with a payload is a FRAME_SIZE_ERROR of the connection")
def settings_ack_with_a_payload(server):
    payload = struct.pack(">HI", wire.MAX_FRAME_SIZE, 16_384)
    expect_connection_error(server, frame(wire.SETTINGS, wire.ACK, 0, payload), FRAME_SIZE_ERROR)


@case("6.5.2", "SETTINGS_ENABLE_PUSH of 2 is a PROTOCOL_ERROR of the connection")
def enable_push_of_2(server):
    expect_connection_error(server, wire.settings({wire.ENABLE_PUSH: 2}), PROTOCOL_ERROR)


@case("6.5.2", "SETTINGS_INITIAL_WINDOW_SIZE of 2^31 is a FLOW_CONTROL_ERROR of the connection")
def initial_window_over_the_limit(server):
    expect_connection_error(server, wire.settings({wire.INITIAL_WINDOW_SIZE: 2**31}), FLOW_CONTROL_ERROR)


@case("6.5.2", "SETTINGS_MAX_FRAME_SIZE below 16384 is a PROTOCOL_ERROR of the connection")
def max_frame_size_too_small(server):
    expect_connection_error(server, wire.settings({wire.MAX_FRAME_SIZE: 16_383}), PROTOCOL_ERROR)


@case("6.5.2", "SETTINGS_MAX_FRAME_SIZE of 2^24 is a PROTOCOL_ERROR of the connection")
def max_frame_size_too_large(server):
    expect_connection_error(server, wire.settings({wire.MAX_FRAME_SIZE: 2**24}), PROTOCOL_ERROR)


@case("6.5.2", "the ends of what settings may be are taken")
def settings_at_their_ends(server):
    peer = server.connect()
    most, least = 2**32 - 1, 0
    for value, window, size in ((most, 2**31 - 1, 2**24 - 1), (least, 0, 2**14)):
        peer.settings(
            {
                wire.HEADER_TABLE_SIZE: value,
                wire.ENABLE_PUSH: 0,
                wire.MAX_CONCURRENT_STREAMS: value,
                wire.INITIAL_WINDOW_SIZE: window,
                wire.MAX_FRAME_SIZE: size,
                wire.MAX_HEADER_LIST_SIZE: value or 2**16,
            }
        )
    peer.must(lambda: peer.acknowledged == 3, "SETTINGS ACK")
    peer.request(1)
    peer.allow(1, 65_535)
    peer.expect_answer(1)


@case("6.5.2", "settings of the server are in their bounds")
def settings_of_the_server(server):
    peer = server.connect()
    peer.quiet(0.1)
    given = peer.server_settings
    peer.check_that(given.get(wire.ENABLE_PUSH, 0) == 0, "no SETTINGS_ENABLE_PUSH of 1")
    peer.check_that(given.get(wire.INITIAL_WINDOW_SIZE, 0) < 2**31, "SETTINGS_INITIAL_WINDOW_SIZE below 2^31")
    size = given.get(wire.MAX_FRAME_SIZE, 16_384)
    peer.check_that(2**14 <= size < 2**24, "SETTINGS_MAX_FRAME_SIZE from 2^14 to 2^24-1")


@case("6.5.2", "settings with an unknown identifier are ignored, and acknowledged")
def unknown_settings(server):
    peer = server.connect()
    peer.settings([(0x0, 1), (0x7777, 2**32 - 1), (0xFFFF, 0)])
    peer.must(lambda: peer.acknowledged == 2, "SETTINGS ACK")
    peer.expect_ignored()


@case("6.5.3", "of a setting that comes twice in a frame the last one counts")
def settings_in_order(server):
    peer = server.connect([(wire.INITIAL_WINDOW_SIZE, 1000), (wire.INITIAL_WINDOW_SIZE, 1)])
    peer.must(lambda: peer.acknowledged == 1, "SETTINGS ACK")
    peer.request(1)
    stream = peer.stream(1)
    peer.must(lambda: stream.body, "a byte of the body")
    peer.quiet()
    peer.check_that(len(stream.body) == 1, "one byte of the body")


@case("6.5.3", "each SETTINGS is acknowledged, also an empty one")
def each_settings_is_acknowledged(server):
    peer = server.connect()
    for _ in range(5):
        peer.settings()
    peer.must(lambda: peer.acknowledged == 6, "six times SETTINGS ACK")
    peer.quiet(0.1)
    peer.check_that(peer.acknowledged == 6, "no more than six times SETTINGS ACK")


# PUSH_PROMISE.


@case("6.6", "PUSH_PROMISE of a client is a PROTOCOL_ERROR of the connection")
def push_promise_of_a_client(server):
    peer = server.connect_held()
    payload = struct.pack(">I", 2) + wire.as_block(peer.fields())
    peer.send(frame(wire.PUSH_PROMISE, wire.END_HEADERS, 1, payload))
    peer.expect_connection_error(PROTOCOL_ERROR)


# PING.


@case("6.7", "PING is acknowledged with its payload")
def ping_is_acknowledged(server):
    peer = server.connect()
    peer.send(wire.ping(b"12345678"), wire.ping(b"\0" * 8), wire.ping(b"\xff" * 8))
    peer.must(lambda: len(peer.pongs) == 3, "three times PING ACK")
    peer.check_that(peer.pongs == [b"12345678", b"\0" * 8, b"\xff" * 8], "payloads as they were sent")


@case("6.7", "PING ACK that answers nothing is not answered")
def ping_ack_of_nothing(server):
    peer = server.connect()
    peer.send(wire.ping(b"no reply", ack=True))
    peer.expect_alive()
    peer.check_that(b"no reply" not in peer.pongs and len(peer.pongs) == 1, "no PING ACK for PING ACK")


@case("6.7", "PING on a stream is a PROTOCOL_ERROR of the connection")
def ping_on_a_stream(server):
    expect_connection_error(server, frame(wire.PING, 0, 1, bytes(8)), PROTOCOL_ERROR)


@case("6.7", "PING of other than 8 bytes is a FRAME_SIZE_ERROR of the connection")
def ping_of_another_length(server):
    for payload in (bytes(7), bytes(9), b""):
        expect_connection_error(server, frame(wire.PING, 0, 0, payload), FRAME_SIZE_ERROR)


# GOAWAY.


@case("6.8", "GOAWAY on a stream is a PROTOCOL_ERROR of the connection")
def goaway_on_a_stream(server):
    expect_connection_error(server, frame(wire.GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR)


@case("4.2", "GOAWAY of less than 8 bytes is a FRAME_SIZE_ERROR of the connection")
def goaway_of_another_length(server):
    expect_connection_error(server, frame(wire.GOAWAY, 0, 0, bytes(7)), FRAME_SIZE_ERROR)


@case("6.8", "GOAWAY of the client lets its request be answered, then the connection may end")
def goaway_of_the_client(server):
    peer = server.connect_held()
    peer.send(wire.goaway(0, wire.NO_ERROR, b"that is all"))
    peer.quiet(0.1)
    peer.allow(1, 65_535)
    peer.expect_answer(1)
    peer.check_that(peer.connection_error is None, "no GOAWAY with an error")


@case("7", "GOAWAY with an unknown code is as good as any")
def goaway_of_an_unknown_code(server):
    peer = server.connect()
    peer.send(wire.goaway(0, 0xDEAD))
    peer.quiet()
    # The server may end the connection, and must not call it an error of the protocol.
    peer.check_that(peer.connection_error in (None, 0xDEAD), "no GOAWAY with an error")


# CONTINUATION.


def open_block(server, end=True):
    """A connection with a header block under way on stream 1."""
    peer = server.connect()
    fields = peer.fields()
    peer.stream(1)
    peer.send(wire.headers(1, fields[:2], end=end, complete=False))
    return peer, fields[2:]


@case("6.10", "a header block in CONTINUATION frames, some of them empty, is put together")
def block_in_pieces(server):
    peer = server.connect()
    block = wire.as_block(peer.fields())
    third = len(block) // 3
    peer.stream(1)
    peer.send(wire.headers(1, block[:third], complete=False), wire.continuation(1, complete=False))
    peer.send(wire.continuation(1, block[third : 2 * third], complete=False), wire.continuation(1, block[2 * third :]))
    peer.expect_answer()


@case("6.10", "a header block that begins with an empty HEADERS is put together, or a FRAME_SIZE_ERROR")
def block_behind_empty_headers(server):
    peer = server.connect()
    stream = peer.stream(1)
    peer.send(wire.headers(1, b"", complete=False), wire.continuation(1, peer.fields()))
    peer.wait(lambda: stream.is_over or peer.failed)
    if peer.failed:
        peer.expect_connection_error(FRAME_SIZE_ERROR)
    else:
        peer.expect_answer()


@case("6.10", "CONTINUATION without a header block is a PROTOCOL_ERROR of the connection")
def continuation_of_nothing(server):
    peer = server.connect()
    peer.send(wire.headers(1, peer.fields()), wire.continuation(1, [("x-more", "1")]))
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("6.10", "CONTINUATION on stream 0 is a PROTOCOL_ERROR of the connection")
def continuation_on_stream_0(server):
    peer, rest = open_block(server)
    peer.send(wire.continuation(0, rest))
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("6.10", "CONTINUATION on another stream than its block is a PROTOCOL_ERROR of the connection")
def continuation_on_another_stream(server):
    peer, rest = open_block(server)
    peer.send(wire.continuation(3, rest))
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("6.10", "DATA within a header block is a PROTOCOL_ERROR of the connection")
def data_in_a_block(server):
    peer, rest = open_block(server, end=False)
    peer.send(wire.data(1, b"between"), wire.continuation(1, rest))
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("6.10", "HEADERS of another stream within a header block is a PROTOCOL_ERROR of the connection")
def headers_in_a_block(server):
    peer, rest = open_block(server)
    peer.send(wire.headers(3, peer.fields()), wire.continuation(1, rest))
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("6.10", "PING, SETTINGS or WINDOW_UPDATE within a header block is a PROTOCOL_ERROR of the connection")
def other_frames_in_a_block(server):
    for between in (wire.ping(), wire.settings(), wire.window_update(0, 1), wire.priority(3), wire.rst_stream(1)):
        peer, rest = open_block(server)
        peer.send(between, wire.continuation(1, rest))
        peer.expect_connection_error(PROTOCOL_ERROR)


@case("6.10", "END_HEADERS in CONTINUATION of trailers is as good as in HEADERS")
def trailers_in_pieces(server):
    peer = server.connect()
    peer.request(1, server.routes.count or "/", method="POST", end=False)
    peer.send(
        wire.data(1, b"body"), wire.headers(1, [("x-a", "1")], complete=False), wire.continuation(1, [("x-b", "2")])
    )
    # A server without a place for bodies may refuse the method.
    peer.expect_answer(status=200 if server.routes.count else None)
