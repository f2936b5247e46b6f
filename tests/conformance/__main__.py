"""Runs the conformance cases against a server, over clear text with prior knowledge or over TLS.

    python3 tests/conformance http2 HOST:PORT [--case FILTER] [--jobs N] [--list] [--header-timeout S]

One line for each case that failed, with what was expected and what came, then a summary. Exit code 1 if any failed.
"""

import argparse
import importlib
import sys
import time

from case import CASES, CLOSED_WITHOUT_A_WORD, Target, run_all
from routes import ROUTES

SUITES = {"http2": "preface frames compression streams types flow http hostile".split()}


def arguments():
    parser = argparse.ArgumentParser(prog="conformance", description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("address", nargs="?", metavar="HOST:PORT")
    parser.add_argument("--case", default="", help="only cases whose section, name or sentence has this in it")
    parser.add_argument("--jobs", type=int, default=16, help="how many at a time (16)")
    parser.add_argument("--list", action="store_true", help="say which cases there are, and run none")
    parser.add_argument("--routes", choices=ROUTES, default="none", help="which paths the server has: see routes.py")
    parser.add_argument(
        "--header-timeout",
        type=float,
        help="seconds until the server gives up a head that does not come; "
        "without it, cases that wait for that are skipped",
    )
    parser.add_argument("--tls", action="store_true", help="speak TLS, with ALPN, instead of clear text")
    parser.add_argument("--known", help="a file with cases that are known to fail, and how: see known-h2.txt")
    parser.add_argument("--verbose", action="store_true", help="a line for each case")
    given = parser.parse_args()
    if not given.address and not given.list:
        parser.error("HOST:PORT is needed")
    return given


def read_known(path):
    """Names of cases, and what comes instead of what they expect: `NAME: WHAT` a line, behind `#` why."""
    if path is None:
        return {}
    with open(path, encoding="utf-8") as lines:
        pairs = [line.split(":", 1) for line in lines if line.strip() and not line.startswith("#")]
    return {name.strip(): what.strip() for name, what in pairs}


def main():
    given = arguments()
    for chapter in SUITES[given.suite]:
        importlib.import_module(f"{given.suite}.{chapter}")
    cases = [case for case in CASES if given.case in str(case)]
    if given.list:
        print("\n".join(str(case) for case in cases))
        print(f"{len(cases)} cases")
        return 0
    known = read_known(given.known)
    unknown = set(known) - {case.name for case in CASES}
    if unknown:
        sys.exit(f"conformance: {given.known} names no case: {', '.join(sorted(unknown))}")
    target = Target(given.address, ROUTES[given.routes], given.header_timeout, given.tls)
    counts = {"passed": 0, "failed": 0, "skipped": 0, "known": 0}
    start = time.monotonic()
    for outcome in run_all(cases, target, given.jobs):
        counts[judge(outcome, known, given.verbose)] += 1
    line = f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
    line += f", {counts['known']} known to fail" if known else ""
    print(f"{line} ({time.monotonic() - start:.1f} s)")
    return 1 if counts["failed"] else 0


def judge(outcome, known, verbose):
    """Which count an outcome belongs to. Says what there is to say of it."""
    case, verdict, why = outcome.case, outcome.verdict, outcome.why
    # One that fails in another way than it is known to has failed.
    if verdict == "failed" and case.name in known and known[case.name] in why.partition("; came ")[2]:
        verdict = "known"
    elif verdict == "passed" and case.name in known and why != CLOSED_WITHOUT_A_WORD:
        verdict, why = "failed", "passes, and is said to be known to fail"
    if verdict == "failed" or verbose:
        why = f": {why}" if why else ""
        print(
            f"{verdict.upper()} {case.section} {case.name} ({case.sentence}){why} [{outcome.seconds:.1f} s]", flush=True
        )
    return verdict


if __name__ == "__main__":
    sys.exit(main())
