"""The client's end of a connection, frame by frame.

A `Peer` sends whatever bytes it is given, and keeps what came back: the server's settings, each stream's head, body and
end, GOAWAY and the end of the connection. It does by itself only what every client must: it acknowledges SETTINGS and
PING. It gives the server no more window than it is told to, and holds the server to that, and to the form of frames and
heads, in every case. What else should have come is for the cases to say, with the `expect_…` functions.
"""

import socket
import ssl
import struct
import time

import hpack
from hpack.exceptions import HPACKError
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import ExtensionFrame, Frame

import wire
from wire import code_name

# Seconds. What must come does so at once, unless the machine is busy.
PATIENCE = 4.0
# How long it must stay quiet for us to believe that no more comes.
QUIET = 0.25
# A peer that does not read for so long holds us back on purpose.
HELD_BACK = 0.5
# Of what came, so many frames are told.
TOLD = 12

CONNECTION_FIELDS = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}


class Unmet(Exception):
    """The server did not do what it should."""

    def __init__(self, expected, came):
        super().__init__(f"expected {expected}; came {came}")


class Skip(Exception):
    """The case cannot be tried on this server."""


class Stream:
    """What the server sent on one stream, and how much it may still send."""

    def __init__(self, window):
        self.window = window
        self.heads = []  # Those of interim answers, of the answer, and its trailers.
        self.body = b""
        self.frames = []  # Lengths of DATA frames.
        self.ended = False
        self.reset = None

    @property
    def status(self):
        """The status of the answer that is not an interim one."""
        statuses = [int(value) for head in self.heads for name, value in head if name == ":status"]
        return next((status for status in statuses if status >= 200), None)

    @property
    def answer(self):
        """The fields of the answer's head."""
        return next((head for head in self.heads if dict(head).get(":status", "1")[0] != "1"), [])

    @property
    def trailers(self):
        return next((head for head in self.heads if ":status" not in dict(head)), None)

    @property
    def is_over(self):
        return self.ended or self.reset is not None


def change_windows(streams, change):
    for stream in streams:
        stream.window += change


