"""Checks the service of examples/grpc with gRPC's own client for Python.

    client.py HOST:PORT [--ca FILE] [NAME…]     all checks, or those that are named; over TLS with --ca
    client.py HOST:PORT [--ca FILE] --load      three of them side by side, again and again, until SIGTERM
    client.py --list                            their names

It prints `ok NAME` or `FAILED NAME: WHY` for each check; the exit code is 1 if one failed. All checks share one channel, so
that a connection which one of them breaks fails the next. With --load each has channels of its own. It prints `calling`
once each has run, a line for each failure, and at the end a line with the totals.
"""

import argparse
import queue
import signal
import sys
import threading
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "grpc"))
messages, services = grpc.protos_and_services("greeter.proto")

# Timeout of a call in seconds, so that none hangs. It is far more than a call takes.
PATIENCE = 60
HOUR_MS = 3_600_000
# The value of a key that ends in `-bin` is bytes, which gRPC sends as base64.
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
    """The error of a call that must fail with this status."""
    try:
        result = call()
    except grpc.RpcError as error:
        expect(error.code(), code)
        return error
    raise AssertionError(f"{shown(result)} instead of {code}")


def metadata_of(pairs):
    """What the service sent back of METADATA."""
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
    """The answer comes while the request is still being sent. tonic and grpcio have different codes for it."""
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
    """More than fits in any flow-control window."""
    names = ["x" * (256 << 10)] * 12
    reply = stub.SayHelloToAll(map(hello, names), timeout=PATIENCE)
    expect(reply.message, f"Hello, {', '.join(names)}!")


@check
def client_streaming_nothing(stub):
    fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: stub.SayHelloToAll(iter(()), timeout=PATIENCE))


@check
def client_streaming_answered_early(stub):
    """The service ends the call while the client is still sending."""
    names = map(hello, (f"name-{number}" for number in range(1_000_000)))
    fails(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: stub.SayHelloToAll(names, timeout=PATIENCE))


@check
def server_streaming(stub):
    call = stub.KeepSayingHello(messages.RepeatedHelloRequest(name="Ada", times=10_000), timeout=PATIENCE)
    expect([reply.message for reply in call], ["Hello, Ada!"] * 10_000)
    expect(call.code(), grpc.StatusCode.OK)


@check
def server_streaming_with_pauses(stub):
    request = messages.RepeatedHelloRequest(name="Ada", times=100, pause_ms=5)
    expect([reply.message for reply in stub.KeepSayingHello(request, timeout=PATIENCE)], ["Hello, Ada!"] * 100)


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
    """256 MiB fit in no buffer on the way, so the last reply is written after the client has resumed reading. Until then,
    other calls on the channel are answered."""
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
    """Each reply arrives before the next request is sent."""
    with Chat(stub) as chat:
        for number in range(100):
            chat.send(str(number))
            expect(chat.receive(), f"Hello, {number}!")
        chat.end()
        expect((list(chat.call), chat.call.code()), ([], grpc.StatusCode.OK))


@check
def chat_begins_before_a_request(stub):
    """The head of the answer arrives before the first request is sent."""
    with Chat(stub, metadata=METADATA) as chat:
        keys = [key for key, _ in chat.call.initial_metadata()]
        assert chat.call.is_active(), keys
        chat.send("Ada")
        expect(chat.receive(), "Hello, Ada!")


@check
def chat_error_behind_a_reply(stub):
    """Status and metadata arrive as trailers, while the client's side is still open."""
    with Chat(stub, metadata=METADATA) as chat:
        chat.send("Ada")
        expect(chat.receive(), "Hello, Ada!")
        chat.send("")
        error = fails(grpc.StatusCode.INVALID_ARGUMENT, chat.receive)
        expect(error.details(), "who is there?")
        expect(metadata_of(error.trailing_metadata()), METADATA)


@check
def chats_side_by_side(stub):
    """100 at a time, the least that RFC 9113, 6.5.2 recommends to allow."""
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


def passes(check, stub, tell):
    """Whether the check passes. `tell` gets its line if it does; failures are always printed."""
    try:
        check(stub)
    except Exception as error:
        what = f"{error.code()} {error.details()}" if isinstance(error, grpc.RpcError) else repr(error)
        print(f"FAILED {check.__name__}: {what}".replace("\n", " "), flush=True)
        return False
    tell(f"ok {check.__name__}")
    return True


def run_checks(connect, names):
    stub = connect()
    checks = [check for check in CHECKS if not names or check.__name__ in names]
    with stub.channel:
        results = [passes(check, stub, lambda line: print(line, flush=True)) for check in checks]
    return all(results)


def run_load(connect):
    """Four threads each for unary calls, streams that take half a second, and chats."""
    ended, called, results = threading.Event(), threading.Semaphore(0), []
    signal.signal(signal.SIGTERM, lambda *_: ended.set())

    def keep_on(check):
        stub = connect()
        with stub.channel:
            results.append(passes(check, stub, lambda _: None))
            called.release()
            while not ended.is_set():
                results.append(passes(check, stub, lambda _: None))

    checks = [unary, server_streaming_with_pauses, chat_ping_pong] * 4
    threads = [threading.Thread(target=keep_on, args=[check]) for check in checks]
    for thread in threads:
        thread.start()
    for _ in threads:
        called.acquire()
    print("calling", flush=True)
    for thread in threads:
        thread.join()
    print(f"{len(results)} checks, {results.count(False)} failed", flush=True)
    return all(results)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address", metavar="HOST:PORT", nargs="?")
    parser.add_argument("names", metavar="NAME", nargs="*")
    parser.add_argument("--ca", metavar="FILE", type=Path)
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list:
        print(*(check.__name__ for check in CHECKS), sep="\n")
        return 0
    # A proxy that the environment names is not asked, and each channel has a connection of its own.
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]

    def connect():
        if arguments.ca:
            credentials = grpc.ssl_channel_credentials(arguments.ca.read_bytes())
            channel = grpc.secure_channel(arguments.address, credentials, options)
        else:
            channel = grpc.insecure_channel(arguments.address, options)
        stub = services.GreeterStub(channel)
        stub.channel = channel
        return stub

    is_well = run_load(connect) if arguments.load else run_checks(connect, arguments.names)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
