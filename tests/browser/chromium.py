"""Which browser the tests here use. `python tests/browser/chromium.py` gets one where there is none, or says how."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
LIMIT_S = 600
HOW = """Needed: a browser, for the tests of the side panel and the card. None was found, and none could be installed.
Do one of these:
  Debian:            apt install chromium
  elsewhere:         .venv/bin/python -m playwright install --with-deps chromium
  one you have:      make test CHROMIUM=/path/to/chrome
Without a browser:   .venv/bin/python -m pytest"""


def find() -> str | None:
    """The first browser that runs: CHROMIUM, one on PATH, or playwright's own."""
    return next((path for path in _candidates() if _runs(path)), None)


def _candidates() -> Iterator[str]:
    named = os.environ.get("CHROMIUM")
    if named:
        yield named
        return
    yield from filter(None, map(shutil.which, NAMES))
    yield MAC
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.executable_path


def _runs(path: str) -> bool:
    # Ubuntu's `chromium-browser` is there and starts nothing without snap; a downloaded one may lack libraries.
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _ways() -> Iterator[list[list[str]]]:
    """How to get one: commands, each way of them after the other."""
    root = os.geteuid() == 0
    if root and shutil.which("apt-get"):
        yield [["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]]
    yield [[sys.executable, "-m", "playwright", "install", *(["--with-deps"] if root else []), "chromium"]]


def _get() -> str | None:
    return next((found for way in _ways() if all(map(_done, way)) and (found := find())), None)


def _done(command: list[str]) -> bool:
    print("No browser yet:", *command, file=sys.stderr)
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError) as problem:
        print(problem, file=sys.stderr)
        return False
    return True


def main() -> int:
    named = os.environ.get("CHROMIUM")
    found = find() or (None if named else _get())
    if found is None:
        print(f"CHROMIUM={named} is no browser that runs." if named else HOW, file=sys.stderr)
        return 1
    print(f"The browser of the tests: {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
