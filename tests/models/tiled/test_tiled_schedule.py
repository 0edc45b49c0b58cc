"""What is kept and what is computed again: it ends, stays within the disk and the memory, and the user is told its price."""

import logging
import math
import os
import shutil

import pytest
import torch
from torch import nn

import omnivae
from omnivae.models.tiled import execute as execution
from omnivae.models.tiled import schedule as scheduling
from omnivae.models.tiled.arrays import reader
from omnivae.models.tiled.execute import execute, tell_price
from omnivae.models.tiled.memory import AllocationTracker
from omnivae.models.tiled.record import record
from omnivae.models.tiled.schedule import MOST_WORK, make_schedule
from omnivae.models.tiled.storage import Buffer


class Residual(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x)


def block(channels, kernel):
    return Residual(nn.GroupNorm(2, channels), nn.Conv2d(channels, channels, kernel, padding=kernel // 2), nn.SiLU())


def planned(network, size, memory, **more):
    network = network.double().eval()
    x = torch.randn(1, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    source, output = record(network, x.shape)
    return network, x, make_schedule(source, output, memory, **{"keep_output": True, **more})


def check(network, x, schedule, **more):
    made = execute(schedule, reader(x, 0, x.shape[2:]), device=x.device, **more)
    with torch.no_grad():
        torch.testing.assert_close(made, network(x), atol=1e-9, rtol=1e-9)


def test_many_residual_blocks_end_on_every_disk():
    """Each block reads the one before three times: without keeping any, ten would take 3**10 times the arithmetic."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *(block(4, 3) for _ in range(10)))
    one = 4 * 24 * 26 * 8
    for disk in (None, 2 * one, one, 0):
        network, x, schedule = planned(network, (24, 26), 40_000, disk=disk)
        assert schedule.wanted_bytes == 2 * one
        assert schedule.factor <= MOST_WORK
        if disk is None or disk >= 2 * one:
            assert schedule.recomputed == 0
            check(network, x, schedule)
        else:
            # Each is made from the one before: two are there at once. It is refused when it is carried out, for want of disk.
            assert schedule.file_bytes == 2 * one
            assert schedule.recomputed == 0


def test_pointwise_residual_blocks_are_not_doubled_again_and_again():
    network = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), *(block(16, 1) for _ in range(12)))
    network, x, schedule = planned(network, (20, 20), 60_000)
    assert schedule.factor < 20
    check(network, x, schedule)


def test_a_value_that_makes_room_only_with_another_one_is_given_up():
    """Without the skip, what it is computed from stays for longer: dropping either alone makes no room."""

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(n, 4, 3, padding=1) for n in (1, 4, 4))
            self.norm = nn.GroupNorm(2, 4)

        def forward(self, x):
            a = self.first(x)
            b = self.second(self.norm(a))
            c = self.third(self.norm(b))
            return self.norm(c) + b + a

    network, x, schedule = planned(Skip(), (40, 40), 90_000, disk=0)
    assert schedule.file_bytes == 0 < schedule.wanted_bytes
    check(network, x, schedule)


def test_what_only_sums_read_is_not_kept():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.side = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = self.conv(x)
            return x * torch.sigmoid(self.side(x).mean((2, 3), keepdim=True))

    _, _, schedule = planned(Gate(), (40, 44), 30_000, keep_output=False)
    assert sum(step.keep for step in schedule.steps) == 1


def test_kept_values_make_way_for_tiles(monkeypatch):
    """What fits into its share of the memory goes to a file where a tile does not fit beside it."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 256, 5, padding=2),
        nn.Conv2d(256, 4, 5, padding=2),
    )
    memory = 160_000
    with monkeypatch.context() as patch:
        patch.setattr(scheduling, "KEPT", (0.45,))
        with pytest.raises(ValueError, match="smallest tile"):
            planned(network, (33, 33), memory, keep_output=False)
    _, _, schedule = planned(network, (33, 33), memory, keep_output=False)
    assert schedule.peak_bytes <= memory
    assert schedule.file_bytes


def test_tiles_at_the_border_take_no_more_than_planned():
    network = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 16, 5, padding=2), nn.Conv2d(16, 1, 5, padding=2)
    )
    for memory in (400_000, 150_000, 60_000):
        network, x, schedule = planned(network, (64, 60), memory, keep_output=False)
        with AllocationTracker() as tracker:
            execute(schedule, reader(x, 0, x.shape[2:]), device=x.device, sink=lambda region, tile: None)
        assert tracker.peak == pytest.approx(schedule.peak_bytes, rel=0.1)


def test_planned_file_bytes_are_those_of_the_files(monkeypatch):
    files, most = [], 0

    class Watched(Buffer):
        def __init__(self, *args):
            super().__init__(*args)
            if self.file is not None and self.file not in files:
                files.append(self.file)

        def write(self, region, tile):
            nonlocal most
            super().write(region, tile)
            most = max(most, sum(os.fstat(file.fileno()).st_size for file in files if not file.closed))

    monkeypatch.setattr(execution, "Buffer", Watched)
    layers = (nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1))
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), Residual(*layers), Residual(*layers))
    network, x, schedule = planned(network, (40, 40), 90_000)
    assert any(step.overwrites for step in schedule.steps)
    check(network, x, schedule)
    assert most == schedule.file_bytes > 0
    assert all(file.closed for file in files)
    for end in (0.1, 0.5, 0.9):
        files.clear()

        def stop(progress, end=end):
            if progress.fraction > end:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            execute(schedule, reader(x, 0, x.shape[2:]), device=x.device, progress=stop)
        assert files
        assert all(file.closed for file in files)


def test_a_value_times_itself_is_computed_once():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1)

        def forward(self, x):
            x = self.conv(x)
            for _ in range(3):
                x = x * x + x.mul_(x)
            return x

    network, x, schedule = planned(Square(), (30, 30), 40_000)
    check(network, x, schedule)


def test_the_user_is_told_the_price_of_a_small_disk_once(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(execution, "_told", {})

    class Usage:
        free = 300_000

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    model = omnivae.kl_autoencoder(
        in_channels=1, channels=(8, 8), num_res_blocks=2, num_groups=4, mid_attention=False, dim=3
    ).eval()
    tiled = omnivae.Tiled(model, memory="1MB", scratch=tmp_path)
    x = torch.randn(1, 1, 20, 24, 24, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING), torch.no_grad():
        first, _ = tiled.encode(x), tiled.encode(x)
        torch.testing.assert_close(first.mean, model.encode(x).mean, atol=2e-5, rtol=2e-5)
    (said,) = caplog.messages
    schedule = tiled.encode_schedule((20, 24, 24))
    assert schedule.recomputed
    assert f"{schedule.factor:.1f} times the arithmetic" in said
    assert all(text in said for text in ("300 kB free", str(tmp_path), "TMPDIR", "more memory"))


def test_nothing_is_said_where_tiles_cost_little(monkeypatch, caplog):
    monkeypatch.setattr(execution, "_told", {})
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), block(4, 3))
    _, _, schedule = planned(network, (64, 64), 200_000)
    assert math.isclose(schedule.factor, 1.0, abs_tol=0.5)
    tell_price(schedule)
    assert caplog.messages == []
