"""Each layout: recognised from names and shapes alone, loaded whole, and equal to the original on the same inputs."""

from importlib.util import find_spec

import pytest
import torch

from omnivae import VAE, BetaVae25D, BetaVaeMonai, MaisiVAE, TransVAE
from omnivae.hub import load_checkpoint, read_checkpoint, recognise
from omnivae.jobs.checkpoint import convert, examine_checkpoint
from omnivae.recipes import RECIPES

from . import originals


def saved(tmp_path, tensors, name="weights.pt"):
    torch.save(tensors, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    "layout",
    [
        "maisi",
        "maisi_attention",
        "kl",
        "kl_3d",
        "kl_transposed",
        "diffusers",
        "flux",
        "var",
        "cogvideox",
        "dc",
        "dc_halved",
    ],
)
def test_equal_to_the_original(tmp_path, layout):
    original, title = {
        "maisi": lambda: (originals.maisi(), "MONAI AutoencoderKlMaisi"),
        "maisi_attention": lambda: (
            originals.maisi(attention_levels=(False, True), with_encoder_nonlocal_attn=True, include_fc=True),
            "MONAI AutoencoderKlMaisi",
        ),
        "kl": lambda: (originals.monai_kl(), "MONAI AutoencoderKL"),
        "kl_3d": lambda: (
            originals.monai_kl(3, with_decoder_nonlocal_attn=False, include_fc=False),
            "MONAI AutoencoderKL",
        ),
        "kl_transposed": lambda: (
            originals.monai_kl(use_convtranspose=True, use_combined_linear=True),
            "MONAI AutoencoderKL",
        ),
        "diffusers": lambda: (originals.diffusers_kl(), "diffusers AutoencoderKL"),
        "flux": lambda: (
            originals.diffusers_kl(use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False),
            "diffusers AutoencoderKL",
        ),
        "cogvideox": lambda: (originals.cogvideox(), "diffusers AutoencoderKLCogVideoX"),
        "dc": lambda: (originals.deep_compression(), "diffusers AutoencoderDC"),
        "dc_halved": lambda: (originals.deep_compression(**originals.HALVED_FIRST), "diffusers AutoencoderDC"),
        "var": lambda: (originals.monai_var(num_res_units=2, norm="batch"), "MONAI VarAutoEncoder"),
    }[layout]()
    file = saved(tmp_path, original.state_dict())
    found = examine_checkpoint(file, trials=False)
    assert found.architecture.layout == title
    assert found.coverage.complete
    assert found.proof.equal, found.proof.summary()
    assert len(found.proof.layers) > 10
    # What is written computes the same, and its card says where it is from.
    convert(found, tmp_path / "model")
    loaded = VAE.from_pretrained(tmp_path / "model")
    x = torch.rand(1, loaded.in_channels, *(loaded.image_size or (16,) * loaded.dim))
    with torch.no_grad():
        assert torch.equal(loaded(x).recon_x, found.model(x).recon_x)
    card = (tmp_path / "model" / "README.md").read_text()
    assert title in card
    assert "equal to" in card
    # The proposed configuration builds a model that the weights fit.
    if found.architecture.recipe is not None:
        arguments = dict(found.architecture.recipe)
        model = RECIPES[arguments.pop("recipe")](**arguments).eval()
        model.load_state_dict(found.model.state_dict(), strict=True)
        assert model.value_range == found.model.value_range
        with torch.no_grad():
            assert torch.equal(model(x).recon_x, found.model(x).recon_x)


