"""Environment variables of zygotes and replicas."""

from __future__ import annotations

import math
import os
from pathlib import Path

from .. import orphans
from ..core.commands import StartReplica
from ..core.protocol import Declaration


def base_environment(declaration: Declaration, runtime: Path, tag: str) -> dict[str, str]:
    """The variables that all replicas of an environment start with: a zygote's. No secrets, no devices.

    Args:
        runtime: The runtime folder.
        tag: Marks the processes of one broker.
    """
    spec = declaration.spec
    environment = {"PATH": os.defpath, **declaration.inherited_env}
    if spec.cpu is not None:
        threads = str(max(1, math.ceil(_cpus(spec.cpu))))
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment.setdefault(variable, threads)
    environment.update(spec.env_vars)
    environment.update(
        {
            # Tagged like a replica: a forked one shows its zygote's environment to whoever looks for leftovers.
            orphans.BROKER_TAG: tag,
            orphans.REPLICA_TAG: "zygote",
            orphans.RUNTIME_TAG: str(runtime),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        }
    )
    return environment


def replica_environment(
    command: StartReplica, declaration: Declaration, base: dict[str, str], name: str, task_fd: int
) -> dict[str, str]:
    """The variables of one replica, whom people call `name`; it inherits its task channel's socket as `task_fd`."""
    environment = base | {key: value.get_secret_value() for key, value in declaration.secret_values.items()}
    environment.update(declaration.spec.env_vars)
    environment.update(
        {
            # A pool without GPUs sees none: it must not take memory from those that have one.
            "CUDA_VISIBLE_DEVICES": ",".join(command.devices),
            orphans.REPLICA_TAG: command.replica,
            "FLYTE_JUPYTER_REPLICA_NAME": name,
            "FLYTE_JUPYTER_PARENT": str(os.getpid()),
            "FLYTE_JUPYTER_TASK_FD": str(task_fd),
        }
    )
    return environment


def _cpus(text: str) -> float:
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
