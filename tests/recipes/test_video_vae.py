"""VideoVAE natively and through MAISI's networks, and VAEs of images lifted to clips."""

import json

import pytest
import torch

import omnivae
from omnivae import VAE, VideoVAE, inflate
from omnivae.networks.maisi import to_monai
from omnivae.recipes.volumes import MaisiVAE

NATIVE = {"base_channels": 8, "num_res_blocks": 1, "num_groups": 4}
MAISI = NATIVE | {"use_maisi": True}


def maisi(**arguments):
    torch.manual_seed(0)
    return VideoVAE(1, 4, **(MAISI | arguments)).eval()


def test_the_shapes_of_the_published_pipeline():
    model = maisi()
    x = torch.rand(1, 1, 16, 128, 128)
    with torch.no_grad():
        z = model.encode(x)
        recon = model.decode(z)
    assert z.shape == (1, 4, 4, 32, 32)
    assert recon.shape == (1, 1, 16, 128, 128)
    assert model.value_range == (0, 1)
    assert model.statistics["intensity"]["window"] == [-1000, 1000]


def test_natively_time_is_kept_and_the_plane_shrinks_eightfold():
    torch.manual_seed(0)
    model = VideoVAE(3, 4, **NATIVE).eval()
    assert model.encoder.stride == (1, 8, 8)
    for frames in (1, 2, 3, 7):
        with torch.no_grad():
            z = model.encode(torch.zeros(1, 3, frames, 20, 24))
            assert z.shape == (1, 4, frames, 3, 3)
            assert model.decode(z).shape == (1, 3, frames, 20, 24)
    strides = {m.stride for m in model.modules() if isinstance(m, torch.nn.Conv3d) and max(m.stride) > 1}
    kernels = {m.kernel_size for m in model.modules() if isinstance(m, torch.nn.Conv3d) and max(m.kernel_size) > 1}
    assert strides == {(1, 2, 2)}
    assert kernels == {(3, 3, 3)}


@pytest.mark.parametrize("stack_size", [4, 8, None])
def test_every_number_of_frames_comes_back_from_maisi(stack_size):
    model = maisi(maisi_stack_size=stack_size)
    for frames in (1, 2, 3, 4, 5, 8, 11):
        with torch.no_grad():
            z = model.encode(torch.rand(1, 1, frames, 9, 8))
            assert model.decode(z).shape == (1, 1, frames, 9, 8)


def test_a_stack_of_eight_is_two_frames_of_the_latent():
    model = maisi(maisi_stack_size=8)
    whole = MaisiVAE(num_channels=(8, 16, 32), num_res_blocks=(1, 1, 1), norm_num_groups=4).eval()
    whole.load_state_dict(model.state_dict())
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        expected = [whole.decode(whole.encode(part)) for part in x.split(8, 2)]
        assert model.encode(x).shape[2] == 4
        torch.testing.assert_close(model.decode(model.encode(x)), torch.cat(expected, 2))


