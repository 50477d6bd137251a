"""Runs the side-by-side harness with this package as one more system: `BENCH=<its folder> python benchmarks/run.py`.

All arguments are the harness's own: `--only latency --systems flyte,ipp,ppe --pin`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def enter() -> None:
    """Make the harness importable, and this package one of its systems."""
    folder = os.environ.get("BENCH", "")
    if not (Path(folder) / "bench.py").is_file():
        sys.exit("Set BENCH to the folder of the harness: the one with bench.py in it.")
    sys.path[:0] = [folder]
    sys.path.append(str(HERE))
    import systems

    systems.REGISTRY["flyte"] = ("flyte_system", "Flyte", {})


def main() -> None:
    enter()
    import bench

    class Run(bench.Run):  # type: ignore[misc,name-defined]
        def __init__(self, args: Any) -> None:
            super().__init__(args)
            self.env["PYTHONPATH"] = os.pathsep.join([os.environ["BENCH"], str(HERE)])

    bench.Run = Run
    bench.HERE = str(HERE)  # it starts the host.py beside it, which is ours: clients must know our system, too
    bench.main()


if __name__ == "__main__":
    main()
