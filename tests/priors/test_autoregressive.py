"""The prior over codes: a distribution, causal, drawn as it is scored, and as good as the world allows."""

import itertools
import math

import pytest
import torch

from omnivae import fsq_vae, lfq_vae, residual_vq_vae
from omnivae.priors import AutoregressivePrior


def toy(num_codes=3, size=(2, 2), num_books=1, seed=0, **arguments):
    torch.manual_seed(seed)
    prior = AutoregressivePrior(
        num_codes, size, num_books, **{"width": 16, "depth": 2, "num_heads": 2, "dropout": 0.0} | arguments
    )
    # As after training: no weight is zero.
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return prior.eval()


@pytest.mark.parametrize(("num_codes", "size", "num_books"), [(3, (2, 2), 1), (2, (2,), 3), (3, (), 2), (4, (), 1)])
def test_probabilities_of_all_sequences_sum_to_one(num_codes, size, num_books):
    prior = toy(num_codes, size, num_books).double()
    shape = (*size, *((num_books,) if num_books > 1 else ()))
    every = torch.tensor(list(itertools.product(range(num_codes), repeat=prior.length))).reshape(-1, *shape)
    log_prob = prior.distribution(len(every)).log_prob(every).detach()
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert float(log_prob.std()) > 0.1


@pytest.mark.parametrize("num_books", [1, 2])
def test_a_code_depends_on_those_before_it_and_on_nothing_else(num_books):
    prior = toy(4, (2, 3), num_books)
    codes = torch.randint(4, (1, prior.length))
    before = prior.logits(codes)
    for place in range(prior.length):
        changed = codes.clone()
        changed[0, place] = (codes[0, place] + 1) % 4
        moved = (prior.logits(changed) - before).abs().amax(-1)[0]
        assert bool((moved[: place + 1] == 0).all())
        assert bool((moved[place + 1 :] > 1e-6).all())


def test_gradients_reach_only_the_past():
    prior = toy(4, (5,))
    embedded = []
    handle = prior.embedding.register_forward_hook(lambda m, i, out: embedded.append(out) or out.retain_grad())
    prior.logits(torch.randint(4, (1, 5)))[0, 2].sum().backward()
    handle.remove()
    reached = embedded[0].grad[0].abs().sum(-1) > 0
    assert reached.tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("num_books", [1, 3])
def test_drawing_follows_the_probabilities_that_are_scored(num_books):
    prior = toy(2, (2,), num_books, seed=3)
    every = torch.tensor(list(itertools.product(range(2), repeat=prior.length)))
    expected = prior.distribution(len(every)).log_prob(every).exp()
    torch.manual_seed(0)
    n = 20_000
    drawn = prior.draw(n)
    numbers = (drawn * 2 ** torch.arange(prior.length).flip(0)).sum(1)
    found = torch.bincount(numbers, minlength=len(every)) / n
    error = (expected * (1 - expected) / n).sqrt()
    assert bool(((found - expected).abs() < 5 * error + 1e-9).all())


def test_drawing_with_a_memory_sees_what_scoring_sees():
    prior = toy(5, (3, 3), 2)
    greedy = prior.draw(2, temperature=0)
    assert torch.equal(prior.logits(greedy).argmax(-1), greedy)


def test_temperature_and_top_k():
    prior = toy(5, (3,))
    greedy = prior.draw(1, temperature=0)
    assert torch.equal(prior.draw(7, top_k=1), greedy.expand(7, -1))
    likeliest = prior.logits(torch.zeros(1, 3, dtype=torch.long))[0, 0].topk(2).indices
    torch.manual_seed(0)
    assert set(prior.draw(300, top_k=2)[:, 0].tolist()) == set(likeliest.tolist())
    entropies = []
    for temperature in (0.5, 1.0, 2.0):
        share = torch.bincount(prior.draw(4000, temperature=temperature)[:, 0], minlength=5) / 4000
        entropies.append(float(torch.special.entr(share).sum()))
    assert entropies == sorted(entropies)
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"top_k": 6}):
        with pytest.raises(ValueError, match="expected at least 0, and 1 to 5 codes"):
            prior.draw(1, **wrong)