@pytest.mark.parametrize("dim", [2, 3])
def test_first_stage_of_latent_diffusion_and_medvae(tmp_path, dim):
    tensors = {f"first_stage_model.{k}": v for k, v in originals.latent_diffusion(dim).items()}
    others = {"model.diffusion_model.out.weight": torch.zeros(2, 2), "first_stage_model.loss.logvar": torch.zeros(1)}
    file = saved(tmp_path, {"state_dict": tensors | others, "global_step": 10}, "model.ckpt")
    found = examine_checkpoint(file, trials=False)
    assert found.architecture.layout == "latent-diffusion AutoencoderKL"
    assert found.coverage.complete
    assert set(found.architecture.unused) == set(others)
    assert found.model.dim == dim
    if dim == 2 or find_spec("medvae"):  # diffusers' own conversion of these names; MedVAE's own class
        assert found.proof.equal, found.proof.summary()
    else:
        assert found.proof is None
        assert "pip install medvae" in found.unproven
    heads = {"channel_proj.weight": torch.zeros(3, 3, *[1] * dim), "channel_proj.bias": torch.zeros(3)}
    file = saved(tmp_path, {"state_dict": originals.latent_diffusion(dim) | heads}, "vae_4x_1c.ckpt")
    medical = recognise(read_checkpoint(file))
    assert medical.layout == "MedVAE"
    assert set(medical.unused) == set(heads)
    lora = {"encoder.conv_in.lora_down.weight": torch.zeros(4, 1, *[3] * dim)}
    file = saved(tmp_path, {"state_dict": originals.latent_diffusion(dim) | heads | lora}, "vae_4x_3c.ckpt")
    with pytest.raises(ValueError, match=r"low-rank factors \(LoRA\) lie beside its kernels.*merge them"):
        recognise(read_checkpoint(file))


@pytest.mark.parametrize("levels", [(False, True), (True, True)])
def test_attention_in_the_stages_as_in_f16_and_f32(tmp_path, levels):
    file = saved(tmp_path, {"state_dict": originals.latent_diffusion(levels=levels, blocks=2)}, "model.ckpt")
    found = examine_checkpoint(file, trials=False)
    assert found.architecture.arguments["attention_levels"] == list(levels)
    assert found.coverage.complete
    assert found.proof.equal, found.proof.summary()
    arguments = dict(found.architecture.recipe)
    RECIPES[arguments.pop("recipe")](**arguments).load_state_dict(found.model.state_dict(), strict=True)
    # The same in diffusers' own names.
    original = originals.diffusers_kl(
        down=tuple("AttnDownEncoderBlock2D" if on else "DownEncoderBlock2D" for on in levels),
        up=tuple("AttnUpDecoderBlock2D" if on else "UpDecoderBlock2D" for on in levels[::-1]),
    )
    theirs = examine_checkpoint(saved(tmp_path, original.state_dict()), trials=False)
    assert theirs.architecture.facts["attention"].startswith("after each block at width ")
    assert theirs.proof.equal, theirs.proof.summary()


@pytest.mark.parametrize("prefix", ["", "module.", "vae.", "model.vae."])
def test_prefixes_and_lightning(tmp_path, prefix):
    original = BetaVaeMonai(2, (1, 16, 12), 1, 6, (4, 8), (2, 2))
    tensors = {prefix + k: v for k, v in original.state_dict().items()}
    stated = {"hyper_parameters": {"model_config": {"in_shape": [1, 16, 12], "strides": [2, 2]}}}
    file = saved(tmp_path, {"state_dict": tensors, **stated}, "last.ckpt")
    model = load_checkpoint(file)
    assert isinstance(model, BetaVaeMonai)
    assert model.image_size == (16, 12)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in original.state_dict().items())


def test_what_neither_weights_nor_file_say_has_to_be_stated(tmp_path):
    original = BetaVaeMonai(2, (1, 16, 12), 1, 6, (4, 8), (2, 2))
    file = saved(tmp_path, original.state_dict())
    with pytest.raises(ValueError, match=r"12 positions, which are no 2-D cube.*in_shape"):
        load_checkpoint(file)
    assert load_checkpoint(file, settings={"in_shape": [1, 16, 12]}).image_size == (16, 12)


