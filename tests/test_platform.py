"""Where this package cannot work, it says so, and what to do."""

from __future__ import annotations

import subprocess
import sys


def test_windows_is_refused_by_name() -> None:
    code = "import sys; sys.platform = 'win32'\nimport flyte_jupyter"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: flyte_jupyter needs Unix sockets" in done.stderr
    assert "WSL 2" in done.stderr
