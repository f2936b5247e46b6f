"""RFC 9113 section 10.5, and the rows of hostile clients: floods, silence, bytes that are no HTTP/2.

A flood is as short as shows what comes of it. The server may end the connection, stop reading it, or take the flood if
that costs it next to nothing: then it still answers. Whichever it is, others are served meanwhile and afterwards.
"""

import time

import wire
from case import case
from peer import Skip
from wire import ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, INTERNAL_ERROR, PROTOCOL_ERROR, data, literal, window_update

# A flood has so many frames, in pieces of so many.
FRAMES = 20_000
PIECE = 500
# Seconds. Not every machine sends so much in it: then less will do.
LONGEST = 1.5
# How much later than it says a timeout may come.
LATE = 3.0
# What servers call it. RFC 9113 says that they may say ENHANCE_YOUR_CALM.
FLOOD_CODES = (ENHANCE_YOUR_CALM, PROTOCOL_ERROR, INTERNAL_ERROR)


def flood(peer, make, frames=FRAMES):
    """Sends `make(n)` for n from 0 on, until it is through, refused, held back or too long. Whether it was through."""
    deadline = time.monotonic() + LONGEST
    for at in range(0, frames, PIECE):
        if not peer.send(*[make(n) for n in range(at, min(at + PIECE, frames))], seconds=1):
            return False
        if time.monotonic() > deadline:
            break
        peer.wait(lambda: peer.failed, 0.001)
        if peer.failed:
            return False
    return True


def expect_bounded(server, peer, make, frames=FRAMES, codes=FLOOD_CODES):
    """A flood, and what must come of it."""
    if flood(peer, make, frames):
        server.expect_others_served()
        peer.send(wire.ping(b"the last"))
        peer.wait(lambda: b"the last" in peer.pongs or peer.failed)
    if peer.connection_error not in (None, *codes):
        peer.unmet(f"no other error than {' or '.join(wire.code_name(code) for code in codes)}")
    answers = b"the last" in peer.pongs
    # Held back: our bytes stay where they are.
    held_back = peer.send_failed and not peer.failed
    peer.check_that(answers or held_back or peer.failed, "GOAWAY, the end, or an answer to PING")
    server.expect_others_served()


def expect_calmed(server, peer, make, *codes):
    """A flood that has to be ended with ENHANCE_YOUR_CALM, or one of the codes."""
    flood(peer, make)
    peer.expect_connection_error(ENHANCE_YOUR_CALM, *codes)
    server.expect_others_served()


# Floods.


@case("HOSTILE 28", "streams that are opened and reset at once, by the thousand, end in ENHANCE_YOUR_CALM", floods=True)
def rapid_reset(server):
    peer = server.connect()
    block = wire.as_block(peer.fields(server.routes.never or "/"))
    expect_calmed(server, peer, lambda n: wire.headers(2 * n + 1, block) + wire.rst_stream(2 * n + 1))


@case("HOSTILE 28", "streams that the server has to reset, by the thousand, end in ENHANCE_YOUR_CALM", floods=True)
def made_to_reset(server):
    peer = server.connect()
    block = wire.as_block(peer.fields(server.routes.never or "/"))
    # The first of them may be an error of the connection already.
    over = wire.MAX_WINDOW
    expect_calmed(
        server, peer, lambda n: wire.headers(2 * n + 1, block) + window_update(2 * n + 1, over), FLOW_CONTROL_ERROR
    )


@case("10.5", "malformed requests by the thousand are bounded", floods=True)
def flood_of_malformed_requests(server):
    peer = server.connect()
    block = wire.as_block(peer.fields(extra=[("X-UPPER", "1")]))
    expect_bounded(server, peer, lambda n: wire.headers(2 * n + 1, block))


@case("HOSTILE 29", "empty CONTINUATION frames without end are an error of the connection", floods=True)
def flood_of_empty_continuation(server):
    peer = server.connect()
    peer.send(wire.headers(1, peer.fields(), complete=False))
    flood(peer, lambda n: wire.continuation(1, complete=False))
    peer.expect_connection_error(*FLOOD_CODES, wire.COMPRESSION_ERROR)
    server.expect_others_served()


