import copy
import re

import pytest
import torch

from omnivae.models import VAE
from omnivae.networks.kl import KLDecoder, KLEncoder, SpatialAttention
from omnivae.recipes.convolutional import kl_autoencoder


def small(**arguments):
    torch.manual_seed(0)
    defaults = {"in_channels": 2, "channels": (8, 16), "num_res_blocks": 1, "num_groups": 4, "latent_dim": 3}
    return kl_autoencoder(**(defaults | arguments))


# One row for each kind of tensor: diffusers' name, ours.
KEY_MAP = [
    (r"^quant_conv\.", "posterior.projection."),
    (r"^post_quant_conv\.", "decoder.post_quant."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.mid_block\.resnets\.0\.", ".mid.0."),
    (r"\.mid_block\.attentions\.0\.", ".mid.1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.2."),
    (r"\.(down|up)_blocks\.(\d+)\.resnets\.", r".stages.\2.blocks."),
    (r"\.(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r".stages.\2.resample."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_out\.0\.", ".out."),
]


def translate(key):
    for pattern, replacement in KEY_MAP:
        key = re.sub(pattern, replacement, key)
    return key


def peer(**arguments):
    import diffusers  # a development dependency: parity must not be skipped in silence

    channels = arguments.pop("block_out_channels")
    return diffusers.AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        latent_channels=4,
        **arguments,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_same_function_as_diffusers(dtype, tolerance):
    torch.manual_seed(0)
    theirs = peer(block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, sample_size=32).to(dtype).eval()
    for parameter in theirs.parameters():  # norms and biases too: at their defaults a swap would go unseen
        torch.nn.init.normal_(parameter, std=0.1)
    ours = kl_autoencoder(channels=(32, 64), num_res_blocks=1, num_groups=8).to(dtype).eval()
    ours.load_state_dict({translate(key): value for key, value in theirs.state_dict().items()}, strict=True)
    x = torch.randn(2, 3, 20, 32, dtype=dtype)
    with torch.no_grad():
        want, got = theirs.encode(x).latent_dist, ours.encode(x)
        assert (want.mean - got.mean).abs().max() < tolerance * want.mean.abs().max()
        assert (want.logvar - got.logvar).abs().max() < tolerance * want.logvar.abs().max()
        image = theirs.decode(want.mean).sample
        assert (image - ours.decode(want.mean)).abs().max() < tolerance * image.abs().max()


def test_stable_diffusion_has_as_many_parameters_as_in_diffusers():
    with torch.device("meta"):
        ours = kl_autoencoder()
        theirs = peer(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=256)
    assert ours.num_parameters() == sum(p.numel() for p in theirs.parameters()) == 83_653_863
    shapes = {translate(key): value.shape for key, value in theirs.state_dict().items()}
    assert shapes == {key: value.shape for key, value in ours.state_dict().items()}
    assert (ours.encoder.stride, ours.latent_dim) == (8, 4)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("mid_attention", [True, False])
def test_networks_mirror_each_other_in_every_dimension(dim, mid_attention):
    size = (4, 8, 6)[:dim]
    shared = {"num_res_blocks": 1, "dim": dim, "num_groups": 4, "mid_attention": mid_attention}
    encoder = KLEncoder(2, 6, (8, 16), **shared)
    decoder = KLDecoder(6, 5, (16, 8), **shared)
    features = encoder(torch.randn(2, 2, *size))
    assert features.shape == (2, 6, *(n // 2 for n in size))
    assert decoder(features).shape == (2, 5, *size)
    assert (encoder.in_channels, encoder.out_channels, encoder.stride, encoder.dim) == (2, 6, 2, dim)
    assert (decoder.in_channels, decoder.out_channels, decoder.stride, decoder.dim) == (6, 5, 2, dim)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_every_size_comes_back(dim):
    model = small(dim=dim, channels=(4, 8, 8)).eval()
    for size in range(1, 21):
        x = torch.randn(1, 2, *(size, 21 - size, 5)[:dim])
        assert model.decode(model.encode(x)).shape == x.shape


def test_attention_is_softmax_over_all_positions():
    torch.manual_seed(0)
    module = SpatialAttention(8, num_groups=2).double()
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    tokens = module.norm(x).flatten(2).mT
    scores = (module.query(tokens) @ module.key(tokens).mT / 8**0.5).softmax(-1)
    want = x + module.out(scores @ module.value(tokens)).mT.reshape(2, 8, 3, 5)
    torch.testing.assert_close(module(x), want)


def test_gradients_reach_every_parameter_also_when_recomputed():
    model, x = small(), torch.randn(2, 2, 8, 8)
    gradients = []
    for checkpointed in (False, True):
        model.enable_gradient_checkpointing(checkpointed).zero_grad()
        torch.manual_seed(1)
        output = model.train()(x)
        (output.latents[0].posterior.kl().mean() - output.likelihood.log_prob(x).mean()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    # Softmax does not see a constant that is added to all keys: that one bias has no gradient but rounding.
    silent = {"encoder.mid.1.key.bias", "decoder.mid.1.key.bias"}
    assert {n for n, g in gradients[0].items() if not g.abs().max() > 1e-6} <= silent
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_gradient_checkpointing_saves_memory():
    def saved_bytes(model):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.zeros(1, 2, 16, 16))
        return total

    model = small()
    assert saved_bytes(model.enable_gradient_checkpointing()) < 0.5 * saved_bytes(
        model.enable_gradient_checkpointing(False)
    )


def test_evaluation_is_deterministic_and_files_are_exact(tmp_path):
    model = small().eval()
    x = torch.randn(2, 2, 7, 12)
    first = model(x)
    assert torch.equal(first.reconstruction, model(x).reconstruction)
    model.save_pretrained(tmp_path)
    loaded = VAE.from_pretrained(tmp_path)
    assert torch.equal(first.reconstruction, loaded(x).reconstruction)
    assert torch.equal(first.logvar, loaded(x).logvar)


@pytest.mark.parametrize(("dim", "layout"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_channels_last_is_kept_and_changes_nothing(dim, layout):
    model = small(dim=dim).eval()
    x = torch.randn(2, 2, *(8, 12, 4)[:dim])
    want = model.encoder(x), model(x).reconstruction
    last = copy.deepcopy(model).to(memory_format=layout)
    features = last.encoder(x.to(memory_format=layout))
    assert features.is_contiguous(memory_format=layout)
    torch.testing.assert_close(features, want[0], atol=1e-5, rtol=1e-5)
    params = last.decoder(last.posterior(features).mode())
    assert params.is_contiguous(memory_format=layout)
    torch.testing.assert_close(params, want[1], atol=1e-5, rtol=1e-5)


def test_autocast_keeps_densities_in_float32_and_activations_in_bfloat16():
    model = small().eval()
    x = torch.randn(2, 2, 8, 12)
    exact = model(x)
    dtypes = []
    hook = model.encoder.stages[0].blocks[0].conv2.register_forward_pre_hook(lambda _, x: dtypes.append(x[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    hook.remove()
    assert dtypes == [torch.bfloat16]
    assert output.mean.dtype == output.logvar.dtype == output.reconstruction.dtype == torch.float32
    for got, want in zip(output, exact, strict=True):
        assert (got - want).square().mean().sqrt() < 0.03 * want.square().mean().sqrt()


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="groups that divide"):
        small(channels=(6, 12))
    with pytest.raises(ValueError, match="1, 2 or 3"):
        small(dim=0)
    with pytest.raises(ValueError, match="num_res_blocks"):
        small(num_res_blocks=0)
    model, cond = small(), torch.zeros(1, 4)
    with pytest.raises(ValueError, match="built without"):
        model.encoder(torch.zeros(1, 2, 8, 8), cond)
    with pytest.raises(ValueError, match="built without"):
        model.decoder(torch.zeros(1, 3, 8, 8), cond)
    with pytest.raises(ValueError, match="multiples of 2"):
        model.encoder(torch.zeros(1, 2, 7, 8))
