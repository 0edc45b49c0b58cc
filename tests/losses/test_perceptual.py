"""LPIPS against torchmetrics, and what a frozen network must not do."""

import copy

import pytest
import torch
import torchvision
from torch.distributions import Independent, Normal
from torchmetrics.functional.image import lpips as reference

from omnivae.losses import LPIPS
from omnivae.losses.frozen import FrozenFeatures
from omnivae.types import VAEOutput

BUILDERS = {"vgg": torchvision.models.vgg16, "alex": torchvision.models.alexnet}


def backbone_state(network, classifier=False):
    """Return random weights under torchvision's names; the sizes are the published ones."""
    with torch.device("meta"):
        shapes = BUILDERS[network](weights=None).state_dict()
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, value in shapes.items():
        if name.startswith("features.") or classifier:
            fan_in = value[0].numel() if value.ndim > 1 else 400
            state[name] = torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5
    return state


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    paths = {network: folder / f"{network}.pth" for network in BUILDERS}
    for network, path in paths.items():
        torch.save(backbone_state(network), path)
    return paths


def output_of(reconstruction):
    return VAEOutput((), Independent(Normal(reconstruction[None], torch.ones(1)), reconstruction.ndim - 1))


def references(network, state):
    """torchmetrics' own network with the same backbone and its own heads."""
    with torch.device("meta"):
        net = reference._LPIPS(pretrained=False, net=network, pnet_rand=True)
    net = net.to_empty(device="cpu")
    net.scaling_layer = reference.ScalingLayer()
    for name, value in net.net.state_dict().items():
        value.copy_(state[f"features.{name.split('.', 1)[1]}"])
    heads = torch.load(
        reference.__file__.replace("lpips.py", f"lpips_models/{network}.pth"), map_location="cpu", weights_only=True
    )
    assert net.load_state_dict(heads, strict=False).unexpected_keys == []
    return net.eval()


@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_equals_torchmetrics_with_the_same_weights(network, files):
    x, y = torch.rand(2, 3, 48, 40) * 2 - 1, torch.rand(2, 3, 48, 40) * 2 - 1
    expected = references(network, torch.load(files[network], weights_only=True))(x, y).mean()
    value = LPIPS(weights_path=files[network], network=network, value_range=(-1, 1))(output_of(x), {"x": y})
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert value.item() > 1e-3


def test_the_value_range_is_mapped_to_the_networks(files):
    x, y = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    unit = LPIPS(weights_path=files["alex"], network="alex", value_range=(0, 1))(output_of(x), {"x": y})
    signed = LPIPS(weights_path=files["alex"], network="alex", value_range=(-1, 1))(
        output_of(x * 2 - 1), {"x": y * 2 - 1}
    )
    assert unit.item() == pytest.approx(signed.item(), rel=1e-5)


@pytest.fixture
def alex(files):
    return LPIPS(weights_path=files["alex"], network="alex", value_range=(-1, 1))


def test_zero_for_identical_images_and_symmetric(alex):
    x, y = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    assert alex(output_of(x), {"x": x}).item() == 0.0
    assert alex(output_of(x), {"x": y}).item() == pytest.approx(alex(output_of(y), {"x": x}).item(), rel=1e-6)


def test_grey_images_are_repeated_to_three_channels(alex):
    x, y = torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    rgb = alex(output_of(x.repeat(1, 3, 1, 1)), {"x": y.repeat(1, 3, 1, 1)})
    assert alex(output_of(x), {"x": y}).item() == pytest.approx(rgb.item(), rel=1e-6)


def test_gradients_reach_the_reconstruction_only(alex):
    x = torch.rand(2, 3, 32, 32).requires_grad_()
    y = torch.rand(2, 3, 32, 32).requires_grad_()
    alex(output_of(x), {"x": y}).backward()
    assert x.grad.abs().sum() > 0
    assert y.grad is None
    assert all(p.grad is None for p in alex.features.network.parameters())


def test_the_network_is_outside_of_state_parameters_copies_and_train(alex):
    alex.train()
    assert list(alex.parameters()) == []
    assert alex.state_dict() == {}
    assert not any(m.training for m in alex.features.network.modules())
    assert copy.deepcopy(alex).features.network is alex.features.network


def test_frozen_features_follow_their_input():
    features = FrozenFeatures(torch.nn.Linear(2, 2))
    assert features.on(torch.device("meta")).weight.device.type == "meta"


def test_autocast_changes_little_and_returns_float32(alex):
    x, y = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    exact = alex(output_of(x), {"x": y})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = alex(output_of(x), {"x": y})
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)


@pytest.mark.parametrize(("network", "least"), [("vgg", 16), ("alex", 31)])
def test_images_below_the_networks_minimum_are_refused(network, least, files):
    loss = LPIPS(weights_path=files[network], network=network, value_range=(-1, 1))
    x = torch.rand(1, 3, least, least)
    assert torch.isfinite(loss(output_of(x), {"x": x + 0.1}))
    small = torch.rand(1, 3, least, least - 1)
    with pytest.raises(ValueError, match=f"at least {least}x{least}"):
        loss(output_of(small), {"x": small})


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_other_channels_are_averaged_as_grey_images(alex, channels):
    x, y = torch.rand(2, channels, 32, 32) * 2 - 1, torch.rand(2, channels, 32, 32) * 2 - 1
    x.requires_grad_()
    value = alex(output_of(x), {"x": y})
    value.backward()
    assert (x.grad.abs().sum((0, 2, 3)) > 0).all()
    alone = [alex(output_of(x[:, [c]].detach()), {"x": y[:, [c]]}).item() for c in range(channels)]
    assert value.item() == pytest.approx(sum(alone) / channels, rel=1e-5)


