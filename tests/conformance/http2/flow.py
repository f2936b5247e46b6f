"""RFC 9113 sections 5.2 and 6.9: flow control, both ways. That a server never sends more than it may is checked of
each connection, by `Peer`."""

import wire
from case import case
from peer import Skip
from routes import LARGE
from wire import DEFAULT_WINDOW, FLOW_CONTROL_ERROR, MAX_WINDOW, PROTOCOL_ERROR, frame

# More is not sent to see whether it is too much.
SENT_AT_ONCE = 2**21


# WINDOW_UPDATE.


@case("6.9", "WINDOW_UPDATE of 0 on a stream is a PROTOCOL_ERROR of the stream")
def window_update_of_0_on_a_stream(server):
    peer = server.connect_held()
    peer.send(wire.window_update(1, 0))
    peer.expect_stream_error(1, PROTOCOL_ERROR)


@case("6.9", "WINDOW_UPDATE of 0 on stream 0 is a PROTOCOL_ERROR of the connection")
def window_update_of_0(server):
    peer = server.connect()
    peer.send(wire.window_update(0, 0))
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("6.9", "WINDOW_UPDATE of other than 4 bytes is a FRAME_SIZE_ERROR of the connection")
def window_update_of_another_length(server):
    for payload in (bytes(3), b"\0\0\0\1\0"):
        peer = server.connect()
        peer.send(frame(wire.WINDOW_UPDATE, 0, 0, payload))
        peer.expect_connection_error(wire.FRAME_SIZE_ERROR)


@case("6.9.1", "a stream's window of more than 2^31-1 is a FLOW_CONTROL_ERROR of the stream")
def stream_window_over_the_limit(server):
    # A large answer stops at the connection's window; a small one is open until both frames have come, which they do
    # at once.
    peer = server.connect_held(server.routes.large or "/")
    stream = peer.stream(1)
    stream.window += MAX_WINDOW
    peer.send(wire.window_update(1, MAX_WINDOW) + wire.window_update(1, MAX_WINDOW))
    peer.wait(lambda: stream.is_over or peer.failed)
    if stream.ended and stream.reset is None:
        raise Skip("the answer was complete before the second frame")
    peer.expect_stream_error(1, FLOW_CONTROL_ERROR)


@case("6.9.1", "a window of the connection of more than 2^31-1 is a FLOW_CONTROL_ERROR of the connection")
def connection_window_over_the_limit(server):
    peer = server.connect()
    peer.send(wire.window_update(0, MAX_WINDOW))
    peer.expect_connection_error(FLOW_CONTROL_ERROR)


@case("6.9.1", "the windows may be as large as 2^31-1")
def windows_at_the_limit(server):
    peer = server.connect_held()
    peer.allow(0, MAX_WINDOW - DEFAULT_WINDOW)
    peer.allow(1, MAX_WINDOW)
    peer.expect_answer()


# Answers.


@case("6.9.1", "a body comes byte by byte as the stream's window allows")
def body_byte_by_byte(server):
    peer = server.connect_held()
    stream = peer.stream(1)
    for size in (1, 2, 3):
        peer.allow(1, 1)
        peer.must(lambda: len(stream.body) == size or stream.ended, f"{size} bytes of the body")
    peer.quiet(0.1)
    peer.check_that(len(stream.body) == 3 or stream.ended, "three bytes of the body")
    peer.allow(1, DEFAULT_WINDOW)
    peer.expect_answer()


@case("6.9.1", "a large answer stops at the windows, and goes on when both are opened", needs="large")
def large_answer(server):
    peer = server.connect()
    peer.request(1, server.routes.large)
    stream = peer.stream(1)
    peer.must(lambda: len(stream.body) == DEFAULT_WINDOW, "65535 bytes of the body")
    peer.allow(1, LARGE)
    peer.quiet()
    peer.check_that(len(stream.body) == DEFAULT_WINDOW, "no more, without a window of the connection")
    peer.allow(0, 1000)
    peer.must(lambda: len(stream.body) == DEFAULT_WINDOW + 1000, "1000 bytes more")
    peer.allow(0, LARGE)
    peer.expect_answer()
    peer.check_that(len(stream.body) == LARGE, f"{LARGE} bytes of the body")


