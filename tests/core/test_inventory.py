"""Which devices a request may have, and who has them."""

from __future__ import annotations

import pytest

from flyte_jupyter.core.inventory import Device, Inventory
from flyte_jupyter.core.spec import DeviceRequest


def inventory(*models: str) -> Inventory:
    machine = Inventory()
    machine.update(tuple(Device(f"GPU-{n}", model, index=n) for n, model in enumerate(models)), None)
    return machine


def test_devices_are_given_in_the_order_of_their_index_and_to_one_replica_only() -> None:
    machine = Inventory()
    machine.update((Device("GPU-b", "T4", index=1), Device("GPU-a", "T4", index=0)), None)
    one = DeviceRequest(count=1)
    assert machine.reserve(one, "r1") == ("GPU-a",)
    assert machine.reserve(one, "r2") == ("GPU-b",)
    assert machine.reserve(one, "r3") is None
    machine.release(("GPU-a",))
    assert machine.reserve(one, "r3") == ("GPU-a",)


def test_a_reservation_is_whole_or_not_at_all() -> None:
    machine = inventory("T4", "T4", "T4")
    assert machine.reserve(DeviceRequest(count=2), "r1") == ("GPU-0", "GPU-1")
    assert machine.reserve(DeviceRequest(count=2), "r2") is None
    assert machine.holders == {"GPU-0": "r1", "GPU-1": "r1"}


def test_a_replica_without_gpus_needs_no_device() -> None:
    assert Inventory().reserve(DeviceRequest(count=0), "r1") == ()


@pytest.mark.parametrize(
    ("wanted", "model", "same"),
    [
        ("A100", "NVIDIA A100-SXM4-40GB", True),
        ("A100 80G", "NVIDIA A100 80GB PCIe", True),
        ("rtx4090", "NVIDIA GeForce RTX 4090", True),
        ("L40s", "NVIDIA L40S", True),
        ("L4", "NVIDIA L40S", False),
        ("A10", "NVIDIA A100 80GB PCIe", False),
        ("H100", "NVIDIA A100-SXM4-40GB", False),
    ],
)
def test_model_names_are_compared_without_case_and_separators(wanted: str, model: str, same: bool) -> None:
    machine = inventory("Other", model)
    matching = machine.matching(DeviceRequest(count=1, model=wanted))
    assert [device.uuid for device in matching] == (["GPU-1"] if same else ["GPU-0", "GPU-1"])
    assert machine.falls_back(DeviceRequest(count=1, model=wanted)) is not same


def test_a_partition_is_given_only_to_those_who_ask_for_its_profile() -> None:
    machine = Inventory()
    slice_ = Device("MIG-1", "NVIDIA A100", partition="1g.10gb", index=0)
    machine.update((slice_, Device("GPU-1", "NVIDIA A100", index=1)), None)
    assert machine.matching(DeviceRequest(count=1, partition="1g.10gb")) == (slice_,)
    assert machine.matching(DeviceRequest(count=1, partition="2g.20gb")) == ()
    assert [device.uuid for device in machine.matching(DeviceRequest(count=1))] == ["GPU-1"]


def test_a_device_stays_held_while_the_driver_does_not_answer() -> None:
    machine = inventory("T4")
    machine.reserve(DeviceRequest(count=1), "r1")
    machine.update((), "driver not found")
    machine.update((Device("GPU-0", "T4"),), None)
    assert machine.free(DeviceRequest(count=1)) == []
    assert machine.room(DeviceRequest(count=1)) == 1
