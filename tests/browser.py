"""A headless Chromium that opens a page, driven by its DevTools protocol over a pair of pipes."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
QUIET = (
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    """Opens a file, and keeps the addresses of all requests and the messages of the console."""

    def __init__(self) -> None:
        assert CHROMIUM
        (commands, self.send), (self.receive, answers) = os.pipe(), os.pipe()
        passed = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, answers)]  # Chromium wants them at 3 and 4
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        line = 'exec "$0" "$@" 3<&{} 4>&{}'.format(*passed)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", *QUIET]
        self.process = subprocess.Popen(
            ["bash", "-c", line, CHROMIUM, *flags, f"--user-data-dir={self.profile.name}", "about:blank"],
            pass_fds=passed, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (commands, answers, *passed):
            os.close(end)
        self.buffer, self.count, self.session = b"", 0, ""
        self.requests: list[str] = []
        self.messages: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.terminate()
        self.process.wait()
        os.close(self.send)
        os.close(self.receive)
        self.profile.cleanup()

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def read(self) -> dict[str, Any]:
        """The next answer or event."""
        while b"\0" not in self.buffer:
            assert select.select([self.receive], [], [], 60)[0], "Chromium does not answer"
            part = os.read(self.receive, 1 << 20)
            assert part, "Chromium has ended"
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        event: dict[str, Any] = json.loads(text)
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.messages.append(json.dumps(event["params"]))
        return event

    def open(self, path: Path) -> None:
        """Open a file, and wait until it and its pictures are loaded."""
        self("Page.navigate", url=path.absolute().as_uri())
        while self.read().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """The value of an expression in JavaScript."""
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def show(self, width: int, dark: bool = False, media: str = "screen") -> None:
        """Set the width of the window in pixels, the colour scheme that the reader prefers, and screen or print."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def screenshot(self, path: Path) -> None:
        """Save a picture of the whole page."""
        shot = self("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
