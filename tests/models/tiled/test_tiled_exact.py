"""Exact tiles equal the whole, for networks of every kind, and use the memory that was planned."""

import copy
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import omnivae
from omnivae.models.stacked import StackedVAE
from omnivae.models.tiled import storage
from omnivae.models.tiled.arrays import reader
from omnivae.models.tiled.execute import execute
from omnivae.models.tiled.graph import Gather, Input
from omnivae.models.tiled.memory import AllocationTracker, format_bytes, parse_bytes
from omnivae.models.tiled.operators import _unfolds
from omnivae.models.tiled.record import record
from omnivae.models.tiled.schedule import make_schedule
from omnivae.models.tiled.storage import Buffer, scratch_folder
from omnivae.networks import ConvDecoder, ConvEncoder, KLDecoder, KLEncoder


def kl(dim, **more):
    arguments = {"in_channels": 1, "channels": (8, 16), "num_res_blocks": 1, "num_groups": 4, "dim": dim}
    return omnivae.kl_autoencoder(**{**arguments, "mid_attention": False, **more})


def maisi():
    return omnivae.MaisiVAE(num_channels=(8, 16, 16), num_res_blocks=(1, 1, 1), norm_num_groups=4)


def shaken(model, dtype=torch.float64):
    """Random weights everywhere: norms and biases that start at one and zero would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point():
                value.add_(0.3 * torch.rand(value.shape, generator=generator))
    return model.to(dtype).eval()


def least_memory(model, size):
    """The smallest budget of a few that both directions do with: most tiles, most files."""
    memory, schedules = 16_000_000, None
    while True:
        try:
            tiled = omnivae.Tiled(model, memory=memory)
            schedules = tiled.encode_schedule(size), tiled.decode_schedule(model.latent_size(size))
        except ValueError:
            return 2 * memory, schedules
        memory //= 2


def compare(model, size, tolerance, dtype=torch.float64):
    model = shaken(model, dtype)
    x = torch.randn(2, model.in_channels, *size, dtype=dtype, generator=torch.Generator().manual_seed(1)) + 0.5
    memory, schedules = least_memory(model, size)
    for schedule in schedules:
        assert max(step.num_tiles for step in schedule.steps) > 1, "nothing is tiled"
    # a result is returned here, and counts
    tiled = omnivae.Tiled(model, memory=memory + 2 * x.numel() * x.element_size())
    with torch.no_grad():
        whole = model.encode(x)
        posterior = tiled.encode(x)
        assert posterior.input_size == whole.input_size == tuple(size)
        torch.testing.assert_close(posterior.mode(), whole.mode(), atol=tolerance, rtol=tolerance)
        if hasattr(whole, "logvar"):
            torch.testing.assert_close(posterior.logvar, whole.logvar, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(tiled.decode(whole), model.decode(whole), atol=tolerance, rtol=tolerance)
    assert tiled.seams is None


# sizes that no stride divides: the padding of the border is part of what must be equal
MODELS = {
    "kl 1-D": (lambda: kl(1), (150,)),
    "kl 2-D": (lambda: kl(2), (45, 62)),
    "kl 3-D": (lambda: kl(3), (13, 18, 23)),
    "kl 3-D one slice": (lambda: kl(3), (1, 30, 34)),
    "kl 2-D with attention": (lambda: kl(2, mid_attention=True, channels=(8, 8, 8)), (64, 60)),
    "conv batch": (lambda: omnivae.vq_vae(in_channels=1, channels=(8, 16)), (45, 50)),
    "maisi": (maisi, (9, 14, 22)),
}


@pytest.mark.parametrize("name", MODELS)
def test_exact_equals_whole_in_float64(name):
    make, size = MODELS[name]
    compare(make(), size, 1e-9)


@pytest.mark.parametrize("name", ["kl 2-D", "maisi"])
def test_exact_equals_whole_in_float32(name):
    make, size = MODELS[name]
    compare(make(), size, 2e-5, torch.float32)


def test_bfloat16_tiles_are_as_near_to_the_truth_as_the_whole():
    """Statistics and scales are in single precision, as those of the layers themselves are."""
    torch.manual_seed(0)
    model = omnivae.MaisiVAE(num_channels=(16, 32, 32), num_res_blocks=(1, 1, 1), norm_num_groups=8).eval()
    x = torch.rand(1, 1, 16, 32, 32)
    with torch.no_grad():
        truth = model.encode(x).mean
        pixels = model.decode(truth)
        half = copy.deepcopy(model).bfloat16()
        tiled = omnivae.Tiled(half, memory="2MB")
        errors = {}
        for name, vae in {"whole": half, "tiled": tiled}.items():
            latent = vae.encode(x.bfloat16()).mean.float()
            decoded = vae.decode(truth.bfloat16()).float()
            errors[name] = (latent - truth).square().mean(), (decoded - pixels).square().mean()
    for whole, tiles in zip(errors["whole"], errors["tiled"], strict=True):
        assert tiles < 1.15 * whole


def test_inference_mode():
    model = maisi().eval()
    x = torch.rand(1, 1, 16, 24, 24)
    with torch.inference_mode():
        whole = model.encode(x)
        tiled = omnivae.Tiled(model, memory="1MB")
        torch.testing.assert_close(tiled.encode(x).mean, whole.mean, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(tiled.decode(whole), model.decode(whole), atol=2e-5, rtol=2e-5)


def test_tiles_of_kept_values_are_channels_last():
    node = Input((1, 8, 6, 7, 8), torch.float32, (None, None, 0, 1, 2))
    for folder in (None, Path(tempfile.gettempdir())):
        buffer = Buffer(node, folder)
        buffer.write(node.full(), torch.rand(node.shape))
        tile = buffer.read(((1, 4), (2, 7), (0, 8)))
        assert nn.functional.pad(tile, (1, 1)).is_contiguous(memory_format=torch.channels_last_3d)
        buffer.close()


def test_small_convolutions_of_three_axes_equal_others():
    tile = torch.rand(1, 8, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    weight, point = torch.rand(4, 8, 3, 3, 3), torch.rand(4, 8, 1, 1, 1)
    assert _unfolds(tile, weight) == torch.backends.mkldnn.is_available()
    assert not _unfolds(tile.double(), weight)
    large = torch.empty(1, 128, 32, 8, 8)
    assert not _unfolds(large, weight)
    assert _unfolds(large, point) == torch.backends.mkldnn.is_available()
    network = nn.Sequential(nn.Conv3d(8, 4, 3, stride=(1, 2, 1)), nn.Conv3d(4, 6, 1)).eval()
    source, output = record(network, tuple(tile.shape))
    schedule = make_schedule(source, output, 10**6, keep_output=True)
    with torch.no_grad():
        made = execute(schedule, reader(tile, 0, tile.shape[2:]), device=tile.device)
        torch.testing.assert_close(made, network(tile), atol=1e-5, rtol=1e-5)


class Mixture(nn.Module):
    """Everything that looks at neighbours, moves them or sums over them, in one network."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(1, 8, 5, padding=4, dilation=2)
        self.same = nn.InstanceNorm2d(8, affine=True)
        self.reflect = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.cheap = nn.Conv2d(8, 8, 3, padding=1, groups=4, stride=(2, 1))
        self.gate = nn.Linear(8, 8)
        self.layer = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 8)
        self.back = nn.ConvTranspose2d(8, 4, (4, 3), stride=(2, 1), padding=1, output_padding=(0, 0))
        self.fold = nn.Conv2d(4, 4, 3, stride=3, padding=1)
        self.last = nn.ConvTranspose2d(4, 2, 3, stride=3, padding=1, output_padding=2)

    def forward(self, x):
        x = torch.relu_(self.wide(x))
        x = self.reflect(self.same(x)) + x
        x = nn.functional.pad(x, (1, 2, 0, 3), mode="replicate")[..., :-3, 1:-2]
        x = self.cheap(x)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        x = x + self.mix(nn.functional.gelu(self.layer(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        x = x / (1 + x.var((1, 2, 3), keepdim=True)) + x.amax((2, 3), keepdim=True) - x.flip(1)
        x = self.back(x)
        x = torch.cat([x, nn.functional.interpolate(nn.functional.avg_pool2d(x, 2), scale_factor=2, mode="nearest")], 1)
        a, b = x.chunk(2, 1)
        x = nn.functional.pixel_unshuffle(nn.functional.pixel_shuffle(a, 2), 2) + nn.functional.max_pool2d(b, 3, 1, 1)
        x = nn.functional.interpolate(x, scale_factor=(1, 2), mode="bilinear", align_corners=False)[..., ::2]
        x = x.unflatten(2, (-1, 2)).movedim(3, 1).flatten(1, 2).unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)
        x = torch.cat([x[..., :5], x[..., 5:]], 3)
        x = self.fold(x)
        return self.last(x).softmax(1)


@pytest.mark.parametrize("memory", [1_000_000, 60_000, 30_000])
def test_every_operation_region_by_region(memory):
    network = shaken(Mixture())
    x = torch.randn(1, 1, 36, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    source, output = record(network, x.shape)
    schedule = make_schedule(source, output, memory, keep_output=True)
    assert not any(
        isinstance(step.node, Gather) for step in schedule.steps if "flip" not in getattr(step.node, "reason", "")
    )

    def read(region):
        return x[(..., *(slice(*bounds) for bounds in region))].clone()

    made = execute(schedule, read, device=torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(made, network(x), atol=1e-9, rtol=1e-9)


def test_tiles_of_every_cut_are_the_same():
    """Each position is covered once, whatever the memory is."""
    network = shaken(KLDecoder(2, 1, (8, 8), num_res_blocks=1, num_groups=4, mid_attention=False, dim=1))
    z = torch.randn(1, 2, 37, dtype=torch.float64)
    source, output = record(network, z.shape)
    with torch.no_grad():
        expected = network(z)
    for memory in (200_000, 20_000, 10_000, 6_000):
        schedule = make_schedule(source, output, memory, keep_output=True)
        made = execute(schedule, lambda r: z[..., slice(*r[0])].clone(), device=torch.device("cpu"))
        torch.testing.assert_close(made, expected, atol=1e-12, rtol=1e-9)


def test_no_convolution_is_computed_twice():
    """The price of exactness is the margins of tiles: a little more arithmetic than without tiles."""
    model = kl(3).eval()
    schedule = omnivae.Tiled(model, memory="4MB").encode_schedule((64, 96, 96))
    assert sum(step.num_tiles for step in schedule.steps if step.node.is_field) > 40
    assert schedule.work < 1.15 * schedule.plain_work


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_a_small_disk_costs_arithmetic_and_nothing_else(direction):
    model = shaken(maisi())
    network = getattr(model, direction)
    x = torch.randn(1, *((1, 16, 24, 28) if direction == "encoder" else (4, 4, 6, 7)), dtype=torch.float64)
    source, output = record(network, x.shape)
    with torch.no_grad():
        whole = network(x)
    made = {}
    for disk in (None, 2_000_000, 1_200_000, 500_000):
        schedule = make_schedule(source, output, 1_300_000, keep_output=False, disk=disk)
        result = torch.empty_like(whole)

        def write(region, tile, result=result):
            result[(..., *(slice(*bounds) for bounds in region))] = tile

        execute(schedule, reader(x, 0, x.shape[2:]), device=x.device, sink=write)
        torch.testing.assert_close(result, whole, atol=1e-9, rtol=1e-9)
        assert disk is None or schedule.file_bytes <= disk
        made[disk] = schedule
    assert made[None].recomputed == 0 < made[500_000].recomputed
    assert made[None].file_bytes > 500_000
    assert made[None].work < made[1_200_000].work < made[500_000].work


def test_a_sum_takes_the_place_of_its_summand():
    """Three values of one size would be kept at once in a residual block: the input, what is between, and the sum."""
    model = kl(3, channels=(8, 8), num_res_blocks=2).eval()
    source, output = record(model.encoder, (1, 1, 32, 32, 32))
    schedule = make_schedule(source, output, 1_000_000, keep_output=False)
    assert any(step.overwrites is not None for step in schedule.steps)
    assert schedule.file_bytes < 2.1 * 8 * 32**3 * 4


def test_a_convolution_never_overwrites_what_it_reads():
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)
    )
    source, output = record(network.eval(), (1, 1, 64, 64))
    schedule = make_schedule(source, output, 60_000, keep_output=False)
    assert schedule.file_bytes
    assert not any(step.overwrites for step in schedule.steps)


def test_temporary_files_avoid_file_systems_in_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert scratch_folder() in (tmp_path, Path("/var/tmp"))
    memory = Path("/dev/shm")
    if storage._in_memory(memory) and not storage._in_memory(Path("/var/tmp")):
        monkeypatch.setattr(tempfile, "tempdir", str(memory))
        assert scratch_folder() == Path("/var/tmp")
        assert scratch_folder(memory) == memory  # who names a folder gets it


def test_a_memmap_goes_in_and_a_memmap_comes_out(tmp_path):
    model = shaken(kl(3), torch.float32)
    shape = (1, 1, 12, 20, 18)
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape)
    x[:] = np.random.default_rng(0).normal(size=shape)
    out = np.lib.format.open_memmap(tmp_path / "y.npy", "w+", np.float32, shape)
    tiled = omnivae.Tiled(model, memory="1.5MB", scratch=tmp_path)
    posterior = tiled.encode(x)
    assert tiled.decode(posterior, out=out) is out
    with torch.no_grad():
        whole = model.decode(model.encode(torch.from_numpy(np.array(x))))
    np.testing.assert_allclose(out, whole.numpy(), rtol=1e-5, atol=2e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "y.npy"]


def test_planned_bytes_are_allocated_bytes():
    model = shaken(kl(3), torch.float32)
    x = torch.randn(1, 1, 24, 32, 40)
    for memory in (4_000_000, 1_500_000):
        for network, whole in ((model.encoder, x), (model.decoder, torch.randn(1, 4, 12, 16, 20))):
            source, output = record(network, whole.shape)
            schedule = make_schedule(source, output, memory, keep_output=False)
            with AllocationTracker() as tracker:
                execute(schedule, reader(whole, 0, whole.shape[2:]), device=torch.device("cpu"), sink=lambda r, t: None)
            assert schedule.peak_bytes <= memory
            assert tracker.peak == pytest.approx(schedule.peak_bytes, rel=0.2)


def test_interrupted_runs_leave_nothing_behind(tmp_path):
    def stop(progress):
        if progress.fraction > 0.5:
            raise KeyboardInterrupt

    seen = []
    model = kl(2).eval()
    x = torch.randn(1, 1, 64, 64)
    with pytest.raises(KeyboardInterrupt):
        omnivae.Tiled(model, memory="200kB", scratch=tmp_path, progress=stop).encode(x)
    assert list(tmp_path.iterdir()) == []
    omnivae.Tiled(model, memory="200kB", scratch=tmp_path, progress=seen.append).encode(x)
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    assert seen[-1].step == seen[-1].num_steps


def test_a_clip_seen_whole():
    clip = omnivae.kl_autoencoder(
        in_channels=1, channels=(8, 8), num_res_blocks=1, num_groups=4, dim=3, mid_attention=False
    )
    model = StackedVAE(clip.encoder, clip.posterior, clip.decoder, clip.likelihood_head, clip.prior, scaling_factor=0.5)
    compare(model, (9, 16, 18), 1e-9)


def test_attention_that_does_not_fit_is_named():
    model = kl(2, mid_attention=True).eval()
    with pytest.raises(ValueError, match=r"mid.* relates all positions.*memory='\d+MB' or more.*blended"):
        omnivae.Tiled(model, memory="150kB").encode(torch.zeros(1, 1, 128, 128))


def test_what_cannot_be_tiled_is_refused():
    with pytest.raises(ValueError, match="vector latent"):
        omnivae.Tiled(omnivae.conv_vae(in_channels=1, image_size=28).eval())
    with pytest.raises(ValueError, match="training mode"):
        omnivae.Tiled(kl(2).train())
    with pytest.raises(ValueError, match="several resolutions"):
        omnivae.Tiled(
            omnivae.deep_hierarchical_vae(in_channels=1, image_size=16, channels=(8, 8), num_groups=(0, 1)).eval()
        )
    with pytest.raises(TypeError, match="takes a VAE"):
        omnivae.Tiled(nn.Conv2d(1, 1, 1))
    model = kl(2).eval()
    for bad in ({"memory": "4 apples"}, {"memory": "0GB"}, {"mode": "fast"}, {"overlap": 0.7}):
        with pytest.raises(ValueError, match="got"):
            omnivae.Tiled(model, **bad)
    with pytest.raises(FileNotFoundError, match="scratch"):
        omnivae.Tiled(model, scratch="no/such/folder")
    tiled = omnivae.Tiled(model, memory="400kB")
    with pytest.raises(ValueError, match=r"smallest tile|kept whole"):
        omnivae.Tiled(model, memory="2kB").encode(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match="NaN"):
        tiled.encode(torch.full((1, 1, 16, 16), torch.nan))
    with pytest.raises(ValueError, match=r"expected \[B, 1"):
        tiled.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="at most"):
        tiled.decode(torch.zeros(1, 4, 8, 8), size=(17, 16))
    with pytest.raises(ValueError, match="expected"):
        tiled.decode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="out of shape"):
        tiled.decode(torch.zeros(1, 4, 8, 8), out=torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="alone take"):
        tiled.decode(torch.zeros(1, 4, 512, 512))


