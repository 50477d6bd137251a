"""A stand-in for the NVIDIA driver: a library that the real binding loads and calls (`nvml.c`). No GPU is needed."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CARD = {"name": "NVIDIA GeForce RTX 4090", "uuid": "GPU-a", "total": 24 << 30, "used": 0}
NO_PERMISSION, LOST = "!4", "!15"


class Driver:
    """What the driver says; `say` changes it while somebody has it open."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None or sys.platform != "linux":
            pytest.skip("needs Linux and a C compiler")
        self.folder = folder
        self.library = folder / "libnvidia-ml.so.1"
        self._words = folder / "words"
        self._calls = folder / "words.calls"
        source = Path(__file__).with_name("nvml.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", self.library, source], check=True)
        self.say()

    def say(self, *cards: dict[str, object], **words: object) -> None:
        """These cards; what a card lacks is not supported. `words` are the driver's own."""
        lines = [f"{key} {value}" for key, value in {"count": len(cards), **words}.items()]
        lines += [f"{index}.{key} {value}" for index, card in enumerate(cards) for key, value in card.items()]
        parts = [(index, part) for index, card in enumerate(cards) for part in enumerate(card.get("parts", ()))]  # type: ignore[call-overload, var-annotated]
        lines += [f"{index}/{at}.{key} {value}" for index, (at, part) in parts for key, value in part.items()]
        temporary = self._words.with_suffix(".new")
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(self._words)

    @property
    def variables(self) -> dict[str, str]:
        """Of a process that is to find this driver."""
        return {"LD_LIBRARY_PATH": str(self.folder), "NVML_STANDIN": str(self._words)}

    def calls(self, what: str) -> int:
        """How often it was opened (`init`), closed (`shutdown`) or a device was read (`read`)."""
        return self._calls.read_text().split().count(what) if self._calls.exists() else 0

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """This process finds it."""
        import pynvml

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NVML_STANDIN", self.variables["NVML_STANDIN"])
            patch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(self.library)))
            patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
            yield
