"""Lifted networks: frame by frame what the 2-D network computes, kernels over time where they are trained."""

import pytest
import torch

from omnivae.component import from_config, to_config
from omnivae.networks.conv import ConvDecoder, ConvEncoder
from omnivae.networks.kl import KLDecoder, KLEncoder
from omnivae.networks.transvae import TransVAEDecoder, TransVAEEncoder
from omnivae.networks.video import LiftedNetwork, inflated

KL = {"num_res_blocks": 1, "num_groups": 4}
DEPTHS = {"depths": (1, 1, 1), "compression_ratio": 4, "num_conv_stages": 3}
NETWORKS = {
    "kl": (lambda: KLEncoder(2, 6, (8, 8, 16), **KL), lambda: KLDecoder(3, 2, (16, 8, 8), **KL)),
    "conv": (lambda: ConvEncoder(2, (8, 6)), lambda: ConvDecoder(3, 2, (6, 8))),
    "conv/conditional": (
        lambda: ConvEncoder(2, (8, 6), cond_dim=3),
        lambda: ConvDecoder(3, 2, (6, 8), cond_dim=3, conditioning="film"),
    ),
    "cnn": (
        lambda: TransVAEEncoder(2, (8, 8, 8), **DEPTHS),
        lambda: TransVAEDecoder(3, 2, (8, 8, 8), **DEPTHS),
    ),
}


def pair(name, side):
    torch.manual_seed(0)
    network = NETWORKS[name][side]().double().eval()
    size = (8, 12) if side == 0 else (2, 3)
    return network, torch.randn(2, network.in_channels, 5, *size, dtype=torch.float64)


def condition(network):
    return torch.randn(2, 3, dtype=torch.float64) if getattr(network, "cond_dim", None) else None


both = pytest.mark.parametrize("side", [0, 1], ids=["encoder", "decoder"])
every = pytest.mark.parametrize("name", NETWORKS)


@every
@both
@pytest.mark.parametrize("inflation", ["central", "average"])
def test_one_frame_gives_what_the_image_gives(name, side, inflation):
    network, x = pair(name, side)
    lifted = LiftedNetwork(network, inflation=inflation).eval()
    cond = condition(network)
    with torch.no_grad():
        torch.testing.assert_close(
            lifted(x[:, :, :1], cond)[:, :, 0], network(x[:, :, 0], cond), rtol=1e-10, atol=1e-12
        )


@every
@both
def test_central_inflation_treats_every_frame_as_an_image(name, side):
    network, x = pair(name, side)
    lifted, cond = LiftedNetwork(network).eval(), condition(network)
    with torch.no_grad():
        frames = torch.stack([network(x[:, :, t], cond) for t in range(5)], 2)
        torch.testing.assert_close(lifted(x, cond), frames, rtol=1e-10, atol=1e-12)


@every
@both
def test_average_inflation_sees_neighbours_and_keeps_still_clips_still(name, side):
    network, x = pair(name, side)
    lifted, cond = LiftedNetwork(network, inflation="average").eval(), condition(network)
    still = x[:, :, :1].expand(-1, -1, 4, -1, -1)
    with torch.no_grad():
        expected = network(x[:, :, 0], cond).unsqueeze(2)
        torch.testing.assert_close(lifted(still, cond), expected.expand(-1, -1, 4, -1, -1), rtol=1e-9, atol=1e-11)
        other = x.clone()
        other[:, :, 3] += 1
        assert not torch.allclose(lifted(x, cond)[:, :, 2], lifted(other, cond)[:, :, 2])


@pytest.mark.parametrize("name", ["kl", "conv"])
@pytest.mark.parametrize("inflation", ["central", "average"])
@pytest.mark.parametrize("time_stride", [2, 4])
def test_time_may_be_resampled_too(name, inflation, time_stride):
    (encoder, x), (decoder, z) = pair(name, 0), pair(name, 1)
    down = LiftedNetwork(encoder, time_stride=time_stride, inflation=inflation).eval()
    up = LiftedNetwork(decoder, time_stride=time_stride, inflation=inflation).eval()
    still = x[:, :, :1].expand(-1, -1, 2 * time_stride, -1, -1)
    with torch.no_grad():
        features, image = down(still), up(z[:, :, :3])
        assert features.shape[2] == 2
        assert image.shape[2] == 3 * time_stride
        expected = encoder(x[:, :, 0]).unsqueeze(2).expand_as(features)
        torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-11)
        single = up(z[:, :, :1])
        expected = decoder(z[:, :, 0]).unsqueeze(2).expand_as(single)
        torch.testing.assert_close(single, expected, rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="takes multiples of"):
        down(x)