def tls_context():
    """TLS with ALPN. Who the server is does not matter here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


class Peer:
    def __init__(self, address, authority, settings=(), greet=True, tls=False):
        """Connects. With `greet` it sends the preface and `settings`, and waits for those of the server."""
        self.authority = authority
        self.scheme = "https" if tls else "http"
        self.socket = socket.create_connection(address, timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.socket = tls_context().wrap_socket(self.socket, server_hostname=address[0])
            if self.socket.selected_alpn_protocol() != "h2":
                raise Unmet("h2 by ALPN (3.2)", self.socket.selected_alpn_protocol() or "no protocol")
        self.buffer = bytearray()
        self.decoder = hpack.Decoder()
        self.block = None  # The stream, flags and bytes of a header block under way.
        self.log = []
        self.streams = {}
        self.server_settings = {}
        self.has_settings = False
        self.pongs = []
        self.acknowledged = 0
        self.granted = {}  # WINDOW_UPDATE of the server: stream to increments.
        self.goaways = []  # Pairs of the last stream and the code.
        self.closed = False
        self.send_failed = False
        self.window = wire.DEFAULT_WINDOW
        self.initial_window = wire.DEFAULT_WINDOW
        self.max_frame_size = wire.DEFAULT_FRAME_SIZE
        # For each SETTINGS of ours, the streams and the change that hold as soon as it is acknowledged.
        self.unacknowledged = []
        if greet:
            self.send(wire.PREFACE)
            self.settings(settings)
            self.must(lambda: self.has_settings, "SETTINGS of the server")

    # Sending.

    def send(self, *parts, seconds=PATIENCE):
        """Sends all of it. False if the server closed, or did not read for so long: what it said is still there."""
        if self.send_failed:
            return False
        self.socket.settimeout(seconds)
        try:
            self.socket.sendall(b"".join(parts))
        except OSError:
            self.send_failed = True
        return not self.send_failed

    def settings(self, pairs=()):
        """Sends SETTINGS. A larger window counts at once, a smaller one when the server has acknowledged it."""
        later = []
        for name, value in pairs.items() if isinstance(pairs, dict) else pairs:
            if name == wire.INITIAL_WINDOW_SIZE:
                change, self.initial_window = value - self.initial_window, value
                if change > 0:
                    change_windows(self.streams.values(), change)
                else:
                    later.append((list(self.streams.values()), change))
            elif name == wire.HEADER_TABLE_SIZE:
                # A smaller one holds from some header block on: the case that is about that sets it.
                self.decoder.max_allowed_table_size = max(value, self.decoder.max_allowed_table_size)
            elif name == wire.MAX_FRAME_SIZE:
                self.max_frame_size = max(value, self.max_frame_size)
        self.unacknowledged.append(later)
        return self.send(wire.settings(pairs))

    def allow(self, stream, increment):
        """Sends WINDOW_UPDATE."""
        if stream == 0:
            self.window += increment
        else:
            self.stream(stream).window += increment
        return self.send(wire.window_update(stream, increment))

    def fields(self, path="/", method="GET", extra=(), without=(), **pseudo):
        """The fields of a request: `scheme=""` sets a pseudo-header field, `without=[":path"]` leaves one out."""
        values = {"method": method, "scheme": self.scheme, "authority": self.authority, "path": path, **pseudo}
        fields = [(f":{name}", value) for name, value in values.items() if f":{name}" not in without]
        return fields + list(extra)

    def request(self, stream=1, path="/", end=True, **fields):
        """Sends a request's head."""
        self.stream(stream)
        return self.send(wire.headers(stream, self.fields(path, **fields), end=end))

    # Receiving.

    def stream(self, number):
        if number not in self.streams:
            self.streams[number] = Stream(self.initial_window)
        return self.streams[number]

    def wait(self, condition, seconds=PATIENCE):
        """Takes what comes until the condition holds, the connection ends or the time is up. Whether it holds."""
        deadline = time.monotonic() + seconds
        while not condition() and not self.closed:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self.read(left)
        return condition()

    def quiet(self, seconds=QUIET):
        """Takes all that comes for so long."""
        self.wait(lambda: False, seconds)

    def read(self, seconds):
        self.socket.settimeout(max(seconds, 0.001))
        try:
            got = self.socket.recv(65_536)
        except (socket.timeout, ssl.SSLWantReadError):
            return
        except OSError:
            got = b""
        if not got:
            self.closed = True
            self.log.append("the end")
            return
        self.buffer += got
        if not self.has_settings and self.buffer.startswith(b"HTTP/1."):
            # A server that speaks both says in HTTP/1.1 what it thinks of our preface.
            self.log.append(self.buffer.split(b"\r\n")[0].decode("latin-1"))
            return
        while len(self.buffer) >= 9:
            length = int.from_bytes(self.buffer[:3], "big")
            if length > self.max_frame_size:
                self.unmet(f"frames of at most {self.max_frame_size} bytes (4.2), not {length}")
            if len(self.buffer) < 9 + length:
                break
            self.take(bytes(self.buffer[:9]), bytes(self.buffer[9 : 9 + length]))
            del self.buffer[: 9 + length]

    def take(self, head, payload):
        try:
            frame, _ = Frame.parse_frame_header(memoryview(head))
            frame.parse_body(memoryview(payload))
        except HyperframeError as error:
            self.unmet(f"a frame of the right form, not {head.hex()} {payload[:16].hex()} ({error})")
        if isinstance(frame, ExtensionFrame) or frame.type >= len(wire.FRAME_NAMES):
            self.log.append(f"type {frame.type}")
            return
        kind = frame.type
        name = wire.FRAME_NAMES[kind] + (f" {frame.stream_id}" if frame.stream_id else "")
        if not self.has_settings and (kind != wire.SETTINGS or "ACK" in frame.flags):
            self.unmet(f"SETTINGS before {name} (3.4)")
        if self.block is not None and kind != wire.CONTINUATION:
            self.unmet(f"CONTINUATION, and no {name} (6.10)")
        getattr(self, "take_" + wire.FRAME_NAMES[kind].lower())(frame, name)

    def take_data(self, frame, name):
        stream = self.stream(frame.stream_id)
        size = frame.flow_controlled_length
        self.log.append(f"{name} of {size} bytes" + (" with END_STREAM" if "END_STREAM" in frame.flags else ""))
        if stream.is_over or stream.status is None:
            self.unmet(f"no DATA before a head or behind the end of stream {frame.stream_id} (8.1)")
        self.window -= size
        stream.window -= size
        if size and (self.window < 0 or stream.window < 0):
            self.unmet("no DATA beyond the window (6.9.1)")
        stream.frames.append(size)
        stream.body += frame.data
        stream.ended = "END_STREAM" in frame.flags

    def take_headers(self, frame, name):
        self.log.append(name + (" with END_STREAM" if "END_STREAM" in frame.flags else ""))
        self.block = [frame.stream_id, "END_STREAM" in frame.flags, frame.data]
        self.end_block(frame)

    def take_continuation(self, frame, name):
        self.log.append(name)
        if self.block is None or self.block[0] != frame.stream_id:
            self.unmet(f"no {name} (6.10)")
        self.block[2] += frame.data
        self.end_block(frame)

    def end_block(self, frame):
        if "END_HEADERS" not in frame.flags:
            return
        number, ended, block = self.block
        self.block = None
        try:
            fields = [(str(name), str(value)) for name, value in self.decoder.decode(block)]
        except HPACKError as error:
            self.unmet(f"a header block that can be decoded (4.3): {error!r}")
        stream = self.stream(number)
        if stream.is_over:
            self.unmet(f"no HEADERS behind the end of stream {number} (5.1)")
        self.check(fields, stream, ended)
        stream.heads.append(fields)
        stream.ended = ended
        status = dict(fields).get(":status")
        self.log[-1] += f" ({status})" if status else " (trailers)"

    def check(self, fields, stream, ended):
        """What 8.2 and 8.3.2 say of every head."""
        names = [name for name, _ in fields]
        pseudo = [name for name in names if name.startswith(":")]
        is_trailers = stream.status is not None
        if pseudo != ([] if is_trailers else [":status"]) or (pseudo and names[0] != ":status"):
            self.unmet(f"no pseudo-header fields {pseudo} (8.3.2)")
        if is_trailers and not ended:
            self.unmet("END_STREAM with trailers (8.1)")
        wrong = [name for name in names if name != name.lower() or name in CONNECTION_FIELDS]
        if wrong:
            self.unmet(f"no fields {wrong} (8.2)")
        if any(value != value.strip(" \t") or set(value) & set("\r\n\0") for _, value in fields):
            self.unmet(f"values of the right form (8.2.1), not {fields}")

    def take_priority(self, _, name):
        self.log.append(name)

    def take_rst_stream(self, frame, name):
        self.log.append(f"{name} {code_name(frame.error_code)}")
        # What comes behind the end may only say that no more is wanted.
        self.stream(frame.stream_id).reset = frame.error_code

    def take_settings(self, frame, name):
        if "ACK" in frame.flags:
            self.log.append(f"{name} ACK")
            self.acknowledged += 1
            for streams, change in self.unacknowledged.pop(0) if self.unacknowledged else []:
                change_windows(streams, change)
            return
        self.log.append(name)
        self.has_settings = True
        self.server_settings.update(frame.settings)
        self.send(wire.SETTINGS_ACK)

    def take_push_promise(self, _, name):
        self.unmet(f"no {name}, which nobody allowed (8.4)")

    def take_ping(self, frame, name):
        if "ACK" in frame.flags:
            self.log.append(f"{name} ACK")
            self.pongs.append(frame.opaque_data)
        else:
            self.log.append(name)
            self.send(wire.ping(frame.opaque_data, ack=True))

    def take_goaway(self, frame, name):
        self.log.append(f"{name} {code_name(frame.error_code)}")
        if self.goaways and frame.last_stream_id > self.goaways[-1][0]:
            self.unmet("no GOAWAY with a higher last stream than the one before (6.8)")
        self.goaways.append((frame.last_stream_id, frame.error_code))

    def take_window_update(self, frame, name):
        self.log.append(f"{name} +{frame.window_increment}")
        self.granted.setdefault(frame.stream_id, []).append(frame.window_increment)

    # Expecting.

    def unmet(self, expected):
        left_out = len(self.log) - TOLD
        came = ([f"({left_out} frames)"] if left_out > 0 else []) + self.log[-TOLD:]
        raise Unmet(expected, ", ".join(came) or "nothing")

    def must(self, condition, expected, seconds=PATIENCE):
        if not self.wait(condition, seconds):
            self.unmet(expected)

    def tried(self, what):
        """Which of several tries this is, for the line that says what came."""
        if what:
            self.log.append(f"(tried {what})")

    @property
    def updates(self):
        """How many WINDOW_UPDATE came."""
        return sum(map(len, self.granted.values()))

    def check_that(self, holds, expected):
        if not holds:
            self.unmet(expected)

    @property
    def connection_error(self):
        return next((code for _, code in self.goaways if code != wire.NO_ERROR), None)

    @property
    def failed(self):
        return self.connection_error is not None or self.closed

    def expect_connection_error(self, *codes, seconds=PATIENCE):
        """GOAWAY with one of the codes, and the end. The end alone will do: GOAWAY is a SHOULD (5.4.1)."""
        names = " or ".join(code_name(code) for code in codes)
        self.must(lambda: self.failed, f"GOAWAY {names}", seconds)
        if self.connection_error not in (None, *codes):
            self.unmet(f"GOAWAY {names}")
        # Some servers wait for us to have read it.
        self.must(lambda: self.closed, f"GOAWAY {names}, and the end of the connection (5.4.1)", seconds)

    def expect_stream_error(self, number, *codes):
        """RST_STREAM with one of the codes. A server may make a connection error of it (5.4.1)."""
        stream = self.stream(number)
        names = " or ".join(code_name(code) for code in codes)
        self.must(lambda: stream.reset is not None or self.failed, f"RST_STREAM {number} {names}")
        error = self.connection_error
        if stream.reset not in (None, *codes) or error not in (None, *codes):
            self.skip_if_answered(stream)
        if error is not None or stream.reset is None:
            self.expect_connection_error(*codes)
        elif stream.reset not in codes:
            self.unmet(f"RST_STREAM {number} {names}")

    def expect_malformed(self, number, *codes):
        """A stream error of PROTOCOL_ERROR or one of the codes, or an answer that refuses the request (8.1.1)."""
        stream = self.stream(number)
        self.must(lambda: stream.is_over or self.failed, f"RST_STREAM {number} PROTOCOL_ERROR or 400")
        if stream.ended and stream.status is not None and 400 <= stream.status < 500:
            return
        if stream.ended and stream.reset is None and not self.failed:
            # It may not have seen the rest of the request yet.
            self.wait(lambda: stream.reset is not None or self.failed, QUIET)
            self.check_that(stream.reset is not None or self.failed, f"RST_STREAM {number} PROTOCOL_ERROR or 400")
        self.expect_stream_error(number, wire.PROTOCOL_ERROR, *codes)

    def skip_if_answered(self, stream):
        """A server that has answered and resets the stream, to stop the upload (8.1), need not look at what else is
        sent on it (5.4.2)."""
        if stream.ended and stream.reset in (wire.NO_ERROR, wire.CANCEL):
            raise Skip("the server answered before the end of the request")

    def expect_answer(self, number=1, status=200, body=None, refill=False, seconds=PATIENCE):
        """A whole answer. With `refill` the server gets back the window that it used."""
        stream = self.stream(number)
        given_back = 0

        def is_over_and_refilled():
            nonlocal given_back
            more, given_back = len(stream.body) - given_back, len(stream.body)
            if refill and more:
                self.allow(0, more)
                if not stream.is_over:
                    self.allow(number, more)
            return stream.is_over

        self.wait(is_over_and_refilled, seconds)
        # A server may stop an upload that it has no use for when its answer is complete (8.1).
        if not stream.ended or stream.reset not in (None, wire.NO_ERROR):
            self.unmet(f"a whole answer on stream {number}")
        if status is not None and stream.status != status:
            self.unmet(f"{status} on stream {number}")
        if body is not None and stream.body != body:
            self.unmet(f"a body of {len(body)} bytes on stream {number}, not {len(stream.body)}: {stream.body[:40]}")
        return stream

    def expect_alive(self):
        """The connection still answers PING, and no connection error came."""
        payload = struct.pack(">Q", 0xA11_0000 + len(self.pongs))
        self.send(wire.ping(payload))
        self.must(lambda: payload in self.pongs, "PING ACK")

    def expect_ignored(self, number=1):
        """As if nothing had been: the connection answers PING, and a request on that stream."""
        self.expect_alive()
        self.request(number)
        self.expect_answer(number)

    def close(self):
        self.socket.close()
