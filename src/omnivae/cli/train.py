"""``omnivae train``: a configuration, any override, a run directory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jsonargparse

from omnivae.cli.parsing import check_keys, make_parser, option_names, parse, to_arguments
from omnivae.component import suggestion
from omnivae.data import DataConfig
from omnivae.data import world as world_named
from omnivae.jobs.choose import choose_for
from omnivae.jobs.config import (
    RunConfig,
    check_loss_name,
    flat_loss,
    flatten,
    parse_yaml,
    read_yaml,
    refuse_class_paths,
)
from omnivae.jobs.starting import configuration_of
from omnivae.jobs.train import REPORT
from omnivae.jobs.train import train as run_training
from omnivae.losses import loss_classes
from omnivae.recipes import MEMBERS, RECIPES
from omnivae.training import TrainingConfig
from omnivae.training.distributed import first_to_report
from omnivae.training.world import launched, world

#: Flat flags of other code bases -> ours.
FLAT = {
    "--data_dir": "--data.path",
    "--output_dir": "--output",
    "--batch_size": "--training.batch_size",
    "--num_epochs": "--training.num_epochs",
    "--learning_rate": "--training.learning_rate",
    "--num_gpus": "--training.devices",
    "--distributed": "--training.devices",
}


def build_parser(recipe: str = "transvae") -> jsonargparse.ArgumentParser:
    """Return the parser of ``omnivae train`` for a recipe.

    Args:
        recipe: whose arguments ``--model.*`` are.

    Returns:
        The parser.
    """
    parser = make_parser(
        "train",
        "Train a VAE on images, or continue the run in --output: the same command does both.",
        "omnivae train --data.path photos/ --output runs/photos --training.max_steps 2000 --losses.kl.weight 4",
    )
    parser.add_argument(
        "--config", type=str, default=None, help="YAML file with sections model, data, losses, training"
    )
    parser.add_argument("--output", type=str, default=None, help="directory of the run; required")
    parser.add_argument(
        "--checkpoint", type=str | None, default=None, help="model directory or run whose weights to start from"
    )
    parser.add_argument("--report", type=bool, default=True, help="write report.html at the end")
    parser.add_argument(
        "--accept_changes",
        type=bool,
        default=False,
        help="continue a run also where its configuration or its images have changed",
    )
    parser.add_argument("--model.recipe", type=str, default=recipe, help=f"one of {', '.join(RECIPES)}")
    target = RECIPES[recipe]
    if isinstance(target, type):
        parser.add_class_arguments(target, "model")
    else:
        parser.add_function_arguments(target, "model")  # type: ignore[arg-type]
    for name, cls in sorted(loss_classes().items()):
        parser.add_class_arguments(cls, f"losses.{name}")
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(TrainingConfig, "training")
    return parser


def train(argv: Sequence[str]) -> int:
    """Run the command."""
    config, output, report, accept_changes = read_run(argv)
    if output is None:
        raise ValueError("say where the run goes: --output DIRECTORY")
    try:
        result = run_training(config, output, report=report, accept_changes=accept_changes)
    except Exception as error:
        # Under torchrun every process comes here; one of them says it.
        if not first_to_report(error):
            raise SystemExit(2) from None
        raise
    if world().rank or not result.total_steps:
        return 0
    if result.stopped_by:
        print(
            f"stopped by {result.stopped_by} at step {result.step} of {result.total_steps}; the same command continues"
        )
        return 0
    written = f"; open {Path(output) / REPORT}" if report else ""
    print(f"{result.step} steps done; the model is in {Path(output) / 'model'}{written}")
    return 0


class Request(NamedTuple):
    """What a command line of ``omnivae train`` asks for.

    Attributes:
        config: the run.
        output: its directory.
        report: whether a report is wanted.
        accept_changes: whether a run is continued with another configuration or other images.
    """

    config: RunConfig
    output: str | None
    report: bool
    accept_changes: bool


def read_run(argv: Sequence[str]) -> Request:
    """Read a configuration file and command-line overrides into a run's configuration.

    Args:
        argv: arguments after ``train``.

    Returns:
        What is asked for.

    Raises:
        ValueError: for anything unknown or of the wrong type.
    """
    argv, flat_losses = _translate(list(argv))
    argv = _spell_out(argv)
    path = _peek(argv, "--config")
    values = read_yaml(path) if path else {}
    output = _peek(argv, "--output")
    if path is None and output and (Path(output) / "config.yaml").is_file():
        # Continuing without a configuration file: the run knows its own.
        path = str(Path(output) / "config.yaml")
        values = read_yaml(path)
    if flat_losses:
        values["losses"] = flat_losses
    help_asked = any(a in ("-h", "--help") for a in argv)
    recipe = _peek(argv, "--model.recipe") or values.get("model", {}).get("recipe")
    checkpoint = _peek(argv, "--checkpoint")
    if checkpoint and recipe is None and not values.get("model") and not any(a.startswith("--model.") for a in argv):
        # Weights without a configuration: the model is theirs, and so are its losses where none are named.
        found = configuration_of(checkpoint)
        if found is None:
            raise ValueError(
                f"{checkpoint} does not say how its model was made: give --config FILE or --model.recipe NAME (of other people's "
                "weights `omnivae inspect-checkpoint FILE --config-out c.yaml` writes it)"
            )
        path, values = str(found[0]), {**found[1], **values}
        recipe = values["model"]["recipe"]
        if recipe in MEMBERS:
            values = {"training": MEMBERS[recipe].training, **values}
        print(f"model and losses as in {path}", file=sys.stderr)
    chosen: dict[str, Any] = {}
    if recipe is None and not values.get("model") and not help_asked:
        if any(a.startswith("--model.") for a in argv):
            recipe = "transvae"
        else:
            chosen = _choose(argv, values)
            recipe = chosen["model"]["recipe"]
    recipe = recipe or "transvae"
    if recipe not in RECIPES:
        raise ValueError(
            f"unknown recipe {recipe!r}{suggestion(recipe, RECIPES)}; expected one of {', '.join(RECIPES)}"
        )

    if chosen and (_peek(argv, "--training.num_epochs") or values.get("training", {}).get("num_epochs")):
        del chosen["training"]["max_steps"]
    parser = build_parser(recipe)
    named = _named_losses(argv) | set(values.get("losses", {}))
    if chosen and (values.get("losses") or flat_losses):
        chosen.pop("losses")
    elif not chosen and not values.get("losses") and not flat_losses:
        # A recipe without a configuration is trained on the objective that it is known for; what is said about a loss on the
        # command line changes or adds that one, and a weight of 0 leaves it out.
        known = MEMBERS[recipe]
        chosen = {"losses": known.losses, "data": known.data, "training": known.training}
        if _peek(argv, "--training.num_epochs") or values.get("training", {}).get("num_epochs"):
            chosen["training"] = {k: v for k, v in known.training.items() if k != "max_steps"}
    elif chosen:
        named |= set(chosen["losses"])
    named |= set(chosen.get("losses", {}))
    for name in sorted(named):
        check_loss_name(name, loss_classes())
    flat = flatten({k: v for k, v in values.items() if v})
    check_keys(flat, option_names(parser), str(path))
    _check_loss_weights(flat)
    parsed = parse(parser, [*to_arguments(flatten(chosen)), *to_arguments(flat), *argv])
    sections = parsed.as_dict()
    refuse_class_paths({k: sections[k] for k in ("model", "losses")})
    losses = {name: sections["losses"][name] for name in sections["losses"] if name in named}
    losses = {name: arguments for name, arguments in losses.items() if arguments["weight"] != 0}
    # Only what was asked for: the rest of the recipe's arguments may come from the data (channels, image size).
    asked = {a.partition("=")[0].removeprefix("--model.").split(".")[0] for a in argv if a.startswith("--model.")}
    asked |= {"recipe", *values.get("model", {}), *chosen.get("model", {})}
    model = {name: value for name, value in sections["model"].items() if name in asked}
    config = RunConfig(
        model, DataConfig(**sections["data"]), losses, TrainingConfig(**sections["training"]), parsed.checkpoint
    )
    if chosen.get("model"):
        print(_announce(config), file=sys.stderr)
    return Request(config, parsed.output, parsed.report, parsed.accept_changes)


def _choose(argv: list[str], values: dict[str, Any]) -> dict[str, Any]:
    """Look at the data and choose a recipe for it."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DataConfig, "data")
    data_arguments = [a for a in _joined(argv) if a.startswith("--data.")]
    from_file = flatten({"data": values["data"]}) if values.get("data") else {}
    check_keys(from_file, option_names(parser), "the configuration")
    data = DataConfig(**parse(parser, [*to_arguments(from_file), *data_arguments]).as_dict()["data"])
    return choose_for(data)


