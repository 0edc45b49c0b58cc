import pytest
import torch

from omnivae.networks import MLPDecoder, MLPEncoder


def test_layers_are_those_of_burda_et_al():
    # Importance Weighted Autoencoders (2016), section 4: 784-200-200 and 50-200-200-784.
    encoder, decoder = MLPEncoder(1, (28, 28)), MLPDecoder(50, 1, (28, 28))
    assert [tuple(p.shape) for p in encoder.parameters() if p.ndim == 2] == [(200, 784), (200, 200)]
    assert [tuple(p.shape) for p in decoder.parameters() if p.ndim == 2] == [(200, 50), (200, 200), (784, 200)]


@pytest.mark.parametrize("size", [(7,), (5, 3), (4, 3, 2)])
def test_pixels_keep_their_places(size):
    """Linear layers set to the identity: what goes in at a pixel comes out there, in one to three dimensions."""
    n = 2 * torch.tensor(size).prod().item()
    encoder, decoder = MLPEncoder(2, size, (n,), activation="relu"), MLPDecoder(n, 2, size, (n,), activation="relu")
    for linear in (encoder.layers.linear0, decoder.layers.linear0, decoder.head):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    x = torch.rand(3, 2, *size)
    torch.testing.assert_close(decoder(encoder(x)), x)


def test_another_size_is_refused_by_name():
    with pytest.raises(ValueError, match=r"size \(27, 28\).*takes \(28, 28\)"):
        MLPEncoder()(torch.zeros(1, 1, 27, 28))


@pytest.mark.parametrize(
    "arguments",
    [{"in_channels": 0}, {"hidden": ()}, {"hidden": (0,)}, {"activation": "swish"}, {"image_size": (4, 4, 4, 4)}],
)
def test_what_cannot_be_built_is_refused(arguments):
    with pytest.raises(ValueError, match="expected"):
        MLPEncoder(**arguments)
