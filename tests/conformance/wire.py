"""Bytes of HTTP/2: frames and header blocks, right or wrong as the caller likes.

Nothing here checks anything: a frame may have any length, flag or stream that a case wants to try. RFC 9113 section 6
for frames, RFC 7541 section 6 for header blocks.
"""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Frame types.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
FRAME_NAMES = "DATA HEADERS PRIORITY RST_STREAM SETTINGS PUSH_PROMISE PING GOAWAY WINDOW_UPDATE CONTINUATION".split()
# No extension has it.
UNKNOWN_TYPE = 0xBB

# Flags.
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

# Settings.
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)

# Error codes.
CODES = (
    "NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED FRAME_SIZE_ERROR "
    "REFUSED_STREAM CANCEL COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM INADEQUATE_SECURITY HTTP_1_1_REQUIRED"
).split()
(
    NO_ERROR,
    PROTOCOL_ERROR,
    INTERNAL_ERROR,
    FLOW_CONTROL_ERROR,
    SETTINGS_TIMEOUT,
    STREAM_CLOSED,
    FRAME_SIZE_ERROR,
    REFUSED_STREAM,
    CANCEL,
    COMPRESSION_ERROR,
    CONNECT_ERROR,
    ENHANCE_YOUR_CALM,
    INADEQUATE_SECURITY,
    HTTP_1_1_REQUIRED,
) = range(14)

DEFAULT_WINDOW = 65_535
DEFAULT_FRAME_SIZE = 16_384
MAX_WINDOW = 2**31 - 1


def code_name(code):
    return CODES[code] if code < len(CODES) else hex(code)


def frame(kind, flags=0, stream=0, payload=b"", length=None):
    """One frame. `length` is what its head says, if that shall not be the payload's."""
    length = len(payload) if length is None else length
    return struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def data(stream, payload=b"", end=False, padding=None):
    flags = END_STREAM if end else 0
    if padding is not None:
        flags |= PADDED
        payload = bytes([padding]) + payload + bytes(padding)
    return frame(DATA, flags, stream, payload)


def headers(stream, fields, end=True, complete=True, flags=0):
    """HEADERS with a list of fields, or with a block of bytes as it is. `complete` is END_HEADERS."""
    flags |= (END_STREAM if end else 0) | (END_HEADERS if complete else 0)
    return frame(HEADERS, flags, stream, as_block(fields))


def continuation(stream, fields=b"", complete=True):
    return frame(CONTINUATION, END_HEADERS if complete else 0, stream, as_block(fields))


def priority(stream, depends_on=0, weight=15):
    return frame(PRIORITY, 0, stream, struct.pack(">IB", depends_on, weight))


def rst_stream(stream, code=CANCEL):
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def settings(pairs=()):
    """SETTINGS with pairs of identifier and value, in that order; a dict will do."""
    pairs = pairs.items() if isinstance(pairs, dict) else pairs
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", name, value) for name, value in pairs))


SETTINGS_ACK = frame(SETTINGS, ACK)


def ping(payload=b"whatever", ack=False):
    return frame(PING, ACK if ack else 0, 0, payload)


def goaway(last_stream=0, code=NO_ERROR, debug=b""):
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream, code) + debug)


def window_update(stream, increment):
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


# Header blocks. Literals that leave the dynamic table alone are all that most cases need: a block of them means the
# same on every stream, and can be sent thousands of times.


def as_block(fields):
    if isinstance(fields, bytes):
        return fields
    return b"".join(literal(name, value) for name, value in fields)


def literal(name, value, indexed=False):
    """A field with a literal name, in the dynamic table from then on if it is `indexed`."""
    return (b"\x40" if indexed else b"\x00") + string(name) + string(value)


def string(text, huffman=False):
    text = text.encode("latin-1") if isinstance(text, str) else text
    return integer(len(text), 7, 0x80 if huffman else 0) + text


def integer(value, prefix, first=0):
    """An integer with a prefix of so many bits, `first` being the bits before it."""
    limit = 2**prefix - 1
    if value < limit:
        return bytes([first | value])
    encoded = bytearray([first | limit])
    value -= limit
    while value >= 128:
        encoded.append(128 | value % 128)
        value //= 128
    encoded.append(value)
    return bytes(encoded)


def index(number):
    """A field that is in one of the tables. 2 is `:method: GET`, 62 the newest of the dynamic table."""
    return integer(number, 7, 0x80)


def table_size(size):
    return integer(size, 5, 0x20)
