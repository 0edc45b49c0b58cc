"""BetaVaeMonai against MONAI's VarAutoEncoder itself."""

import copy
import hashlib
import sys

import pytest
import torch

from omnivae.losses import KL, MSE
from omnivae.models import VAE
from omnivae.recipes import BetaVaeMonai
from omnivae.training.device import for_inference

#: VisCy's own test configurations: arguments, number of tensors, of parameters, and the names, shapes and types in one number.
VISCY = {
    "2-D": ((2, (1, 64, 64), 1, 128, (32, 64), (2, 2)), (17, 6_345_668, "44d1f3683d2684e5")),
    "3-D": ((3, (1, 32, 32, 32), 1, 64, (16, 32), (2, 2)), (17, 3_190_820, "e851b7e6b02285f7")),
    "compatibility": ((2, (1, 64, 64), 1, 128, (16, 32, 64), (2, 2, 2)), (23, 1_623_750, "6b685057790c110a")),
}
CASES = {
    "2-D": ((2, (2, 16, 24), 3, 5, (4, 8), (2, 2)), {}),
    "3-D": ((3, (1, 8, 12, 8), 1, 5, (4, 8), (2, 2)), {"norm": "batch", "num_res_units": 2}),
    "sigmoid": ((2, (1, 16, 16), 1, 5, (4, 8), (2, 1)), {"use_sigmoid": True, "inter_channels": (8, 8)}),
}


@pytest.fixture
def nets():
    return pytest.importorskip("monai.networks.nets")


@pytest.mark.parametrize(("arguments", "want"), VISCY.values(), ids=VISCY)
def test_weights_have_viscys_names_and_shapes(nets, arguments, want):
    with torch.device("meta"):
        model = BetaVaeMonai(*arguments)
    state = model.state_dict()
    assert {name.split(".")[0] for name in state} == {"model"}
    lines = [
        f"{k} {'x'.join(map(str, v.shape))} {str(v.dtype).removeprefix('torch.')}" for k, v in sorted(state.items())
    ]
    names = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert (len(state), model.num_parameters(), names) == want
    assert {name for name, _ in model.named_parameters()} <= set(state)


@pytest.mark.parametrize(("arguments", "options"), CASES.values(), ids=CASES)
def test_numbers_are_monais(nets, arguments, options):
    torch.manual_seed(0)
    theirs = nets.VarAutoEncoder(*arguments, **({"use_sigmoid": False} | options), use_mean_at_inference=True).eval()
    ours = BetaVaeMonai(*arguments, **options).eval()
    assert isinstance(ours.model, nets.VarAutoEncoder)
    ours.load_state_dict({f"model.{name}": tensor for name, tensor in theirs.state_dict().items()}, strict=True)
    x = torch.randn(2, *arguments[1])
    with torch.no_grad():
        reconstruction, mean, logvar, z = theirs(x)
        output = ours(x)
    torch.testing.assert_close(output.mean, mean)
    torch.testing.assert_close(output.logvar, logvar)
    torch.testing.assert_close(output.z, z)
    torch.testing.assert_close(output.recon_x, reconstruction)
    assert ours.value_range == ((0.0, 1.0) if options.get("use_sigmoid") else (-1.0, 1.0))


def test_sizes_that_strides_do_not_divide(nets):
    arguments = (2, (1, 14, 15), 1, 4, (4, 8), (2, 2))
    x = torch.randn(1, 1, 14, 15)
    plain, matched = BetaVaeMonai(*arguments).eval(), BetaVaeMonai(*arguments, match_input=True).eval()
    assert plain(x).recon_x.shape == nets.VarAutoEncoder(*arguments).eval()(x)[0].shape == (1, 1, 16, 16)
    assert matched(x).recon_x.shape == x.shape
    with pytest.raises(ValueError, match="match_input=True"):
        MSE()(plain(x), {"x": x})


def test_it_trains_freezes_and_checkpoints_like_a_vae():
    model = BetaVaeMonai(2, (1, 16, 16), 1, 4, (4, 8), (2, 2), num_res_units=1)
    names = {name for name, _ in model.encoder.named_parameters()} | {
        name for name, _ in model.decoder.named_parameters()
    }
    assert {f"model.{name}" for name in names} == {name for name, _ in model.named_parameters()}
    x = torch.randn(2, 1, 16, 16)
    gradients = []
    for checkpointed in (False, True):
        model.enable_gradient_checkpointing(checkpointed).zero_grad()
        torch.manual_seed(0)
        output = model(x)
        (MSE()(output, {"x": x}) + KL()(output, {"x": x})).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)
    model.encoder.requires_grad_(False)
    assert not any(p.requires_grad for p in model.model.encode.parameters())
    assert all(p.requires_grad for p in model.model.decode.parameters())


def test_copies_and_files_keep_one_set_of_weights(tmp_path):
    model = BetaVaeMonai(2, (1, 16, 16), 1, 4, (4, 8), (2, 2)).eval()
    twin = copy.deepcopy(model)
    assert twin.encoder.whole is twin.model is not model.model
    model.save_pretrained(tmp_path)
    loaded = VAE.from_pretrained(tmp_path)
    x = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x).recon_x, model(x).recon_x)
        low = for_inference(twin, precision="bf16")
        torch.testing.assert_close(low(x).recon_x, model(x).recon_x, atol=0.1, rtol=0.1)
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"in_shape=\(64, 64\); expected channels and 2 sizes"):
        BetaVaeMonai(2, (64, 64), 1, 4, (4, 8), (2, 2))
    with pytest.raises(ValueError, match="2 channels and 1 strides"):
        BetaVaeMonai(2, (1, 64, 64), 1, 4, (4, 8), (2,))
    with pytest.raises(ValueError, match="takes logits: set use_sigmoid=False"):
        BetaVaeMonai(2, (1, 64, 64), 1, 4, (4, 8), (2, 2), use_sigmoid=True, likelihood="bernoulli")


def test_without_monai_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(ImportError, match=r"pip install omnivae\[microscopy\]"):
        BetaVaeMonai(2, (1, 16, 16), 1, 4, (4, 8), (2, 2))