def test_it_takes_colour_and_says_what_it_stacks(caplog):
    with caplog.at_level("INFO"):
        model = maisi()
    assert "Temporal stacking: 4 frames per 3D volume" in caplog.text
    x = torch.rand(1, 3, 5, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.encode(x).mean, model.encode(x.mean(1, keepdim=True)).mean)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_checkpoint_is_loaded_whole(tmp_path, caplog, wrapped):
    torch.manual_seed(1)
    official = MaisiVAE(num_channels=(8, 16, 32), num_res_blocks=(1, 1, 1), norm_num_groups=4).eval()
    weights = to_monai(official.state_dict())
    torch.save({"unet_state_dict": weights} if wrapped else weights, tmp_path / "autoencoder.pt")
    with caplog.at_level("INFO"):
        model = maisi(maisi_checkpoint=str(tmp_path / "autoencoder.pt"), maisi_stack_size=None)
    assert f"{len(weights)}/{len(weights)}" in caplog.text
    x = torch.rand(1, 1, 6, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x).reconstruction, official(x).reconstruction)
    # The saved model does not need the file again.
    (tmp_path / "autoencoder.pt").unlink()
    model.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model"]["maisi_checkpoint"] is None
    with torch.no_grad():
        assert torch.equal(VideoVAE.from_pretrained(tmp_path / "model")(x).reconstruction, official(x).reconstruction)


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, caplog):
    weights = to_monai(maisi().state_dict())
    weights.pop("post_quant_conv.conv.bias")
    torch.save(weights, tmp_path / "part.pt")
    with pytest.raises(ValueError, match="nothing was loaded"):
        maisi(maisi_checkpoint=str(tmp_path / "part.pt"))
    with caplog.at_level("WARNING"):
        model = maisi(maisi_checkpoint=str(tmp_path / "part.pt"), maisi_partial=True)
    assert f"Loaded {len(weights)}/{len(weights) + 1} compatible weights" in caplog.text
    assert model.statistics["loaded_in_part"]["missing"] == ["decoder.post_quant_conv.conv.bias"]
    with pytest.raises(FileNotFoundError, match="give maisi_checkpoint the path"):
        maisi(maisi_checkpoint=str(tmp_path / "none.pt"))
    (tmp_path / "code.pt").write_bytes(b"\x80\x04c__builtin__\neval\n.")
    with pytest.raises(ValueError, match="code"):
        maisi(maisi_checkpoint=str(tmp_path / "code.pt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_maisi": True, "in_channels": 3}, "set in_channels=1"),
        ({"use_maisi": True, "stack_size": 4}, "set maisi_stack_size"),
        ({"use_maisi": True, "time_stride": 2}, "leave it out"),
        ({"maisi_checkpoint": "autoencoder.pt"}, "without use_maisi"),
        ({"use_maisi": True, "maisi_stack_size": 6}, "multiple of 4"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VideoVAE(**(NATIVE | arguments))


@pytest.mark.parametrize("arguments", [NATIVE | {"stack_size": 4, "overlap": 2}, MAISI | {"maisi_stack_size": 8}])
def test_it_is_saved_with_the_stacks_it_has_now(tmp_path, arguments):
    torch.manual_seed(0)
    model = VideoVAE(1, 4, **arguments).eval()
    model.stack_size, model.overlap, model.scaling_factor = 12, 4, 2.5
    model.save_pretrained(tmp_path)
    again = VAE.from_pretrained(tmp_path)
    assert isinstance(again, VideoVAE)
    assert (again.stack_size, again.overlap, again.scaling_factor) == (12, 4, 2.5)
    x = torch.rand(1, 1, 17, 8, 8)
    with torch.no_grad():
        assert torch.equal(again.encode(x).mean, model.encode(x).mean)


def parents():
    return {
        "kl_autoencoder": lambda: omnivae.kl_autoencoder(channels=(8, 8, 16), num_res_blocks=1, num_groups=4),
        "conv_vae": lambda: omnivae.conv_vae(latent="spatial", channels=(8, 8), latent_dim=3),
        "cnn_vae": lambda: omnivae.cnn_vae(latent_dim=4, depths=[1, 1, 1, 1, 1], base_dims=[8] * 5),
    }


@pytest.mark.parametrize("name", list(parents()))
@pytest.mark.parametrize("inflation", ["central", "average"])
def test_an_inflated_vae_equals_its_parent_for_one_frame(name, inflation, tmp_path):
    torch.manual_seed(0)
    parent = parents()[name]()
    parent.train()(torch.rand(4, 3, 32, 32))  # moves normalisation statistics
    parent = parent.double().eval()
    model = inflate(parent, inflation=inflation)
    x = torch.rand(2, 3, 40, 24, dtype=torch.float64)
    with torch.no_grad():
        image, clip = parent(x), model(x.unsqueeze(2))
        for ours, theirs in zip(image, clip, strict=True):
            torch.testing.assert_close(theirs[:, :, 0], ours, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(
            clip.likelihood.log_prob(x.unsqueeze(2)[None]), image.likelihood.log_prob(x[None]), rtol=1e-9, atol=1e-9
        )
        model.float().save_pretrained(tmp_path)
        again = VAE.from_pretrained(tmp_path)
        clips = torch.rand(1, 3, 5, 32, 32)
        assert torch.equal(again(clips).reconstruction, model(clips).reconstruction)


@pytest.mark.parametrize("inflation", ["central", "average"])
def test_so_it_does_where_time_is_resampled(inflation):
    torch.manual_seed(0)
    parent = parents()["kl_autoencoder"]().double().eval()
    model = inflate(parent, inflation=inflation, time_stride=4, stack_size=8)
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            model(x.unsqueeze(2)).reconstruction[:, :, 0], parent(x).reconstruction, rtol=1e-9, atol=1e-11
        )
        assert model.encode(x.unsqueeze(2).expand(-1, -1, 11, -1, -1)).shape[2] == 4


def test_what_cannot_be_inflated_is_refused():
    with pytest.raises(ValueError, match="spatial latent"):
        inflate(omnivae.conv_vae(image_size=16, channels=(4, 8)))
    with pytest.raises(ValueError, match="of 3 axes"):
        inflate(omnivae.kl_autoencoder(dim=3, channels=(8, 8), num_res_blocks=1, num_groups=4))
