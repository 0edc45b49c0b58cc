"""Every rule of the doctor fires on a log made for it, in the right direction, and stays quiet on a healthy one."""

import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from doctor_logs import CASES, OVERFIT, STEPS, T, falling, healthy, noise

from omnivae.cli.main import main
from omnivae.cli.train import read_run as read_arguments
from omnivae.jobs.doctor import (
    RULES,
    Curve,
    Look,
    Record,
    apply_rules,
    diagnose,
    read_curves,
    read_run,
)
from omnivae.jobs.doctor.examine import write_json
from omnivae.jobs.doctor.registry import SEVERITIES
from omnivae.training import CHECKPOINTS


def found(record, rule):
    return [finding for finding in apply_rules(record).findings if finding.rule == rule]


def test_a_healthy_run_has_no_findings_and_every_rule_was_applied():
    examination = apply_rules(healthy())
    assert [f"{f.rule}: {f.seen}" for f in examination.findings] == []
    assert examination.not_checked == {}
    assert set(examination.passed) == set(RULES)
    assert examination.worst == "ok"


@pytest.mark.parametrize(("rule", "record", "severity", "seen", "advice", "options"), CASES.values(), ids=CASES)
def test_a_rule_fires_on_the_log_made_for_it(rule, record, severity, seen, advice, options):
    findings = found(record, rule)
    assert findings, [f.rule for f in apply_rules(record).findings]
    finding = findings[0]
    assert finding.severity == severity
    assert seen in finding.seen
    assert advice in finding.advice
    for part in options:
        assert any(part in option for option in finding.options), finding.options


def test_every_rule_has_a_log_that_fires_it():
    assert {case[0] for case in CASES.values()} == set(RULES)


@pytest.mark.parametrize(
    "option", sorted({o for case in CASES.values() for f in found(case[1], case[0]) for o in f.options})
)
def test_every_advised_option_is_one_that_train_takes(option):
    coded = any(word in option for word in ("revive_below", "num_codes", "commitment"))
    recipe = ["--model.recipe", "transvae" if "use_" in option else "vq_vae" if coded else "conv_vae"]
    crop = ["--data.image_size", "8"] if "random_crop" in option else []  # only advised where it is set
    gan = ["--losses.gan.weight", "0.1"] if "gan" in option and "gan.weight" not in option else []
    config, *_ = read_arguments([*recipe, "--data.path", "digits", *crop, *gan, *shlex.split(option)])
    name, value = shlex.split(option)
    section, key = name.removeprefix("--").split(".", 1)
    got = getattr(config, section)
    for part in key.split("."):
        got = got[part] if isinstance(got, dict) else getattr(got, part)
    if isinstance(got, (int, float)) and not isinstance(got, bool):
        assert got == float(value)


def test_every_rule_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)) == sorted(RULES)


@pytest.mark.parametrize("weight", [1e-6, 1.0, 64.0])
@pytest.mark.parametrize("level", [0.0, 1e-6, 1e-3])
def test_collapse_never_raises_the_weight(weight, level):
    # Document 3 says "increase if latent space collapses": that makes it worse.
    flat = np.full(STEPS, level)
    record = healthy(
        {"losses.kl.weight": weight},
        **{
            "train/kl_nats": flat,
            "train/kl": flat,
            "train/weight/kl": np.full(STEPS, weight),
            "dimensions": np.full(16, level / 16),
        },
    )
    (finding,) = found(record, "posterior_collapse")
    assert found(record, "kl_balance") == []
    for option in finding.options:
        name, value = shlex.split(option)
        if name != "--losses.kl.weight":
            assert name == "--losses.kl.free_bits"
            continue
        given = json.loads(value)
        ends = (given["start"], given["end"]) if isinstance(given, dict) else (given,)
        assert max(ends) <= weight
        assert min(ends) < weight
    assert "raise" not in finding.text()
    assert "increase" not in finding.text()


def test_both_losses_rising_is_no_overfitting():
    record = healthy(**{"val/total": OVERFIT, "train/total": 40 + 30 * T + noise(0.3)})
    assert found(record, "overfitting") == []


def test_a_validation_loss_below_the_training_loss_is_no_overfitting():
    record = healthy(**{"val/total": OVERFIT - 100})
    assert found(record, "overfitting") == []


def test_noise_of_the_validation_is_no_overfitting():
    for seed in range(20):
        flat = 40 + np.concatenate([[20, 10, 4, 2], noise(0.5, 6, seed)])
        assert found(healthy(**{"val/total": flat}), "overfitting") == [], seed


def test_an_annealed_weight_is_no_divergence():
    # The total rises because the KL's weight does; the ELBO gets better all the way.
    weight = np.minimum(1, 2 * T) * 50
    kl = np.full(STEPS, 6.0)
    record = healthy(**{"train/total": falling(80, 25) + weight * kl, "train/weight/kl": weight})
    assert found(record, "learning_rate_high") == []


def test_many_nats_of_a_large_latent_are_few_for_each_element():
    flat = np.full(STEPS, 500.0)
    columns = {"train/weight/kl": np.full(STEPS, 1e-8), "train/kl": flat, "train/kl_nats": flat}
    for size, loose in ((1024, False), (64, True)):
        record = healthy(**columns, look=Look(-1.0, 1.0, (-1.0, 1.0), latent_size=size))
        assert bool(found(record, "kl_balance")) == loose


def test_a_falling_kl_weight_may_let_the_kl_grow():
    record = healthy(**{"train/kl_nats": np.exp(12 * T), "train/weight/kl": np.exp(-12 * T)})
    assert found(record, "kl_growth") == []


