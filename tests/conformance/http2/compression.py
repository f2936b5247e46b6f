"""RFC 9113 section 4.3 and RFC 7541: header compression, whose state is the connection's."""

import hpack

import wire
from case import case
from wire import COMPRESSION_ERROR, literal, string, table_size

# The default of SETTINGS_HEADER_TABLE_SIZE, and the first index behind the static table.
TABLE_SIZE = 4096
NEWEST = 62


def limit(peer):
    """What the server's SETTINGS_HEADER_TABLE_SIZE allows the table here."""
    return peer.server_settings.get(wire.HEADER_TABLE_SIZE, TABLE_SIZE)


def expect_compression_error(server, block):
    """A request whose block has `block` behind the fields that it needs."""
    peer = server.connect()
    peer.send(wire.headers(1, wire.as_block(peer.fields()) + block))
    peer.expect_connection_error(COMPRESSION_ERROR)


@case("RFC 7541 6.1", "index 0 is a COMPRESSION_ERROR")
def index_zero(server):
    expect_compression_error(server, b"\x80")


@case("RFC 7541 2.3.3", "an index beyond both tables is a COMPRESSION_ERROR")
def index_beyond_the_tables(server):
    expect_compression_error(server, wire.index(NEWEST))


@case("RFC 7541 2.3.3", "a name's index beyond both tables is a COMPRESSION_ERROR")
def name_index_beyond_the_tables(server):
    expect_compression_error(server, wire.integer(70, 4) + string("value"))


@case("RFC 7541 5.1", "an integer that never ends is a COMPRESSION_ERROR")
def integer_without_end(server):
    expect_compression_error(server, b"\xff" + b"\xff" * 20 + b"\x0f")


@case("RFC 7541 5.1", "a block that ends within an integer is a COMPRESSION_ERROR")
def block_ends_in_an_integer(server):
    expect_compression_error(server, b"\xff\x80")


@case("RFC 7541 5.2", "a string that is longer than its block is a COMPRESSION_ERROR")
def string_longer_than_the_block(server):
    expect_compression_error(server, b"\x00" + string("x-cut") + b"\x7f\x00short")


@case("RFC 7541 5.2", "a name without a value is a COMPRESSION_ERROR")
def block_ends_behind_a_name(server):
    expect_compression_error(server, b"\x00" + string("x-cut"))


@case("RFC 7541 5.2", "a Huffman string with EOS in it is a COMPRESSION_ERROR")
def huffman_with_eos(server):
    expect_compression_error(server, b"\x00" + string("x-eos") + string(b"\xff\xff\xff\xff", huffman=True))


@case("RFC 7541 5.2", "Huffman padding of more than seven bits is a COMPRESSION_ERROR")
def huffman_padding_too_long(server):
    # `0` has five bits, all zero.
    expect_compression_error(server, b"\x00" + string("x-pad") + string(b"\x07\xff", huffman=True))


@case("RFC 7541 5.2", "Huffman padding that is not all ones is a COMPRESSION_ERROR")
def huffman_padding_of_zeros(server):
    expect_compression_error(server, b"\x00" + string("x-pad") + string(b"\x00", huffman=True))


@case("RFC 7541 6.3", "a table size over the server's limit is a COMPRESSION_ERROR")
def table_size_over_the_limit(server):
    peer = server.connect()
    peer.quiet(0.1)  # Its limit may come in any SETTINGS.
    peer.send(wire.headers(1, table_size(limit(peer) + 1) + wire.as_block(peer.fields())))
    peer.expect_connection_error(COMPRESSION_ERROR)


@case("RFC 7541 4.2", "a table size behind the first field of a block is a COMPRESSION_ERROR")
def table_size_behind_a_field(server):
    expect_compression_error(server, literal("x-first", "1") + table_size(0) + literal("x-last", "1"))


@case("RFC 7541 4.2", "a table size at the end of a block is a COMPRESSION_ERROR")
def table_size_at_the_end(server):
    expect_compression_error(server, table_size(0))


@case("RFC 7541 4.2", "two table sizes at the beginning of a block are taken")
def two_table_sizes(server):
    peer = server.connect()
    peer.stream(1)
    peer.send(wire.headers(1, table_size(0) + table_size(TABLE_SIZE) + wire.as_block(peer.fields())))
    peer.expect_answer()


@case("RFC 7541 2.3.2", "a field in the dynamic table can be used in a later request")
def dynamic_table(server):
    peer = server.connect()
    fields = peer.fields()
    peer.stream(1)
    peer.send(wire.headers(1, wire.as_block(fields[:3]) + literal(":path", "/", indexed=True)))
    peer.expect_answer(1)
    peer.stream(3)
    peer.send(wire.headers(3, wire.as_block(fields[:3]) + wire.index(NEWEST)))
    peer.expect_answer(3)


