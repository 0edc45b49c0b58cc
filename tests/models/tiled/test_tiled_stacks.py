"""Stacks of frames in tiles: what the model itself gives, whichever way stacks overlap and tiles are cut."""

import pytest
import torch

import omnivae
from omnivae import VideoVAE
from omnivae.models.stacked import StackedVAE, stacked
from omnivae.models.tiled import stacks
from omnivae.models.tiled.memory import AllocationTracker

CLOSE = {"atol": 1e-9, "rtol": 1e-9}


def shaken(model, dtype=torch.float64):
    """Random weights everywhere: norms and biases that start at one and zero would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.3 * torch.rand(value.shape, generator=generator))
    return model.to(dtype).eval()


def maisi(stack_size=4, overlap=0, **more):
    return VideoVAE(
        1,
        4,
        8,
        0.7,
        use_maisi=True,
        maisi_stack_size=stack_size,
        overlap=overlap,
        num_res_blocks=1,
        num_groups=4,
        **more,
    )


def clip(*shape, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def assert_equal(model, x, tiled):
    with torch.no_grad():
        whole, found = model.encode(x), tiled.encode(x)
        assert found.input_size == whole.input_size == tuple(x.shape[2:])
        torch.testing.assert_close(found.mean, whole.mean, **CLOSE)
        torch.testing.assert_close(found.logvar, whole.logvar, **CLOSE)
        torch.testing.assert_close(tiled.decode(whole), model.decode(whole), **CLOSE)


@pytest.mark.parametrize(
    ("stack_size", "overlap", "frames"), [(4, 0, 11), (8, 4, 18), (12, 8, 17), (8, 0, 8), (8, 0, 5), (16, 8, 9)]
)
def test_tiled_stacks_equal_the_model(stack_size, overlap, frames):
    model = shaken(maisi(stack_size, overlap))
    x = clip(2 if frames == 11 else 1, 1, frames, 14, 13)
    tiled = omnivae.Tiled(model, memory=60_000 + 40_000 * stack_size)
    assert_equal(model, x, tiled)
    assert max(step.num_tiles for step in tiled.encode_schedule(x.shape[2:]).steps) > 1, "nothing is tiled"
    assert tiled.seams is None


NATIVE = {"base_channels": 4, "num_res_blocks": 1, "num_groups": 2}


@pytest.mark.parametrize(
    ("arguments", "frames"),
    [({}, 9), ({}, 1), ({"mid_attention": True}, 5), ({"time_stride": 4}, 9), ({"stack_size": 5, "overlap": 3}, 9)],
)
def test_native_networks_normalise_each_frame_by_itself(arguments, frames):
    model = shaken(VideoVAE(3, 2, **NATIVE, **arguments))
    x = clip(1, 3, frames, 21, 30)
    x[:, :, frames // 2] *= 5  # frames differ in their statistics
    tiled = omnivae.Tiled(model, memory=200_000 + 2 * x.numel() * 8)
    assert_equal(model, x, tiled)
    schedule = omnivae.Tiled(model, memory=200_000).encode_schedule(x.shape[2:])
    assert max(step.num_tiles for step in schedule.steps) > 1, "nothing is tiled"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_networks_in_lower_precision(dtype):
    model = shaken(VideoVAE(3, 2, **NATIVE), torch.float32)
    x = clip(1, 3, 5, 32, 48, dtype=torch.float32)
    with torch.no_grad():
        whole = model.encode(x).mean
        found = omnivae.Tiled(model.to(dtype), memory="400 kB").encode(x.to(dtype)).mean
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(found.float(), whole, atol=tolerance * whole.std().item(), rtol=tolerance)


def test_an_inflated_model_of_images():
    torch.manual_seed(0)
    images = omnivae.kl_autoencoder(channels=(4, 8), num_res_blocks=1, num_groups=2, mid_attention=False)
    model = shaken(omnivae.inflate(images, inflation="average"))
    assert_equal(model, clip(1, 3, 6, 21, 30), omnivae.Tiled(model, memory="500 kB"))


def test_parameters_are_blended_before_they_become_pixels():
    # The mean of a Bernoulli is no linear function of its logits.
    model = shaken(maisi(8, 4, likelihood="bernoulli"))
    assert_equal(model, clip(1, 1, 14, 16, 12), omnivae.Tiled(model, memory="400 kB"))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_frames_between_stacks_wait_in_a_file_or_in_memory(share, monkeypatch, tmp_path):
    monkeypatch.setattr(stacks, "SHARED", share)
    places = []
    made = stacks.Buffer
    monkeypatch.setattr(stacks, "Buffer", lambda node, folder: places.append(folder) or made(node, folder))
    model = shaken(maisi(12, 8))
    x = clip(1, 1, 26, 12, 8)
    assert_equal(model, x, omnivae.Tiled(model, memory="2 MB", scratch=tmp_path))
    assert set(places) == {tmp_path if share == 0 else None}
    assert not list(tmp_path.iterdir())


def test_colour_becomes_grey_as_in_the_model():
    model = shaken(maisi())
    assert_equal(model, clip(1, 3, 6, 12, 16), omnivae.Tiled(model, memory="500 kB"))
    with pytest.raises(ValueError, match="expected"):
        omnivae.Tiled(model).encode(clip(1, 2, 6, 12, 16))


def test_a_bare_latent_is_decoded_to_all_its_frames_unless_the_stacks_do_not_fill_it():
    model = shaken(maisi(8))
    z = clip(1, 4, 4, 3, 2)
    with torch.no_grad():
        torch.testing.assert_close(omnivae.Tiled(model, memory="300 kB").decode(z), model.decode(z), **CLOSE)
    with pytest.raises(ValueError, match="2 or 4 frames"):
        omnivae.Tiled(model).decode(torch.zeros(1, 4, 3, 4, 4, dtype=torch.float64))


def test_memory_holds_for_all_stacks_together():
    model = shaken(maisi(8, 4), torch.float32)
    x = clip(1, 1, 40, 48, 48, dtype=torch.float32)
    budget = 4_000_000  # more than the graph's own recording counts
    tiled = omnivae.Tiled(model, memory=budget)
    out = torch.empty_like(x)
    with torch.no_grad():
        whole = model.encode(x)
        for run in (lambda: tiled.encode(x), lambda: tiled.decode(whole, out=out)):
            with AllocationTracker() as tracker:
                run()
            assert 0.5 * budget < tracker.peak < budget
    with pytest.raises(ValueError, match="the latent of a clip of 40 frames takes"):
        omnivae.Tiled(model, memory="60 kB").encode(x)


def test_progress_goes_from_nothing_to_all_of_it():
    model, seen = shaken(maisi()), []
    tiled = omnivae.Tiled(model, memory="500 kB", progress=seen.append)
    tiled.decode(tiled.encode(clip(2, 1, 12, 16, 16)))
    fractions = [p.fraction for p in seen]
    (middle,) = [i for i in range(1, len(fractions)) if fractions[i] < fractions[i - 1]]
    for half in (seen[:middle], seen[middle:]):
        assert [p.fraction for p in half] == sorted(p.fraction for p in half)
        assert [p.seconds for p in half] == sorted(p.seconds for p in half)
        assert half[0].fraction < 0.2
        assert half[-1].fraction == pytest.approx(1)


def test_blended_tiles_of_stacks():
    model = shaken(maisi(8, 4))
    x = clip(1, 1, 14, 16, 40)
    with torch.no_grad():
        whole, recon = model.encode(x), model.decode(model.encode(x))
        roomy = omnivae.Tiled(model, memory="1 GB", mode="blended")
        assert_equal(model, x, roomy)
        assert roomy.seams.num_tiles == 1
        tiled = omnivae.Tiled(model, memory="900 kB", mode="blended")
        error = (tiled.encode(x).mean - whole.mean).square().mean().sqrt()
        assert tiled.seams.num_tiles > 1
        assert 0.1 * error < tiled.seams.rms < 10 * error
        error = (tiled.decode(whole) - recon).square().mean().sqrt()
        assert tiled.seams.num_tiles > 1
        assert 0.1 * error < tiled.seams.rms < 10 * error


def test_a_model_that_encodes_in_its_own_way_is_refused():
    class Own(StackedVAE):
        def encode(self, x, cond=None):
            return super().encode(x, cond)

    plain = omnivae.kl_autoencoder(
        in_channels=1, channels=(8, 8), num_res_blocks=1, num_groups=4, dim=3, mid_attention=False
    )
    own = stacked(plain, stack_size=2).eval()
    own.__class__ = Own
    with pytest.raises(ValueError, match="in its own way"):
        omnivae.Tiled(own)


@pytest.fixture(scope="module")
def causal():
    pytest.importorskip("diffusers")
    from omnivae.networks import CogVideoXDecoder, CogVideoXEncoder

    torch.manual_seed(0)
    shared = {"num_res_blocks": 1, "num_groups": 4}
    return omnivae.VAE(
        CogVideoXEncoder(1, 2, (8, 8, 8, 8), **shared),
        omnivae.posteriors.GaussianPosterior(4, 2, dim=3),
        CogVideoXDecoder(2, 1, (8, 8, 8, 8), **shared),
        omnivae.likelihoods.LaplaceLikelihood(1.0),
        omnivae.priors.StandardNormal(),
    ).eval()


@pytest.mark.parametrize("frames", [1, 9, 16])
def test_causal_video_comes_back_whole_from_a_bare_latent(causal, frames):
    x = clip(1, 1, frames, 16, 24, dtype=torch.float32)
    with torch.no_grad():
        z = causal.encode(x).mean
        whole = causal.decode(z)
        assert whole.shape[2] == frames
        torch.testing.assert_close(omnivae.Tiled(causal, memory="1 GB").decode(z), whole, atol=1e-4, rtol=1e-4)


def test_blended_tiles_do_not_cut_the_time_of_causal_video(causal):
    x = clip(1, 1, 9, 24, 64, dtype=torch.float32)
    with torch.no_grad():
        whole = causal.encode(x)
        tiled = omnivae.Tiled(causal, memory="1.6 MB", mode="blended")
        found = tiled.encode(x)
        assert tiled.seams.num_tiles > 1
        assert found.mean.shape == whole.mean.shape
        # Beyond the reach of another tile's edge nothing differs.
        assert (found.mean - whole.mean).square().mean().sqrt() < 0.3 * whole.mean.std()
        assert tiled.decode(whole).shape == x.shape
        with pytest.raises(ValueError, match="mode exact, which cuts time too"):
            omnivae.Tiled(causal, memory="10 kB", mode="blended").encode(x)