def test_beta_vae_25d_is_recognised_with_all_its_arguments(tmp_path):
    arguments = {
        "backbone": "resnet18",
        "in_channels": 1,
        "in_stack_depth": 8,
        "out_stack_depth": 6,
        "latent_dim": 16,
        "input_spatial_size": [64, 64],
        "stem_kernel_size": [2, 4, 4],
        "stem_stride": [2, 4, 4],
        "decoder_stages": 3,
        "norm_name": "instance",
    }
    torch.manual_seed(0)
    original = BetaVae25D(**arguments).eval()
    file = saved(tmp_path, {"state_dict": {f"model.{k}": v for k, v in original.state_dict().items()}}, "last.ckpt")
    found = recognise(read_checkpoint(file))
    assert found.layout == "VisCy BetaVae25D"
    assert {k: found.arguments[k] for k in arguments} == arguments
    x = torch.randn(1, 1, 8, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(file).encode(x).mean, original.encode(x).mean)


@pytest.mark.parametrize("options", [{}, {"norm": "layer", "stem": "sequential-conv", "use_conv_ffn": False}])
def test_transvae_from_a_training_checkpoint(tmp_path, options):
    arguments = {
        "depths": [1, 1, 2],
        "base_dims": [16, 16, 32],
        "compression_ratio": 4,
        "head_dim": 16,
        "latent_dim": 8,
    }
    original = TransVAE("tiny", **arguments, **options).eval()
    file = saved(tmp_path, {"model_state_dict": original.state_dict(), "epoch": 4}, "best.pth")
    model = load_checkpoint(file)
    x = torch.rand(1, 3, 16, 20)
    with torch.no_grad():
        assert torch.equal(model(x).reconstruction, original(x).reconstruction)
    # Nobody else's implementation stands behind that, and it is said.
    found = examine_checkpoint(file, trials=False)
    assert found.proof is None
    assert "says nothing about any other code" in found.unproven
    others = {
        "encoder.conv_in.weight": torch.zeros(8, 3, 3, 3),
        "encoder.stages.0.0.norm1.weight": torch.zeros(8),
        "encoder.downsamples.0.main_path.0.weight": torch.zeros(8, 8, 3, 3),
        "encoder.downsamples.0.dc_conv.weight": torch.zeros(8, 32, 1, 1),
        "conv_mu.weight": torch.zeros(4, 8, 3, 3),
    }
    with pytest.raises(ValueError, match=r"a re-implementation that circulates.*cannot be converted"):
        load_checkpoint(saved(tmp_path, {"model_state_dict": others}, "other.pth"))


def test_half_precision_weights_become_float32(tmp_path):
    original = MaisiVAE(num_channels=(32, 32), num_res_blocks=(1, 1))
    from omnivae.networks.maisi import to_monai

    file = saved(tmp_path, {k: v.half() for k, v in to_monai(original.state_dict()).items()})
    assert {p.dtype for p in load_checkpoint(file).parameters()} == {torch.float32}


def test_an_unknown_layout_names_the_nearest_and_what_differs(tmp_path):
    tensors = originals.monai_kl().state_dict()
    odd = tensors | {"encoder.blocks.1.film.weight": torch.zeros(3)}
    with pytest.raises(
        ValueError, match=r"nearest is MONAI AutoencoderKL.*encoder\.blocks\.1\.film\.weight has no place"
    ):
        load_checkpoint(saved(tmp_path, odd))
    wrong = tensors | {"quant_conv_mu.conv.weight": torch.zeros(3, 5, 1, 1)}
    with pytest.raises(
        ValueError, match=r"quant_conv_mu\.conv\.weight has shape \[3, 5, 1, 1\], expected \[3, 3, 1, 1\]"
    ):
        load_checkpoint(saved(tmp_path, wrong))
    missing = {k: v for k, v in tensors.items() if k != "post_quant_conv.conv.bias"}
    with pytest.raises(ValueError, match=r"nothing fills decoder\.post_quant_conv\.conv\.bias"):
        load_checkpoint(saved(tmp_path, missing))
    with pytest.raises(ValueError, match="of no known layout; none of their names"):
        load_checkpoint(saved(tmp_path, {"foo": torch.zeros(1)}))
    attention = originals.latent_diffusion() | {"encoder.down.0.attn.0.q.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"encoder\.down\.0\.attn\.0\.q\.weight has shape \[1\], expected \[32, 32\]"):
        load_checkpoint(saved(tmp_path, attention))
