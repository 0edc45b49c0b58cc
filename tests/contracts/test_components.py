"""What every recipe promises, whatever is registered: nothing here is listed by hand twice."""

import copy
import math
from inspect import signature

import pytest
import torch
from torch.distributions import Distribution

from omnivae.distributions import DiagonalGaussian
from omnivae.losses import NLL, loss_classes
from omnivae.models import VAE
from omnivae.networks.layers import LAYOUT
from omnivae.recipes import RECIPES
from omnivae.tokens import END, PAD
from omnivae.training import TrainingConfig, fit
from omnivae.types import strides

# One entry for each recipe: the smallest build that still has every kind of block.
TOY = {
    "transvae": {"compression_ratio": 4, "latent_dim": 4, "depths": [1, 1, 1], "base_dims": [8, 8, 16], "head_dim": 8},
    "conv_vae": {"image_size": 16, "latent_dim": 4, "channels": [4, 8]},
    "beta_vae": {"in_channels": 3, "image_size": 16, "latent_dim": 4, "channels": [4, 8]},
    "kl_autoencoder": {"latent_dim": 4, "channels": [8, 8], "num_res_blocks": 1, "num_groups": 4},
    "cnn_vae": {"latent_dim": 4, "depths": [1, 1, 1, 1, 1], "base_dims": [8, 8, 8, 8, 8]},
    "vit_vae": {"latent_dim": 4, "depth": 1, "width": 16, "head_dim": 8, "input_resolution": 32},
    "swin_vae": {"latent_dim": 4, "depths": [2, 2], "dims": [16, 16], "head_dim": 8, "window_size": 2, "patch_size": 2},
    "mixture_vae": {"in_channels": 3, "image_size": 16, "latent_dim": 4, "channels": [4, 8], "num_components": 3},
    "vamp_vae": {"in_channels": 3, "image_size": 16, "latent_dim": 4, "channels": [4, 8], "num_components": 3},
    "full_covariance_vae": {"in_channels": 3, "image_size": 16, "latent_dim": 4, "channels": [4, 8]},
    "gumbel_softmax_vae": {
        "in_channels": 3,
        "image_size": 16,
        "num_groups": 3,
        "num_categories": 4,
        "channels": [4, 8],
    },
    "hyperspherical_vae": {"in_channels": 3, "image_size": 16, "latent_dim": 4, "channels": [4, 8]},
    "flow_vae": {"in_channels": 3, "image_size": 16, "latent_dim": 4, "channels": [4, 8], "num_flows": 2},
    "iaf_vae": {
        "in_channels": 3,
        "image_size": 16,
        "latent_dim": 4,
        "channels": [4, 8],
        "num_flows": 2,
        "hidden": [8],
        "context_dim": 3,
    },
    "flow_prior_vae": {"in_channels": 3, "image_size": 16, "latent_dim": 4, "channels": [4, 8], "num_flows": 2},
    "autoencoder": {"in_channels": 3, "image_size": 16, "latent_dim": 4, "channels": [4, 8]},
    "vq_vae": {"image_size": 16, "latent_dim": 4, "channels": [8, 8], "num_codes": 8},
    "residual_vq_vae": {"image_size": 16, "latent_dim": 4, "channels": [8, 8], "num_codes": 8, "num_books": 2},
    "fsq_vae": {"image_size": 16, "levels": [5, 5, 5], "channels": [8, 8]},
    "lfq_vae": {"image_size": 16, "latent_dim": 4, "channels": [8, 8]},
}
# The convolutional and the fully connected network that the papers on objectives share.
CONVOLUTIONAL = {"in_channels": 3, "image_size": 16, "latent_dim": 4, "channels": [4, 8], "hidden": [8]}
FULLY_CONNECTED = {"in_channels": 3, "image_size": 16, "latent_dim": 4, "hidden": [16, 8]}
TOY |= dict.fromkeys(
    (
        "capacity_vae",
        "beta_tc_vae",
        "factor_vae",
        "dip_vae_i",
        "dip_vae_ii",
        "info_vae",
        "wae",
        "sigma_vae",
        "ms_ssim_vae",
        "dfc_vae",
        "vae_gan",
    ),
    CONVOLUTIONAL,
)
TOY["eq_vae"] = TOY["kl_autoencoder"]
TOY |= dict.fromkeys(("iwae", "miwae", "ciwae", "aae"), FULLY_CONNECTED)
TOY |= {
    "hierarchical_vae": {
        "in_channels": 3,
        "image_size": 16,
        "latent_dims": [2, 4],
        "widths": [8, 16],
        "channels": [4, 8],
    },
    "ladder_vae": {"in_channels": 3, "image_size": 16, "latent_dims": [2, 3, 4], "widths": [4, 8, 16]},
    "deep_hierarchical_vae": {"channels": [8, 8, 16], "num_groups": [1, 2, 2], "latent_dim": 3},
    "lite_vae": {"encoder_channels": 8, "channels": [8, 8, 8], "num_res_blocks": 1, "num_groups": 4},
}
TOY["text_vae"] = {"vocabulary": list("abcdefgh"), "max_length": 12, "latent_dim": 4, "embedding_dim": 6, "hidden": 8}
TOY["maisi_vae"] = {"num_channels": [8, 8], "num_res_blocks": [1, 1], "norm_num_groups": 4, "latent_dim": 3}
TOY["monai_kl"] = {"in_channels": 3, "latent_dim": 4, "channels": [8, 8], "num_res_blocks": [1, 1], "num_groups": 4}
TOY["cogvideox_vae"] = {
    "latent_dim": 3,
    "channels": [4, 8, 8],
    "num_res_blocks": 1,
    "time_stride": 2,
    "num_groups": 2,
}
TOY["dc_ae"] = {
    "latent_dim": 4,
    "channels": [4, 4, 8, 8],
    "num_blocks": [0, 1, 1, 1],
    "decoder_num_blocks": [0, 1, 1, 1],
    "multiscales": [[], [], [], [3]],
    "head_dim": 4,
}
TOY["video_vae"] = {"base_channels": 4, "num_res_blocks": 1, "num_groups": 2, "stack_size": 2}
TOY["beta_vae_25d"] = {
    "backbone": "test_convnext",
    "in_channels": 1,
    "in_stack_depth": 8,
    "out_stack_depth": 8,
    "latent_dim": 4,
    "input_spatial_size": [32, 32],
    "decoder_stages": 3,
    "conv_blocks": 1,
    "head_expansion_ratio": 1,
}
TOY["beta_vae_monai"] = {
    "spatial_dims": 3,
    "in_shape": [1, 8, 8, 8],
    "out_channels": 1,
    "latent_size": 4,
    "channels": [4, 8],
    "strides": [2, 2],
}
# More compositions of the same recipes; the contract is the same.
VARIATIONS = {
    "transvae/ablated": (
        "transvae",
        {
            **TOY["transvae"],
            "use_rope": False,
            "use_absolute_positions": True,
            "use_conv_ffn": False,
            "use_dc_path": False,
            "norm": "layer",
            "stem": "sequential-conv",
            "input_resolution": 16,
        },
    ),
    "transvae/dwconv": ("transvae", {**TOY["transvae"], "ffn": "dwconv"}),
    "conv_vae/spatial": ("conv_vae", {**TOY["conv_vae"], "latent": "spatial", "norm": "group"}),
    "conv_vae/3d": ("conv_vae", {"image_size": 8, "latent_dim": 3, "channels": [4, 8], "dim": 3, "in_channels": 1}),
    "conv_vae/1d": ("conv_vae", {"image_size": 16, "latent_dim": 3, "channels": [4, 8], "dim": 1, "in_channels": 2}),
    "vq_vae/3d": ("vq_vae", {**TOY["vq_vae"], "dim": 3, "in_channels": 1}),
    "factor_vae/3d": ("factor_vae", {**CONVOLUTIONAL, "in_channels": 1, "dim": 3}),
    "wae/1d": ("wae", {**CONVOLUTIONAL, "dim": 1}),
    "iwae/3d": ("iwae", {**FULLY_CONNECTED, "in_channels": 1, "image_size": 8, "dim": 3}),
    "text_vae/gru": (
        "text_vae",
        {**TOY["text_vae"], "cell": "gru", "tied": True, "tokens": "character", "decoder_layers": 2},
    ),
    "kl_autoencoder/3d": ("kl_autoencoder", {**TOY["kl_autoencoder"], "dim": 3, "in_channels": 1}),
    "gumbel_softmax_vae/straight": ("gumbel_softmax_vae", {**TOY["gumbel_softmax_vae"], "straight_through": True}),
    "gumbel_softmax_vae/3d": (
        "gumbel_softmax_vae",
        {**TOY["gumbel_softmax_vae"], "latent": "spatial", "dim": 3, "in_channels": 1},
    ),
    "hyperspherical_vae/1d": ("hyperspherical_vae", {**TOY["hyperspherical_vae"], "dim": 1, "latent_dim": 2}),
    "flow_vae/planar": ("flow_vae", {**TOY["flow_vae"], "flow": "planar"}),
    "flow_vae/glow-1d": ("flow_vae", {**TOY["flow_vae"], "flow": "glow", "dim": 1}),
    "flow_vae/nsf-3d": ("flow_vae", {**TOY["flow_vae"], "flow": "nsf", "dim": 3, "image_size": 8, "in_channels": 1}),
    "flow_vae/maf": ("flow_vae", {**TOY["flow_vae"], "flow": "maf"}),
    "hierarchical_vae/independent": ("hierarchical_vae", {**TOY["hierarchical_vae"], "inference": "independent"}),
    "hierarchical_vae/3d": (
        "hierarchical_vae",
        {**TOY["hierarchical_vae"], "image_size": 8, "dim": 3, "in_channels": 1},
    ),
    "deep_hierarchical_vae/vdvae": ("deep_hierarchical_vae", {**TOY["deep_hierarchical_vae"], "block": "vdvae"}),
    "deep_hierarchical_vae/3d": (
        "deep_hierarchical_vae",
        {"channels": [8, 16], "num_groups": [1, 2], "latent_dim": 3, "dim": 3, "in_channels": 1},
    ),
    "lite_vae/3d": ("lite_vae", {**TOY["lite_vae"], "channels": [8, 8], "dim": 3, "in_channels": 1}),
}
#: Recipes that are told nothing about an image; the others have their contract in test_conditional.py.
UNTOLD = [name for name, made in RECIPES.items() if not {"cond_dim", "num_classes"} & set(signature(made).parameters)]
CASES = {name: (name, TOY.get(name)) for name in UNTOLD} | VARIATIONS
VECTOR = ["conv_vae", "beta_vae", "mixture_vae", "vamp_vae", "full_covariance_vae", "autoencoder"]
VECTOR += [name for name in TOY if TOY[name] in (CONVOLUTIONAL, FULLY_CONNECTED)]
VECTOR += ["hierarchical_vae", "ladder_vae", "hierarchical_vae/independent"]
VECTOR += ["gumbel_softmax_vae", "hyperspherical_vae", "gumbel_softmax_vae/straight"]
VECTOR += ["flow_vae", "iaf_vae", "flow_prior_vae", "flow_vae/planar", "flow_vae/maf"]
OTHER_VECTOR = [
    "hyperspherical_vae/1d",
    "flow_vae/glow-1d",
    "flow_vae/nsf-3d",
    "hierarchical_vae/3d",
    "conv_vae/3d",
    "conv_vae/1d",
    "factor_vae/3d",
    "wae/1d",
    "iwae/3d",
    "beta_vae_25d",
    "beta_vae_monai",
]
TEXT = [name for name in CASES if name.startswith("text_vae")]
SPATIAL = [name for name in CASES if name not in (*VECTOR, *OTHER_VECTOR, *TEXT)]
#: Losses that belong to a posterior: what it must provide, under the loss's name.
OF_POSTERIOR = {"kl": "density", "commitment": "commitment", "entropy": "entropy", "norm": "norm"}


