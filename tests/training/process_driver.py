"""What each process of the tests of several processes does: ``python process_driver.py DIRECTORY SCENARIO ...``.

The tests run the same scenarios in one process and compare.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from training_toys import Images, run, toy_model

from omnivae.distributions import DiagonalGaussian
from omnivae.likelihoods import GaussianLikelihood
from omnivae.losses import DIP, GAN, KL, L1, MMD, NLL, TC, Commitment, divergences
from omnivae.recipes import residual_vq_vae
from omnivae.training.distributed import joined, together
from omnivae.training.module import VAEModule
from omnivae.training.world import launched, world

ONE = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
SETTINGS = {
    "max_steps": 8,
    "validate_every": 4,
    "checkpoint_every": 3,
    "gradient_clip": 0.5,
    "val_images": 66,
    "ema": 0.9,
}


class Asked(Images):
    """Images in the default type of numbers; remembers which were asked for."""

    def __init__(self, n=24, seed=0):
        super().__init__(n, seed)
        self.asked = []

    def __getitem__(self, index):
        self.asked.append(index)
        return {"x": self.x[index].to(torch.get_default_dtype())}


def losses(name):
    if name == "nll":
        return {"nll": NLL(), "kl": KL(weight=0.5)}
    if name == "gan":
        # Balanced by gradients, and starting late: what has a gradient changes on the way.
        gan = GAN(weight=0.5, channels=4, num_layers=1, start_step=3, discriminator_learning_rate=1e-3)
        return {"l1": L1(per_element=True), "kl": KL(weight=0.1), "gan": gan}
    if name == "pairs":
        # Numbers of a whole batch, among others that are means over images.
        total = TC(weight=0.2, alpha=0.0, beta=2.0, gamma=0.5)
        return {"tc": total, "l1": L1(), "mmd": MMD(weight=3.0), "kl": KL(weight=0.1), "dip": DIP(kind="ii")}
    return {"l1": L1(), "kl": KL(weight=0.1)}


def model(seed=0, norm="none"):
    # The scale of this likelihood has no gradient where nothing but L1 looks at the images.
    torch.manual_seed(seed)
    result = toy_model(norm, likelihood=GaussianLikelihood("learned"), value_range=(-1, 1))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return result.to(torch.get_default_dtype())


class Gradients:
    """Keeps every step's gradients while it is open, and switches noise and batch statistics off."""

    def __enter__(self):
        self.steps = []
        self.saved = VAEModule.on_before_optimizer_step, DiagonalGaussian.rsample, torch.nn.BatchNorm2d.forward
        before = self.saved[0]

        def keep(module, optimizer):
            found = [(n, p.grad.clone()) for n, p in module.named_parameters() if p.grad is not None]
            self.steps.append(dict(found))
            before(module, optimizer)

        VAEModule.on_before_optimizer_step = keep
        # What stands for a sample of the prior is an image's own: the same in one process and in two.
        self.prior = divergences.prior_samples
        divergences.prior_samples = lambda name, latent: latent.z[0].detach().flip(1) + 0.5
        DiagonalGaussian.rsample = lambda q, k=1: (q.mean[None], q.log_prob(q.mean[None]))
        torch.nn.BatchNorm2d.forward = lambda n, x: x * n.weight[:, None, None] + n.bias[:, None, None]
        return self

    def __exit__(self, *error):
        VAEModule.on_before_optimizer_step, DiagonalGaussian.rsample, torch.nn.BatchNorm2d.forward = self.saved
        divergences.prior_samples = self.prior


def equal(directory, name, broken=None, **settings):
    """A run without noise, to be compared with that of one process."""
    train = Asked()
    if broken is not None:
        train.x[broken, 0, 3, 3] = torch.nan
    # The discriminator is built by the run.
    torch.set_default_dtype(torch.float64)
    # Every process starts from other weights; rank 0's are the run's.
    trained = model(seed=world().rank)
    with Gradients() as kept:
        run(directory, trained, losses(name), train=train, val=Asked(66, seed=1), **SETTINGS | settings)
    torch.set_default_dtype(torch.float32)
    share = [p.to_local() if isinstance(p, DTensor) else p for p in trained.parameters()]
    (directory / f"share-{world().rank}.json").write_text(json.dumps(sum(p.numel() for p in share)))
    if settings.get("strategy") != "fsdp":
        torch.save(kept.steps, directory / f"gradients-{world().rank}.pt")
    (directory / f"asked-{world().rank}.json").write_text(json.dumps(train.asked))


def sharded(directory):
    """The GAN's run in shards: stopped after six steps and continued, or left alone, or continued undivided."""
    settings = {"strategy": "fsdp", "draw_every": 4}

    def draw(trained, step):
        (directory / f"drawn-{step}.json").write_text(json.dumps(trained(ONE.double()).reconstruction.sum().item()))

    equal(directory / "whole", "gan", **settings, draw=draw)
    equal(directory / "parts", "gan", **settings | {"max_steps": 6})
    equal(directory / "parts", "gan", **settings)
    equal(directory / "undivided", "gan", **settings | {"max_steps": 6})
    equal(directory / "undivided", "gan")


