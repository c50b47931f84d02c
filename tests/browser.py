"""A page in headless Chromium, which a test drives through the DevTools protocol: https://chromedevtools.github.io."""

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SWITCHES = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")
TIMEOUT = 60  # seconds without any message, after which the browser hangs


class Page:
    """One page of a browser. Messages are JSON, and a zero byte ends each."""

    def __init__(self, requests: int, answers: int) -> None:
        self.requests, self.answers, self.received = requests, answers, b""
        self.numbers, self.session, self.events = itertools.count(), {}, []  # type: ignore[var-annotated]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one method. Events that come meanwhile are kept in `events`."""
        number = next(self.numbers)
        message = json.dumps({"id": number, "method": method, "params": params, **self.session}).encode() + b"\0"
        while message:
            message = message[os.write(self.requests, message) :]
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.received:
            assert select.select([self.answers], [], [], TIMEOUT)[0], f"no message for {TIMEOUT} s: {self.events[-3:]}"
            part = os.read(self.answers, 1 << 20)
            assert part, "the browser has closed"
            self.received += part
        first, self.received = self.received.split(b"\0", 1)
        return json.loads(first)

    def open(self, address: str) -> None:
        """Go to an address, and wait until it is loaded. `events` then holds what happened since."""
        self.events.clear()
        self.call("Page.navigate", url=address)
        while all(event["method"] != "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, or that of its promise, as plain data."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        """Press a key, such as ArrowRight, in the element that has the focus."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for kind in ("rawKeyDown", "keyUp") * times:
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes.get(key, 0))

    def drag(self, *places: tuple[float, float]) -> None:
        """Press the mouse at the first place (x, y) of the window, move it along the others and release it."""
        kinds = ("mousePressed", *["mouseMoved"] * (len(places) - 1), "mouseReleased")
        for kind, (x, y) in zip(kinds, (*places, places[-1]), strict=True):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)


@contextlib.contextmanager
def opened(folder: Path, width: int = 1000, height: int = 800) -> Iterator[Page]:
    """Start a browser with an empty page. The browser keeps its own files in `folder`."""
    assert CHROMIUM
    (to_browser, requests), (answers, from_browser) = os.pipe(), os.pipe()
    command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'  # the browser reads and writes these two
    arguments = [CHROMIUM, *SWITCHES, f"--user-data-dir={folder}", f"--window-size={width},{height}"]
    browser = subprocess.Popen(
        ["bash", "-c", command, *arguments],
        pass_fds=(to_browser, from_browser),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser), os.close(from_browser)
    try:
        page = Page(requests, answers)
        target = page.call("Target.createTarget", url="about:blank")["targetId"]
        session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page.session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        yield page
        page.session = {}
        with contextlib.suppress(AssertionError):  # it may close before it answers
            page.call("Browser.close")
    finally:
        os.close(requests), os.close(answers)
        try:
            browser.wait(10)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()
