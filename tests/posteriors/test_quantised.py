"""Quantised posteriors: against hand computation, brute force and, where installed, vector-quantize-pytorch."""

import itertools
import math

import pytest
import torch

from omnivae import KL, NLL, VAE, autoencoder, conv_vae, lfq_vae, residual_vq_vae, vq_vae
from omnivae.losses import Commitment, Penalty
from omnivae.posteriors import FSQPosterior, LFQPosterior, QuantisedPosterior, VQPosterior
from omnivae.posteriors.codebook import Codebook
from omnivae.training.module import check

HEADS = {
    "vq": lambda dim=2: VQPosterior(6, 3, dim, num_codes=8),
    "residual": lambda dim=2: VQPosterior(6, 3, dim, num_codes=8, num_books=3),
    "fsq": lambda dim=2: FSQPosterior(6, (8, 5, 4), dim),
    "lfq": lambda dim=2: LFQPosterior(6, 3, dim),
}


def codebook(**arguments):
    torch.manual_seed(0)
    book = Codebook(3, 2, **({"decay": 0.9, "revive_below": 0.0} | arguments))
    book.codes.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))
    book.counts.copy_(torch.tensor([4.0, 2.0, 1.0]))
    book.sums.copy_(book.codes * book.counts.unsqueeze(1))
    book.started.fill_(True)
    return book


def test_moving_averages_equal_the_computation_by_hand():
    book = codebook().train()
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 1.0], [-1.0, -1.0]])
    code, number = book(x)
    assert number.tolist() == [0, 0, 1, 0]
    assert code.tolist() == [[0, 0], [0, 0], [10, 0], [0, 0]]  # of the codes before the update
    # n = 0.9 n + 0.1 |S|, m = 0.9 m + 0.1 sum S
    torch.testing.assert_close(book.counts, torch.tensor([3.9, 1.9, 0.9]))
    torch.testing.assert_close(book.sums, torch.tensor([[0.0, 0.0], [18.9, 0.1], [0.0, 9.0]]))
    torch.testing.assert_close(book.codes, torch.tensor([[0.0, 0.0], [18.9 / 1.9, 0.1 / 1.9], [0.0, 10.0]]))


def test_evaluation_changes_nothing():
    book = codebook().eval()
    before = {k: v.clone() for k, v in book.state_dict().items()}
    book(torch.randn(5, 2))
    assert all(torch.equal(v, before[k]) for k, v in book.state_dict().items())


def test_dead_codes_come_back_as_vectors_of_the_batch():
    book = codebook(revive_below=0.5).train()
    book.counts.copy_(torch.tensor([4.0, 4.0, 0.01]))
    book.sums.copy_(book.codes * book.counts.unsqueeze(1))
    x = torch.tensor([[1.0, 0.0], [9.0, 0.0]])
    book(x)
    assert book.codes[2].tolist() in x.tolist()
    # Born with the average count, and consistent: m / n is the code.
    torch.testing.assert_close(book.sums / book.counts.unsqueeze(1), book.codes)
    assert float(book.counts[2]) > 0.5 * float(book.counts[0])
    unrevived = codebook().train()
    unrevived.counts[2], unrevived.sums[2] = 0.01, torch.tensor([0.0, 0.1])
    unrevived(x)
    torch.testing.assert_close(unrevived.codes[2], torch.tensor([0.0, 10.0]))