def test_it_learns_a_markov_world_to_its_entropy():
    # Codes of a row follow a chain that is known: no prior can need fewer bits than its entropy rate.
    torch.manual_seed(0)
    transition = torch.tensor([[0.8, 0.1, 0.1, 0.0], [0.0, 0.7, 0.2, 0.1], [0.1, 0.0, 0.1, 0.8], [0.6, 0.4, 0.0, 0.0]])
    length, n = 8, 6000
    chain = torch.randint(4, (n, 1))
    for _ in range(length - 1):
        chain = torch.cat([chain, torch.multinomial(transition[chain[:, -1]], 1)], 1)
    train, held_out = chain[:5000], chain[5000:]
    share = torch.full((4,), 0.25)
    floor = math.log(4)
    for _ in range(length - 1):
        floor += float((share[:, None] * torch.special.entr(transition)).sum())
        share = share @ transition
    prior = AutoregressivePrior(4, (length,), width=32, depth=2, num_heads=4, dropout=0.0)
    optimiser = torch.optim.AdamW(prior.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 250)
    first = None
    for _ in range(250):
        batch = train[torch.randint(len(train), (128,))]
        loss = -prior.distribution(128).log_prob(batch).mean()
        first = float(loss) if first is None else first
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    assert first == pytest.approx(length * math.log(4), abs=1e-4)
    with torch.no_grad():
        nats = -prior.distribution(len(held_out)).log_prob(held_out)
    error = float(nats.std()) / len(held_out) ** 0.5
    assert floor - 3 * error < float(nats.mean()) < floor + 3 * error + 0.02 * floor


@pytest.mark.parametrize(
    "make",
    [
        lambda: residual_vq_vae(image_size=16, latent_dim=4, channels=(8, 8), num_codes=8, num_books=2),
        lambda: fsq_vae(image_size=16, channels=(8, 8), levels=(3, 3)),
        lambda: lfq_vae(image_size=16, channels=(8, 8), latent_dim=3),
    ],
)
def test_a_model_with_a_prior_draws_decoded_codes(make, tmp_path):
    from omnivae import VAE
    from omnivae.jobs.prior import with_prior

    torch.manual_seed(0)
    vae = make().eval()
    books = vae.encode(torch.zeros(1, 3, 16, 16)).indices[0].numel() // 16
    prior = toy(vae.posterior.num_codes, (4, 4), books, width=8)
    joint = with_prior(vae, prior)
    joint.save_pretrained(tmp_path)
    again = VAE.from_pretrained(tmp_path)
    images = again.sample(3, generator=torch.Generator().manual_seed(4), temperature=0.7, top_k=3)
    assert images.shape == (3, 3, 16, 16)
    assert torch.equal(images, joint.sample(3, generator=torch.Generator().manual_seed(4), temperature=0.7, top_k=3))
    # Greedy: what is decoded are the likeliest codes.
    codes = prior.draw(1, temperature=0).reshape(1, 4, 4, *([books] if books > 1 else []))
    expected = vae.decode(vae.posterior.codes(codes), size=(16, 16)).clamp(*vae.value_range)
    torch.testing.assert_close(again.sample(1, temperature=0), expected)
    # It is a prior over codes: reconstruction is what it was.
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(again(x).reconstruction, vae(x).reconstruction)
    with pytest.raises(ValueError, match="trained on \\(4, 4\\)"):
        again.sample(1, size=(32, 32))


def test_refusals():
    from omnivae import conv_vae

    with pytest.raises(ValueError, match="at most 65,536"):
        AutoregressivePrior(2**17, (2,))
    with pytest.raises(ValueError, match="heads that divide the width"):
        AutoregressivePrior(4, (2,), width=10, num_heads=3)
    with pytest.raises(ValueError, match="omnivae prior RUN"):
        lfq_vae(channels=(8, 8)).sample(1)
    with pytest.raises(ValueError, match="no prior over codes: leave top_k out"):
        conv_vae(image_size=8, channels=(4,)).eval().sample(1, top_k=3)