@case("RFC 7541 4.3", "a table size of 0 empties the table: what was in it is a COMPRESSION_ERROR")
def emptied_table(server):
    peer = server.connect()
    fields = wire.as_block(peer.fields())
    peer.stream(1)
    peer.send(wire.headers(1, fields + literal("x-kept", "1", indexed=True)))
    peer.expect_answer(1)
    peer.send(wire.headers(3, table_size(0) + fields + wire.index(NEWEST)))
    peer.expect_connection_error(COMPRESSION_ERROR)


@case("RFC 7541 4.4", "a field larger than the table empties it: what was in it is a COMPRESSION_ERROR")
def field_larger_than_the_table(server):
    peer = server.connect()
    peer.quiet(0.1)
    fields = wire.as_block(peer.fields())
    peer.stream(1)
    peer.send(wire.headers(1, table_size(100) + fields + literal("x-kept", "1", indexed=True)))
    peer.expect_answer(1)
    peer.send(wire.headers(3, fields + literal("x-large", "v" * 100, indexed=True) + wire.index(NEWEST)))
    peer.expect_connection_error(COMPRESSION_ERROR)


@case("RFC 7541 4.4", "the oldest field leaves a full table, the newest is still there")
def eviction(server):
    peer = server.connect()
    fields = peer.fields()
    # Room for one of the two fields.
    peer.stream(1)
    peer.send(wire.headers(1, table_size(60) + wire.as_block(fields[:3]) + literal(":path", "/", indexed=True)))
    peer.expect_answer(1)
    peer.stream(3)
    peer.send(wire.headers(3, wire.as_block(fields[:3]) + wire.index(NEWEST) + literal("x-kept", "1", indexed=True)))
    peer.expect_answer(3)
    # Its place is that of x-kept by now, and there is no other.
    peer.send(wire.headers(5, wire.as_block(fields) + wire.index(NEWEST + 1)))
    peer.expect_connection_error(COMPRESSION_ERROR)


@case("4.3", "the block of a request that is refused still counts for the table")
def table_of_a_refused_request(server):
    peer = server.connect()
    fields = peer.fields()
    peer.send(wire.headers(1, wire.as_block(fields) + literal("X-UPPER", "1") + literal("x-a", "/", indexed=True)))
    peer.expect_malformed(1)
    if peer.failed or peer.goaways:
        return  # It made a connection error of it.
    peer.stream(3)
    peer.send(wire.headers(3, wire.as_block(fields) + wire.index(NEWEST)))
    peer.expect_answer(3)


@case("4.3.1", "a server that was allowed no dynamic table says so, and uses none")
def server_obeys_the_table_size(server):
    peer = server.connect({wire.HEADER_TABLE_SIZE: 0})
    peer.must(lambda: peer.acknowledged == 1, "SETTINGS ACK")
    # The decoder takes no larger table from then on, and insists on being told.
    peer.decoder.max_allowed_table_size = 0
    for stream in (1, 3, 5):
        peer.request(stream)
        peer.expect_answer(stream)


@case("4.3", "every way to write a field is understood: static, Huffman, never indexed, indexed names")
def every_representation(server):
    peer = server.connect()
    encoder = hpack.Encoder()
    block = wire.index(2) + wire.index(6) + wire.index(4)  # :method: GET, :scheme: http, :path: /
    block += wire.integer(1, 4) + string(peer.authority)  # :authority by its index, not indexed
    block += b"\x10" + string("x-secret") + string("1")  # Never indexed.
    peer.stream(1)
    peer.send(wire.headers(1, block))
    peer.expect_answer(1)
    peer.stream(3)
    peer.send(wire.headers(3, encoder.encode(peer.fields(extra=[("accept", "*/*"), ("user-agent", "of conformance")]))))
    peer.expect_answer(3)


@case("4.3", "fields come to the handler as they were sent, from tables and Huffman strings", needs="head")
def fields_arrive(server):
    peer = server.connect()
    encoder = hpack.Encoder()
    extra = [("x-first", "a, b"), ("x-second", "~!@#$%^&*()_+{}|"), ("x-empty", "")]
    for stream in (1, 3, 5):
        peer.stream(stream)
        peer.send(wire.headers(stream, encoder.encode(peer.fields(server.routes.head, extra=extra))))
        lines = peer.expect_answer(stream, refill=True).body.decode().splitlines()
        lines = [line.strip() for line in lines]
        for name, value in extra:
            peer.check_that(f"{name}: {value}".strip() in lines, f"{name}: {value} in {lines}")
