"""Headless Chromium for tests, over the pipe of its DevTools protocol: no driver, no port, no package."""

import json
import os
import select
import shutil
import signal
import subprocess
import time
from base64 import b64decode
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_S = 60.0  # of one answer; a cold start on a busy machine takes some seconds


def find_browser() -> str | None:
    """Path of the browser, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a headless browser. `complaints`: its console's errors and warnings; `requests`: what it loads."""

    def __init__(self, program: str, *flags: str) -> None:
        self.program, self.flags = program, flags
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._num_orders = 0
        self._loaded = False
        self._unread = b""
        self._session: str | None = None

    def __enter__(self) -> "Browser":
        self._home = TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={self._home.name}", "--disable-background-networking"]
        flags += [*self.flags, "--hide-scrollbars", "--proxy-server=127.0.0.1:9"]  # nobody listens there: no network
        # The browser reads orders on descriptor 3 and answers on 4.
        command = ["bash", "-c", f'exec "$@" 3<&{orders} 4>&{answers}', "bash", self.program, *flags, "about:blank"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, pass_fds=(orders, answers), stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
        )
        os.close(orders)
        os.close(answers)
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._orders)
        os.close(self._answers)
        self._home.cleanup()

    def open(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False, script: bool = True) -> None:
        """Show a page and wait until it is loaded; what was complained about before is forgotten."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._ask(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self._ask("Emulation.setScriptExecutionDisabled", value=not script)
        self.move(0, 0)
        self.complaints.clear()
        self.requests.clear()
        self._loaded = False
        self._ask("Page.navigate", url=url)
        deadline = time.monotonic() + PATIENCE_S
        while not self._loaded:
            self._hear(self._read(deadline))

    def run(self, expression: str) -> Any:
        """Value of a JavaScript expression; RuntimeError with its text where it throws."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def move(self, x: float, y: float) -> None:
        """Move the mouse to a point of the window."""
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, x: float, y: float) -> None:
        """Touch a point and let go."""
        self._ask("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self._ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str) -> None:
        """Press a key by its DOM name, such as Tab or ArrowLeft."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowUp": 38}.get(key)
        code = code or {"ArrowRight": 39, "ArrowDown": 40}[key]
        for kind in ("rawKeyDown", "keyUp"):
            self._ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        """Put text where the focus is."""
        self._ask("Input.insertText", text=text)

    def download_into(self, folder: Path) -> None:
        """Save what the page downloads in this folder, without asking."""
        self._ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def photograph(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as PNG."""
        answer = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(b64decode(answer["data"]))

    def _ask(self, method: str, **params: Any) -> Any:
        self._num_orders += 1
        number = self._num_orders
        order = {"id": number, "method": method, "params": params}
        order |= {"sessionId": self._session} if self._session else {}
        data = json.dumps(order).encode() + b"\0"
        while data:
            data = data[os.write(self._orders, data) :]
        deadline = time.monotonic() + PATIENCE_S
        while (answer := self._read(deadline)).get("id") != number:
            self._hear(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._answers, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError(f"{self.program} said nothing for {PATIENCE_S:g} s, or it has ended")
            self._unread += data
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _hear(self, event: dict[str, Any]) -> None:
        match event.get("method"), event.get("params", {}):
            case "Page.loadEventFired", _:
                self._loaded = True
            case "Network.requestWillBeSent", params:
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown", params:
                self.complaints.append(json.dumps(params["exceptionDetails"]))
            case "Log.entryAdded", {"entry": {"level": "error" | "warning"} as entry}:
                self.complaints.append(json.dumps(entry))
            case "Runtime.consoleAPICalled", {"type": "error" | "warning" | "assert"} as params:
                self.complaints.append(json.dumps(params["args"]))
