"""RFC 9113 section 3: how a connection begins."""

import wire
from case import case
from wire import PREFACE, PROTOCOL_ERROR


@case("3.4", "the first frame of the server is SETTINGS, and the client's are acknowledged")
def settings_come_first(server):
    peer = server.connect()  # Which checks what comes first.
    peer.must(lambda: peer.acknowledged == 1, "SETTINGS ACK")


@case("3.4", "a request right behind the preface, before any SETTINGS of the server, is answered")
def request_behind_the_preface(server):
    peer = server.connect(greet=False)
    peer.send(PREFACE, wire.settings(), wire.headers(1, peer.fields()))
    peer.expect_answer()


@case("3.4", "a preface that comes byte by byte is as good as any")
def preface_byte_by_byte(server):
    peer = server.connect(greet=False)
    for byte in PREFACE:
        peer.send(bytes([byte]))
    peer.settings()
    peer.request()
    peer.expect_answer()


@case("3.4", "a preface that is wrong at its end is a PROTOCOL_ERROR of the connection, or its end")
def wrong_preface(server):
    peer = server.connect(greet=False)
    peer.send(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", wire.settings())
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("3.4", "a preface of another version is a PROTOCOL_ERROR of the connection, or its end")
def preface_of_another_version(server):
    peer = server.connect(greet=False)
    peer.send(b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n", wire.settings())
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("3.4", "PING instead of SETTINGS behind the preface is a PROTOCOL_ERROR of the connection")
def ping_before_settings(server):
    peer = server.connect(greet=False)
    peer.send(PREFACE, wire.ping())
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("3.4", "HEADERS instead of SETTINGS behind the preface is a PROTOCOL_ERROR of the connection")
def headers_before_settings(server):
    peer = server.connect(greet=False)
    peer.send(PREFACE, wire.headers(1, peer.fields()))
    peer.expect_connection_error(PROTOCOL_ERROR)


@case("3.4", "a second preface is a frame that is too large")
def preface_twice(server):
    peer = server.connect()
    peer.send(PREFACE, bytes(64))
    peer.expect_connection_error(wire.FRAME_SIZE_ERROR, PROTOCOL_ERROR)


@case("9.1", "fifty requests, one after the other, are answered on the same connection")
def many_requests(server):
    peer = server.connect()
    for stream in range(1, 101, 2):
        peer.request(stream)
        peer.expect_answer(stream, refill=True)
        peer.check_that(peer.stream(stream).body == peer.stream(1).body, "the same body each time")
