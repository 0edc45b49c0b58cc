"""Every recipe with every loss either trains or is refused before training, with two things to do about it."""

import inspect
import math

import pytest
import torch
from test_components import TOY, build, images
from test_conditional import CASES as TOLD
from test_terms import loss_arguments, make_loss  # noqa: F401

import omnivae
from omnivae.losses import GAN, IWAE, KL, M2, MSE, NLL, TC, Factor, Refusal, loss_classes
from omnivae.recipes import RECIPES
from omnivae.training import TrainingConfig, VAEModule, check
from omnivae.training.combinations import check_size, properties
from omnivae.training.opponents import detached

#: Losses that compare the reconstruction with the image and stand for themselves.
ALONE = {"nll", "iwae", "m2"}
#: The smallest build of every recipe, those that are told something about an image included.
SMALLEST = TOY | {name: TOLD[name][1] for name in RECIPES if name in TOLD}


def sized(name, side=32):
    """A toy; of this size where its recipe has one."""
    torch.manual_seed(1)
    sizes = {"image_size": side} if "image_size" in inspect.signature(RECIPES[name]).parameters else {}
    return RECIPES[name](**SMALLEST[name] | sizes)


def composition(model):
    """What decides which losses a model can be trained on, and how."""
    names = ("encoder", "posterior", "prior", "decoder", "likelihood_head")
    return (*(type(getattr(model, part, None)) for part in names), properties(model), getattr(model, "cond_dim", None))


@pytest.fixture(scope="module")
def models():
    """Every recipe in the size that the toys have, and once more for losses that need larger images."""
    return {side: {name: sized(name, side) for name in RECIPES} for side in (16, 32)}


def batch_of(model):
    """Images, and what the model is told about them; a model that infers classes is told every other one."""
    batch = {"x": images(model)}
    told = getattr(model, "cond_dim", None)
    if told:
        batch["cond"] = torch.eye(told)[torch.arange(len(batch["x"])) % told]
        if "classes" in properties(model):
            batch["cond"][::2] = 0
    return batch


def refusal(model, losses, size):
    """What is said before training, or the module that trains."""
    try:
        module = VAEModule(model, losses, TrainingConfig(), total_steps=2, steps_per_epoch=1)
        check_size(losses, size)
    except Refusal as error:
        return error
    return module


def two_steps(module, batch):
    """What a run does: forward, backward, update, and the opponent's turn."""
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-4)
    module.train()
    for step in range(2):
        optimizer.zero_grad()
        total, output, terms = module._losses(batch, step)
        total.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        assert all(math.isfinite(float(value)) for value in terms.values())
        for loss in module.losses.values():
            if isinstance(getattr(loss, "opponent", None), torch.nn.Module):
                assert math.isfinite(float(loss.opponent_loss(detached(output), batch)))


@pytest.mark.parametrize("name", sorted(loss_classes()))
def test_every_recipe_with_every_loss_trains_or_is_refused_before(models, name, loss_arguments):  # noqa: F811
    """Recipes of one composition, which differ in numbers, are trained once."""
    trained = set()
    side = 16 if make_loss(name, loss_arguments).least_size <= 16 else 32
    for recipe, model in models[side].items():
        # A model that infers classes has a bound of its own.
        bound = loss_classes()["m2" if "classes" in properties(model) else "nll"]()
        losses = {name: make_loss(name, loss_arguments)} | ({} if name in ALONE else {bound.name: bound})
        batch = batch_of(model)
        found = refusal(model, losses, batch["x"].shape[2:] if model.pixels else ())
        if isinstance(found, Refusal):
            assert len({*found.alternatives}) == 2, recipe
            assert f"'{name}'" in str(found) or "no loss trains the classifier" in str(found), recipe
            assert all(alternative in str(found) for alternative in found.alternatives), recipe
        elif composition(model) not in trained:
            trained.add(composition(model))
            two_steps(found, batch)
    # No loss is for nothing: something can be trained on it.
    assert trained