def test_volumes_are_seen_slice_by_slice_along_each_axis(files):
    """With all slices it is the sum of three losses of images, whatever the order of the slices."""
    loss = LPIPS(1.0, str(files["alex"]), network="alex", value_range=(-1, 1), slices=1.0)
    x, y = torch.rand(1, 1, 32, 34, 33), torch.rand(1, 1, 32, 34, 33)
    expected = 0.0
    for axis in (2, 3, 4):
        planes, targets = (v.movedim(axis, 1).flatten(0, 1) for v in (x, y))
        expected += float(loss(output_of(planes), {"x": targets}))
    for training in (True, False):
        assert float(loss.train(training)(output_of(x), {"x": y})) == pytest.approx(expected, rel=1e-5)


def test_a_share_of_the_slices_is_drawn_in_training_and_spread_evenly_otherwise(files):
    loss = LPIPS(1.0, str(files["alex"]), network="alex", value_range=(-1, 1), slices=0.1, axes=[0])
    y = torch.rand(1, 1, 40, 32, 32)
    x = y.clone().requires_grad_()
    with torch.no_grad():
        x += 0.1 * torch.rand_like(x)
    loss.eval()(output_of(x), {"x": y}).backward()
    touched = x.grad.abs().sum((0, 1, 3, 4)) > 0
    assert touched.nonzero().flatten().tolist() == [5, 15, 25, 35]
    seen = set()
    for _ in range(4):
        x.grad = None
        loss.train()(output_of(x), {"x": y}).backward()
        planes = (x.grad.abs().sum((0, 1, 3, 4)) > 0).nonzero().flatten().tolist()
        assert len(planes) == 4
        seen |= set(planes)
    assert len(seen) > 4


def test_slices_that_are_too_small_name_the_axis(files):
    loss = LPIPS(1.0, str(files["alex"]), network="alex", value_range=(-1, 1))
    clip = torch.rand(1, 1, 4, 32, 32)
    with pytest.raises(ValueError, match=r"along axis 1 of 4x32.*leave axis 1 out"):
        loss(output_of(clip), {"x": clip})
    frames = LPIPS(1.0, str(files["alex"]), network="alex", value_range=(-1, 1), axes=[0])
    assert list(loss.seen_size((4, 32, 32))) == [4, 32, 32]
    assert list(frames.seen_size((4, 32, 32))) == [32, 32]
    assert list(loss.seen_size((32, 32))) == [32, 32]
    assert float(frames(output_of(clip), {"x": clip})) == 0


@pytest.mark.parametrize("wrong", [{"slices": 0.0}, {"slices": 1.5}, {"axes": [3]}, {"axes": []}])
def test_slices_out_of_range_are_refused(files, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LPIPS(1.0, str(files["alex"]), network="alex", **wrong)


def test_signals_and_masks_are_refused(alex):
    x = torch.rand(1, 1, 32)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        alex(output_of(x), {"x": x})
    x = torch.rand(1, 1, 32, 32)
    with pytest.raises(ValueError, match="masked"):
        alex(output_of(x), {"x": x, "mask": torch.ones(1, 1, 32, 32)})


# -- weights


def test_without_a_path_it_says_what_to_give_and_downloads_nothing(monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("a download"))
    with pytest.raises(
        ValueError, match=r"losses\.lpips\.weights_path.*vgg16-397923af\.pth.*--losses\.lpips\.weight 0"
    ):
        LPIPS()
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        LPIPS(weights_path="nowhere.pth")


def test_a_file_with_the_classifier_and_safetensors_are_read(tmp_path, files):
    from safetensors.torch import save_file

    state = torch.load(files["alex"], weights_only=True)
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, tmp_path / "whole.pt")
    save_file(state, tmp_path / "a.safetensors")
    x, y = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    values = {
        LPIPS(weights_path=path, network="alex", value_range=(-1, 1))(output_of(x), {"x": y}).item()
        for path in (files["alex"], tmp_path / "whole.pt", tmp_path / "a.safetensors")
    }
    assert len(values) == 1


def test_weights_of_another_network_and_damaged_files_are_refused(tmp_path, files):
    with pytest.raises(ValueError, match="do not fit"):
        LPIPS(weights_path=files["alex"], network="vgg")
    (tmp_path / "bad.pth").write_bytes(b"not a file of tensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not a file of tensors")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "code.pth")
    for name in ("bad.pth", "bad.safetensors", "list.pth", "code.pth"):
        with pytest.raises(ValueError, match=name):
            LPIPS(weights_path=tmp_path / name)


def test_loading_leaves_the_random_stream_alone(files):
    before = torch.get_rng_state()
    LPIPS(weights_path=files["alex"], network="alex")
    assert torch.equal(torch.get_rng_state(), before)
