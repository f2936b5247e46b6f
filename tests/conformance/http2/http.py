"""RFC 9113 section 8 and RFC 9110: what requests and answers are made of, and which requests are malformed."""

import h2.config
import h2.connection
import h2.events

import wire
from case import case
from peer import Skip
from wire import STREAM_CLOSED


def expect_malformed(server, **changes):
    """For a request without a body, whose fields are the usual ones with `changes`."""
    peer = server.connect()
    peer.tried(changes)
    peer.send(wire.headers(1, peer.fields(**changes)))
    peer.expect_malformed(1)


def expect_malformed_upload(server, *frames, extra=()):
    """For a request with a body, whose frames on stream 1 come in one piece with its head."""
    peer = server.connect()
    peer.tried(extra)
    fields = peer.fields(server.routes.count or "/", method="POST", extra=extra)
    peer.send(wire.headers(1, fields, end=False) + b"".join(frames))
    peer.expect_malformed(1)


# The order of frames.


@case("8.1", "trailers behind a body are taken", needs="count")
def trailers(server):
    peer = server.connect()
    peer.request(1, server.routes.count, method="POST", end=False)
    peer.send(wire.data(1, b"four"), wire.headers(1, [("x-sum", "1")]))
    body = peer.expect_answer().body
    peer.check_that(body.strip() == b"4", f"a count of 4, not {body}")


@case("8.1", "trailers without a body before them are taken", needs="count")
def trailers_without_a_body(server):
    peer = server.connect()
    peer.request(1, server.routes.count, method="POST", end=False)
    peer.send(wire.headers(1, [("x-sum", "1")]))
    body = peer.expect_answer().body
    peer.check_that(body.strip() == b"0", f"a count of 0, not {body}")


@case("8.1", "trailers come to the handler, and those of its answer to the client", needs="trailers")
def trailers_both_ways(server):
    peer = server.connect()
    peer.request(1, server.routes.trailers, method="POST", end=False, extra=[("te", "trailers"), ("trailer", "x-sum")])
    peer.send(wire.data(1, b"body"), wire.headers(1, [("x-sum", "7")]))
    stream = peer.expect_answer(body=b"body")
    peer.check_that(stream.trailers == [("x-sum", "7")], f"trailers with x-sum: 7, not {stream.trailers}")


@case("8.1", "a second HEADERS without END_STREAM is malformed")
def trailers_without_end(server):
    expect_malformed_upload(server, wire.data(1, b"body"), wire.headers(1, [("x-sum", "1")], end=False))


@case("8.1", "DATA behind trailers is a STREAM_CLOSED error")
def data_behind_trailers(server):
    peer = server.connect()
    peer.request(1, server.routes.never or "/", method="POST", end=False)
    peer.send(wire.headers(1, [("x-sum", "1")]) + wire.data(1, b"late"))
    peer.expect_stream_error(1, STREAM_CLOSED)


@case("8.1", "a pseudo-header field in trailers is malformed")
def pseudo_field_in_trailers(server):
    expect_malformed_upload(server, wire.data(1, b"body"), wire.headers(1, [(":method", "POST")]))


@case("8.1", "an answer may come before the end of the request", needs="ignore")
def early_answer(server):
    peer = server.connect()
    peer.request(1, server.routes.ignore, method="POST", end=False)
    stream = peer.stream(1)
    peer.must(lambda: stream.ended, "an answer before the body's end")
    # The server may ask to stop the upload, which is not to lose the answer.
    peer.check_that(stream.reset in (None, wire.NO_ERROR), "no RST_STREAM but NO_ERROR")
    peer.check_that(stream.status == 200, "200")


# Content-Length (8.1.1).


@case("8.1.1", "a content-length that is the body's is taken", needs="count")
def content_length(server):
    peer = server.connect()
    peer.request(1, server.routes.count, method="POST", end=False, extra=[("content-length", "8")])
    peer.send(wire.data(1, b"four"), wire.data(1, b"more", end=True, padding=9))
    body = peer.expect_answer().body
    peer.check_that(body.strip() == b"8", f"a count of 8, not {body}")


