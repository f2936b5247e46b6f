"""RFC 9113 sections 5.1 to 5.4: the states of streams, their identifiers and number, priorities, errors."""

import struct

import wire
from case import case
from peer import Skip
from routes import LARGE
from wire import PROTOCOL_ERROR, REFUSED_STREAM, STREAM_CLOSED, frame

# A server that allows more streams is not brought to its limit.
MANY_STREAMS = 1000


# Idle.


@case("5.1", "DATA on an idle stream is a PROTOCOL_ERROR of the connection")
def data_when_idle(server):
    peer = server.connect()
    peer.send(wire.data(1, b"too early", end=True))
    # 6.1 says STREAM_CLOSED of a stream that is not open.
    peer.expect_connection_error(PROTOCOL_ERROR, STREAM_CLOSED)


@case("5.1", "RST_STREAM on an idle stream is a PROTOCOL_ERROR of the connection")
def rst_stream_when_idle(server):
    peer = server.connect()
    peer.send(wire.rst_stream(1))
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("5.1", "WINDOW_UPDATE on an idle stream is a PROTOCOL_ERROR of the connection")
def window_update_when_idle(server):
    peer = server.connect()
    peer.send(wire.window_update(1, 100))
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("5.1", "CONTINUATION on an idle stream is a PROTOCOL_ERROR of the connection")
def continuation_when_idle(server):
    peer = server.connect()
    peer.send(wire.continuation(1, peer.fields()))
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("5.1", "PRIORITY on an idle stream is ignored")
def priority_when_idle(server):
    peer = server.connect()
    peer.send(wire.priority(1), wire.priority(7, 1))
    peer.expect_ignored()


# Half-closed (remote).


@case("5.1", "DATA behind END_STREAM is a STREAM_CLOSED error", needs="never")
def data_when_half_closed(server):
    peer = server.connect()
    peer.request(1, server.routes.never)
    peer.send(wire.data(1, b"too late"))
    peer.expect_stream_error(1, STREAM_CLOSED)


@case("5.1", "DATA behind END_STREAM is a STREAM_CLOSED error, while the answer waits for window")
def data_when_answered(server):
    peer = server.connect_held()
    peer.send(wire.data(1, b"too late"))
    peer.expect_stream_error(1, STREAM_CLOSED)


@case("5.1", "HEADERS behind END_STREAM is a STREAM_CLOSED error")
def headers_when_half_closed(server):
    peer = server.connect_held()
    peer.send(wire.headers(1, [("x-trailer", "1")]))
    peer.expect_stream_error(1, STREAM_CLOSED)


@case("5.1", "CONTINUATION behind END_STREAM is an error of the connection")
def continuation_when_half_closed(server):
    peer = server.connect_held()
    peer.send(wire.continuation(1, [("x-trailer", "1")]))
    peer.expect_connection_error(PROTOCOL_ERROR, STREAM_CLOSED)


@case("5.1", "WINDOW_UPDATE and PRIORITY behind END_STREAM are in order")
def window_update_when_half_closed(server):
    peer = server.connect_held()
    peer.send(wire.priority(1, 0))
    peer.allow(1, 65_535)
    peer.expect_answer()


@case("5.1", "RST_STREAM behind END_STREAM ends the answer, and nothing else")
def rst_stream_when_half_closed(server):
    peer = server.connect_held()
    peer.send(wire.rst_stream(1))
    peer.allow(1, 65_535)
    peer.expect_alive()
    peer.check_that(not peer.stream(1).body and not peer.stream(1).is_over, "nothing more on stream 1")
    peer.request(3)
    peer.allow(3, 65_535)
    peer.expect_answer(3)


# Closed.


@case("6.1", "DATA behind the client's RST_STREAM is a STREAM_CLOSED error")
def data_when_reset(server):
    peer = server.connect()
    peer.request(1, server.routes.never or "/", method="POST", end=False)
    peer.send(wire.rst_stream(1), wire.data(1, b"too late"))
    peer.expect_stream_error(1, STREAM_CLOSED)


@case("5.1", "HEADERS behind the client's RST_STREAM is a STREAM_CLOSED error, or one of the connection")
def headers_when_reset(server):
    peer = server.connect()
    peer.request(1, server.routes.never or "/", method="POST", end=False)
    peer.send(wire.rst_stream(1), wire.headers(1, peer.fields()))
    # The identifier was used (5.1.1): PROTOCOL_ERROR.
    peer.expect_stream_error(1, STREAM_CLOSED, PROTOCOL_ERROR)


@case("6.1", "DATA on a stream that both sides ended is a STREAM_CLOSED error")
def data_when_closed(server):
    peer = server.connect()
    peer.request(1)
    peer.expect_answer(1)
    peer.send(wire.data(1, b"too late"))
    peer.expect_stream_error(1, STREAM_CLOSED)


