"""diffusers' autoencoders whose modules we run: every size comes back, and their configuration is read."""

import json

import pytest
import torch

from omnivae.hub import load_checkpoint, read_checkpoint, recognise
from omnivae.jobs.checkpoint import convert, examine_checkpoint
from omnivae.networks import CogVideoXEncoder, DCEncoder
from omnivae.networks.diffusers_cogvideox import frames_for

from . import originals


@pytest.fixture(scope="module")
def video():
    return originals.cogvideox()


@pytest.fixture(scope="module")
def loaded(video, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "vae.pt"
    torch.save(video.state_dict(), file)
    return load_checkpoint(file)


@pytest.mark.parametrize("frames", [1, 8, 9, 16, 17, 25])
@torch.no_grad()
def test_clips_that_diffusers_returns_whole_are_the_same_bit_for_bit(video, loaded, frames):
    x = 2 * torch.rand(2, 3, frames, 8, 16) - 1
    output = loaded(x)
    assert output.mean.shape[2:] == loaded.latent_size((frames, 8, 16)) == ((frames - 1) // 4 + 1, 1, 2)
    theirs = video.encode(x).latent_dist
    assert torch.equal(output.mean, theirs.mean)
    assert torch.equal(output.logvar, theirs.logvar)
    assert torch.equal(output.recon_x, video.decode(theirs.mean).sample)


@pytest.mark.parametrize("frames", [2, 5, 10, 13])
@torch.no_grad()
def test_other_clips_are_padded_by_their_last_frame_and_cropped(video, loaded, frames):
    x = 2 * torch.rand(1, 3, frames, 11, 8) - 1
    whole = frames_for(frames)
    padded = torch.cat([x] + [x[:, :, -1:]] * (whole - frames), 2)
    padded = torch.cat([padded] + [padded[..., -1:, :]] * 5, -2)
    want = video.decode(video.encode(padded).latent_dist.mean).sample
    # diffusers itself returns another number of frames than it is given.
    assert want.shape[2] == whole
    assert torch.equal(loaded(x).recon_x, want[:, :, :frames, :11])
    assert loaded.sample(1, size=(frames, 16, 8)).shape == (1, 3, frames, 16, 8)


@pytest.mark.parametrize("time_stride", [1, 2, 4, 8])
def test_every_number_of_frames_comes_back(time_stride):
    from omnivae.networks import CogVideoXDecoder

    shared = {"num_res_blocks": 1, "num_groups": 4, "time_stride": time_stride}
    encoder = CogVideoXEncoder(1, 2, (4, 4, 4, 4), **shared)
    decoder = CogVideoXDecoder(2, 1, (4, 4, 4, 4), **shared)
    with torch.no_grad():
        for frames in {frames_for(n, time_stride) for n in range(1, 34)}:
            mean = encoder(torch.zeros(1, 1, frames, 16, 8))[:, :2]
            assert mean.shape[2] == -(-frames // time_stride)
            assert decoder(mean).shape[2] == frames


def test_sizes_that_do_not_fit_are_refused_with_those_that_do():
    encoder = CogVideoXEncoder(1, 2, (4, 4, 4, 4), num_res_blocks=1, num_groups=4)
    with pytest.raises(ValueError, match=r"clip of size \(10, 8, 8\).*multiple of 8, or one more.*\(16, 8, 8\)"):
        encoder(torch.zeros(1, 1, 10, 8, 8))
    with pytest.raises(ValueError, match=r"multiples of 8 pixels: pad it to \(9, 16, 8\)"):
        encoder(torch.zeros(1, 1, 9, 12, 8))
    with pytest.raises(ValueError, match=r"time_stride=3 for 4 stages; expected a power of two up to 8"):
        CogVideoXEncoder(1, 2, (4, 4, 4, 4), time_stride=3)
    with pytest.raises(ValueError, match=r"num_blocks=\(1, 1, 1\) for 2 stages"):
        DCEncoder(3, 4, (8, 16), (1, 1, 1), block_types=("ResBlock",) * 2, multiscales=((), ()))


def test_recomputed_activations_give_the_same_gradients(loaded):
    x = torch.rand(1, 3, 9, 8, 8)
    found = []
    for checkpointed in (False, True):
        loaded.enable_gradient_checkpointing(checkpointed).train().zero_grad()
        loaded(x, sample=False).recon_x.square().sum().backward()
        found.append([p.grad.clone() for p in loaded.parameters()])
    loaded.enable_gradient_checkpointing(False).eval()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("named", ["folder", "file"])
def test_the_configuration_beside_the_weights_is_read(tmp_path, named):
    changes = {"norm_num_groups": 4, "temporal_compression_ratio": 2, "norm_eps": 1e-3, "act_fn": "gelu"}
    original = originals.cogvideox(**changes)
    original.save_pretrained(tmp_path)
    file = tmp_path if named == "folder" else tmp_path / "diffusion_pytorch_model.safetensors"
    found = examine_checkpoint(file, trials=False)
    assert {k: found.architecture.arguments[k] for k in changes} == changes
    assert found.model.encoder.stride == (2, 8, 8)
    assert found.proof.equal
    assert found.model.statistics["published"] == {"scaling_factor": 1.15258426}
    # Somebody else's config.json is not.
    config = json.loads((tmp_path / "config.json").read_text()) | {"_class_name": "UNet3DConditionModel"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_checkpoint(tmp_path / "diffusion_pytorch_model.safetensors").config == {}


def test_what_shapes_do_not_say_of_deep_compression_is_stated(tmp_path):
    one_scale = {"encoder_qkv_multiscales": ((), (), ()), "decoder_qkv_multiscales": ((), (), ())}
    original = originals.deep_compression(**one_scale, encoder_out_shortcut=False)
    file = tmp_path / "dc.pt"
    torch.save(original.state_dict(), file)
    # Attention of one scale does not show the width of its heads: it is assumed, and said to be.
    assumed = recognise(read_checkpoint(file))
    assert assumed.assumptions["attention_head_dim"] == "16"
    found = examine_checkpoint(file, settings={"attention_head_dim": 8, "encoder_out_shortcut": False})
    assert found.proof.equal
    assert "attention_head_dim" not in found.architecture.assumptions
    with torch.no_grad():
        x = 2 * torch.rand(1, 3, 8, 12) - 1
        latent = original.encode(x).latent
        assert torch.equal(found.model.encode(x).mode(), latent)
        torch.testing.assert_close(found.model(x).recon_x, original.decode(latent).sample, atol=1e-5, rtol=1e-5)
        assert found.model(torch.rand(1, 3, 5, 7)).recon_x.shape == (1, 3, 5, 7)
    # The choices that were tried are told apart: only what was stated is the original's function.
    assert not any(trial.equal for trial in found.trials)


#: MIT's own files: one kernel of resampling is wrapped by two modules, the other by one.
MIT = {
    "in": originals.HALVED_FIRST
    | {"downsample_block_type": "pixel_unshuffle", "upsample_block_type": "pixel_shuffle"}
    | {"encoder_qkv_multiscales": ((), (), ()), "decoder_qkv_multiscales": ((), (), ())},
    "sana": {"downsample_block_type": "conv", "upsample_block_type": "interpolate"}
    | {"encoder_qkv_multiscales": ((), (), (5,)), "decoder_qkv_multiscales": ((), (), (5,))},
    "two scales": {"encoder_qkv_multiscales": ((), (), (3, 5)), "decoder_qkv_multiscales": ((), (), (3, 5))},
}


@pytest.mark.parametrize("kind", MIT)
def test_mits_own_files_of_deep_compression(tmp_path, kind):
    original = originals.deep_compression(**MIT[kind])
    tensors = originals.efficientvit(original)
    file = tmp_path / "dc-ae.pt"
    torch.save({"state_dict": tensors}, file)
    found = examine_checkpoint(file, settings={"attention_head_dim": 8})
    assert found.architecture.layout == "efficientvit DCAE"
    assert found.coverage.complete
    assert found.proof.equal, found.proof.summary()
    assert found.proof.reference.startswith("diffusers")
    assert len(found.proof.layers) > 20
    assert all(trial.equal is not None for trial in found.trials)
    # diffusers' model before it was renamed is a third opinion, independent of anybody's conversion.
    with torch.no_grad():
        x = 2 * torch.rand(1, 3, 8, 12) - 1
        latent = original.encode(x).latent
        assert torch.equal(found.model.encode(x).mode(), latent)
        torch.testing.assert_close(found.model(x).recon_x, original.decode(latent).sample, atol=1e-5, rtol=1e-5)
    same = load_checkpoint(
        _written(original.state_dict(), tmp_path / "diffusers.pt"), settings={"attention_head_dim": 8}
    )
    assert all(torch.equal(tensor, found.model.state_dict()[name]) for name, tensor in same.state_dict().items())
    convert(found, tmp_path / "model")
    names = json.loads((tmp_path / "model" / "key_map.json").read_text())["names"]
    assert set(names) == set(tensors)
    cut = next(row for name, row in names.items() if name.endswith("qkv.conv.weight"))
    assert [name[-11:] for name in cut["names"]] == ["to_q.weight", "to_k.weight", "to_v.weight"]
    # Queries that are not a third of what they should be are named.
    broken = {k: v[:-3] if k.endswith("qkv.conv.weight") else v for k, v in tensors.items()}
    with pytest.raises(ValueError, match=r"qkv\.conv\.weight has shape \[45, 16, 1, 1\], expected \[48, 16\]"):
        recognise(read_checkpoint(_written(broken, tmp_path / "broken.pt")), settings={"attention_head_dim": 8})


def _written(tensors, file):
    torch.save(tensors, file)
    return file


def test_pixel_values_are_as_stated(tmp_path):
    file = tmp_path / "kl.pt"
    torch.save(originals.diffusers_kl().state_dict(), file)
    found = examine_checkpoint(file, settings={"value_range": [0, 1]}, trials=False)
    assert found.model.value_range == (0.0, 1.0)
    assert "value_range: [0.0, 1.0]" in found.to_yaml()
    with pytest.raises(ValueError, match=r"value_range=3; expected two numbers"):
        recognise(read_checkpoint(file), settings={"value_range": 3})


def test_licences_of_published_architectures_are_named():
    from pathlib import Path

    import diffusers

    from omnivae.hub import Checkpoint
    from omnivae.hub.known import ARCHITECTURES, licence_of

    def licence(build):
        with torch.device("meta"):
            checkpoint = Checkpoint(Path("vae.safetensors"), build().state_dict())
        return licence_of(checkpoint, recognise(checkpoint))

    assert "CogVideoX-2B is Apache-2.0" in licence(diffusers.AutoencoderKLCogVideoX)
    blocks = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    blocks |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    assert "sd-vae-ft-mse and sdxl-vae MIT" in licence(lambda: diffusers.AutoencoderKL(**blocks))
    # The autoencoder of FLUX.1 [dev] is free although the model is not: they are the same weights.
    wide = blocks | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    assert "FLUX.1's autoencoder is Apache-2.0" in licence(lambda: diffusers.AutoencoderKL(**wide))
    sana = {f"{half}_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3 for half in ("encoder", "decoder")}
    sana |= {"downsample_block_type": "conv", "upsample_block_type": "interpolate"}
    assert "check the model card" in licence(lambda: diffusers.AutoencoderDC(**sana))
    # What is claimed says where it was read.
    assert all(stated.read or "check the model card" in stated.licence for stated in ARCHITECTURES.values())
    assert licence(lambda: diffusers.AutoencoderKLCogVideoX(block_out_channels=(64, 128, 128, 256))) is None
