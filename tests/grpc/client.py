"""Calls the service of examples/grpc as gRPC's own client in Python does, and says of each check whether it passed.

    client.py HOST:PORT [--ca FILE] [NAME…]     all checks, or those that are named; over TLS with --ca
    client.py --list                            their names

A line `ok NAME` or `FAILED NAME: WHY` for each; the exit code is 1 if one failed. All checks share one channel, so what
one of them leaves broken shows in the next.
"""

import argparse
import queue
import sys
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "grpc"))
messages, services = grpc.protos_and_services("greeter.proto")

# Of each call, so that none can hang. It is no measure of speed.
PATIENCE = 60
HOUR_MS = 3_600_000
# gRPC names what holds bytes by this ending, and sends it as base64. They begin as UTF-8 does not.
METADATA = (("trace", "a b,c;d=e"), ("trace-bin", bytes(range(255, -1, -1))))

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def expect(found, expected):
    if found != expected:
        raise AssertionError(f"{shown(found)} instead of {shown(expected)}")


def shown(value):
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}… ({len(text)} characters)"


def hello(name):
    return messages.HelloRequest(name=name)


def fails(code, call):
    """Runs what must fail with this status, and returns the error."""
    try:
        result = call()
    except grpc.RpcError as error:
        expect(error.code(), code)
        return error
    raise AssertionError(f"{shown(result)} instead of {code}")


def metadata_of(pairs):
    """What the service has sent back of METADATA."""
    return tuple((key, value) for key, value in sorted(pairs) if key.startswith("trace"))


class Chat:
    """An open call of the method that streams both ways."""

    def __init__(self, stub, **options):
        self.requests = queue.SimpleQueue()
        self.call = stub.Chat(iter(self.requests.get, None), timeout=PATIENCE, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()
        self.call.cancel()

    def send(self, name):
        self.requests.put(hello(name))

    def end(self):
        self.requests.put(None)

    def receive(self):
        return next(self.call).message


@check
def unary(stub):
    expect(stub.SayHello(hello("Ada"), timeout=PATIENCE).message, "Hello, Ada!")


@check
def metadata_both_ways(stub):
    reply, call = stub.SayHello.with_call(hello("Ada"), timeout=PATIENCE, metadata=METADATA)
    expect(reply.message, "Hello, Ada!")
    expect(metadata_of(call.initial_metadata()), METADATA)
    expect(call.code(), grpc.StatusCode.OK)


@check
def unary_error_with_details(stub):
    error = fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: stub.SayHello(hello(""), timeout=PATIENCE))
    expect(error.details(), "who is there?")
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    for part in (b"type.googleapis.com/google.rpc.BadRequest", b"must not be empty"):
        assert part in details, details


@check
def unknown_method_and_service(stub):
    for path in ("/greeter.Greeter/SayGoodbye", "/greeter.Nobody/SayHello"):
        call = stub.channel.unary_unary(path)
        fails(grpc.StatusCode.UNIMPLEMENTED, lambda: call(b"", timeout=PATIENCE))


@check
def message_of_3_mib(stub):
    name = "x" * (3 << 20)
    expect(stub.SayHello(hello(name), timeout=PATIENCE).message, f"Hello, {name}!")


@check
def message_over_the_limit(stub):
    """The answer comes while the request is on its way. Servers differ in the code."""
    request = hello("x" * (5 << 20))
    try:
        stub.SayHello(request, timeout=PATIENCE)
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.RESOURCE_EXHAUSTED), error
    else:
        raise AssertionError("it was taken")


@check
def client_streaming(stub):
    names = [f"name-{number}" for number in range(100)]
    reply = stub.SayHelloToAll(map(hello, names), timeout=PATIENCE)
    expect(reply.message, f"Hello, {', '.join(names)}!")


@check
def client_streaming_of_large_messages(stub):
    """More than any window holds."""
    names = ["x" * (256 << 10)] * 12
    reply = stub.SayHelloToAll(map(hello, names), timeout=PATIENCE)
    expect(reply.message, f"Hello, {', '.join(names)}!")


@check
def client_streaming_nothing(stub):
    fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: stub.SayHelloToAll(iter(()), timeout=PATIENCE))


@check
def client_streaming_answered_early(stub):
    """The service ends the call while the client still has much to send."""
    names = map(hello, (f"name-{number}" for number in range(1_000_000)))
    fails(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: stub.SayHelloToAll(names, timeout=PATIENCE))


@check
def server_streaming(stub):
    call = stub.KeepSayingHello(messages.RepeatedHelloRequest(name="Ada", times=10_000), timeout=PATIENCE)
    expect([reply.message for reply in call], ["Hello, Ada!"] * 10_000)
    expect(call.code(), grpc.StatusCode.OK)


@check
def server_streaming_nothing(stub):
    call = stub.KeepSayingHello(messages.RepeatedHelloRequest(name="Ada", times=0), timeout=PATIENCE)
    expect((list(call), call.code()), ([], grpc.StatusCode.OK))


