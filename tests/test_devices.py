"""What the machine says about its GPUs, and what the broker makes of it."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from flyte_jupyter.core.inventory import Device
from flyte_jupyter.devices import DECLARED, find_devices


class NVMLError(Exception):
    pass


class FakeNVML:
    """The part of `pynvml` that is used. A card is a dict; what it lacks raises NVMLError."""

    NVMLError = NVMLError

    def __init__(self, *cards: dict[str, Any], driver: bool = True) -> None:
        self.cards, self.driver, self.open = cards, driver, 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        if "lost" in self.cards[index]:
            raise NVMLError("GPU is lost")
        return self.cards[index]

    def _ask(self, handle: dict[str, Any], name: str) -> Any:
        if name not in handle:
            raise NVMLError("Not Supported")
        return handle[name]

    def nvmlDeviceGetName(self, handle: dict[str, Any]) -> Any:
        return self._ask(handle, "name")

    def nvmlDeviceGetUUID(self, handle: dict[str, Any]) -> Any:
        return self._ask(handle, "uuid")

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any]) -> Any:
        return SimpleNamespace(total=self._ask(handle, "memory"))

    def nvmlDeviceGetMigMode(self, handle: dict[str, Any]) -> Any:
        return int("mig" in handle), 0 if "mig" in handle else self._ask(handle, "cuttable")

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: dict[str, Any]) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], number: int) -> Any:
        if number >= len(handle["mig"]):
            raise NVMLError("Not Found")
        return handle["mig"][number]


CARD = {"name": "NVIDIA RTX 4090", "uuid": "GPU-a", "memory": 24 << 30}


@pytest.fixture(autouse=True)
def _undeclared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DECLARED, raising=False)


def found(monkeypatch: pytest.MonkeyPatch, *cards: dict[str, Any], driver: bool = True) -> Any:
    nvml = FakeNVML(*cards, driver=driver)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    try:
        return find_devices()
    finally:
        assert nvml.open == 0


def test_each_card_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    second = {**CARD, "uuid": b"GPU-b", "name": b"NVIDIA L4"}
    assert found(monkeypatch, CARD, second).devices == (
        Device("GPU-a", "NVIDIA RTX 4090", 24 << 30, None, 0),
        Device("GPU-b", "NVIDIA L4", 24 << 30, None, 1),
    )


def test_a_card_that_is_cut_is_its_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        {"name": f"NVIDIA H100 MIG {size}", "uuid": f"MIG-{size}", "memory": 10 << 30}
        for size in ("1g.10gb", "3g.40gb")
    ]
    cut = {"name": "NVIDIA H100", "uuid": "GPU-h", "memory": 80 << 30, "mig": parts}
    assert found(monkeypatch, cut).devices == (
        Device("MIG-1g.10gb", "NVIDIA H100", 10 << 30, "1g.10gb", 0),
        Device("MIG-3g.40gb", "NVIDIA H100", 10 << 30, "3g.40gb", 0),
    )


def test_a_card_whose_cutting_is_on_but_has_no_instance_is_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [each.uuid for each in found(monkeypatch, {**CARD, "mig": []}).devices] == ["GPU-a"]


def test_a_card_that_shares_its_memory_with_the_processor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    [device] = found(monkeypatch, {"name": "NVIDIA GB10", "uuid": "GPU-g"}).devices
    assert (device.model, device.memory_bytes) == ("NVIDIA GB10", 0)


def test_a_lost_card_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = found(monkeypatch, {"lost": True}, CARD)
    assert [(each.uuid, each.index) for each in answer.devices] == [("GPU-a", 1)]
    assert answer.problem is None


def test_when_every_card_is_lost_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = found(monkeypatch, {"lost": True})
    assert answer.devices == ()
    assert answer.problem == "the NVIDIA driver failed (GPU is lost)"


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = found(monkeypatch, driver=False)
    assert (answer.devices, answer.problem) == ((), "the NVIDIA driver did not answer (Driver Not Loaded)")


def test_a_declared_inventory_is_believed_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"uuid": "GPU-x", "model": "H100", "memory_bytes": 5},
        {"uuid": "MIG-y", "model": "H100", "partition": "1g.10gb"},
    ]
    monkeypatch.setenv(DECLARED, json.dumps(rows))
    assert found(monkeypatch, CARD).devices == (
        Device("GPU-x", "H100", 5, None, 0),
        Device("MIG-y", "H100", 0, "1g.10gb", 1),
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "declares no GPU"),
        ("", "is not a JSON list"),
        ("4", "is not a JSON list"),
        ('{"uuid": "a"}', "is not a JSON list"),
        ('[{"uuid": "a"}]', "is not a JSON list"),
        ('[{"uuid": "a", "model": "b", "memory_bytes": "much"}]', "is not a JSON list"),
        ('[{"uuid": "a", "model": "b"}, {"uuid": "a", "model": "b"}]', "declares a uuid twice"),
    ],
)
def test_a_declared_inventory_that_is_empty_or_wrong_says_so(
    monkeypatch: pytest.MonkeyPatch, text: str, problem: str
) -> None:
    monkeypatch.setenv(DECLARED, text)
    answer = find_devices()
    assert answer.devices == ()
    assert problem in str(answer.problem)
