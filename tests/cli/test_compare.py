"""``omnivae evaluate`` writes cards, ``omnivae compare`` reads them."""

import json

import pytest


@pytest.fixture(scope="module")
def cards(digits_run, spatial_run, tmp_path_factory):
    from omnivae.jobs.evaluate import evaluate_model

    folder = tmp_path_factory.mktemp("cards")
    files = {}
    for name, run, options in (
        ("digits", digits_run, {}),
        ("few", digits_run, {"limit": 3}),
        ("spatial", spatial_run, {}),
    ):
        result = evaluate_model(run, metrics=["psnr", "mse", "elbo"], progress=False, **options)
        files[name] = result.to_json(folder / f"{name}.json")
    return files


def test_the_card_of_a_run_is_the_card_of_the_command(digits_run, cards):
    own = json.loads((digits_run / "evaluation.json").read_text())["card"]
    command = json.loads(cards["digits"].read_text())["card"]
    assert own["model"] == command["model"]
    assert own["data"] == command["data"]
    assert own["model"]["recipe"] == "conv_vae"
    assert len(own["model"]["hash"]) == 64
    assert own["data"]["split"] == "test"
    assert own["data"]["inputs_are"] == "stored"
    assert own["data"]["preprocessing"]["shape"] == [1, 8, 8]
    assert "flip" not in own["data"]["preprocessing"]


def test_a_card_holds_no_path_of_this_machine(spatial_run, cards):
    assert str(spatial_run.parent) not in cards["spatial"].read_text()


def test_workers_and_batch_size_give_the_same_file(omnivae, digits_run, cards, tmp_path):
    file = tmp_path / "card.json"
    arguments = ["--metrics", "psnr", "mse", "elbo", "--batch_size", 3, "--data.num_workers", 2, "--json", file]
    outcome = omnivae("evaluate", "--checkpoint", digits_run, *arguments)
    assert outcome.code == 0, outcome.err
    assert file.read_bytes() == cards["digits"].read_bytes()
    assert json.loads(file.read_text())["card"]["data"]["inputs_hash"][:12] in outcome.out


def test_flat_names_of_other_code_bases(omnivae, spatial_run, make_images, tmp_path):
    folder, file = make_images(tmp_path / "pictures", [(16, 16), (20, 24)]), tmp_path / "card.json"
    outcome = omnivae(
        "evaluate",
        "--checkpoint",
        spatial_run,
        "--data_dir",
        folder,
        "--resolution",
        12,
        "--metrics",
        "psnr",
        "--json",
        file,
    )
    assert outcome.code == 0, outcome.err
    assert json.loads(file.read_text())["card"]["data"]["preprocessing"]["shape"] == [3, 12, 12]


def test_one_model_is_needed(refused, digits_run):
    assert "which model" in refused("evaluate")
    assert "give one of them" in refused("evaluate", digits_run, "--checkpoint", digits_run)


def test_a_card_against_itself(omnivae, cards, tmp_path):
    out, picture = tmp_path / "out.json", tmp_path / "deep" / "out.png"
    outcome = omnivae("compare", cards["digits"], cards["digits"], "--json", out, "--png", picture)
    assert outcome.code == 0, outcome.err
    assert "A and B are equal to the last digit" in outcome.out
    assert picture.read_bytes()[:4] == b"\x89PNG"
    content = json.loads(out.read_text())
    assert content["differences"]["psnr"]["mean"] == 0
    assert max(len(line) for line in outcome.out.splitlines()) <= 100


def test_a_run_stands_for_its_card(omnivae, digits_run, cards):
    outcome = omnivae("compare", digits_run, cards["digits"], "--metrics", "psnr")
    assert outcome.code == 0, outcome.err
    assert "A and B are the same model" in outcome.out


def test_cards_of_other_images_are_refused(refused, omnivae, cards):
    assert "prepared differently" in refused("compare", cards["digits"], cards["spatial"])
    assert "3 in common" in refused("compare", cards["digits"], cards["few"])
    outcome = omnivae("compare", cards["digits"], cards["few"], "--common")
    assert outcome.code == 0, outcome.err
    assert "3 images in common" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CARD", "nowhere.json"], "no evaluation card at nowhere.json"),
        (["CARD"], "b"),
        (["CARD", "CARD", "--metrics", "snr"], "has no metric 'snr'; did you mean 'psnr'"),
        (["CARD", "CARD", "--png", "out.jpg"], "PNG"),
        (["CARD", "CARD", "--flips", "1"], "flips=1"),
    ],
)
def test_mistakes_are_one_sentence(refused, cards, arguments, message):
    assert message in refused("compare", *[cards["digits"] if a == "CARD" else a for a in arguments])