def test_a_full_disk_is_found_before_anything_is_computed(tmp_path, monkeypatch):
    import shutil

    class Usage:
        free = 10

    model, x = shaken(kl(2)), torch.randn(1, 1, 96, 96, dtype=torch.float64)
    source, output = record(model.encoder, x.shape)
    planned = make_schedule(source, output, 400_000, keep_output=True)
    whole = model.encode(x).mean
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(OSError, match="TMPDIR"):
        execute(planned, reader(x, 0, (96, 96)), device=x.device, scratch=tmp_path)
    # what is planned on a full disk does without files
    made = omnivae.Tiled(model, memory="600kB", scratch=tmp_path).encode(x)
    torch.testing.assert_close(made.mean, whole, atol=1e-9, rtol=1e-9)


def test_a_network_that_decides_by_numbers_is_refused():
    class Deciding(nn.Module):
        def forward(self, x):
            return x if bool(x.sum() > 0) else -x

    with pytest.raises(ValueError, match="cannot be computed in exact tiles"):
        record(Deciding(), (1, 1, 8, 8))


def test_recorded_networks_keep_their_shapes():
    for network, shape in ((ConvEncoder(1, (4, 8)), (1, 1, 12, 16)), (ConvDecoder(2, 1, (8, 4)), (1, 2, 3, 4))):
        network.eval()
        _, output = record(network, shape)
        assert output.shape == tuple(network(torch.zeros(shape)).shape)
    _, output = record(KLEncoder(1, 4, (8, 8), num_res_blocks=1, num_groups=4), (1, 1, 8, 8))
    assert output.is_field
    assert output.shape == (1, 4, 4, 4)


def test_memory_as_text():
    assert [parse_bytes(text) for text in ("4GB", "1.5 GiB", "500 kB", "12", 7, "300B")] == [
        4 * 10**9,
        3 * 2**29,
        500_000,
        12,
        7,
        300,
    ]
    assert format_bytes(12.3e9) == "12 GB"