#: model -> losses -> what is said; both alternatives are in it.
REFUSED = [
    ("vq_vae", {"kl": KL()}, r"'kl' needs a posterior with density.* drop 'kl', or use a gaussian posterior"),
    ("wae", {"mse": MSE(), "kl": KL()}, r"'kl' needs a posterior with density.*PointMassPosterior"),
    ("vq_vae", {"iwae": IWAE()}, r"'iwae' needs a posterior with density.*drop 'iwae', or use a gaussian posterior"),
    (
        "full_covariance_vae",
        {"iwae": IWAE(gradient="dreg")},
        r"set losses.iwae.gradient to standard, or use a gaussian",
    ),
    (
        "conv_vae/spatial",
        {"nll": NLL(), "tc": TC()},
        r"'tc' is about .* use kl or mmd in its place, or use .* conv_vae",
    ),
    ("vq_vae", {"nll": NLL(), "factor": Factor()}, r"'factor' is about .* drop 'factor', or use .* vector latent"),
    (
        "mixture_vae",
        {"nll": NLL(), "tc": TC()},
        r"'tc' needs a prior whose .* MixturePrior .* or use the standard normal",
    ),
    ("mixture_vae", {"nll": NLL(), "kl": KL(free_bits=0.5)}, r"free_bits to 0, or use a gaussian .* standard normal"),
    ("vq_vae", {"nll": NLL(), "norm": loss_classes()["norm"]()}, r"'norm' needs .* drop 'norm', or use a model whose"),
    ("conv_vae", {"iwae": IWAE(), "kl": KL()}, r"'iwae' stands in the place of .* drop 'kl', or .*elbo_share"),
    ("conv_vae", {"iwae": IWAE(), "nll": NLL(), "kl": KL()}, r"kl and nll are beside it.* drop 'kl' and 'nll', or "),
    ("conv_vae", {"nll": NLL(), "kl": KL(), "tc": TC()}, r"'tc' stands .* drop 'kl', or set losses.tc.alpha and"),
    ("m2_vae", {"m2": M2(), "factor": Factor()}, r"'factor' is about one .* infers a class .* drop 'factor', or use"),
    ("m2_vae", {"m2": M2(), "iwae": IWAE()}, r"'m2' stands in the place of .* drop 'iwae', or"),
    ("m2_vae", {"nll": NLL(), "kl": KL()}, r"no loss trains the classifier .* use the loss m2, or train a cond"),
    ("conv_vae", {"gan": GAN()}, r"add l1 or nll, or set losses.gan.adaptive to false"),
]


@pytest.mark.parametrize(("case", "losses", "says"), REFUSED, ids=[f"{c}-{'+'.join(v)}" for c, v, _ in REFUSED])
def test_what_makes_no_sense_is_refused_with_two_alternatives(case, losses, says):
    with pytest.raises(Refusal, match=says) as caught:
        check(sized(case) if case in TOLD else build(case), losses)
    assert len(set(caught.value.alternatives)) == 2


def test_images_too_small_for_a_loss_are_refused_before_training():
    losses = {"gan": GAN(num_layers=3)}
    with pytest.raises(
        Refusal, match=r"images of 16x40.*at least 24.*lower losses.gan.num_layers, or add --losses.gan.weight 0"
    ):
        check_size(losses, (16, 40))
    check_size(losses, (24, 40))


def test_the_total_correlation_alone_goes_beside_the_kl():
    check(build("conv_vae"), {"nll": NLL(), "kl": KL(), "tc": TC(alpha=0.0, gamma=0.0)})


def test_two_opponents_train_side_by_side(loss_arguments):  # noqa: F811
    """A discriminator of images and one of codes."""
    model = sized("conv_vae")
    losses = {
        "nll": NLL(),
        "kl": KL(),
        "factor": make_loss("factor", loss_arguments),
        "gan": make_loss("gan", loss_arguments),
    }
    x = images(model)
    two_steps(refusal(model, losses, x.shape[2:]), {"x": x})


@pytest.mark.parametrize("make", [lambda: NLL(num_samples=0), lambda: IWAE(num_samples=0)])
def test_no_samples_are_refused(make):
    with pytest.raises(ValueError, match="expected at least 1"):
        make()


def test_a_model_is_not_sampled_less_than_once():
    model = omnivae.conv_vae(in_channels=1, image_size=8, channels=(4,))
    with pytest.raises(ValueError, match="at least one posterior sample"):
        model(torch.rand(2, 1, 8, 8), num_samples=0, sample=True)