@case("5.1.1", "HEADERS on a stream that both sides ended is an error of the connection")
def headers_when_closed(server):
    peer = server.connect()
    peer.request(1)
    peer.expect_answer(1)
    peer.send(wire.headers(1, peer.fields()))
    peer.expect_connection_error(STREAM_CLOSED, PROTOCOL_ERROR)


@case("5.1", "CONTINUATION on a stream that both sides ended is an error of the connection")
def continuation_when_closed(server):
    peer = server.connect()
    peer.request(1)
    peer.expect_answer(1)
    peer.send(wire.continuation(1, peer.fields()))
    peer.expect_connection_error(STREAM_CLOSED, PROTOCOL_ERROR)


@case("5.1", "WINDOW_UPDATE, RST_STREAM and PRIORITY on a stream that just ended are ignored")
def late_frames_when_closed(server):
    peer = server.connect()
    peer.request(1)
    peer.expect_answer(1)
    peer.send(wire.window_update(1, 100), wire.priority(1), wire.rst_stream(1))
    peer.expect_ignored(3)


# Identifiers.


@case("5.1.1", "a request on an even stream is a PROTOCOL_ERROR of the connection")
def even_stream(server):
    peer = server.connect()
    peer.send(wire.headers(2, peer.fields()))
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("5.1.1", "a request on a stream below the last one is an error of the connection")
def descending_stream(server):
    peer = server.connect()
    peer.request(5)
    peer.expect_answer(5)
    peer.send(wire.headers(3, peer.fields()))
    # It was closed when 5 was opened.
    peer.expect_connection_error(PROTOCOL_ERROR, STREAM_CLOSED)


@case("5.1.1", "DATA on a stream that was skipped is an error: it is closed")
def data_on_a_skipped_stream(server):
    peer = server.connect()
    peer.request(5)
    peer.expect_answer(5)
    peer.send(wire.data(3, b"nobody", end=True))
    peer.expect_stream_error(3, STREAM_CLOSED, PROTOCOL_ERROR)


@case("5.1.1", "streams may be skipped, up to the last one")
def last_stream(server):
    peer = server.connect()
    for stream in (1, 101, 2**31 - 1):
        peer.request(stream)
        peer.expect_answer(stream)


@case("5.1.2", "a stream more than the server allows is refused, and those before it are answered")
def too_many_streams(server):
    peer = server.connect({wire.INITIAL_WINDOW_SIZE: 0})
    peer.quiet(0.1)
    limit = peer.server_settings.get(wire.MAX_CONCURRENT_STREAMS, MANY_STREAMS)
    if limit >= MANY_STREAMS:
        raise Skip("the server allows a thousand streams, or any number")
    # All of them wait for window.
    for number in range(limit + 1):
        peer.request(2 * number + 1)
    peer.expect_stream_error(2 * limit + 1, REFUSED_STREAM, PROTOCOL_ERROR)
    if peer.failed:
        return
    peer.settings({wire.INITIAL_WINDOW_SIZE: 500})
    for number in range(limit):
        peer.expect_answer(2 * number + 1, refill=True)


@case("5.1.2", "streams that ended do not count")
def ended_streams_do_not_count(server):
    peer = server.connect()
    peer.quiet(0.1)
    limit = peer.server_settings.get(wire.MAX_CONCURRENT_STREAMS, MANY_STREAMS)
    if limit >= MANY_STREAMS:
        raise Skip("the server allows a thousand streams, or any number")
    for number in range(limit + 10):
        peer.request(2 * number + 1)
        peer.expect_answer(2 * number + 1, refill=True)


@case("5.1.2", "the client's SETTINGS_MAX_CONCURRENT_STREAMS is no limit for its own requests")
def limit_of_the_client(server):
    peer = server.connect({wire.MAX_CONCURRENT_STREAMS: 0})
    peer.request()
    peer.expect_answer()


# Streams beside each other.


@case("5", "requests that are sent at once are all answered")
def requests_at_once(server):
    peer = server.connect()
    numbers = range(1, 41, 2)
    for number in numbers:
        peer.stream(number)
    peer.send(*[wire.headers(number, peer.fields()) for number in numbers])
    for number in numbers:
        peer.expect_answer(number, refill=True)


@case("5.2", "a stream without window does not hold up another")
def blocked_stream(server):
    peer = server.connect_held()
    peer.request(3)
    peer.allow(3, 65_535)
    peer.expect_answer(3)
    peer.check_that(not peer.stream(1).body, "no body on stream 1, which has no window")
    peer.allow(1, 65_535)
    peer.expect_answer(1)


