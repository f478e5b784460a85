"""A headless Chromium for tests: the machine's own, or else one from npm; driven over its debugging protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from pathlib import Path

import websocket

from ssetools import embedded

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PACKAGE = "@sparticuz/chromium@143.0.4"  # one file that needs no other package of the system
SHA512 = "/6I7uQTRhRDD2/gGPQ1Gkf+Dqk0RYDACPJDZfSzz0OWk4JmUTonNHPXbrn6UIklOHlnDLf8xAAzkOZKB/cJpLA=="
_UNPACK = """const fs = require("fs"), zlib = require("zlib");
for (const name of ["chromium", "al2023.tar"])
  fs.writeFileSync(name, zlib.brotliDecompressSync(fs.readFileSync(`${name}.br`)));"""


def find_chromium() -> Path:
    """Returns a Chromium, fetched on the first call when the machine has none.

    Raises:
        RuntimeError: Saying why there is none.
    """
    for name in NAMES:
        if shutil.which(name):
            return Path(shutil.which(name))
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise RuntimeError(f"no {' or '.join(NAMES)} here, and npm's is for Linux on x86-64 alone")
    return embedded.cached_folder("chromium", _fetch) / "chromium"


def _fetch(folder: Path) -> dict:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        package = embedded.fetch_npm_package(PACKAGE, SHA512, Path(scratch))
        subprocess.run([*embedded.node_command("node"), "-e", _UNPACK], cwd=package / "bin", check=True)
        with tarfile.open(package / "bin" / "al2023.tar") as tar:  # lib/libnss3.so and what it needs
            tar.extractall(folder, filter="data")
        shutil.move(package / "bin" / "chromium", folder / "chromium")
    (folder / "chromium").chmod(0o755)
    return {"source": PACKAGE, "sha512": SHA512}


class Page:
    """One page of a running Chromium."""

    def __init__(self, socket: websocket.WebSocket):
        self._socket = socket
        self._ids = itertools.count(1)
        self.errors: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **parameters) -> dict:
        """Calls a method of the protocol, and keeps what the page reports meanwhile."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"]["exceptionDetails"]))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])

    def open(self, url: str) -> None:
        """Opens an address and waits until it is loaded."""
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        for _ in range(300):
            if self.run("document.readyState") == "complete" and self.run("location.href") != "about:blank":
                return
            time.sleep(0.1)
        raise TimeoutError(f"{url} did not load within 30 seconds")

    def run(self, script: str):
        """Returns the value of an expression."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Presses and releases a key: a letter, "Tab" or "Enter"."""
        codes = {"Tab": 9, "Enter": 13}
        text = {"Tab": "", "Enter": "\r"}.get(key, key)
        about = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper())), "text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def screenshot(self, path: Path) -> None:
        """Writes a picture of what is in view."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def open_page(url: str, width: int = 1200, height: int = 900):
    """Gives a page on which `url` is loaded, in a Chromium that lives as long as the block."""
    chromium = find_chromium()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--remote-allow-origins=*"]
        flags += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
        libraries = f"{chromium.parent / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}"
        process = subprocess.Popen(
            [chromium, *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
        )
        try:
            port = _port(Path(profile) / "DevToolsActivePort", process)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                target = next(x for x in json.load(answer) if x["type"] == "page")
            socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=60)
            try:
                page = Page(socket)
                page.open(url)
                yield page
            finally:
                socket.close()
        finally:
            process.terminate()
            process.wait(30)


def _port(path: Path, process: subprocess.Popen) -> str:
    for _ in range(600):
        if path.is_file() and path.read_text().count("\n"):
            return path.read_text().splitlines()[0]
        if process.poll() is not None:
            raise RuntimeError(f"Chromium ended with {process.returncode} before it could be driven")
        time.sleep(0.1)
    raise TimeoutError("Chromium did not open its debugging port within a minute")