def noisy(directory):
    """A run with noise and batch normalisation; every process leaves its last noise and its state behind."""
    drawn = []
    rsample = DiagonalGaussian.rsample

    def keep(q, k=1):
        z, log_q = rsample(q, k)
        # Before it starts, a run of several processes tries a batch out in evaluation mode.
        if trained.training:
            drawn.append(((z[0] - q.mean) / (0.5 * q.logvar).exp()).detach())
        return z, log_q

    DiagonalGaussian.rsample = keep
    trained = model(norm="batch")
    run(directory, trained, losses("nll"), train=Asked(), **SETTINGS | {"val_images": 1})
    DiagonalGaussian.rsample = rsample
    torch.save({"noise": drawn, "state": trained.state_dict()}, directory / f"end-{world().rank}.pt")


def stopped(directory):
    """A run that rank 1 alone is asked to stop, and that is then continued."""

    def train(images):
        return run(directory, model(norm="batch"), losses("gan"), train=images, val=Asked(66, seed=1), **SETTINGS)[0]

    class Signals(Asked):
        def __getitem__(self, index):
            if len(self.asked) == 10 and world().rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(index)

    first, second = train(Signals()), train(Asked())
    result = [first.step, first.stopped_by, second.step, second.stopped_by]
    (directory / f"results-{world().rank}.json").write_text(json.dumps(result))


def whole(directory):
    """The run of ``stopped`` and ``lost``, left alone."""
    run(directory, model(norm="batch"), losses("gan"), train=Asked(), val=Asked(66, seed=1), **SETTINGS)


def lost(directory):
    """The same run; the first time the process of rank 1 is killed while it reads the images of the sixth step."""

    class Killed(Asked):
        def __getitem__(self, index):
            if len(self.asked) == 11 and world().rank == 1 and not (directory / "killed").exists():
                (directory / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    run(directory, model(norm="batch"), losses("gan"), train=Killed(), val=Asked(66, seed=1), **SETTINGS)


def refused(directory):
    """Something that rank 1 alone refuses: both end, and only rank 1 says why."""

    def work():
        if world().rank == 1:
            raise ValueError("rank 1 does not like it")

    directory.mkdir(parents=True, exist_ok=True)
    try:
        together(work)
        said = "nothing"
    except (ValueError, SystemExit) as error:
        said = f"{type(error).__name__}: {error}"
    (directory / f"said-{world().rank}.json").write_text(json.dumps(said))


class Dies(Asked):
    """Breaks off when it is asked for the n-th image, as a killed process would: nothing is saved any more."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def __getitem__(self, index):
        if len(self.asked) == self.after:
            raise RuntimeError("killed")
        return super().__getitem__(index)


def quantised(directory, name="whole", broken=None, dies_after=None, **settings):
    """A residual VQ-VAE in float64; every process leaves its last state behind."""
    torch.set_default_dtype(torch.float64)
    train = Asked() if dies_after is None else Dies(dies_after)
    if broken is not None:
        train.x[broken, 0, 3, 3] = torch.nan
    torch.manual_seed(world().rank)
    small = {"in_channels": 1, "image_size": 8, "latent_dim": 2, "channels": (8, 8), "num_codes": 6, "num_books": 2}
    vae = residual_vq_vae(**small, decay=0.8, revive_below=0.3)
    objective = {"nll": NLL(), "commitment": Commitment(weight=0.25)}
    common = {"max_steps": 8, "validate_every": 4, "checkpoint_every": 3, "val_images": 10, "ema": 0.9}
    try:
        run(directory / name, vae.double(), objective, train=train, val=Asked(10, seed=1), **common | settings)
    except RuntimeError as error:
        if str(error) != "killed":
            raise
    torch.set_default_dtype(torch.float32)
    torch.save(vae.state_dict(), directory / f"{name}-{world().rank}.pt")


def codes(directory):
    """Codebooks: accumulated, with an image that only one process has and cannot compute, and broken off and continued."""
    quantised(directory, "plain")
    quantised(directory, "whole", accumulate=2)
    quantised(directory, "broken", broken=5, on_nonfinite="skip")
    # The start looks at all 24 images and the first batch is asked for once more.
    quantised(directory, "continued", accumulate=2, dies_after=24 + 2 + 40 // world().size)
    quantised(directory, "continued", accumulate=2)


SCENARIOS = {
    "codes": codes,
    # An image that only one of the processes has, and which all of them must leave out.
    "broken": lambda d: equal(d, "gan", broken=5, on_nonfinite="skip"),
    "pairs": lambda d: equal(d, "pairs"),
    "pairs_broken": lambda d: equal(d, "pairs", broken=5, on_nonfinite="skip"),
    "refused": refused,
    "nll": lambda d: equal(d, "nll", accumulate=2),
    "l1": lambda d: equal(d, "l1"),
    "gan": lambda d: equal(d, "gan"),
    "sharded": sharded,
    "noisy": noisy,
    "stopped": stopped,
    "whole": whole,
    "lost": lost,
}


def main(root, names):
    from omnivae.training import TrainingConfig
    from omnivae.training.distributed import first_to_report

    torch.set_num_threads(1)
    try:
        with joined(TrainingConfig(batch_size=4)):
            for name in names:
                SCENARIOS[name](Path(root) / name)
    except Exception as error:
        first_to_report(error)
        if not isinstance(error, ChildProcessError):
            raise
        sys.exit(2)


if __name__ == "__main__":
    assert launched()
    main(sys.argv[1], sys.argv[2:])
