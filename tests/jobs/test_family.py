"""bench-family: the same budget for every recipe, figures that are the runs' own, and a directory that can be continued."""

import json
import sys

import pytest

from omnivae.cli.main import main
from omnivae.data import DataConfig
from omnivae.jobs.evaluate import evaluate_model
from omnivae.jobs.family import Plan, compare, compare_family
from omnivae.jobs.family.result import cell
from omnivae.recipes import MEMBERS

SMALL = {"steps": 3, "batch_size": 8, "latent_dim": 4, "channels": (4, 8), "images": 12, "num_samples_nll": 3}
RECIPES = ("conv_vae", "autoencoder")


def plan(**changes):
    settings = {"recipes": RECIPES, "seeds": (0, 1), "metrics": ("elbo", "psnr", "active_units")} | SMALL | changes
    return Plan(data=DataConfig(path="digits", limit=40), **settings)


@pytest.fixture
def in_process(monkeypatch):
    """Training in this process: starting Python and importing torch for every run takes longer than the runs."""
    started = []

    def run(command):
        started.append(command)
        return main([*command[3:], "--report", "false"]), 100.0

    monkeypatch.setattr(compare, "_run", run)
    return started


def test_every_run_has_the_same_budget_and_its_recipes_own_objective():
    asked = plan()
    configs = {recipe: asked.config(recipe, 1) for recipe in asked.recipes}
    assert {(c.training.batch_size, c.training.max_steps, c.training.seed) for c in configs.values()} == {(8, 3, 1)}
    for recipe, config in configs.items():
        assert config.losses == {name: dict(arguments) for name, arguments in MEMBERS[recipe].losses.items()}
        assert config.data == asked.data
        assert config.model == {"recipe": recipe, "latent_dim": 4, "channels": [4, 8]}
    own = MEMBERS["beta_vae"].training["learning_rate"]
    assert plan(recipes=("conv_vae", "beta_vae")).config("beta_vae", 0).training.learning_rate == own
    assert plan(recipes=("conv_vae", "beta_vae"), learning_rate=0.5).config("beta_vae", 0).training.learning_rate == 0.5


def test_figures_are_those_of_the_runs_and_the_directory_can_be_continued(tmp_path, in_process):
    result = compare_family(plan(), tmp_path / "out")
    assert len(in_process) == 4
    for run in result.runs:
        folder = tmp_path / "out" / "runs" / run.recipe / f"seed-{run.seed}" / "run"
        direct = evaluate_model(folder, metrics=["psnr"], limit=12, batch_size=64, progress=False)
        assert run.value("psnr") == direct.metrics["psnr"].mean
    columns = {column.name: column for column in result.columns()}
    assert columns["elbo"].values["autoencoder"] == []
    assert len(set(columns["elbo"].values["conv_vae"])) == 2  # two seeds, two runs
    assert set(columns) == {"elbo", "psnr", "active_units", "seconds", "memory", "parameters"}
    assert any("no elbo for autoencoder" in note for note in result.notes())

    # The same command trains nothing; another recipe, seed or metric may be added; another budget may not.
    before = (tmp_path / "out" / "family.json").read_text()
    compare_family(plan(), tmp_path / "out")
    assert len(in_process) == 4
    assert (tmp_path / "out" / "family.json").read_text() == before
    more = compare_family(plan(seeds=(0,), recipes=(*RECIPES, "beta_vae"), metrics=("psnr", "mse")), tmp_path / "out")
    assert len(in_process) == 5
    assert [r.recipe for r in more.runs] == ["conv_vae", "autoencoder", "beta_vae"]
    with pytest.raises(FileExistsError, match="steps: 3 there, 4 asked"):
        compare_family(plan(steps=4), tmp_path / "out")

    content = json.loads((tmp_path / "out" / "family.json").read_text())
    assert content["columns"]["psnr"]["values"]["conv_vae"] == [more.runs[0].value("psnr")]
    page = (tmp_path / "out" / "family.html").read_text()
    assert all(text in page for text in ("conv_vae", MEMBERS["autoencoder"].equation[:12], "data:image/png"))
    assert (tmp_path / "out" / "family.md").read_text().startswith("| recipe | psnr (dB) ↑ |")


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch, in_process):
    train = compare._run
    calls = []

    def interrupted(command):
        calls.append(command)
        if len(calls) == 2:
            return 0, 50.0  # asked to stop: it saved, and exited with 0 before its last step
        return train(command)

    monkeypatch.setattr(compare, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare_family(plan(seeds=(0,)), tmp_path / "out")
    result = compare_family(plan(seeds=(0,)), tmp_path / "out")
    assert [c[c.index("--output") + 1].split("/")[-3] for c in calls] == ["conv_vae", "autoencoder", "autoencoder"]
    assert [run.peak_mib for run in result.runs] == [100.0, 100.0]


def test_a_recipe_that_cannot_be_trained_is_refused_before_anything_is(tmp_path, in_process):
    with pytest.raises(ValueError, match="'text_vae' cannot be trained on digits"):
        compare_family(plan(recipes=("conv_vae", "text_vae")), tmp_path / "out")
    assert in_process == []
    assert not (tmp_path / "out").exists()


def test_a_failing_run_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_run", lambda command: (2, 1.0))
    with pytest.raises(ChildProcessError, match="conv_vae from seed 0 ended with exit code 2"):
        compare_family(plan(), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": ("conv_vae",)}, "two or more"),
        ({"recipes": ("conv_vae", "conv_vae")}, "more than once"),
        ({"recipes": ("conv_vae", "betavae")}, "beta_vae"),
        ({"seeds": ()}, "no seeds"),
        ({"steps": 0}, "steps=0"),
        ({"images": 0}, "images=0"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def test_memory_and_exit_code_are_those_of_the_process():
    code, peak = compare._run([sys.executable, "-c", "import sys; x = bytearray(200 * 2**20); sys.exit(3)"])
    assert code == 3
    assert 200 < peak < 2000


def test_cells_show_as_many_digits_as_the_seeds_agree_on():
    assert cell([-92.1, -93.4, -92.8]) == "-92.77 ± 0.65"
    assert cell([7.0, 7.0]) == "7"


# -- the commands


def test_zoo_lists_every_recipe_with_purpose_equation_and_paper(capsys):
    assert main(["zoo"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for member in MEMBERS.values():
        for text in (member.name, member.purpose, member.equation, member.paper):
            assert " ".join(text.split()) in shown


def test_zoo_in_full_and_as_json(capsys):
    assert main(["zoo", "vq_vae"]) == 0
    assert "omnivae train --model.recipe vq_vae" in " ".join(capsys.readouterr().out.split())
    assert main(["zoo", "--json", "true"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in content] == list(MEMBERS)
    assert next(e for e in content if e["name"] == "beta_vae")["losses"]["kl"]["weight"] == 4.0


def test_zoo_suggests_the_nearest_name(capsys):
    assert main(["zoo", "vqvae"]) == 2
    assert "vq_vae" in capsys.readouterr().err


def test_bench_family_from_the_command_line(tmp_path, in_process, capsys):
    argv = ["bench-family", "digits", "--recipes", "conv_vae", "beta_vae", "--steps", "2", "--batch_size", "8"]
    argv += ["--seeds", "0", "--metrics", "psnr", "--images", "8", "--channels", "[4, 8]", "--data.limit", "40"]
    assert main([*argv, "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "family.html" in shown
    assert "one seed, so no error bars" in shown
