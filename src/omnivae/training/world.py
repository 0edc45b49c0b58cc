"""This process's place among those of a run, as the launcher set it, and what is refused in it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from omnivae.training.config import TrainingConfig

#: What torchrun and our launcher tell a process about its place.
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """This process's place among those of the run.

    Args:
        rank: number of this process, from 0.
        size: processes of the run.
        local_rank: number of this process on its machine, from 0.
        local_size: processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def launched() -> bool:
    """Return whether a launcher has started this process as one of several (or of one)."""
    return all(name in os.environ for name in ENVIRONMENT)


def world() -> World:
    """Return this process's place; rank 0 of 1 where no launcher started it."""
    if not launched():
        return World()
    size = int(os.environ["WORLD_SIZE"])
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    return World(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]), local_size)


def num_processes(config: TrainingConfig) -> int:
    """Return how many processes a configuration asks for by itself, on all machines together."""
    devices = 1 if config.devices == "auto" else config.devices
    return devices * (1 if config.num_nodes == "auto" else config.num_nodes)


def check_world(config: TrainingConfig, place: World) -> None:
    """Refuse a configuration that these processes cannot run.

    Args:
        config: how to train.
        place: this process.

    Raises:
        ValueError: where the launcher, the hardware and the configuration disagree.
    """
    if launched():
        nodes = place.size // place.local_size
        for name, got, found in (("devices", config.devices, place.local_size), ("num_nodes", config.num_nodes, nodes)):
            if got not in ("auto", found):
                what = "processes on each machine" if name == "devices" else "machines"
                raise ValueError(
                    f"got training.{name}={got} in a launch of {found} {what}; leave training.{name} out, torchrun decides"
                )
    elif num_processes(config) > 1:
        raise ValueError(
            f"got training.devices={config.devices} and training.num_nodes={config.num_nodes} in a program that is a single "
            f"process: start it with torchrun --nproc_per_node={config.devices}, or train with jobs.train or omnivae train"
        )
    check_devices(place.local_size)
    if config.batch_size % place.size:
        raise ValueError(
            f"got training.batch_size={config.batch_size} for {place.size} processes, which share it equally; expected a "
            f"multiple of {place.size}, such as {max(1, round(config.batch_size / place.size)) * place.size}"
        )
    if config.strategy == "fsdp" and place.size == 1:
        raise ValueError(
            "got training.strategy=fsdp, which divides a model among several processes, in a single one; say training.devices, "
            "start it with torchrun, or set training.strategy to auto"
        )


def check_devices(local_size: int) -> None:
    """Refuse more processes on this machine than it has GPUs; without GPUs any number shares the processor.

    Args:
        local_size: processes on this machine.

    Raises:
        ValueError: names both numbers.
    """
    if torch.cuda.is_available() and local_size > torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(
            f"got training.devices={local_size} and this machine has {count} GPU{'s' * (count != 1)}; ask for {count}, or set "
            "CUDA_VISIBLE_DEVICES= to train on the processor"
        )