@case("5", "a request that is never answered does not hold up another", needs="never")
def unanswered_stream(server):
    peer = server.connect()
    peer.request(1, server.routes.never)
    peer.request(3)
    peer.expect_answer(3)


@case("5", "two bodies, sent and sent back frame by frame in turn, stay apart", needs="echo")
def interleaved_uploads(server):
    peer = server.connect()
    for number in (1, 3):
        peer.request(number, server.routes.echo, method="POST", end=False)
    for turn in range(50):
        peer.send(wire.data(1, b"a" * 100), wire.data(3, b"b" * 100, end=turn == 49))
    peer.send(wire.data(1, end=True))
    peer.expect_answer(1, body=b"a" * 5000)
    peer.expect_answer(3, body=b"b" * 5000)


@case("8.1", "a body is sent back while the rest of it is still to come", needs="echo")
def echo_while_uploading(server):
    peer = server.connect()
    peer.request(1, server.routes.echo, method="POST", end=False)
    stream = peer.stream(1)
    for turn in range(1, 11):
        peer.send(wire.data(1, b"%09d\n" % turn))
        peer.must(lambda: len(stream.body) == 10 * turn, f"{10 * turn} bytes of the body")
    peer.send(wire.data(1, end=True))
    peer.expect_answer(1)


@case("5", "two large answers at once come whole", needs="large")
def interleaved_downloads(server):
    peer = server.connect({wire.INITIAL_WINDOW_SIZE: 2**20})
    peer.allow(0, 2**20)
    peer.request(1, server.routes.large)
    peer.request(3, server.routes.large)
    for number in (1, 3):
        size = len(peer.expect_answer(number).body)
        peer.check_that(size == LARGE, f"{LARGE} bytes on stream {number}, not {size}")


# Priorities, which are deprecated (5.3.2): servers ignore them, or do as RFC 7540 said.


def expect_ignored_or_refused(peer, stream):
    """RFC 7540 5.3.1 had PROTOCOL_ERROR for a stream that depends on itself."""
    peer.wait(lambda: peer.stream(stream).is_over or peer.failed, 1)
    if peer.stream(stream).ended and peer.stream(stream).status == 200:
        return
    peer.expect_stream_error(stream, PROTOCOL_ERROR)


@case("5.3.2", "HEADERS with a priority that depends on its own stream is answered or a PROTOCOL_ERROR")
def headers_depend_on_themselves(server):
    peer = server.connect()
    peer.stream(1)
    block = struct.pack(">IB", 1, 15) + wire.as_block(peer.fields())
    peer.send(wire.headers(1, block, flags=wire.WITH_PRIORITY))
    expect_ignored_or_refused(peer, 1)


@case("5.3.2", "PRIORITY that depends on its own stream is ignored or a PROTOCOL_ERROR")
def priority_depends_on_itself(server):
    peer = server.connect_held()
    peer.send(wire.priority(1, 1))
    peer.allow(1, 65_535)
    expect_ignored_or_refused(peer, 1)


@case("5.3.2", "HEADERS with a priority is answered")
def headers_with_priority(server):
    peer = server.connect()
    peer.stream(1)
    block = struct.pack(">IB", 1 << 31 | 11, 255) + wire.as_block(peer.fields())
    peer.send(wire.headers(1, block, flags=wire.WITH_PRIORITY))
    peer.expect_answer()


# Errors.


@case("5.4.1", "GOAWAY for an error names the last stream, of which the answer was sent")
def goaway_names_the_last_stream(server):
    peer = server.connect()
    peer.request(1)
    peer.request(3)
    peer.expect_answer(1)
    peer.expect_answer(3)
    peer.send(frame(wire.PING, 0, 1, bytes(8)))
    peer.expect_connection_error(PROTOCOL_ERROR)
    if peer.goaways and peer.goaways[-1][0] != 3:
        peer.unmet(f"GOAWAY with 3 as the last stream, not {peer.goaways[-1][0]}")


@case("5.4.2", "an error of one stream leaves the others alone")
def error_of_one_stream(server):
    peer = server.connect_held()
    peer.send(wire.headers(3, peer.fields(extra=[("X-UPPER", "1")])))
    peer.expect_malformed(3)
    if peer.failed:
        return  # It made a connection error of it (5.4.1).
    peer.allow(1, 65_535)
    peer.expect_answer(1)


@case("7", "RST_STREAM with an unknown code is as good as any")
def rst_stream_of_an_unknown_code(server):
    peer = server.connect_held()
    peer.send(wire.rst_stream(1, 0xDEAD))
    peer.expect_alive()
    peer.request(3)
    peer.allow(3, 65_535)
    peer.expect_answer(3)