def test_a_code_unused_for_ever_keeps_its_place():
    book = codebook(decay=0.0).train()
    book(torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(book.codes, torch.tensor([[1.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))


def test_the_first_batch_provides_the_codes():
    torch.manual_seed(0)
    book = Codebook(4, 2, decay=0.99, revive_below=0.0).train()
    x = 100 + torch.randn(64, 2)
    _, number = book(x)
    assert number.unique().numel() > 1
    assert bool((book.codes > 90).all())
    codes = book.codes.clone()
    book(x + 50)  # the second batch moves them by a hundredth, no more
    assert float((book.codes - codes).abs().max()) < 2


def test_nearest_equals_brute_force_also_far_from_the_origin():
    torch.manual_seed(0)
    book = Codebook(50, 4).eval()
    for shift in (0.0, 1000.0):
        book.codes.copy_(torch.randn(50, 4) + shift)
        x = torch.randn(200, 4) + shift
        reference = (x.double()[:, None] - book.codes.double()).square().sum(-1).argmin(1)
        assert torch.equal(book.nearest(x), reference)


def test_training_finds_the_clusters_of_the_data():
    torch.manual_seed(0)
    centres = torch.tensor([[-5.0, -5], [-5, 5], [5, -5], [5, 5]])
    book = Codebook(4, 2, decay=0.9, revive_below=0.2).train()
    book.start(centres[torch.randint(4, (64,))] + torch.randn(64, 2))
    for _ in range(100):
        book(centres[torch.randint(4, (64,))] + 0.1 * torch.randn(64, 2))
    distance = torch.cdist(centres, book.codes).min(1).values
    assert float(distance.max()) < 0.3


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_latents_are_exactly_the_codes_of_their_indices(name, dim):
    torch.manual_seed(0)
    head = HEADS[name](dim).train()
    size = (2, 3, 4)[:dim]
    features = 3 * torch.randn(5, 6, *size)
    head(features)
    q = head.eval()(features)
    assert q.shape == (5, 3, *size)
    assert q.indices.shape == (5, *size, *([3] if name == "residual" else []))
    torch.testing.assert_close(head.codes(q.indices).to(q.mode().dtype), q.mode(), atol=1e-6, rtol=1e-6)
    z, log_q = q.rsample(2)
    assert log_q is None
    assert torch.equal(z[0], q.mode())
    assert torch.equal(z[1], q.mode())
    assert int(q.indices.max()) < q.num_codes
    assert set(q.penalties) | {"indices"} == head.provides
    assert all(value.shape == (5,) for value in q.penalties.values())


@pytest.mark.parametrize("name", ["vq", "residual", "lfq"])
def test_gradient_reaches_the_encoder_unchanged(name):
    torch.manual_seed(0)
    head = HEADS[name](0).eval()
    torch.nn.init.zeros_(head.projection.bias)
    head.projection = torch.nn.Identity()
    head.projection.weight = torch.zeros(())
    x = torch.randn(5, 3, requires_grad=True)
    z, _ = head(x).rsample()
    upstream = torch.randn(5, 3)
    z[0].backward(upstream)
    assert torch.equal(x.grad, upstream)


def test_fsq_gradient_is_that_of_its_bounding():
    head = FSQPosterior(3, (8, 5, 4), 0).double()
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    z, _, _ = head.quantise(x)
    (gradient,) = torch.autograd.grad(z.sum(), x)
    half = (torch.tensor([8.0, 5, 4], dtype=torch.float64) - 1) * 1.001 / 2
    shift = torch.atanh(torch.tensor([0.5, 0, 0.5], dtype=torch.float64) / half)
    expected = half * (1 - torch.tanh(x + shift).square()) / torch.tensor([4.0, 2, 2], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected)


def test_fsq_reaches_every_code_and_only_those():
    head = FSQPosterior(3, (8, 5, 4), 0)
    axis = torch.linspace(-6, 6, 97)
    _, indices, _ = head.quantise(torch.cartesian_prod(axis, axis, axis))
    assert indices.unique().tolist() == list(range(160))
    z, _, _ = head.quantise(torch.zeros(1, 3))
    assert z.tolist() == [[0, 0, 0]]


def test_commitment_is_the_squared_distance_and_pulls_the_encoder_only():
    torch.manual_seed(0)
    head = HEADS["residual"](2).eval()
    x = torch.randn(4, 5, 5, 3, requires_grad=True)
    _, indices, penalties = head.quantise(x)
    rest, expected = x.detach(), 0.0
    for book, number in zip(head.books, indices.unbind(-1), strict=True):
        code = book.codes[number]
        expected = expected + (rest - code).square().sum((1, 2, 3))
        rest = rest - code
    torch.testing.assert_close(penalties["commitment"].detach(), expected)
    (gradient,) = torch.autograd.grad(penalties["commitment"].sum(), x)
    assert bool(gradient.any())


def test_residual_books_come_nearer():
    torch.manual_seed(0)
    head = VQPosterior(4, 4, 0, num_codes=16, num_books=4, decay=0.8).train()
    x = torch.randn(256, 4)
    for _ in range(50):
        head.quantise(x)
    errors, total = [], torch.zeros_like(x)
    _, indices, _ = head.eval().quantise(x)
    for book, number in zip(head.books, indices.unbind(-1), strict=True):
        total = total + book.codes[number]
        errors.append(float((x - total).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.25 * errors[0]


def test_lfq_entropy_equals_enumeration():
    torch.manual_seed(0)
    head = LFQPosterior(6, 3, 2, temperature=0.7, group=3)
    x = torch.randn(4, 2, 2, 3)
    _, _, penalties = head.quantise(x)
    codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)))
    p = torch.softmax(-(x.reshape(-1, 1, 3) - codes).square().sum(-1) / 0.7, 1)
    each = torch.special.entr(p).sum(1).reshape(4, 4).sum(1)
    average = torch.special.entr(p.mean(0)).sum()
    torch.testing.assert_close(penalties["entropy"], each - 4 * average)
    # Grouped, the average's entropy is a bound from above: the penalty from below.
    grouped = LFQPosterior(6, 3, 2, temperature=0.7, group=1).quantise(x)[2]["entropy"]
    assert bool((grouped <= penalties["entropy"] + 1e-5).all())


def test_perplexity_and_usage():
    even = QuantisedPosterior(torch.zeros(1, 2, 8), torch.arange(8)[None], 8, {})
    assert float(even.perplexity) == pytest.approx(8)
    assert float(even.usage) == 1
    collapsed = QuantisedPosterior(torch.zeros(1, 2, 8), torch.zeros(1, 8, dtype=torch.long), 8, {})
    assert float(collapsed.perplexity) == pytest.approx(1)
    assert float(collapsed.usage) == pytest.approx(1 / 8)
    skewed = QuantisedPosterior(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]]), 8, {})
    assert float(skewed.perplexity) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    vector = QuantisedPosterior(torch.zeros(4, 2), torch.arange(4), 4, {})
    assert float(vector.perplexity) == pytest.approx(4)


