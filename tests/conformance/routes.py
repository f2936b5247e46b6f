"""Which paths a server has for the cases that need more than `/`, which answers GET with 200 and a small body.

| route | what it does |
| --- | --- |
| `large` | answers with 300000 bytes |
| `echo` | sends the body back while it reads it |
| `trailers` | as `echo`, and sends the request's trailers back behind it |
| `count` | reads the whole body, then answers with how many bytes it had, in decimal |
| `ignore` | answers at once without a look at the body |
| `never` | never answers, and does not read the body |
| `head` | answers with the fields of the request's head as `name: value`, a line each |
| `no_content`, `not_modified` | 204, 304 |
"""

LARGE = 300_000


class Routes:
    def __init__(
        self,
        large=None,
        echo=None,
        trailers=None,
        count=None,
        ignore=None,
        never=None,
        head=None,
        no_content=None,
        not_modified=None,
    ):
        self.large, self.echo, self.trailers, self.count = large, echo, trailers, count
        self.ignore, self.never, self.head = ignore, never, head
        self.no_content, self.not_modified = no_content, not_modified


ROUTES = {
    # Any server.
    "none": Routes(),
    # A server of files, one of which is large.
    "files": Routes(large="/large"),
    # tests/guests/hostile-p2 and hostile-p3.
    "hostile": Routes(
        large=f"/large?bytes={LARGE}",
        echo="/echo",
        trailers="/echo",
        count="/count",
        ignore="/ignore-upload",
        never="/wait",
        head="/headers",
        no_content="/no-content",
        not_modified="/not-modified",
    ),
}