def test_a_densitys_negative_loss_may_fall_below_zero():
    record = healthy(**{"train/total": falling(100, -400) + noise(1.0), "train/elbo": -falling(100, -400)})
    assert [f.rule for f in apply_rules(record).findings] == []


def test_findings_come_by_urgency():
    record = healthy(
        {"model.recipe": "transvae", "model.use_rope": False},
        **{"train/data_wait_share": np.full(STEPS, 0.9), "look": Look(0.0, 9.0, (0.0, 1.0))},
    )
    severities = [finding.severity for finding in apply_rules(record).findings]
    assert severities == ["critical", "warning", "note"]
    assert severities == sorted(severities, key=SEVERITIES.index)


def test_a_short_log_is_not_judged():
    record = healthy()
    short = Record(
        record.directory, record.config, {n: Curve(c.steps[:5], c.values[:5]) for n, c in record.curves.items()}
    )
    examination = apply_rules(short)
    assert "train/total has 5 rows, 20 needed" in examination.not_checked["learning_rate_high"]


# -- files


def test_tables_are_read_as_the_run_writes_them(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,train/total,val/total\n1,0.1,5,\n2,0.2,nan,\n2,0.2,,7\n3,0.3,4,\n3,0.3,3.5,\n4,0")
    curves = read_curves(path)
    assert curves["train/total"].steps.tolist() == [1, 2, 3]
    assert curves["train/total"].values[2] == 3.5
    assert math.isnan(curves["train/total"].values[1])
    assert curves["val/total"].steps.tolist() == [2]
    path.write_text("step,train/total\n1,five\n")
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.csv is not a row of numbers"):
        read_curves(path)


def test_a_directory_without_a_run_and_a_damaged_record_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run at"):
        diagnose(tmp_path)
    (tmp_path / "config.yaml").write_text("model: {recipe: conv_vae}\ndata: {path: digits}\nlosses: {nll: 1.0}\n")
    assert "metrics.csv is missing" in read_run(tmp_path, look=False).notes[0]
    (tmp_path / "flight").mkdir()
    (tmp_path / "flight" / "record.json").write_text("{")
    with pytest.raises(ValueError, match=r"flight record .* cannot be read"):
        diagnose(tmp_path, look=False)


TINY = [
    "--data.path",
    "digits",
    "--data.limit",
    "200",
    "--training.batch_size",
    "16",
    "--training.precision",
    "32",
    "--training.val_images",
    "32",
    "--model.recipe",
    "conv_vae",
    "--model.channels",
    "[8,16]",
    "--model.latent_dim",
    "8",
]


def train(directory, *arguments, steps=60):
    return main(
        [
            "train",
            *TINY,
            "--output",
            str(directory),
            "--training.max_steps",
            str(steps),
            "--report",
            "false",
            *map(str, arguments),
        ]
    )


def test_a_real_run_with_a_huge_kl_weight_has_collapsed(tmp_path, capsys):
    run = tmp_path / "run"
    assert (
        train(run, "--losses.nll.weight", 1, "--losses.kl.weight", 500, "--training.learning_rate", 3e-3, steps=150)
        == 0
    )
    capsys.readouterr()
    assert main(["doctor", str(run), "--json", str(tmp_path / "found.json")]) == 1
    shown = capsys.readouterr().out
    assert "critical  posterior_collapse" in shown
    assert "--losses.kl.weight 125" in shown
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["worst"] == "critical"
    assert content["findings"][0]["rule"] == "posterior_collapse"
    assert "reconstructions of different images differ by" in content["findings"][0]["seen"]


def test_a_real_run_that_went_well_has_nothing_worse_than_notes(tmp_path, capsys):
    run = tmp_path / "run"
    assert (
        train(run, "--losses.nll.weight", 1, "--losses.kl.weight", 1, "--training.learning_rate", 3e-3, steps=100) == 0
    )
    examination = read_run(run)
    assert examination.notes == ()
    assert examination.look is not None
    assert 0.1 < examination.look.variation < 1.5
    findings = apply_rules(examination).findings
    assert {f.severity for f in findings} <= {"note"}, findings
    capsys.readouterr()
    assert main(["doctor", str(run)]) == 0
    assert "ok  " in capsys.readouterr().out


def test_a_real_run_that_broke_down_is_explained_by_its_flight_record(tmp_path, capsys):
    run = tmp_path / "run"
    code = train(
        run,
        "--losses.nll.weight",
        1,
        "--losses.kl.weight",
        1,
        "--training.learning_rate",
        1e30,
        "--training.gradient_clip",
        0,
        "--training.warmup_steps",
        0,
    )
    assert code == 2
    capsys.readouterr()
    assert main(["doctor", str(run), "--look", "false"]) == 1
    shown = capsys.readouterr().out
    assert "critical  bad_steps: step " in shown
    assert "learning_rate" in shown
    assert "omnivae replay" in shown


def test_a_real_run_that_was_stopped_can_be_continued_as_advised(tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, "--losses.nll.weight", 1, "--losses.kl.weight", 1, steps=20) == 0
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("max_steps: 20", "max_steps: 40"))
    (finding,) = [f for f in diagnose(run, look=False) if f.rule == "interrupted"]
    assert "step 20 of 40" in finding.seen
    command = shlex.split(finding.advice.split("`")[1])
    assert main([*command[1:], "--report", "false"]) == 0
    assert (run / CHECKPOINTS).is_dir()
    assert [f for f in diagnose(run, look=False) if f.rule == "interrupted"] == []


def test_the_result_can_be_written(tmp_path):
    write_json(apply_rules(CASES["waiting for data"][1]), tmp_path / "new" / "found.json")
    content = json.loads((tmp_path / "new" / "found.json").read_text())
    (finding,) = content["findings"]
    assert set(finding) == {"rule", "severity", "seen", "diagnosis", "advice", "options"}