@case("6.9.1", "the window of the connection is shared by its streams", needs="large")
def shared_window(server):
    peer = server.connect({wire.INITIAL_WINDOW_SIZE: 2**20})
    peer.request(1, server.routes.large)
    peer.request(3, server.routes.large)
    streams = (peer.stream(1), peer.stream(3))
    peer.must(lambda: sum(len(stream.body) for stream in streams) == DEFAULT_WINDOW, "65535 bytes of both bodies")
    peer.quiet(0.1)
    peer.allow(0, 2**20)
    peer.expect_answer(1)
    peer.expect_answer(3)


@case("OURS", "an answer without a body needs no window")
def head_without_window(server):
    peer = server.connect({wire.INITIAL_WINDOW_SIZE: 0})
    peer.request(1, method="HEAD")
    peer.expect_answer()


@case("6.9.2", "a larger initial window opens the streams that are there")
def initial_window_opens_streams(server):
    peer = server.connect_held()
    peer.quiet(0.1)
    stream = peer.stream(1)
    peer.check_that(not stream.body, "no body without window")
    peer.settings({wire.INITIAL_WINDOW_SIZE: 2})
    peer.must(lambda: len(stream.body) == 2, "two bytes of the body")
    peer.quiet(0.1)
    peer.settings({wire.INITIAL_WINDOW_SIZE: DEFAULT_WINDOW})
    peer.expect_answer()


@case("6.9.2", "a smaller initial window makes a stream's negative: it is paid back first", needs="large")
def negative_window(server):
    peer = server.connect({wire.INITIAL_WINDOW_SIZE: 1000})
    peer.request(1, server.routes.large)
    stream = peer.stream(1)
    peer.must(lambda: len(stream.body) == 1000, "1000 bytes of the body")
    peer.settings({wire.INITIAL_WINDOW_SIZE: 100})
    peer.must(lambda: peer.acknowledged == 2, "SETTINGS ACK")
    peer.allow(1, 900)  # From -900 to 0.
    peer.quiet()
    peer.check_that(len(stream.body) == 1000, "no more while the window is 0")
    peer.allow(1, 10)
    peer.must(lambda: len(stream.body) == 1010, "10 bytes more")
    peer.allow(1, LARGE)
    peer.allow(0, LARGE)
    peer.expect_answer()


@case("6.9.2", "SETTINGS_INITIAL_WINDOW_SIZE does not change the window of the connection", needs="large")
def initial_window_is_of_streams(server):
    peer = server.connect({wire.INITIAL_WINDOW_SIZE: 2**20})
    peer.request(1, server.routes.large)
    peer.must(lambda: len(peer.stream(1).body) == DEFAULT_WINDOW, "65535 bytes of the body")
    peer.quiet()
    peer.check_that(len(peer.stream(1).body) == DEFAULT_WINDOW, "no more than 65535 bytes")


@case("6.9.2", "an initial window that takes a stream's over 2^31-1 is a FLOW_CONTROL_ERROR of the connection")
def initial_window_over_a_streams_limit(server):
    peer = server.connect_held(server.routes.large or "/")
    stream = peer.stream(1)
    stream.window += MAX_WINDOW
    peer.send(wire.window_update(1, MAX_WINDOW) + wire.settings({wire.INITIAL_WINDOW_SIZE: 2**20}))
    peer.wait(lambda: stream.is_over or peer.failed)
    if stream.ended:
        raise Skip("the answer was complete before SETTINGS")
    peer.expect_connection_error(FLOW_CONTROL_ERROR)


# Uploads.


@case("6.9", "an upload larger than the windows goes on as WINDOW_UPDATE comes", needs="count")
def large_upload(server):
    peer = server.connect()
    peer.request(1, server.routes.count, method="POST", end=False)
    sent = upload(peer, 1, 500_000)
    peer.expect_answer(1)
    peer.check_that(peer.stream(1).body.strip() == str(sent).encode(), f"a count of {sent}")


