"""What `websockets`, the client of Python, makes of the test guest `sdk`; and Chromium of examples/chat, driven by it.

    client.py echo ADDRESS
    client.py chromium PROGRAM URL FOLDER
"""

import asyncio
import itertools
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

PATIENCE = 120  # seconds


async def closes(websocket, text=None):
    """How the server closes it, once it has heard `text`."""
    if text is not None:
        await websocket.send(text)
    try:
        while True:
            await websocket.recv()
    except ConnectionClosed as closed:
        return closed.rcvd and (closed.rcvd.code, closed.rcvd.reason)


async def echo(address):
    def open(path, **options):
        return connect(f"ws://{address}/websocket/{path}", max_size=None, proxy=None, **options)

    async with open("echo") as websocket:
        for message in ["", "h\u00e9llo \U0001f600", b"", bytes(range(256)) * 4096, "x" * 100_000]:
            await websocket.send(message)
            assert await websocket.recv() == message
        # In parts, each a frame.
        await websocket.send(["one ", "", "two ", "three"])
        assert await websocket.recv() == "one two three"
        await (await websocket.ping(b"there?"))
        assert await closes(websocket, "close 4000 bye") == (4000, "bye")
    for text, code in [("fail", 1011), ("trap", 1011), ("x" * (1 << 20) + "x", 1009)]:
        async with open("echo") as websocket:
            assert (await closes(websocket, text))[0] == code, text[:10]
    async with open("protocols", subprotocols=["other", "chat.v1"]) as websocket:
        assert websocket.subprotocol == "chat.v1" == await websocket.recv()
    for path, status, options in [("refuse", 403, {}), ("echo", 403, {"origin": "https://evil.example"}), ("x", 404, {})]:
        try:
            async with open(path, **options):
                raise AssertionError(f"{path} was accepted")
        except InvalidStatus as refused:
            assert refused.response.status_code == status

    async def one(number):
        async with open("echo") as websocket:
            for turn in range(50):
                message = f"{number} {turn}"
                await websocket.send(message)
                assert await websocket.recv() == message

    await asyncio.gather(*map(one, range(100)))


class Browser:
    """A page in a headless Chromium, over its debugging protocol."""

    def __init__(self, websocket):
        self.websocket = websocket
        self.numbers = itertools.count(1)
        self.session = {}

    async def command(self, method, **params):
        number = next(self.numbers)
        await self.websocket.send(json.dumps({"id": number, "method": method, "params": params, **self.session}))
        while True:
            answer = json.loads(await self.websocket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    async def open(self, url):
        target = await self.command("Target.createTarget", url=url)
        session = await self.command("Target.attachToTarget", flatten=True, **target)
        self.session = {"sessionId": session["sessionId"]}

    async def value(self, script):
        return (await self.command("Runtime.evaluate", expression=script))["result"].get("value")

    async def until(self, script):
        while not await self.value(script):
            await asyncio.sleep(0.05)


async def says(page, text):
    """Says it until all hear it: a message to a worker that is about to go is lost, as a room keeps none."""
    while True:
        await page.until("state.textContent === 'connected'")
        await page.value(f"say.elements.text.value = '{text}'; say.requestSubmit()")
        for _ in range(60):
            if await page.value(f"log.innerText.includes('Ada: {text}')"):
                return
            await asyncio.sleep(0.05)


async def chromium(program, url, folder):
    """Says something in the room, and again after the server has restarted. Tells the test when it is time for that."""
    process = await asyncio.create_subprocess_exec(
        program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--ignore-certificate-errors",
        "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank",
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        place = b"DevTools listening on "
        while place not in (line := await process.stderr.readline()):
            assert line, "Chromium has ended"
        async with connect(line.split(place)[1].decode().strip(), max_size=None, proxy=None) as websocket:
            page = Browser(websocket)
            await page.open(url)
            await page.until("document.readyState === 'complete' && typeof join === 'object'")
            await page.value("join.elements.name.value = 'Ada'; join.requestSubmit()")
            await says(page, "<b>one</b>")
            print("said", flush=True)
            await page.until("log.innerText.includes('the server restarts')")
            await says(page, "<b>two</b>")
            assert await page.value("document.querySelectorAll('#log li > b b').length") == 0
    finally:
        process.kill()
        await process.wait()


async def main(what, *args):
    await asyncio.wait_for({"echo": echo, "chromium": chromium}[what](*args), PATIENCE)
    print("well", flush=True)


asyncio.run(main(*sys.argv[1:]))