@case(
    "HOSTILE 29", "CONTINUATION frames full of fields without end are an error of the connection, or 431", floods=True
)
def flood_of_continuation(server):
    peer = server.connect()
    stream = peer.stream(1)
    peer.send(wire.headers(1, peer.fields(), complete=False))
    block = literal("x-flood", "f" * 1000) * 4
    flood(peer, lambda n: wire.continuation(1, block, complete=False), FRAMES // 2)
    peer.must(lambda: peer.failed or stream.is_over, "GOAWAY, the end, or 431 and the end of the stream")
    if not peer.failed:
        peer.check_that(stream.reset is not None or stream.status == 431, "431 or RST_STREAM")
    server.expect_others_served()


@case("HOSTILE 29", "a block of a few bytes that expands to megabytes is refused", floods=True)
def header_bomb(server):
    peer = server.connect()
    peer.quiet(0.1)
    peer.stream(1)
    peer.send(wire.headers(1, wire.as_block(peer.fields()) + literal("x-bomb", "b" * 3000, indexed=True)))
    if not peer.wait(lambda: peer.stream(1).is_over or peer.failed) or peer.failed or peer.stream(1).status != 200:
        raise Skip("the server takes no field of 3000 bytes")
    stream = peer.stream(3)
    # 48 MB.
    peer.send(wire.headers(3, wire.as_block(peer.fields()) + wire.index(62) * 16_000))
    peer.must(lambda: peer.failed or stream.is_over, "431, RST_STREAM or GOAWAY")
    peer.check_that(stream.status is None or stream.status in (400, 431), "no answer but 400 or 431")
    server.expect_others_served()


@case("10.5.1", "a header list that is larger than the server said is refused, with 431 or an error")
def header_list_over_the_limit(server):
    peer = server.connect()
    peer.quiet(0.1)
    limit = peer.server_settings.get(wire.MAX_HEADER_LIST_SIZE, 2**32)
    if limit > 2**20:
        raise Skip("the server said no limit, or one of more than 1 MiB")
    stream = peer.stream(1)
    blocks = [literal("x-list", "l" * 3962) * 4] * (limit // 16_000 + 1)
    peer.send(wire.headers(1, peer.fields(), complete=False), *[wire.continuation(1, block, False) for block in blocks])
    peer.send(wire.continuation(1))
    peer.must(lambda: stream.is_over or peer.failed, "431, RST_STREAM or GOAWAY")
    peer.check_that(stream.status in (None, 400, 431), "no answer but 400 or 431")
    server.expect_others_served()


@case("HOSTILE 29", "changing the table's size by the thousand within a block is bounded", floods=True)
def flood_of_table_sizes(server):
    peer = server.connect()
    peer.stream(1)
    peer.send(wire.headers(1, wire.table_size(0) * 15_000 + wire.as_block(peer.fields())))
    peer.wait(lambda: peer.stream(1).is_over or peer.failed)
    peer.check_that(peer.stream(1).is_over or peer.failed, "an answer or an error")
    server.expect_others_served()


@case("HOSTILE 30", "a flood of SETTINGS is bounded", floods=True)
def flood_of_settings(server):
    expect_bounded(server, server.connect(), lambda n: wire.settings([(wire.MAX_FRAME_SIZE, 16_384 + n % 2)]))


@case("HOSTILE 30", "a flood of PING is bounded", floods=True)
def flood_of_pings(server):
    expect_bounded(server, server.connect(), lambda n: wire.ping())


@case("HOSTILE 30", "a flood of PRIORITY is bounded", floods=True)
def flood_of_priorities(server):
    expect_bounded(server, server.connect(), lambda n: wire.priority(2 * n + 1, 2 * n + 3))


@case("HOSTILE 30", "a flood of WINDOW_UPDATE is bounded", floods=True)
def flood_of_window_updates(server):
    expect_bounded(server, server.connect(), lambda n: window_update(0, 1))


@case("HOSTILE 30", "a flood of empty DATA is bounded", needs="count", floods=True)
def flood_of_empty_data(server):
    peer = server.connect()
    peer.request(1, server.routes.count, method="POST", end=False)
    expect_bounded(server, peer, lambda n: data(1))


@case("HOSTILE 30", "a flood of DATA that is all padding is bounded", needs="count", floods=True)
def flood_of_padding(server):
    peer = server.connect()
    peer.request(1, server.routes.count, method="POST", end=False)
    # As long as the windows hold.
    room = min(peer.server_settings.get(wire.INITIAL_WINDOW_SIZE, wire.DEFAULT_WINDOW), wire.DEFAULT_WINDOW)
    expect_bounded(server, peer, lambda n: data(1, padding=0), min(room, FRAMES))


@case("10.5", "a flood of frames of an unknown type is bounded", floods=True)
def flood_of_unknown_frames(server):
    expect_bounded(server, server.connect(), lambda n: wire.frame(wire.UNKNOWN_TYPE, n % 256, 0, b"what"))


@case("10.5", "a flood of RST_STREAM on a closed stream is bounded", floods=True)
def flood_of_resets_of_one_stream(server):
    peer = server.connect()
    peer.request(1)
    peer.expect_answer(1)
    expect_bounded(server, peer, lambda n: wire.rst_stream(1), codes=(*FLOOD_CODES, wire.STREAM_CLOSED))


@case("10.5", "windows that open byte by byte for many answers are bounded", floods=True)
def tiny_windows(server):
    peer = server.connect({wire.INITIAL_WINDOW_SIZE: 0})
    for number in range(1, 21, 2):
        peer.request(number)
        peer.stream(number).window += FRAMES
    expect_bounded(server, peer, lambda n: window_update(2 * (n % 10) + 1, 1), FRAMES // 4)


@case("HOSTILE 30", "answers that no window lets out hold up nobody else, and a RST_STREAM frees them")
def zero_window(server):
    peer = server.connect({wire.INITIAL_WINDOW_SIZE: 0})
    numbers = range(1, 41, 2)
    for number in numbers:
        peer.request(number)
    peer.must(lambda: all(peer.stream(number).status for number in numbers), "the heads of twenty answers")
    server.expect_others_served()
    peer.send(*[wire.rst_stream(number) for number in numbers])
    peer.expect_alive()


@case("HOSTILE 33", "a client that reads nothing of what it asks for is held back", needs="large")
def client_that_does_not_read(server):
    peer = server.connect({wire.INITIAL_WINDOW_SIZE: wire.MAX_WINDOW})
    peer.send(window_update(0, wire.MAX_WINDOW - wire.DEFAULT_WINDOW))
    block = wire.as_block(peer.fields(server.routes.large))
    for number in range(1, 121, 2):
        if not peer.send(wire.headers(number, block), seconds=0.5):
            break
    server.expect_others_served()


# Clients that leave.


@case("HOSTILE 14", "a client that leaves in the middle of an answer harms nobody", needs="large")
def client_leaves_during_an_answer(server):
    for _ in range(5):
        peer = server.connect()
        peer.request(1, server.routes.large)
        peer.must(lambda: peer.stream(1).body, "some of the body")
        peer.close()
    server.expect_others_served()


@case("HOSTILE 14", "a client that leaves in the middle of a request, a frame or a block harms nobody")
def client_leaves_during_a_request(server):
    for parts in (1, 2, 3):
        peer = server.connect()
        sent = wire.headers(1, peer.fields(method="POST"), end=False)
        sent += data(1, bytes(100)) + wire.headers(3, peer.fields(), complete=False)
        peer.send(sent[: parts * len(sent) // 3 - 5])
        peer.close()
    server.expect_others_served()


# Bytes that are no HTTP/2.


@case("HOSTILE 32", "a request of HTTP/1.1 on a connection of HTTP/2 is an error of the connection")
def http1_on_http2(server):
    peer = server.connect()
    peer.send(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    peer.expect_connection_error(PROTOCOL_ERROR, wire.FRAME_SIZE_ERROR)


# Silence. These wait as long as the server does.


def expect_given_up(server, peer):
    """The connection ends when its head has taken too long."""
    seconds = server.header_timeout + LATE
    peer.must(lambda: peer.closed, f"the end of the connection within {seconds:g} s", seconds)


@case("HOSTILE 32", "the first bytes of TLS in clear text are refused, or given up in the header timeout")
def tls_in_clear_text(server):
    if server.target.tls:
        raise Skip("this is no clear text")
    peer = server.connect(greet=False)
    # A ClientHello of which the end does not come.
    peer.send(b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(100))
    expect_given_up(server, peer)


@case("HOSTILE 32", "a preface that was cut short and goes on no more is given up in the header timeout")
def preface_cut_short(server):
    peer = server.connect(greet=False)
    peer.send(wire.PREFACE[:12])
    expect_given_up(server, peer)


@case("HOSTILE 32", "a preface that comes drop by drop is given up in the header timeout")
def preface_drop_by_drop(server):
    peer = server.connect(greet=False)
    pause = (server.header_timeout + LATE) / len(wire.PREFACE)
    for byte in wire.PREFACE[:-1]:
        if not peer.send(bytes([byte])):
            break
        peer.quiet(pause)
    peer.check_that(peer.closed, "the end of the connection")


@case("HOSTILE 32", "a preface without SETTINGS is given up in the header timeout")
def preface_without_settings(server):
    peer = server.connect(greet=False)
    peer.send(wire.PREFACE)
    expect_given_up(server, peer)


@case("HOSTILE 32", "half a frame and silence is given up in the header timeout")
def half_a_frame(server):
    peer = server.connect()
    peer.send(wire.headers(1, peer.fields())[:15])
    expect_given_up(server, peer)


@case("HOSTILE 32", "a header block without its end and silence is given up in the header timeout")
def half_a_block(server):
    peer = server.connect()
    peer.send(wire.headers(1, peer.fields()[:2], complete=False))
    expect_given_up(server, peer)