def build(case, **overrides):
    name, arguments = CASES[case]
    assert arguments is not None, f"the recipe {name!r} has no toy size: add it to TOY in this file"
    torch.manual_seed(1)
    return RECIPES[name](**(arguments | overrides))


def images(model, n=4, seed=0):
    low, high = model.value_range
    if not model.pixels:
        # Sentences of every length from one word on, ended and padded.
        x = torch.randint(3, int(high) + 1, (n, model.max_length), generator=torch.Generator().manual_seed(seed))
        lengths = torch.linspace(1, model.max_length - 1, n).long()[:, None]
        places = torch.arange(model.max_length)
        return torch.where(places < lengths, x, torch.where(places == lengths, END, PAD))
    # At least two positions in each direction of the latent: attention over one position has no gradient.
    side = max(16, 2 * max(strides(model.encoder, model.dim)))
    shape = (n, model.in_channels, *(side if model.dim < 3 else side // 2,) * model.dim)
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def losses_of(model):
    """The NLL and every loss that belongs to the model's posterior."""
    own = [name for name, needed in OF_POSTERIOR.items() if needed in model.posterior.provides]
    return {"nll": NLL()} | {name: loss_classes()[name](weight=0.1) for name in own}


class Images:
    """A map-style data set of random images."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index]}


def train_two_steps(model, losses, directory, x=None, **config):
    saved = []
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"batch_size": 4, "max_steps": 2, "precision": "32", "warmup_steps": 0, "learning_rate": 1e-3} | config
    result = fit(
        model,
        losses,
        Images(images(model, 8) if x is None else x),
        None,
        config=TrainingConfig(**settings),
        directory=directory,
        save_model=lambda trained: saved.append(copy.deepcopy(trained.state_dict())),
        progress=False,
    )
    assert result.complete
    assert saved
    assert all(bool(torch.isfinite(t).all()) for t in model.state_dict().values() if t.is_floating_point())
    return saved[-1]


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def test_every_recipe_has_a_toy_size():
    assert set(TOY) == set(UNTOLD)


# -- recipes


def test_two_training_steps_change_every_weight_and_stay_finite(case, tmp_path):
    model = build(case)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_two_steps(model, losses_of(model), tmp_path)
    same = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert same == []


def test_gradients_reach_every_parameter(case):
    model = build(case).train()
    x = images(model)
    # Small random values in place of zero-initialised outputs: a gradient that is zero only at initialisation is no fault.
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.05)
    output = model(x)
    sum(loss(output, {"x": x}) for loss in losses_of(model).values()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert missing == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_output_contract(case):
    model = build(case).eval()
    x = images(model)
    output = model(x)
    assert output.reconstruction.shape == x.shape
    assert output.reconstruction is output.recon_x
    posterior = model.encode(x)
    assert tuple(posterior.shape) == (4, model.latent_dim, *model.latent_size(x.shape[2:]))
    provides = model.posterior.provides
    if "density" in provides:
        reconstruction, mean, logvar = output
        assert reconstruction is output.reconstruction
        assert mean.shape == logvar.shape == output.z.shape
    assert isinstance(posterior, DiagonalGaussian) == ("diagonal" in provides)
    # With several latents the output's z is the top one's; what encode gives has all of them packed into one.
    assert len(output.latents) > 1 or tuple(posterior.shape) == tuple(output.z.shape)
    z, log_q = posterior.rsample(3)
    assert z.shape == (3, *posterior.shape)
    assert log_q.shape == (3, 4) if "density" in provides else log_q is None
    # A point has no density to compare with a prior, but its codes may have to look like samples of one (WAE, AAE).
    assert "density" not in provides or model.prior is not None
    assert ("indices" in provides) == hasattr(posterior, "indices")
    assert set(posterior.penalties) == provides - {"density", "diagonal", "indices"}
    assert all(value.shape == (4,) for value in posterior.penalties.values())
    likelihood = model.likelihood(z[0], size=x.shape[2:])
    assert isinstance(likelihood, Distribution)
    assert tuple(likelihood.batch_shape) == (4,)
    assert tuple(likelihood.event_shape) == tuple(x.shape[1:])
    assert likelihood.log_prob(x).shape == (4,)
    assert model.decode(posterior).shape == x.shape
    if model.prior is None:
        with pytest.raises(ValueError, match="no prior to sample from"):
            model.sample(2, size=x.shape[2:])
    else:
        assert model.sample(2, size=x.shape[2:]).shape == (2, *x.shape[1:])


def test_evaluation_is_deterministic_and_training_samples(case):
    model = build(case).eval()
    x = images(model)
    with torch.no_grad():
        first, second = model(x), model(x)
        assert torch.equal(first.reconstruction, second.reconstruction)
        assert torch.equal(model.encode(x).mode(), model.encode(x).mode())
        assert torch.equal(first.z, first.latents[0].posterior.mode())
        again = model(x, sample=True)
    # Without a density there is nothing to draw.
    assert torch.equal(again.z, first.z) == ("density" not in model.posterior.provides)


def test_an_image_does_not_depend_on_its_batch(case):
    model = build(case).eval()
    x = images(model)
    with torch.no_grad():
        together, alone = model(x), model(x[1:2])
    torch.testing.assert_close(alone.reconstruction[0], together.reconstruction[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone.z[0], together.z[1], atol=1e-5, rtol=1e-4)


def test_saving_and_loading_is_bit_equal(case, tmp_path):
    model = build(case)
    x = images(model)
    model.train()(x)  # moves normalisation statistics away from their initial values
    model.eval().save_pretrained(tmp_path / "model")
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {"config.json", "model.safetensors", "statistics.json", "README.md"}
    again = VAE.from_pretrained(tmp_path / "model")
    assert type(again) is type(model)
    with torch.no_grad():
        first, second = model(x), again(x)
        assert torch.equal(first.reconstruction, second.reconstruction)
        assert torch.equal(first.z, second.z)
        if model.prior is None:
            return
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        size = x.shape[2:]
        assert torch.equal(
            model.sample(2, size=size, generator=generators[0]), again.sample(2, size=size, generator=generators[1])
        )


def test_bf16_autocast_keeps_posterior_and_kl_in_float32(case):
    model = build(case).train()
    x = images(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
        terms = {name: loss(output, {"x": x}) for name, loss in losses_of(model).items()}
    assert output.z.dtype == torch.float32
    if "density" in model.posterior.provides:
        assert output.mean.dtype == output.logvar.dtype == torch.float32
    assert output.reconstruction.dtype == (torch.float32 if model.pixels else torch.int64)
    for value in terms.values():
        assert value.dtype == torch.float32
        assert bool(torch.isfinite(value))
    sum(terms.values()).backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_bf16_is_near_float32(case):
    model = build(case).eval()
    if "indices" in model.posterior.provides or getattr(model.posterior, "support", None) == "one-hot":
        pytest.skip("a rounded feature may have another code")
    if not model.pixels:
        pytest.skip("a rounded score may have another word: tests/models/test_text.py compares the scores")
    x = images(model)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(x)
    # bfloat16 has 8 significant bits; a few layers of rounding stay within some per cent of the value range.
    assert float((exact.reconstruction - rough.reconstruction).abs().max()) < 0.1


def test_repr_names_the_parts(case):
    text = repr(build(case))
    for part in ("encoder", "posterior", "decoder", "likelihood", "prior"):
        assert part in text or getattr(build(case), part, "") is None


@pytest.mark.parametrize("case", SPATIAL)
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (17, 33)])
def test_any_size_comes_back(case, size):
    model = build(case).eval()
    size = size if model.dim == 2 else (*size, 2)
    low, high = model.value_range
    x = low + (high - low) * torch.rand(2, model.in_channels, *size)
    with torch.no_grad():
        output = model(x)
        assert output.reconstruction.shape == x.shape
        assert model.decode(model.encode(x)).shape == x.shape
    expected = tuple(math.ceil(n / s) for n, s in zip(size, strides(model.encoder, model.dim), strict=True))
    # Stacks of frames, and the stretches of causal video, are filled up.
    if not hasattr(model, "stack_size") and not hasattr(model.encoder, "padded_size"):
        assert output.z.shape[2:] == expected
    assert output.z.shape[2:] == model.latent_size(size)
    assert output.z.shape[3:] == expected[1:]


@pytest.mark.parametrize("case", VECTOR)
def test_vector_latents_say_how_large_an_image_may_be(case):
    model = build(case).eval()
    small = torch.full((2, model.in_channels, 9, 13), 0.5)
    assert model(small).reconstruction.shape == small.shape
    with pytest.raises(ValueError, match=r"17x16.*at most 16x16"):
        model(torch.full((2, model.in_channels, 17, 16), 0.5))


@pytest.mark.parametrize("case", [name for name in CASES if "1d" not in name and name not in TEXT])
def test_channels_last_gives_the_same_numbers(case):
    model = build(case).eval()
    x = images(model)
    with torch.no_grad():
        plain = model(x).reconstruction
        fast = copy.deepcopy(model)
        for parameter in fast.parameters():
            if parameter.ndim in LAYOUT:
                parameter.data = parameter.data.contiguous(memory_format=LAYOUT[parameter.ndim])
        fast = fast(x.to(memory_format=LAYOUT[x.ndim]))
    torch.testing.assert_close(fast.reconstruction, plain, atol=1e-5, rtol=1e-4)
