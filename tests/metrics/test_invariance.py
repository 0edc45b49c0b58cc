"""No digit depends on batch size, order of the images, number of workers, or which other images are evaluated."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Subset

from omnivae import DataConfig, TransVAE, conv_vae, kl_autoencoder, load_data
from omnivae.metrics import LatentStatistics, evaluate
from omnivae.metrics.latents import ExactSum
from omnivae.metrics.runner import group_size

ALL = ["psnr", "ssim", "ms_ssim", "mse", "l1", "elbo", "nll", "kl", "bits_per_dim", "active_units"]


class Images:
    """Random images of the given shapes, a pure function of their names."""

    def __init__(self, shapes, order=None):
        self.names = [(f"{i:02d}-{'x'.join(map(str, shape))}", shape) for i, shape in enumerate(shapes)]
        self.names = [self.names[i] for i in (order or range(len(shapes)))]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        key, shape = self.names[index]
        generator = torch.Generator().manual_seed(sum(map(ord, key)))
        return {"x": torch.rand(shape, generator=generator), "key": key}


def small_conv_vae():
    return conv_vae(in_channels=1, image_size=12, latent_dim=3, channels=[4, 8], value_range=(0, 1)), [(1, 12, 12)] * 7


def small_transvae():
    model = TransVAE(
        in_channels=3,
        base_dims=[8, 16],
        depths=[1, 1],
        head_dim=8,
        latent_dim=4,
        compression_ratio=2,
        value_range=(0, 1),
    )
    return model, [(3, 16, 16)] * 5


def small_kl_autoencoder():
    model = kl_autoencoder(
        in_channels=3, latent_dim=4, channels=[8, 16], num_groups=4, num_res_blocks=1, value_range=(0, 1)
    )
    return model, [(3, 16, 16), (3, 24, 18), (3, 16, 16), (3, 13, 11), (3, 24, 18), (3, 16, 16), (3, 24, 18)]


@pytest.fixture(params=[small_conv_vae, small_transvae, small_kl_autoencoder], ids=lambda f: f.__name__)
def model_and_shapes(request):
    torch.manual_seed(0)
    return request.param()


def run(model, data, batch_size=16, num_workers=0):
    return evaluate(
        model,
        data,
        ALL,
        batch_size=batch_size,
        num_workers=num_workers,
        num_samples_nll=3,
        num_samples_elbo=2,
        bootstrap=50,
    )


def test_batch_size_order_and_workers_change_no_digit(model_and_shapes):
    model, shapes = model_and_shapes
    expected = run(model, Images(shapes)).to_dict()
    assert expected["metrics"]["nll"]["mean"] is not None
    for batch_size in (1, 3):
        assert run(model, Images(shapes), batch_size).to_dict() == expected
    shuffled = torch.randperm(len(shapes), generator=torch.Generator().manual_seed(1)).tolist()
    for order in (list(reversed(range(len(shapes)))), shuffled):
        assert run(model, Images(shapes, order), 4).to_dict() == expected
    assert run(model, Images(shapes, shuffled), 2, num_workers=2).to_dict() == expected


def test_other_images_change_no_digit(model_and_shapes):
    model, shapes = model_and_shapes
    whole = run(model, Images(shapes)).per_image
    part = run(model, Subset(Images(shapes), [4, 2])).per_image
    for name, values in part.items():
        assert len(values) == 2
        assert values == {key: whole[name][key] for key in values}


def test_groups_on_an_accelerator_are_full_whatever_is_evaluated(monkeypatch, model_and_shapes):
    # The rule for accelerators, on this CPU: the model only ever sees full groups.
    model, shapes = model_and_shapes
    monkeypatch.setattr("omnivae.metrics.runner.group_size", lambda shape, device: 4)
    seen = []
    encode = model.encode
    model.encode = lambda x, cond=None: seen.append(len(x)) or encode(x, cond)
    grouped = run(model, Images(shapes))
    assert set(seen) == {4}
    del model.encode
    monkeypatch.undo()
    single = run(model, Images(shapes))
    assert grouped.inputs == single.inputs
    assert grouped.images == single.images == len(shapes)
    for name in single.metrics:
        assert grouped.metrics[name].mean == pytest.approx(single.metrics[name].mean, rel=1e-4, abs=1e-4)


def test_group_size_depends_on_shape_and_device_alone():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for shape in ((1, 28, 28), (3, 256, 256), (1, 64, 512, 512)):
        assert group_size(shape, cpu) == 1
        size = group_size(shape, cuda)
        assert size >= 1
        assert size & (size - 1) == 0
    assert group_size((1, 28, 28), cuda) == 64
    assert group_size((1, 512, 512, 512), cuda) == 1


def test_workers_read_the_images_of_a_data_set():
    torch.manual_seed(0)
    model = conv_vae(in_channels=1, image_size=8, latent_dim=2, channels=[4, 8], value_range=(0, 1))
    test = Subset(load_data(DataConfig("digits"), value_range=(0, 1)).test, range(20))
    here = evaluate(model, test, ["psnr"], bootstrap=0)
    there = evaluate(model, test, ["psnr"], bootstrap=0, num_workers=2, batch_size=3)
    assert there.to_dict() == here.to_dict()
    assert here.card["data"]["inputs_are"] == "stored"


class Broken(Images):
    def __getitem__(self, index):
        if index == 2:
            raise FileNotFoundError("no such image: third.png")
        return super().__getitem__(index)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_a_worker_raises_is_raised_as_it_is(num_workers):
    model, shapes = small_conv_vae()
    with pytest.raises(FileNotFoundError, match=r"^no such image: third\.png$"):
        run(model, Broken(shapes), num_workers=num_workers)


def test_a_negative_number_of_workers_is_refused():
    model, shapes = small_conv_vae()
    with pytest.raises(ValueError, match="got num_workers=-1"):
        run(model, Images(shapes), num_workers=-1)


def test_exact_sums_do_not_depend_on_the_order():
    generator = torch.Generator().manual_seed(0)
    terms = (
        torch.randn(1000, 3, generator=generator, dtype=torch.float64)
        * 10 ** torch.linspace(-6, 6, 1000)[:, None].double()
    )
    forward, backward = ExactSum(), ExactSum()
    for term in terms:
        forward.add(term)
    for term in terms.flip(0):
        backward.add(term)
    assert torch.equal(forward.total, backward.total)
    torch.testing.assert_close(forward.total, terms.sum(0), rtol=1e-12, atol=1e-7)
    # The plain sum does depend on it: the test would notice.
    assert not torch.equal(sum(terms[1:], terms[0]), sum(terms.flip(0)[1:], terms[-1]))


def test_nothing_was_added():
    with pytest.raises(ValueError, match="nothing was added"):
        _ = ExactSum().total
    assert LatentStatistics().variance().numel() == 0