@case("8.1.1", "a body shorter than its content-length is malformed")
def body_too_short(server):
    expect_malformed_upload(server, wire.data(1, b"four", end=True), extra=[("content-length", "5")])


@case("8.1.1", "a body longer than its content-length is malformed")
def body_too_long(server):
    expect_malformed_upload(server, wire.data(1, b"four", end=True), extra=[("content-length", "3")])


@case("8.1.1", "a body of several frames longer than its content-length is malformed")
def body_too_long_in_pieces(server):
    frames = [wire.data(1, b"four"), wire.data(1, b"more", end=True)]
    expect_malformed_upload(server, *frames, extra=[("content-length", "7")])


@case("8.1.1", "a body that trailers end before its content-length is malformed")
def body_too_short_before_trailers(server):
    frames = [wire.data(1, b"four"), wire.headers(1, [("x-sum", "1")])]
    expect_malformed_upload(server, *frames, extra=[("content-length", "5")])


@case("8.1.1", "a content-length without a body is malformed")
def no_body_for_a_content_length(server):
    expect_malformed(server, method="POST", path=server.routes.count or "/", extra=[("content-length", "5")])


@case("RFC 9110 8.6", "a content-length that is no number is malformed")
def content_length_that_is_no_number(server):
    for value in ("five", "-4", "+4", "0x4", "4,5", ""):
        expect_malformed_upload(server, wire.data(1, b"four", end=True), extra=[("content-length", value)])


@case("RFC 9110 8.6", "two content-lengths that differ are malformed")
def two_content_lengths(server):
    lengths = [("content-length", "4"), ("content-length", "5")]
    expect_malformed_upload(server, wire.data(1, b"four", end=True), extra=lengths)


# Fields (8.2).


@case("8.2.1", "an upper-case letter in a name is malformed")
def upper_case_name(server):
    for name in ("X-Upper", "x-uppeR"):
        expect_malformed(server, extra=[(name, "1")])


@case("8.2.1", "a space, a control character, DEL or a byte above it in a name is malformed")
def wrong_byte_in_a_name(server):
    for byte in " \t\r\n\0\x1f\x7f\x80\xff":
        expect_malformed(server, extra=[(f"x-a{byte}b", "1")])


@case("8.2.1", "a colon within a name is malformed")
def colon_in_a_name(server):
    expect_malformed(server, extra=[("x-a:b", "1")])


@case("RFC 9110 5.6.2", "what is no letter of a token is malformed in a name")
def delimiter_in_a_name(server):
    for byte in '"(),/;<=>?@[\\]{}':
        expect_malformed(server, extra=[(f"x-a{byte}b", "1")])


@case("RFC 9110 5.1", "an empty name is malformed")
def empty_name(server):
    peer = server.connect()
    peer.send(wire.headers(1, peer.fields(extra=[("", "1")])))
    # Some find it while they decompress.
    peer.expect_malformed(1, wire.COMPRESSION_ERROR)


@case("8.2.1", "NUL, CR or LF in a value is malformed, wherever it is")
def wrong_byte_in_a_value(server):
    for byte in "\0\r\n":
        for value in (f"a{byte}b", f"{byte}b", f"a{byte}", f"a\r\nx-injected: {byte}"):
            expect_malformed(server, extra=[("x-value", value)])


@case("8.2.1", "a space or tab around a value is malformed")
def space_around_a_value(server):
    for value in (" a", "\ta", "a ", "a\t", " "):
        expect_malformed(server, extra=[("x-value", value)])


@case("8.2.1", "NUL, CR or LF in a pseudo-header field is malformed")
def wrong_byte_in_a_pseudo_field(server):
    for byte in "\0\r\n":
        for name in ("path", "authority", "method", "scheme"):
            expect_malformed(server, **{name: f"/a{byte}b"})


@case("8.2.1", "NUL, CR or LF in a trailer is malformed")
def wrong_byte_in_a_trailer(server):
    for byte in "\0\r\n":
        expect_malformed_upload(server, wire.data(1, b"body"), wire.headers(1, [("x-sum", f"a{byte}b")]))