@pytest.mark.parametrize("name", HEADS)
def test_autocast_changes_no_code(name):
    torch.manual_seed(0)
    head = HEADS[name]().train()
    features = torch.randn(4, 6, 5, 5)
    head(features)
    head.eval()
    exact = head(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(features)
    assert torch.equal(exact.indices, rough.indices)
    assert rough.mode().dtype == torch.float32


@pytest.mark.parametrize(
    "make", [lambda: residual_vq_vae(channels=(8, 8), num_codes=8, num_books=2), lambda: lfq_vae(channels=(8, 8))]
)
def test_saving_keeps_the_codebook_bit_for_bit_and_training_goes_on(make, tmp_path):
    torch.manual_seed(0)
    model = make().train()
    x = torch.rand(4, 3, 32, 32)
    model(x)
    model.save_pretrained(tmp_path)
    again = VAE.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    model.train(), again.train()
    for one in (model, again):
        torch.manual_seed(1)
        one(x)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())


def test_equals_vector_quantize_pytorch():
    library = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    x = torch.randn(2, 7, 3)
    fsq = library.FSQ([8, 5, 4])
    codes, indices = fsq(x)
    z, own, _ = FSQPosterior(3, (8, 5, 4), 0).quantise(x)
    torch.testing.assert_close(z, codes)
    assert torch.equal(own, indices.long())
    vq = library.VectorQuantize(3, 6, decay=0.9, threshold_ema_dead_code=0, rotation_trick=False, eps=1e-9).train()
    book = Codebook(6, 3, decay=0.9, revive_below=0.0).train()
    book.codes.copy_(vq._codebook.embed[0])
    book.sums.copy_(vq._codebook.embed_avg[0])
    book.started.fill_(True)
    for _ in range(3):
        x = torch.randn(2, 7, 3)
        quantised, indices, _ = vq(x)
        code, own = book(x)
        assert torch.equal(own, indices)
        torch.testing.assert_close(code, quantised.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(book.codes, vq._codebook.embed[0], atol=1e-5, rtol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="at least 2 codes"):
        VQPosterior(3, 3, num_codes=1)
    with pytest.raises(ValueError, match="num_books=0"):
        VQPosterior(3, 3, num_books=0)
    with pytest.raises(ValueError, match="at least 2 levels"):
        FSQPosterior(3, (8, 1))
    with pytest.raises(ValueError, match="temperature=0"):
        LFQPosterior(3, 3, temperature=0.0)
    with pytest.raises(ValueError, match="no prior to sample from"):
        vq_vae(channels=(8, 8), num_codes=8).sample(2)
    with pytest.raises(ValueError, match="k=0"):
        HEADS["fsq"]()(torch.zeros(1, 6, 2, 2)).rsample(0)


@pytest.mark.parametrize(
    ("make", "loss", "sentence"),
    [
        (lambda: vq_vae(channels=(8, 8), num_codes=8), KL(), "drop 'it', or use a"),
        (lambda: autoencoder(channels=(4, 4)), KL(), "drop 'it', or use a"),
        (lambda: conv_vae(channels=(4,)), Commitment(), "drop 'it', or use a model whose posterior has it"),
    ],
)
def test_losses_that_make_no_sense_are_refused_before_training(make, loss, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(make(), {"nll": NLL(), "it": loss})


def test_penalty_is_the_posteriors_term_summed_over_the_event():
    model = vq_vae(channels=(8, 8), num_codes=8).eval()
    x = torch.rand(3, 3, 16, 16)
    output = model(x)
    commitment = output.latents[0].posterior.penalties["commitment"]
    torch.testing.assert_close(Penalty("commitment")(output, {"x": x}), commitment.mean())
    torch.testing.assert_close(Commitment(per_element=True)(output, {"x": x}), commitment.mean() / output.z[0].numel())
    with pytest.raises(ValueError, match="they have commitment"):
        Penalty("entropy")(output, {"x": x})
