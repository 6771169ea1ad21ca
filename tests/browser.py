"""A headless Chromium, driven through its DevTools protocol over two pipes: nothing to install beside the browser."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

#: What the browser is called: Debian, Ubuntu, Google.
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
LIMIT = 300.0  # s, after which a browser is killed, as it must have hung


def find() -> str | None:
    """Return the path of a Chromium, if there is one."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Page:
    """One page of the browser.

    Attributes:
        messages: what the page wrote to its console and the browser to its log (errors of every kind), by level.
        requests: addresses the page asked for.
    """

    def __init__(self, to_browser: BinaryIO, from_browser: BinaryIO) -> None:
        self._out, self._in = to_browser, from_browser
        self._count = 0
        self._session: str | None = None
        self._events: list[str] = []
        self._buffer = b""
        self.messages: list[tuple[str, str]] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def open(self, path: Path) -> None:
        """Load a file and wait until everything in it is there."""
        self._events.clear()
        self.send("Page.navigate", url=path.as_uri())
        while "Page.loadEventFired" not in self._events:
            self._receive()

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key: its name, and its number as Windows knows it."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **extra)

    def show(self, width: int, *, dark: bool = False, media: str = "") -> None:
        """Set the width in px, the colour scheme and the medium ("print" or the screen)."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def screenshot(self) -> bytes:
        """Return the whole page as PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {**size, "scale": 1}
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        return base64.b64decode(data)

    def _receive(self) -> dict[str, Any]:
        """Return the next message; keep what it tells."""
        while b"\0" not in self._buffer:
            chunk = os.read(self._in.fileno(), 1 << 16)
            assert chunk, "the browser has ended"
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        method, params = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Runtime.consoleAPICalled":
            self.messages.append((params["type"], str(params["args"])))
        elif method == "Runtime.exceptionThrown":
            self.messages.append(("error", str(params["exceptionDetails"])))
        elif method == "Log.entryAdded":
            self.messages.append((params["entry"]["level"], params["entry"]["text"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return message


@contextmanager
def browse(folder: Path) -> Iterator[Page]:
    """Start a browser that keeps its files in `folder`, and end it."""
    program = find()
    assert program is not None
    browser_reads, we_write = os.pipe()
    we_read, browser_writes = os.pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"]
    # The browser reads its commands from file descriptor 3 and writes to 4; sh would not take numbers above 9.
    shell = f'exec "$@" 3<&{browser_reads} 4>&{browser_writes}'
    with os.fdopen(we_write, "wb", buffering=0) as to_browser, os.fdopen(we_read, "rb", buffering=0) as from_browser:
        process = subprocess.Popen(
            ["bash", "-c", shell, "bash", program, *options, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(browser_reads, browser_writes),
            env={**os.environ, "HOME": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(browser_reads)
        os.close(browser_writes)
        guard = threading.Timer(LIMIT, process.kill)
        guard.start()
        try:
            yield Page(to_browser, from_browser)
        finally:
            guard.cancel()
            process.terminate()
            process.wait(timeout=20)