@check
def server_streaming_fails_at_once(stub):
    request = messages.RepeatedHelloRequest(name="", times=3)
    fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: list(stub.KeepSayingHello(request, timeout=PATIENCE)))


@check
def slow_reader_slows_the_service(stub):
    """256 MiB are more than is kept anywhere: the last reply is written after the client has begun to read on. Until
    then other calls on the channel are answered."""
    name, times = "x" * (256 << 10), 1024
    call = stub.KeepSayingHello(messages.RepeatedHelloRequest(name=name, times=times), timeout=PATIENCE)
    first = next(call)
    for _ in range(100):
        read_on_at = stub.SayHello(hello("Ada"), timeout=PATIENCE).written_at
    replies = 1
    for last in call:
        expect(last.message == first.message, True)
        replies += 1
    expect(replies, times)
    assert last.written_at > read_on_at, "the service has written everything while nobody read"


@check
def chat_ping_pong(stub):
    """Each reply is here before the next request is sent."""
    with Chat(stub) as chat:
        for number in range(100):
            chat.send(str(number))
            expect(chat.receive(), f"Hello, {number}!")
        chat.end()
        expect((list(chat.call), chat.call.code()), ([], grpc.StatusCode.OK))


@check
def chat_begins_before_a_request(stub):
    """The head of the answer comes while nothing was asked yet."""
    with Chat(stub, metadata=METADATA) as chat:
        keys = [key for key, _ in chat.call.initial_metadata()]
        assert chat.call.is_active(), keys
        chat.send("Ada")
        expect(chat.receive(), "Hello, Ada!")


@check
def chat_error_behind_a_reply(stub):
    """The status and what comes with it are trailers."""
    with Chat(stub, metadata=METADATA) as chat:
        chat.send("Ada")
        expect(chat.receive(), "Hello, Ada!")
        chat.send("")
        error = fails(grpc.StatusCode.INVALID_ARGUMENT, chat.receive)
        expect(error.details(), "who is there?")
        expect(metadata_of(error.trailing_metadata()), METADATA)


@check
def chats_side_by_side(stub):
    """As many streams on one connection as the RFC advises to allow (RFC 9113, 6.5.2)."""
    chats = [Chat(stub) for _ in range(100)]
    try:
        for round in range(3):
            for number, chat in enumerate(chats):
                chat.send(f"{number} {round}")
            for number, chat in enumerate(chats):
                expect(chat.receive(), f"Hello, {number} {round}!")
        for chat in chats:
            chat.end()
        for chat in chats:
            expect((list(chat.call), chat.call.code()), ([], grpc.StatusCode.OK))
    finally:
        for chat in chats:
            chat.__exit__()


@check
def calls_side_by_side(stub):
    calls = [stub.SayHello.future(hello(str(number)), timeout=PATIENCE) for number in range(500)]
    for number, call in enumerate(calls):
        expect(call.result().message, f"Hello, {number}!")


@check
def cancelled_by_the_client(stub):
    request = messages.RepeatedHelloRequest(name="Ada", times=2, pause_ms=HOUR_MS)
    calls = [stub.KeepSayingHello(request, timeout=PATIENCE) for _ in range(10)]
    for call in calls:
        expect(next(call).message, "Hello, Ada!")
        assert call.cancel()
        fails(grpc.StatusCode.CANCELLED, lambda: next(call))


@check
def deadline_exceeded(stub):
    request = messages.RepeatedHelloRequest(name="Ada", times=2, pause_ms=HOUR_MS)
    fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: list(stub.KeepSayingHello(request, timeout=0.5)))


@check
def the_channel_still_works(stub):
    expect(stub.SayHello(hello("Ada"), timeout=PATIENCE).message, "Hello, Ada!")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address", metavar="HOST:PORT", nargs="?")
    parser.add_argument("names", metavar="NAME", nargs="*")
    parser.add_argument("--ca", metavar="FILE", type=Path)
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list:
        print(*(check.__name__ for check in CHECKS), sep="\n")
        return 0
    # A proxy that the environment names is not asked, and each run has a connection of its own.
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    if arguments.ca:
        credentials = grpc.ssl_channel_credentials(arguments.ca.read_bytes())
        channel = grpc.secure_channel(arguments.address, credentials, options)
    else:
        channel = grpc.insecure_channel(arguments.address, options)
    failed = 0
    with channel:
        stub = services.GreeterStub(channel)
        stub.channel = channel
        for check in CHECKS:
            name = check.__name__
            if arguments.names and name not in arguments.names:
                continue
            try:
                check(stub)
                print("ok", name, flush=True)
            except Exception as error:
                failed += 1
                what = f"{error.code()} {error.details()}" if isinstance(error, grpc.RpcError) else repr(error)
                print(f"FAILED {name}: {what}".replace("\n", " "), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