def upload(peer, number, size):
    """Sends a body as the server's windows allow. How many bytes it was."""
    peer.quiet(0.05)
    sent = 0
    while sent < size:
        room = min(send_window(peer, number) - sent, send_window(peer, 0) - sent, size - sent, 16_384)
        if room > 0:
            sent += room
            peer.send(wire.data(number, bytes(room), end=sent == size))
        else:
            expect_update(peer, sent)
    return sent


def expect_update(peer, sent):
    updates = peer.updates
    peer.must(lambda: peer.updates > updates, f"WINDOW_UPDATE behind {sent} bytes")


def send_window(peer, number):
    """What the server has granted in all."""
    first = peer.server_settings.get(wire.INITIAL_WINDOW_SIZE, DEFAULT_WINDOW) if number else DEFAULT_WINDOW
    return first + sum(peer.granted.get(number, []))


@case("6.9", "what a body's padding takes of the windows comes back", needs="count")
def padding_is_given_back(server):
    peer = server.connect()
    peer.request(1, server.routes.count, method="POST", end=False)
    peer.quiet(0.05)
    window = min(send_window(peer, 0), send_window(peer, 1))
    if window > SENT_AT_ONCE:
        raise Skip(f"the window is {window}")
    # More padding than a window holds, each time with some body, or it would be a flood (10.5).
    used, frame = 0, wire.data(1, bytes(1024), padding=255)
    for _ in range(window // 256 + 1):
        while min(send_window(peer, 0), send_window(peer, 1)) - used < 1280:
            expect_update(peer, used)
        used += 1280
        peer.send(frame)
    peer.send(wire.data(1, end=True))
    peer.expect_answer(1)


@case("6.9.1", "DATA beyond a stream's window is a FLOW_CONTROL_ERROR", needs="never")
def data_beyond_the_window(server):
    peer = server.connect()
    peer.request(1, server.routes.never, method="POST", end=False)
    peer.quiet(0.1)
    room = min(send_window(peer, 0), send_window(peer, 1))
    if room > SENT_AT_ONCE:
        raise Skip(f"the window is {room}")
    frames = [wire.data(1, bytes(min(16_384, room + 1 - at))) for at in range(0, room + 1, 16_384)]
    peer.send(*frames)
    peer.must(lambda: peer.failed or peer.stream(1).reset is not None, "FLOW_CONTROL_ERROR")
    peer.expect_stream_error(1, FLOW_CONTROL_ERROR)


@case("6.9.1", "DATA within the windows is taken while nobody reads it", needs="never")
def data_within_the_window(server):
    peer = server.connect()
    peer.request(1, server.routes.never, method="POST", end=False)
    peer.quiet(0.1)
    room = min(send_window(peer, 0), send_window(peer, 1), SENT_AT_ONCE)
    peer.send(*[wire.data(1, bytes(min(16_384, room - at))) for at in range(0, room, 16_384)])
    peer.expect_alive()
    peer.check_that(peer.stream(1).reset is None, "no RST_STREAM")


@case("5.2.2", "uploads that were reset give back what they used of the connection's window", needs="never")
def window_of_reset_uploads(server):
    peer = server.connect()
    peer.quiet(0.05)
    number, used, enough = 1, 0, 2 * send_window(peer, 0)
    if enough > SENT_AT_ONCE:
        raise Skip(f"the window is {enough // 2}")
    while used < enough:
        room = min(send_window(peer, 1), send_window(peer, 0) - used, 60_000)
        if room <= 0:
            peer.must(lambda: send_window(peer, 0) > used, f"WINDOW_UPDATE behind {used} bytes")
            continue
        peer.request(number, server.routes.never, method="POST", end=False)
        peer.send(*[wire.data(number, bytes(min(16_384, room - at))) for at in range(0, room, 16_384)])
        # The request has begun, so that this is no flood of resets.
        peer.expect_alive()
        peer.send(wire.rst_stream(number))
        used, number = used + room, number + 2
    peer.request(number)
    peer.expect_answer(number)