def _announce(config: RunConfig) -> str:
    model = ", ".join(f"{k}={v}" for k, v in config.model.items() if k != "recipe" and v is not None)
    losses = ", ".join(
        f"{name} x {weight['component'] if isinstance(weight, dict) else format(weight, 'g')}"
        for name, weight in ((name, arguments["weight"]) for name, arguments in config.losses.items())
    )
    what = "clips" if config.model["recipe"] == "video_vae" else "images"
    return (
        f"no configuration given; chosen from the {what}: recipe {config.model['recipe']} ({model}), losses {losses}, "
        f"{_length(config)} of {config.training.batch_size} {what} at learning rate "
        f"{config.training.learning_rate:g}; every value can be overridden, see config.yaml in the run"
    )


def _length(config: RunConfig) -> str:
    training = config.training
    return f"{training.num_epochs} epochs in batches" if training.max_steps is None else f"{training.max_steps} steps"


def _translate(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Turn flat flags into ours: ``--losses l1 kl --loss_weights 1.0 1e-8 --resolutions 256 512 --freeze_encoder``.

    ``--distributed`` is for ``torchrun``, where it says nothing new; without it, it asks for every GPU of the machine.
    """
    result: list[str] = []
    names: list[str] = []
    weights: list[float] = []
    distributed = False
    joined = list(argv)
    while joined:
        token = joined.pop(0)
        name, _, value = token.partition("=")
        if name in ("--losses", "--loss_weights"):
            items = [value] if value else []
            while joined and not joined[0].startswith("--"):
                items.append(joined.pop(0))
            if name == "--losses":
                names = items
            else:
                weights = [_number(item) for item in items]
        elif name == "--resolutions":
            sides = [value] if value else []
            while joined and not joined[0].startswith("--"):
                sides.append(joined.pop(0))
            result.append(f"--data.resolutions=[{', '.join(sides)}]")
        elif name == "--freeze_encoder":
            result.append("--training.freeze=[encoder, posterior]")
        elif name == "--distributed":
            distributed = True
        elif name == "--world":
            result.append(f"--data.path={world_named(value or (joined.pop(0) if joined else '')).name}")
        elif name == "--num_gpus":
            result.append(f"--training.devices={_num_gpus(value or (joined.pop(0) if joined else ''))}")
        elif name in FLAT:
            result.append(FLAT[name] + token[len(name) :])
        else:
            result.append(token)
    if distributed and not launched() and not any(item.startswith("--training.devices") for item in result):
        result.append(f"--training.devices={_all_gpus()}")
    if len(weights) > len(names) or (weights and len(weights) != len(names)):
        raise ValueError(
            f"got {len(names)} --losses and {len(weights)} --loss_weights; expected one weight for each loss"
        )
    weights = weights or [1.0] * len(names)
    return result, {name: flat_loss(name, weight) for name, weight in zip(names, weights, strict=True)}


def _num_gpus(text: str) -> int:
    import torch

    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--num_gpus: expected a whole number, at least 1, got {text!r}")
    count = torch.cuda.device_count()
    if int(text) > max(1, count):
        raise ValueError(
            f"got --num_gpus {text} and this machine has {count} GPU{'s' * (count != 1)}; say --training.devices {text} for as "
            "many processes on the processor"
            if not count
            else f"got --num_gpus {text} and this machine has {count} GPU{'s' * (count != 1)}; ask for {count} or less"
        )
    return int(text)


def _all_gpus() -> int:
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        raise ValueError(
            f"got --distributed in a single process on a machine with {count} GPU{'s' * (count != 1)}: start the command with "
            "torchrun --nproc_per_node=N -m omnivae, or say --training.devices N"
        )
    return count


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--loss_weights: expected numbers, got {text!r}") from None


def _joined(argv: Sequence[str]) -> list[str]:
    """Return arguments as ``--name=value``, so that each is one item."""
    result: list[str] = []
    for token in argv:
        if result and not token.startswith("--") and result[-1].startswith("--") and "=" not in result[-1]:
            result[-1] += f"={token}"
        else:
            result.append(token)
    return result


def _spell_out(argv: Sequence[str]) -> list[str]:
    """Return arguments with ``--losses.kl=8`` and ``--losses.kl={"weight": 8}`` as ``--losses.kl.weight=8``."""
    result: list[str] = []
    for token in _joined(argv):
        name, _, text = token.partition("=")
        if not (name.startswith("--losses.") and name.count(".") == 1):
            result.append(token)
            continue
        value = parse_yaml(text) if text else {}
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = {"weight": value}
        if not isinstance(value, dict):
            raise ValueError(f"{name}: expected a weight or a mapping such as {{weight: 1.0}}, got {text!r}")
        result += to_arguments({f"{name.removeprefix('--')}.{key}": item for key, item in value.items()})
    return result


def _peek(argv: Sequence[str], name: str) -> str | None:
    for token in reversed(_joined(argv)):
        if token.startswith(f"{name}="):
            return token.partition("=")[2]
    return None


def _named_losses(argv: Sequence[str]) -> set[str]:
    return {a.split(".")[1] for a in argv if a.startswith("--losses.") and a.count(".") >= 2}


def _check_loss_weights(flat: dict[str, Any]) -> None:
    for key, value in flat.items():
        if key.startswith("losses.") and key.endswith((".weight", ".capacity")) and isinstance(value, str):
            raise ValueError(
                f"{key}: expected a number or a schedule {{component: LinearSchedule, ...}}, got {value!r}"
            )
