"""What resources accept and refuse, table 1.5 of Flyte's semantics, and what they mean on this machine."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from flyte_jupyter.core.resources import (
    ACCELERATORS,
    AMD_GPU,
    APPLE_SILICON,
    GPU,
    HABANA_GAUDI,
    TPU,
    Device,
    Neuron,
    Resources,
    cpu_cores,
    device_request,
    memory_bytes,
)
from flyte_jupyter.core.spec import DeviceRequest
from flyte_jupyter.errors import NoUsableGPU

ACCEPTED: list[dict[str, Any]] = [
    *({"cpu": value} for value in (None, 0, 1, 0.5, "500m", "abc", "-1", ("1", 2), True, float("inf"))),
    *({"memory": value} for value in (None, "1Gi", "500M", "1024", "abc", ("1Gi", "2Gi"), ("2", "1"))),
    {"disk": "1Gi"},
    {"shm": "1Gi"},
    {"shm": "auto"},
    *({"gpu": value} for value in (None, 0, False, True, 1, 99, "A100:1", "A100_80G:8", "L40s:2")),
    *({"gpu": value} for value in ("T4 shared:1", "L40S shared:1", "Trn1:4", "Gaudi1:1", "AppleSilicon")),
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    *(({"cpu": value}, "cpu must be greater than or equal to 0") for value in (-1, -0.5, (-1, 2))),
    *(({"cpu": value}, "cpu must be a core count") for value in ([1], {}, b"1")),
    ({"cpu": (1,)}, "cpu tuple must have exactly two elements"),
    ({"cpu": (1, None)}, "must both be set"),
    *(({"memory": value}, "memory must be a Kubernetes quantity") for value in (1, 1.5, b"1", ["1", "2"])),
    ({"memory": ("1",)}, "memory tuple must have exactly two elements"),
    ({"memory": ("1", None)}, "must both be set"),
    *(({"disk": value}, "disk must be a Kubernetes quantity") for value in (1, ("1", "2"))),
    *(({"shm": value}, "shm must be a Kubernetes quantity") for value in (1, ("1", "2"))),
    ({"gpu": -1}, "gpu must be greater than or equal to 0"),
    *(
        ({"gpu": value}, "gpu must be one of")
        for value in (
            "a100:1",
            "L40S:1",
            "A100",
            "A100:9",
            "A100:0",
            "1",
            " A100:1",
            "RTX4090:1",
            "V5E:1",
            "",
        )
    ),
    *(({"gpu": value}, "gpu must be an accelerator string") for value in (1.5, ("A100", 1), {})),
]
REFUSED_DEVICES: list[tuple[str, tuple[Any, ...], str]] = [
    ("GPU", ("A100", 0), "at least 1"),
    ("GPU", ("X", 1), "Invalid GPU type"),
    ("GPU", ("A100", 1, "zz"), "Invalid partition for A100"),
    ("GPU", ("A100_80G", 1, "1g.5gb"), "Invalid partition"),
    ("GPU", ("H100", 1, "1g.5gb"), "Invalid partition"),
    ("GPU", ("H200", 1, "1g.10gb"), "Invalid partition"),
    ("GPU", ("RTX_PRO_6000", 1, "x"), "Invalid partition"),
    ("GPU", ("T4 shared", 1, "1g.5gb"), "shared GPU takes no partition"),
    ("TPU", ("X",), "Invalid TPU type"),
    ("TPU", ("V5E", "2x2x2"), "Invalid partition"),
    ("TPU", ("V5P", "2x2"), "Invalid partition"),
    ("Neuron", ("x",), "Invalid Neuron type"),
    ("AMD_GPU", ("x",), "Invalid AMD GPU type"),
    ("HABANA_GAUDI", ("x",), "Invalid Habana Gaudi type"),
    ("Device", (0, "GPU"), "at least 1"),
]
MAKERS: dict[str, Any] = {
    "GPU": GPU,
    "TPU": TPU,
    "Neuron": Neuron,
    "AMD_GPU": AMD_GPU,
    "HABANA_GAUDI": HABANA_GAUDI,
    "Device": Device,
}


@pytest.mark.parametrize("given", ACCEPTED)
def test_resources_accept(given: dict[str, Any]) -> None:
    resources = Resources(**given)
    assert {name: getattr(resources, name) for name in given} == given


@pytest.mark.parametrize(("given", "phrase"), REFUSED)
def test_resources_refuse(given: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase):
        Resources(**given)


@pytest.mark.parametrize(("maker", "args", "phrase"), REFUSED_DEVICES)
def test_a_device_refuses(maker: str, args: tuple[Any, ...], phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase):
        MAKERS[maker](*args)


def test_flyte_accepts_and_refuses_the_same() -> None:
    flyte = pytest.importorskip("flyte")
    theirs = pytest.importorskip("flyte._resources")
    assert set(get_args(theirs.Accelerators)) == set(ACCELERATORS)
    for given in ACCEPTED:
        assert repr(flyte.Resources(**given).get_device()) == repr(Resources(**given).get_device())
    for given, phrase in REFUSED:
        with pytest.raises(ValueError, match=phrase):
            flyte.Resources(**given)
    for maker, args, phrase in REFUSED_DEVICES:
        with pytest.raises(ValueError, match=phrase):
            getattr(flyte, maker)(*args)


def test_an_unknown_card_is_explained() -> None:
    with pytest.raises(ValueError, match="is not a name that Flyte knows") as caught:
        Resources(gpu="RTX4090:1")
    assert str(caught.value).startswith('FJ203 gpu="RTX4090:1"')
    assert "Use `gpu=1` here." in caught.value.__notes__[1]


def test_there_are_154_texts_for_accelerators() -> None:
    assert len(ACCELERATORS) == 154


@pytest.mark.parametrize(("old", "new"), [("A100 80G:1", "A100_80G:1"), ("RTX PRO 6000:1", "RTX_PRO_6000:1")])
def test_an_old_name_is_rewritten_with_a_warning(old: str, new: str, caplog: pytest.LogCaptureFixture) -> None:
    assert Resources(gpu=old).gpu == new
    assert GPU(old.partition(":")[0], 1).device == new.partition(":")[0]
    assert [record.name for record in caplog.records] == ["flyte", "flyte"]
    assert "deprecated" in caplog.text


def test_devices_are_hashable_and_show_what_was_said() -> None:
    assert repr(Device(1, "GPU")) == "Device(1, 'GPU')"
    assert hash(GPU("A100", 1)) == hash(GPU("A100", 1))
    assert Resources(gpu=GPU("A100", 9)).get_device() == Device(9, "GPU", device="A100")
    assert GPU("L4", 1, "any text").partition == "any text"
    with pytest.raises(TypeError):
        hash(Resources())


@pytest.mark.parametrize(("shm", "wire"), [(None, None), ("auto", ""), ("1Gi", "1Gi")])
def test_automatic_shared_memory_is_an_empty_text(shm: str | None, wire: str | None) -> None:
    assert Resources(shm=shm).get_shared_memory() == wire


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (None, None),
        ("1024", 1024),
        ("1Gi", 2**30),
        ("500M", 500_000_000),
        ("1.5Ki", 1536),
        ("1e3", 1000),
        ("1500m", 2),
        ("2E", 2 * 10**18),
        (("1Gi", "2Gi"), 2**31),
    ],
)
def test_memory_in_bytes(memory: Any, expected: int | None) -> None:
    assert memory_bytes(memory) == expected


@pytest.mark.parametrize("memory", ["abc", "", "-1", "1 Gi", "1mi", "Gi", "1GB"])
def test_memory_that_cannot_be_read(memory: str) -> None:
    with pytest.raises(ValueError, match="is not a Kubernetes quantity"):
        memory_bytes(memory)


@pytest.mark.parametrize(("cpu", "cores"), [(None, None), (2, 2.0), ("500m", 0.5), ("2", 2.0), (("1", 4), 1.0)])
def test_cores(cpu: Any, cores: float | None) -> None:
    assert cpu_cores(cpu) == cores


@pytest.mark.parametrize("cpu", ["abc", "-1", float("nan"), float("inf")])
def test_cores_that_cannot_be_counted(cpu: Any) -> None:
    with pytest.raises(ValueError, match="cpu="):
        cpu_cores(cpu)


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (None, DeviceRequest(count=0)),
        (0, DeviceRequest(count=0)),
        (True, DeviceRequest(count=1)),
        (2, DeviceRequest(count=2)),
        ("A100:2", DeviceRequest(count=2, model="A100")),
        ("T4 shared:1", DeviceRequest(count=1, model="T4")),
        (Device(1, "GPU", "RTX4090"), DeviceRequest(count=1, model="RTX4090")),
        (GPU("A100", 1, "1g.5gb"), DeviceRequest(count=1, model="A100", partition="1g.5gb")),
    ],
)
def test_the_gpus_a_replica_needs(gpu: Any, expected: DeviceRequest) -> None:
    assert device_request(Resources(gpu=gpu)) == expected
    assert device_request(None) == DeviceRequest(count=0)


@pytest.mark.parametrize(
    "gpu", [TPU("V5E", "2x2"), Neuron("Trn1"), AMD_GPU("MI100"), HABANA_GAUDI("Gaudi1"), APPLE_SILICON()]
)
def test_what_only_a_cluster_has_is_refused_when_a_pool_must_start(gpu: Device) -> None:
    resources = Resources(gpu=gpu)
    with pytest.raises(NoUsableGPU, match="No GPU can be used") as caught:
        device_request(resources)
    assert str(gpu.device) in caught.value.__notes__[0]


def test_half_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.5 GPUs"):
        device_request(Resources(gpu=GPU("A100", 1.5)))  # type: ignore[arg-type]
