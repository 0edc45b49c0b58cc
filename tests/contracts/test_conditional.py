"""What every recipe that is told something about an image promises, in each way of telling it."""

from inspect import signature

import pytest
import torch

from omnivae.losses import KL, M2, NLL
from omnivae.models import VAE, SemiSupervisedVAE
from omnivae.recipes import RECIPES
from omnivae.training import TrainingConfig, VAEModule, fit

CLASSES = 3
SMALL = {"in_channels": 3, "image_size": 16, "latent_dim": 4, "channels": [4, 8], "cond_dim": CLASSES}
CASES = {
    "c_vae": ("c_vae", SMALL),
    "c_vae/batch_norm": ("c_vae", {**SMALL, "conditioning": "batch_norm", "learned_prior": True}),
    "c_vae/film": ("c_vae", {**SMALL, "conditioning": "film", "norm": "group", "learned_prior": True}),
    "c_vae/film/spatial": ("c_vae", {**SMALL, "conditioning": "film", "latent": "spatial", "norm": "none"}),
    "c_vae/concat/spatial": ("c_vae", {**SMALL, "latent": "spatial", "learned_prior": True}),
    "c_vae/1d": ("c_vae", {**SMALL, "dim": 1, "conditioning": "batch_norm"}),
    "c_vae/3d": ("c_vae", {**SMALL, "dim": 3, "image_size": 8, "conditioning": "film"}),
    "m2_vae": ("m2_vae", {"image_size": 8, "hidden": [16], "latent_dim": 4, "num_classes": CLASSES}),
    "m2_vae/3d": ("m2_vae", {"image_size": 4, "hidden": [8], "latent_dim": 4, "num_classes": CLASSES, "dim": 3}),
}


def build(case):
    torch.manual_seed(1)
    name, arguments = CASES[case]
    return RECIPES[name](**arguments)


def given(model, n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (n, model.in_channels, *model_size(model))
    x = torch.bernoulli(torch.rand(shape, generator=generator), generator=generator)
    return x, torch.eye(CLASSES)[torch.arange(n) % CLASSES]


def model_size(model):
    return model.image_size or tuple(model.statistics["image_size"])


def losses_of(model):
    return {"m2": M2(alpha=1.0)} if isinstance(model, SemiSupervisedVAE) else {"nll": NLL(), "kl": KL(weight=0.1)}


@pytest.fixture(params=CASES)
def case(request):
    return request.param


class Told:
    """Images with a condition; every other class is not told where the model infers it."""

    def __init__(self, model):
        self.x, self.cond = given(model, 8)
        if isinstance(model, SemiSupervisedVAE):
            self.cond[::2] = 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "cond": self.cond[index]}


def test_every_recipe_that_is_told_something_is_here():
    told = {name for name, made in RECIPES.items() if {"cond_dim", "num_classes"} & set(signature(made).parameters)}
    assert told == {name for name, _ in CASES.values()}


def test_training_changes_every_weight(case, tmp_path):
    model = build(case)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = TrainingConfig(batch_size=4, max_steps=2, precision="32", warmup_steps=0, learning_rate=1e-3, draw_every=9)
    fit(
        model,
        losses_of(model),
        Told(model),
        Told(model),
        config=config,
        directory=tmp_path,
        save_model=lambda trained: None,
        progress=False,
    )
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_gradients_reach_the_condition_through_encoder_and_decoder(case):
    model = build(case).train()
    x, cond = given(model)
    cond.requires_grad_()
    q = VAE.encode(model, x, cond)  # with a class given, nothing is inferred
    (through_encoder,) = torch.autograd.grad(q.mode().square().sum(), cond, retain_graph=True)
    (through_decoder,) = torch.autograd.grad(model.decode(q.mode().detach(), cond).square().sum(), cond)
    assert bool((through_encoder != 0).any(dim=1).all())
    assert bool((through_decoder != 0).any(dim=1).all())


def test_the_condition_changes_encoding_and_decoding(case):
    model = build(case).eval()
    x, cond = given(model)
    other = cond.roll(1, dims=1)
    with torch.no_grad():
        q = model.encode(x, cond)
        assert not torch.allclose(model.encode(x, other).mode(), q.mode())
        own = model.decode(q)
        # A posterior remembers what it was told; another condition is another image of the same latent.
        assert torch.equal(own, model.decode(q, cond))
        assert not torch.allclose(own, model.decode(q, other))
        assert torch.equal(model.decode(q, other), model.decode(q.mode(), other, size=q.input_size))


def test_output_and_samples(case):
    model = build(case).eval()
    x, cond = given(model)
    output = model(x, cond)
    assert output.reconstruction.shape == x.shape
    assert torch.equal(model(x, cond).reconstruction, output.reconstruction)
    assert model(x, cond, num_samples=3).latents[0].z.shape[0] == 3
    drawn = model.sample(4, size=x.shape[2:], cond=cond, generator=torch.Generator().manual_seed(0))
    again = model.sample(4, size=x.shape[2:], cond=cond, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == x.shape
    assert torch.equal(drawn, again)


def test_saving_and_loading_is_bit_equal(case, tmp_path):
    model = build(case)
    x, cond = given(model)
    model.train()(x, cond)
    model.eval().save_pretrained(tmp_path / "model")
    again = VAE.from_pretrained(tmp_path / "model")
    assert type(again) is type(model)
    with torch.no_grad():
        assert torch.equal(model(x, cond).reconstruction, again(x, cond).reconstruction)


def test_an_image_does_not_depend_on_its_batch(case):
    model = build(case).eval()
    x, cond = given(model)
    with torch.no_grad():
        together, alone = model(x, cond), model(x[1:2], cond[1:2])
    torch.testing.assert_close(alone.reconstruction[0], together.reconstruction[1], atol=1e-5, rtol=1e-4)


def test_bf16_autocast_keeps_the_posterior_in_float32(case):
    model = build(case).train()
    x, cond = given(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x, cond)
        total = sum(loss(output, {"x": x}) for loss in losses_of(model).values())
    assert output.mean.dtype == output.logvar.dtype == total.dtype == torch.float32
    total.backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_wrong_conditions_are_refused(case):
    model = build(case).eval()
    x, cond = given(model)
    with pytest.raises(ValueError, match="condition"):
        model(x, cond[:, :2])
    with pytest.raises(ValueError, match="condition"):
        model(x, cond[:2])
    with pytest.raises(ValueError, match="NaN or infinite values in the condition"):
        model(x, torch.full_like(cond, float("nan")))
    if not isinstance(model, SemiSupervisedVAE):
        with pytest.raises(ValueError, match=r"no condition; .* pass cond"):
            model(x)
        with pytest.raises(ValueError, match="pass cond"):
            model.sample(2, size=x.shape[2:])


def test_the_losses_that_the_model_is_not_for_are_refused():
    config, length = TrainingConfig(), {"total_steps": 1, "steps_per_epoch": 1}
    with pytest.raises(ValueError, match=r"'m2' sums over classes.*nll and kl.*m2_vae"):
        VAEModule(build("c_vae"), {"m2": M2()}, config, **length)
    with pytest.raises(ValueError, match=r"no loss trains the classifier.*m2.*c_vae"):
        VAEModule(build("m2_vae"), {"nll": NLL(), "kl": KL()}, config, **length)
