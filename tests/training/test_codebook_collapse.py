"""Codebook collapse, engineered: called early, found by the doctor, cured by revival, and never called on a healthy run."""

from types import SimpleNamespace

import pytest
import torch
from training_toys import rows

from omnivae.data import DataConfig
from omnivae.jobs.config import RunConfig
from omnivae.jobs.doctor import diagnose
from omnivae.jobs.train import train
from omnivae.posteriors.codebook import Codebook
from omnivae.posteriors.quantised import QuantisedPosterior
from omnivae.training import TrainingConfig
from omnivae.training.codes import FEW, CodeWatch

STEPS, CODES = 80, 16


def far_away(book, flat, seed=0):
    """Codes that no vector is near, but for the first, which takes them all."""
    codes = 1e3 + torch.arange(CODES)[:, None].expand(-1, flat.shape[1]).to(flat)
    codes[0] = flat.mean(0)
    book.codes.copy_(codes)
    book.counts.fill_(1.0)
    book.sums.copy_(codes)
    book.started.fill_(True)


def trained(directory, **model):
    small = {"recipe": "vq_vae", "latent_dim": 2, "channels": [4, 4], "num_codes": CODES, "decay": 0.8}
    settings = TrainingConfig(batch_size=8, max_steps=STEPS, precision="32", learning_rate=2e-3, val_images=8)
    config = RunConfig(
        small | model, DataConfig("digits", limit=100), {"nll": {}, "commitment": {"weight": 0.25}}, settings
    )
    train(config, directory, progress=False, report=False)
    table = [row for row in rows(directory) if "train/perplexity" in row]
    found = [finding for finding in diagnose(directory, look=False) if finding.rule == "codebook_collapse"]
    return [row["train/perplexity"] for row in table], found


@pytest.mark.parametrize("start", ["collapsed", "revived", "healthy"])
def test_collapse_is_called_where_it_is_and_revival_cures_it(start, tmp_path, monkeypatch, caplog):
    if start != "healthy":
        monkeypatch.setattr(Codebook, "start", torch.no_grad()(far_away))
    with caplog.at_level("WARNING", "omnivae"):
        perplexity, found = trained(tmp_path / "run", revive_below=0.0 if start == "collapsed" else 0.2)
    said = [record for record in caplog.records if "the codebook has collapsed" in record.getMessage()]
    if start == "collapsed":
        assert perplexity[-1] == pytest.approx(1.0, abs=0.01)
        (message,) = (record.getMessage() for record in said)
        assert int(message.split()[1].strip(":")) <= STEPS / 5
        assert "omnivae doctor" in message
        (finding,) = found
        assert finding.severity == "critical"
        assert any("revive_below" in option for option in finding.options)
    else:
        assert said == []
        assert found == []
        assert perplexity[-1] > CODES / 3


def test_one_uniform_window_at_the_start_is_no_collapse(caplog):
    watch = CodeWatch(1)

    def window(step, *codes):
        indices = torch.tensor(codes)[:, None]
        q = QuantisedPosterior(torch.zeros(len(codes), 1, 1), indices, 4, {})
        watch.add(SimpleNamespace(latents=[SimpleNamespace(posterior=q)]), "train")
        return watch.step_done(step, last=False)["train/perplexity"]

    with caplog.at_level("WARNING", "omnivae"):
        for step, codes in enumerate([(0, 0, 0), (0, 1, 2), (2, 2, 2), (0, 3, 1)], 1):
            assert (window(step, *codes) < FEW) == (len(set(codes)) == 1)
        assert caplog.text == ""
        for step in (5, 6, 7, 8):
            window(step, 1, 1, 1)
    assert caplog.text.count("the codebook has collapsed") == 1
    assert "step 6: " in caplog.text
