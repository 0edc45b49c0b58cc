"""A run on text from the corpus to the report: trained, continued, measured and read by the commands."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from omnivae.cli.main import main
from omnivae.data import DataConfig
from omnivae.jobs.choose import choose_for
from omnivae.jobs.config import RunConfig
from omnivae.jobs.evaluate import evaluate_model
from omnivae.jobs.text import interpolate_sentences, load_text_model, reconstruct_sentences, sample_sentences
from omnivae.jobs.train import train
from omnivae.training import TrainingConfig

LINES = [
    f"the {a} {b} {c}."
    for a in ["red", "old", "wet", "big"]
    for b in ["cat", "dog", "hen", "fox"]
    for c in ["sits", "runs"]
]
MODEL = {"recipe": "text_vae", "latent_dim": 4, "embedding_dim": 8, "hidden": 8, "encoder_layers": 1}


def config_for(path, steps, **data):
    training = TrainingConfig(
        batch_size=8, max_steps=steps, schedule="constant", warmup_steps=0, precision="32", checkpoint_every=3, ema=0.0
    )
    return RunConfig(
        dict(MODEL), DataConfig(str(path), min_count=1, **data), {"nll": {}, "kl": {"free_bits": 0.5}}, training
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(LINES))
    return path


@pytest.fixture(scope="module")
def run(corpus):
    directory = corpus.parent / "run"
    train(config_for(corpus, 6), directory, progress=False)
    return directory


def test_a_run_that_was_cut_off_ends_bit_equal(corpus, run, tmp_path):
    # Word dropout, the noise of z and the order of the sentences are all drawn again as they were.
    train(config_for(corpus, 3), tmp_path / "cut", progress=False, report=False)
    train(config_for(corpus, 6), tmp_path / "cut", progress=False, report=False)
    once, again = (load_file(d / "model" / "model.safetensors") for d in (run, tmp_path / "cut"))
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_the_report_and_the_log_are_of_text(run):
    html = (run / "report.html").read_text()
    assert all(heading in html for heading in ("Reconstructions", "Interpolations", "token_perplexity", "Samples"))
    assert "<img" in html  # the training curves
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert "val/token_accuracy" in header
    assert "val/psnr" not in header
    assert "from the prior:" in next(iter((run / "pictures").glob("*.txt"))).read_text()


def test_perplexities_are_those_of_the_nats(run):
    evaluation = evaluate_model(run, split="all", num_samples_nll=5, progress=False)
    nats = sum(evaluation.per_image["nll"].values())
    assert evaluation.images == len(LINES)
    # Four words and a point, and the end; the point belongs to the last word.
    assert evaluation.metrics["token_perplexity"].mean == pytest.approx(math.exp(nats / (6 * len(LINES))), rel=1e-5)
    assert evaluation.metrics["word_perplexity"].mean == pytest.approx(math.exp(nats / (4 * len(LINES))), rel=1e-5)
    assert 0 <= evaluation.metrics["token_accuracy"].mean <= 1
    with pytest.raises(ValueError, match="'psnr' is of images"):
        evaluate_model(run, metrics=["psnr"], progress=False)


def test_sentences_in_and_out(run, corpus, capsys, caplog):
    model = load_text_model(run)
    walk = interpolate_sentences(run, LINES[0], LINES[-1], steps=4)
    assert len(walk) == 4
    assert [walk[0], walk[-1]] == model.decode_text(model.encode(model.to_tokens([LINES[0], LINES[-1]])))
    assert sample_sentences(run, n=3, seed=1) == sample_sentences(run, n=3, seed=1)
    assert [text for text, _ in reconstruct_sentences(run, [str(corpus)])] == LINES
    reconstruct_sentences(run, ["the purple cat sits."])
    assert "read as <unk>: 'purple'" in caplog.text
    assert main(["sample", str(run), "--n", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["interpolate", str(run), LINES[0], LINES[1], "--steps", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["reconstruct", str(run), "the red cat sits."]) == 0
    assert capsys.readouterr().out.startswith("the red cat sits.\n    -> ")


def test_text_and_images_are_not_mixed_up(run, corpus, tmp_path, capsys):
    assert main(["traverse", str(run)]) == 2
    assert "this command is for images" in capsys.readouterr().err
    images = replace(config_for(corpus, 2), data=DataConfig("digits"))
    with pytest.raises(ValueError, match="text_vae reads sentences"):
        train(images, tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="'conv_vae' reads images"):
        train(replace(config_for(corpus, 2), model={"recipe": "conv_vae"}), tmp_path / "b", progress=False)
    with pytest.raises(ValueError, match="compares pixels"):
        train(replace(config_for(corpus, 2), losses={"l1": {}, "kl": {}}), tmp_path / "c", progress=False)
    with pytest.raises(ValueError, match="per_element"):
        train(replace(config_for(corpus, 2), losses={"nll": {"per_element": True}}), tmp_path / "d", progress=False)
    with pytest.raises(ValueError, match=r"set data\.max_length"):
        train(replace(config_for(corpus, 2), model=MODEL | {"max_length": 9}), tmp_path / "e", progress=False)


def test_without_a_configuration_text_gets_a_text_vae(corpus):
    chosen = choose_for(DataConfig(str(corpus), min_count=1))
    assert chosen["model"]["recipe"] == "text_vae"
    assert chosen["losses"]["kl"]["weight"]["component"] == "CyclicalSchedule"
    assert chosen["training"]["batch_size"] == 6