@case("8.2.1", "an upper-case letter in a trailer's name is malformed")
def upper_case_trailer(server):
    expect_malformed_upload(server, wire.data(1, b"body"), wire.headers(1, [("X-Sum", "1")]))


@case("RFC 9110 5.5", "visible characters, spaces within and bytes above 127 make a good value")
def good_values(server):
    peer = server.connect()
    values = ["", "a b\tc", "~!@#$%^&*()", "caf\xe9"]
    peer.request(extra=[("x-value", value) for value in values])
    peer.expect_answer()


@case("8.2.2", "connection-specific fields are malformed")
def connection_fields(server):
    fields = [
        ("connection", "keep-alive"),
        ("connection", "x-other"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
    ]
    for field in fields:
        expect_malformed(server, extra=[field])


@case("8.2.2", "te with another value than trailers is malformed")
def te_with_another_value(server):
    for value in ("gzip", "trailers, deflate;q=0.5", "chunked"):
        expect_malformed(server, extra=[("te", value)])


@case("8.2.2", "te: trailers is taken")
def te_trailers(server):
    peer = server.connect()
    peer.request(extra=[("te", "trailers")])
    peer.expect_answer()


@case("8.2.2", "a connection-specific field in trailers is malformed")
def connection_field_in_trailers(server):
    expect_malformed_upload(server, wire.data(1, b"body"), wire.headers(1, [("connection", "close")]))


@case("8.2.3", "a cookie in several fields comes to the handler as one", needs="head")
def cookie_in_pieces(server):
    peer = server.connect()
    peer.request(
        1, server.routes.head, extra=[("cookie", "a=1"), ("x-between", "1"), ("cookie", "b=2"), ("cookie", "c=3")]
    )
    lines = peer.expect_answer().body.decode("latin-1").splitlines()
    cookies = [line for line in lines if line.startswith("cookie:")]
    peer.check_that(cookies == ["cookie: a=1; b=2; c=3"], f"cookie: a=1; b=2; c=3, not {cookies}")


# Pseudo-header fields (8.3).


@case("8.3.1", "a request without :method, :scheme or :path is malformed")
def missing_pseudo_field(server):
    for name in (":method", ":scheme", ":path"):
        expect_malformed(server, without=[name])


@case("8.3.1", "a block without any field is malformed")
def no_fields(server):
    peer = server.connect()
    peer.send(wire.headers(1, b""))
    # Some call the frame too small.
    peer.expect_malformed(1, wire.FRAME_SIZE_ERROR)


@case("8.3.1", "a pseudo-header field that comes twice is malformed")
def pseudo_field_twice(server):
    for name in (":method", ":scheme", ":path", ":authority"):
        peer = server.connect()
        peer.tried(name)
        fields = peer.fields()
        peer.send(wire.headers(1, fields + [field for field in fields if field[0] == name]))
        peer.expect_malformed(1)


@case("8.3", "a pseudo-header field that is unknown is malformed")
def unknown_pseudo_field(server):
    peer = server.connect()
    peer.send(wire.headers(1, [(":unknown", "1"), *peer.fields()]))
    peer.expect_malformed(1)


@case("8.3", "a pseudo-header field of answers is malformed in a request")
def status_in_a_request(server):
    peer = server.connect()
    peer.send(wire.headers(1, [*peer.fields(), (":status", "200")]))
    peer.expect_malformed(1)


@case("8.3", "a pseudo-header field behind a regular one is malformed")
def pseudo_field_behind_a_regular_one(server):
    for name in (":method", ":scheme", ":path", ":authority"):
        peer = server.connect()
        peer.tried(name)
        fields = peer.fields()
        behind = [field for field in fields if field[0] == name]
        peer.send(wire.headers(1, [field for field in fields if field not in behind] + [("x-first", "1"), *behind]))
        peer.expect_malformed(1)


@case("8.3.1", "an empty :path is malformed")
def empty_path(server):
    expect_malformed(server, path="")


@case("8.3.1", "a :path that does not begin with a slash is malformed")
def path_without_slash(server):
    for path in ("index.html", "?query", "http://other/"):
        expect_malformed(server, path=path)


@case("8.3.1", "a :path of * is for OPTIONS, and malformed in a GET")
def asterisk(server):
    expect_malformed(server, path="*")
    peer = server.connect()
    peer.request(path="*", method="OPTIONS")
    # What it answers is its own affair.
    peer.expect_answer(status=None)


@case("RFC 9110 9.1", "an empty :method, or one that is no token, is malformed")
def wrong_method(server):
    for method in ("", "GE T", "GET/", "G\xe9T"):
        expect_malformed(server, method=method)


@case("RFC 9110 4.2.4", "user information in :authority is malformed")
def user_information(server):
    peer = server.connect()
    peer.send(wire.headers(1, peer.fields(authority=f"user:secret@{peer.authority}")))
    peer.expect_malformed(1)


@case("RFC 9110 7.2", "an :authority that is no host and port is malformed")
def wrong_authority(server):
    for authority in ("a b", "a/b", "host:port", "[::1"):
        expect_malformed(server, authority=authority)


@case("8.3.1", "a host that is another than :authority is malformed")
def host_and_authority_differ(server):
    expect_malformed(server, authority="one.example", extra=[("host", "two.example")])


@case("8.3.1", "a host that is :authority is taken")
def host_and_authority_agree(server):
    peer = server.connect()
    peer.request(extra=[("host", peer.authority)])
    peer.expect_answer()


@case("8.3.1", "a host without :authority is taken")
def host_without_authority(server):
    peer = server.connect()
    peer.request(without=[":authority"], extra=[("host", peer.authority)])
    peer.expect_answer()


@case("OURS", "neither :authority nor host is malformed")
def no_authority(server):
    # As in HTTP/1.1 (RFC 9112 3.2) and HTTP/3 (RFC 9114 4.3.1). RFC 9113 is silent.
    expect_malformed(server, without=[":authority"])


@case("RFC 9110 4.2.1", "an empty :authority or host is malformed")
def empty_authority(server):
    expect_malformed(server, authority="")
    expect_malformed(server, without=[":authority"], extra=[("host", "")])


@case("RFC 9110 7.2", "two hosts are malformed")
def two_hosts(server):
    expect_malformed(server, without=[":authority"], extra=[("host", "one.example"), ("host", "two.example")])


# CONNECT (8.5).


@case("8.5", "CONNECT with :scheme or :path is malformed")
def connect_with_a_path(server):
    for without in ([":path"], [":scheme"], []):
        expect_malformed(server, method="CONNECT", authority="example.com:443", without=without)


@case("8.5", "CONNECT without :authority is malformed")
def connect_without_authority(server):
    expect_malformed(server, method="CONNECT", without=[":authority", ":scheme", ":path"])


@case("8.5", "CONNECT of the right form is refused by who is no proxy")
def connect(server):
    peer = server.connect()
    peer.request(method="CONNECT", authority="example.com:443", without=[":scheme", ":path"], end=False)
    stream = peer.stream(1)
    peer.must(lambda: stream.status or stream.reset is not None or peer.closed, "an answer or RST_STREAM")
    peer.check_that(stream.status is None or stream.status >= 400, "a status that refuses")
    peer.check_that(peer.connection_error is None, "no error of the connection")


@case("RFC 8441 4", "CONNECT with :protocol is malformed where SETTINGS did not allow it")
def extended_connect(server):
    peer = server.connect()
    peer.quiet(0.1)
    if peer.server_settings.get(8):
        raise Skip("the server allows it")
    peer.send(wire.headers(1, [*peer.fields(method="CONNECT"), (":protocol", "websocket")], end=False))
    peer.expect_malformed(1)


@case("RFC 8441 4", ":protocol with another method than CONNECT is malformed")
def protocol_without_connect(server):
    peer = server.connect()
    peer.send(wire.headers(1, [*peer.fields(), (":protocol", "websocket")]))
    peer.expect_malformed(1)


# Answers.


@case("RFC 9110 9.3.2", "HEAD has the head of GET and no body")
def head(server):
    peer = server.connect()
    peer.request(1)
    peer.request(3, method="HEAD")
    get, answer = peer.expect_answer(1), peer.expect_answer(3, body=b"")
    lengths = [dict(stream.answer).get("content-length") for stream in (get, answer)]
    peer.check_that(lengths[1] in (None, lengths[0]), f"the content-length of GET, not {lengths}")


@case("RFC 9110 9.3.2", "HEAD of a large answer has no body, and does not stop at the window", needs="large")
def head_of_a_large_answer(server):
    peer = server.connect()
    peer.request(1, server.routes.large, method="HEAD")
    peer.expect_answer(body=b"")


@case("RFC 9110 15.3.5", "204 has no body and no content-length", needs="no_content")
def no_content(server):
    peer = server.connect()
    peer.request(1, server.routes.no_content)
    stream = peer.expect_answer(status=204, body=b"")
    peer.check_that("content-length" not in dict(stream.answer), "no content-length")


@case("RFC 9110 15.4.5", "304 has no body", needs="not_modified")
def not_modified(server):
    peer = server.connect()
    peer.request(1, server.routes.not_modified)
    peer.expect_answer(status=304, body=b"")


@case("8.1.1", "an answer's content-length is its body's")
def content_length_of_the_answer(server):
    peer = server.connect()
    peer.request(1)
    stream = peer.expect_answer()
    length = dict(stream.answer).get("content-length", str(len(stream.body)))
    peer.check_that(int(length) == len(stream.body), f"{length} bytes of the body, not {len(stream.body)}")


@case("RFC 9110 10.1.1", "100-continue is answered with 100 when the handler reads the body", needs="count")
def expect_continue(server):
    peer = server.connect()
    extra = [("expect", "100-continue"), ("content-length", "4")]
    peer.request(1, server.routes.count, method="POST", end=False, extra=extra)
    stream = peer.stream(1)
    peer.must(lambda: stream.heads, "100")
    peer.check_that(dict(stream.heads[0])[":status"] == "100", "100")
    peer.send(wire.data(1, b"body", end=True))
    peer.expect_answer()


@case("RFC 9110 10.1.1", "100 is not sent for a handler that does not read the body", needs="ignore")
def expect_continue_of_nobody(server):
    peer = server.connect()
    peer.request(1, server.routes.ignore, method="POST", end=False, extra=[("expect", "100-continue")])
    stream = peer.stream(1)
    peer.must(lambda: stream.status is not None, "an answer without a body")
    peer.check_that(len(stream.heads) == 1, "no 100")


@case("RFC 9110 10.1.1", "a body that does not wait for 100 is taken", needs="count")
def body_before_100(server):
    peer = server.connect()
    peer.request(1, server.routes.count, method="POST", end=False, extra=[("expect", "100-continue")])
    peer.send(wire.data(1, b"body", end=True))
    body = peer.expect_answer().body
    peer.check_that(body.strip() == b"4", f"a count of 4, not {body}")


@case("8.3.2", "an unknown method gets an answer")
def unknown_method(server):
    peer = server.connect()
    peer.request(method="BREW")
    peer.expect_answer(status=None)


@case("8.4", "a client of the usual kind, which checks all that it gets, finds nothing wrong")
def checked_by_another_client(server):
    # Its own state machine judges frames, windows, header blocks and their order.
    peer = server.connect(greet=False)
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    for number in (1, 3, 5):
        client.send_headers(number, peer.fields(), end_stream=True)
    peer.send(client.data_to_send())
    ended = set()
    while len(ended) < 3:
        got = peer.socket.recv(65_536)
        peer.check_that(got, "three answers before the end")
        for event in client.receive_data(got):
            if isinstance(event, h2.events.StreamEnded):
                ended.add(event.stream_id)
            elif isinstance(event, h2.events.DataReceived):
                client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        peer.send(client.data_to_send())
