"""Attribute vectors: the difference of means, added to a code."""

from __future__ import annotations

import pytest
import torch
from report_models import MemoryDataset, tiny_model
from torch.utils.data import Subset

from omnivae.report.arithmetic import add_attribute, attribute_vector

DATA = MemoryDataset()


@pytest.mark.parametrize("latent", ["vector", "spatial"])
def test_the_vector_is_the_difference_of_mean_codes(latent):
    model = tiny_model(latent=latent).train()
    found = attribute_vector(model, Subset(DATA, [0, 1, 2]), Subset(DATA, [3, 4]))
    assert model.training
    model.eval()
    codes = model.encode(DATA.x[:5]).mode().detach()
    torch.testing.assert_close(found.vector, codes[:3].mean(0) - codes[3:].mean(0))
    assert (found.num_plus, found.num_minus) == (3, 2)
    frames = add_attribute(model, DATA.x[7], found.vector, [0.0, 2.0])
    z = model.encode(DATA.x[7:8]).mode()
    torch.testing.assert_close(frames[1:], model.decode(z + 2 * found.vector, size=(8, 8)))
    torch.testing.assert_close(frames[:1], model.decode(z, size=(8, 8)))


def test_separation_is_the_auroc_along_the_vector():
    from sklearn.metrics import roc_auc_score

    model = tiny_model()
    found = attribute_vector(model, Subset(DATA, range(6)), Subset(DATA, range(6, 14)))
    projection = model.encode(DATA.x).mode().detach() @ found.vector
    assert found.separation == pytest.approx(roc_auc_score([1] * 6 + [0] * 8, projection.numpy()))
    same = attribute_vector(model, Subset(DATA, [0, 1]), Subset(DATA, [0, 1]))
    assert same.separation == 0.5


def test_what_cannot_work_is_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match="at least one each"):
        attribute_vector(model, [], DATA)
    with pytest.raises(ValueError, match="expected an image of the size"):
        add_attribute(model, DATA.x[0], torch.zeros(3))
    with pytest.raises(ValueError, match="got no strength"):
        add_attribute(model, DATA.x[0], torch.zeros(5), [])
    small = [{"x": torch.zeros(1, 4, 4)}]
    with pytest.raises(ValueError, match="images of one size"):
        attribute_vector(tiny_model(latent="spatial"), DATA, small)
