"""What a case is, where cases are kept, and how they run.

A case is a function that gets a `Server` and returns if the server did what it should. Its name is the function's; its
section and its sentence, which says what is sent and what must follow, are those of the decorator:

    @case("6.5.2", "an initial window of more than 2^31-1 is a FLOW_CONTROL_ERROR of the connection")
    def initial_window_over_the_limit(server):
        …

A section without a word is one of RFC 9113; `RFC 7541 5.2` and `RFC 9110 8.6` are of others. `HOSTILE 28` names what
hostile clients do, and `OURS` anything else that this server promises beyond the RFCs.
"""

import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import wire
from peer import Peer, Skip, Unmet

CASES = []


class Case:
    def __init__(self, run, section, sentence, needs, floods):
        self.run, self.section, self.sentence, self.needs, self.floods = run, section, sentence, needs, floods
        self.name = run.__name__

    def __str__(self):
        return f"{self.section} {self.name}: {self.sentence}"


def case(section, sentence, needs=(), floods=False):
    """Registers a case. `needs` are the routes (routes.py) without which it is skipped. One that `floods` the server
    runs when those that do not are through."""

    def register(run):
        assert all(run.__name__ != other.name for other in CASES), run.__name__
        CASES.append(Case(run, section, sentence, (needs,) if isinstance(needs, str) else needs, floods))
        return run

    return register


class Server:
    """The server under test as one case sees it. Connections that the case opened are closed behind it."""

    def __init__(self, target):
        self.target = target
        self.routes = target.routes
        self.peers = []

    def connect(self, settings=(), greet=True):
        peer = Peer(self.target.address, self.target.authority, settings, greet, self.target.tls)
        self.peers.append(peer)
        return peer

    def connect_held(self, path="/"):
        """A connection whose stream 1 is half-closed (remote): the answer's head is there, its body wants window."""
        peer = self.connect({wire.INITIAL_WINDOW_SIZE: 0})
        peer.request(1, path)
        peer.must(lambda: peer.stream(1).status is not None, "the head of an answer")
        return peer

    def expect_others_served(self):
        """A new connection gets its answer, whatever is done on the others."""
        peer = self.connect()
        peer.request()
        peer.expect_answer()

    @property
    def header_timeout(self):
        if self.target.header_timeout is None:
            raise Skip("needs --header-timeout")
        return self.target.header_timeout

    def close(self):
        for peer in self.peers:
            peer.close()


class Target:
    """Where the server is, and what is known of it."""

    def __init__(self, address, routes, header_timeout, tls=False):
        host, _, port = address.rpartition(":")
        self.address = (host.strip("[]"), int(port))
        self.authority = address
        self.routes = routes
        self.header_timeout = header_timeout
        self.tls = tls


# Why a case may have passed that would fail if the server's GOAWAY had not been lost with the connection.
CLOSED_WITHOUT_A_WORD = "a connection ended without GOAWAY"


class Outcome:
    def __init__(self, case, verdict, why, seconds):
        self.case, self.verdict, self.why, self.seconds = case, verdict, why, seconds


def run_case(case, target):
    missing = [route for route in case.needs if getattr(target.routes, route) is None]
    if missing:
        return Outcome(case, "skipped", f"no route for {', '.join(missing)}", 0)
    server = Server(target)
    start = time.monotonic()
    verdict, why = "passed", ""
    try:
        case.run(server)
        if any(peer.closed and not peer.goaways for peer in server.peers):
            why = CLOSED_WITHOUT_A_WORD
    except Skip as skip:
        verdict, why = "skipped", str(skip)
    except Unmet as unmet:
        verdict, why = "failed", str(unmet)
    except OSError as error:
        verdict, why = "failed", f"expected a connection; came {error}"
    except Exception:  # A mistake of the case's own is shown as such, and does not stop the others.
        verdict, why = "failed", traceback.format_exc()
    finally:
        server.close()
    return Outcome(case, verdict, why, time.monotonic() - start)


# So many floods at a time leave a server and this program time for others.
FLOODS_AT_ONCE = 3


def run_all(cases, target, jobs):
    """The outcomes. Cases that wait for timeouts are named last, and begin first."""
    calm = [case for case in reversed(cases) if not case.floods]
    floods = [case for case in cases if case.floods]
    for group, at_once in ((calm, jobs), (floods, min(jobs, FLOODS_AT_ONCE))):
        with ThreadPoolExecutor(at_once) as pool:
            yield from pool.map(lambda case: run_case(case, target), group)