def test_a_convolution_over_time_is_the_three_dimensional_one():
    torch.manual_seed(0)
    lifted = LiftedNetwork(ConvEncoder(2, (4,), norm="none")).double()
    conv = lifted.network.stages[0].conv
    torch.nn.init.normal_(conv.weight)
    x = torch.randn(2, 2, 6, 8, 8, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 1, 1), mode="replicate")
    expected = torch.nn.functional.conv3d(padded, conv.weight, conv.bias, stride=(1, 2, 2), padding=(0, 1, 1)).relu()
    torch.testing.assert_close(lifted(x), expected)


def test_a_clip_does_not_depend_on_the_others_and_every_parameter_learns():
    torch.manual_seed(0)
    lifted = LiftedNetwork(KLEncoder(1, 4, (8, 8), **KL), inflation="average")
    x = torch.randn(3, 1, 4, 8, 8)
    torch.testing.assert_close(lifted(x)[1:2], lifted(x[1:2]), atol=1e-5, rtol=1e-4)
    lifted(x).square().sum().backward()
    missing = [name for name, p in lifted.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_gradient_checkpointing_gives_the_same_gradients_also_after_another_batch():
    torch.manual_seed(0)
    lifted = LiftedNetwork(KLEncoder(1, 4, (8, 8), **KL), inflation="average").double()
    first, second = torch.randn(1, 1, 6, 8, 8).double(), torch.randn(3, 1, 2, 8, 8).double()

    def gradients(checkpointed):
        lifted.network.gradient_checkpointing = checkpointed
        lifted.zero_grad()
        # Six frames are one clip of six, or three of two: what is recomputed must know which.
        (lifted(first).square().sum() + lifted(second).pow(4).sum()).backward()
        return [p.grad.clone() for p in lifted.parameters()]

    for plain, again in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, again)


def test_it_is_rebuilt_from_its_configuration_and_leaves_the_original_alone():
    network = KLEncoder(1, 4, (8, 8), **KL)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    lifted = LiftedNetwork(network, time_stride=2, inflation="average")
    again = from_config(to_config(lifted))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in lifted.state_dict().items()}
    assert again.stride == lifted.stride == (2, 2, 2)
    with torch.no_grad():
        for parameter in lifted.parameters():
            parameter.zero_()
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert network.dim == 2


@pytest.mark.parametrize("inflation", ["central", "average"])
def test_the_taps_of_a_kernel_sum_to_the_kernel_of_images(inflation):
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    kernel = inflated(weight, 5, inflation)
    assert kernel.shape == (3, 2, 5, 3, 3)
    torch.testing.assert_close(kernel.sum(2), weight)
    torch.testing.assert_close(kernel[:, :, 2], weight if inflation == "central" else weight / 5)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda: KLEncoder(1, 4, (8, 8), dim=3, **KL), {}, "with dim=3"),
        (lambda: ConvEncoder(1, (8,), image_size=(8, 8)), {}, "latent='spatial'"),
        (lambda: ConvEncoder(1, (8,)), {"time_kernel": 2}, "odd number"),
        (lambda: ConvEncoder(1, (8,)), {"time_stride": 3}, "power of two"),
        (lambda: ConvEncoder(1, (8,)), {"time_stride": 4}, "resamples 1 times"),
        (NETWORKS["cnn"][0], {"time_stride": 2}, "keeps every frame"),
        (lambda: ConvEncoder(1, (8,)), {"inflation": "centre"}, "central or average"),
    ],
)
def test_what_cannot_be_lifted_is_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        LiftedNetwork(make(), **arguments)
