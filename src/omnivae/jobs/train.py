"""Train from a configuration: build the model, fit it, evaluate it, write the report; the same call continues."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import nn

from omnivae.component import suggestion
from omnivae.data import DataConfig, DataSplits, TextSplits, collate, collate_text, is_text, load_data
from omnivae.files import remove_leftovers, replace_atomic, write_atomic
from omnivae.jobs.conditions import COND, condition_of, refuse_mismatch
from omnivae.jobs.config import RunConfig, build_losses, differences, read_yaml
from omnivae.jobs.manifest import MANIFEST, data_changes, one_line, told_changes, write_manifest
from omnivae.jobs.processes import train_in_processes
from omnivae.jobs.run_data import CONFIG, PREPARATION
from omnivae.jobs.starting import start_from
from omnivae.jobs.volume_data import for_report, shape_of_stacks, usual_metrics
from omnivae.jobs.volumes_channels import trained_channels
from omnivae.losses import Loss
from omnivae.models import VAE
from omnivae.recipes import RECIPES
from omnivae.training import CHECKPOINTS, FitResult
from omnivae.training.corruption import Corruption
from omnivae.training.distributed import RESULT, first_on_each_machine, joined, note, together
from omnivae.training.world import launched, num_processes, world

log = logging.getLogger(__name__)

#: Recipes whose models have three spatial axes without being told.
VOLUME_RECIPES = ("maisi_vae", "beta_vae_25d", "beta_vae_monai", "video_vae", "cogvideox_vae")
REPORT, MODEL, PICTURES, SKIPPED = "report.html", "model", "pictures", "skipped.tsv"
#: What a report evaluates, on so many test images.
REPORT_METRICS = (
    "psnr",
    "ssim",
    "ms_ssim",
    "mse",
    "l1",
    "elbo",
    "bits_per_dim",
    "kl",
    "perplexity",
    "code_usage",
    "class_accuracy",
    "stack_boundary",
)
REPORT_IMAGES = 256
#: Images of a world from which a report tells what the codes know of its factors.
REPORT_ROWS = 3_000


def build_model(model: Mapping[str, Any], data: DataConfig, splits: DataSplits) -> VAE:
    """Build the model that a configuration names; what it leaves out and the data knows comes from the data.

    Args:
        model: ``{"recipe": name, **arguments}``.
        data: the data section.
        splits: the data.

    Returns:
        The model, randomly initialised.

    Raises:
        ValueError: for an unknown recipe or argument, or one that contradicts the data.
    """
    arguments = dict(model)
    name = arguments.pop("recipe", "transvae")
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}{suggestion(name, RECIPES)}; expected one of {', '.join(RECIPES)}")
    recipe: Callable[..., VAE] = RECIPES[name]
    parameters = inspect.signature(recipe).parameters
    for argument in arguments:
        if argument not in parameters:
            raise ValueError(f"the recipe {name!r} has no argument {argument!r}{suggestion(argument, parameters)}")
    from_data: dict[str, Any] = {"in_channels": splits.channels}
    if name in VOLUME_RECIPES:
        from_data |= shape_of_stacks(splits)
    if "image_size" in parameters:
        from_data["image_size"] = list(splits.image_size)
    elif len(splits.image_size) > 2:
        from_data["input_resolution"] = list(splits.image_size)
    else:
        from_data["input_resolution"] = max(*splits.image_size, *data.resolutions)
    axes = len(splits.image_size)
    if axes > 2:
        if "dim" not in parameters and name not in VOLUME_RECIPES:
            kind = "videos" if splits.intensity is None else "volumes"
            raise ValueError(
                f"the recipe {name!r} is for images and {splits.name} has {kind} of "
                f"{' x '.join(map(str, splits.image_size))}; choose one with an argument dim, such as conv_vae"
            )
        from_data["dim"] = axes
    told = refuse_mismatch(name, parameters, splits.condition)
    for argument, value in told.items():
        if arguments.get(argument) not in (None, value):
            raise ValueError(
                f"model.{argument} is {arguments[argument]} and data.cond comes to {value}; leave model.{argument} out"
            )
    for argument, value in (from_data | told).items():
        if argument in parameters and arguments.get(argument) is None:
            arguments[argument] = value
    if arguments.get("in_channels", splits.channels) != splits.channels:
        raise ValueError(
            f"model.in_channels is {arguments['in_channels']} and the images have {splits.channels} channels; "
            f"set data.channels to {arguments['in_channels']}, or leave model.in_channels out"
        )
    if data.value_range is not None and "value_range" in parameters:
        if arguments.get("value_range") not in (None, data.value_range, list(data.value_range)):
            raise ValueError(
                f"model.value_range is {arguments['value_range']} and data.value_range is {data.value_range}; give one of them"
            )
        arguments["value_range"] = data.value_range
    return recipe(**arguments)


def prepare(config: RunConfig, directory: Path | None = None) -> tuple[VAE, dict[str, Loss], DataSplits]:
    """Build everything that a run needs, and refuse what cannot work, before anything is trained.

    Args:
        config: the run.
        directory: of a run that may be continued; sentences keep its vocabulary.

    Returns:
        Model, losses and data.
    """
    if is_text(config.data):
        from omnivae.jobs.text import prepare_text

        return prepare_text(config, directory)  # type: ignore[return-value]
    if config.model.get("recipe") == "text_vae":
        raise ValueError(
            f"the recipe text_vae reads sentences and {config.data.path} holds images: give data.path a .txt file with one "
            "sentence a line, or choose a recipe of images"
        )
    losses = build_losses(config.losses)
    start = None if config.checkpoint is None else VAE.from_pretrained(config.checkpoint)
    # Classes and attributes mean to weights what they meant where these were trained.
    known = None if start is None else condition_of(start)
    splits = load_data(config.data, seed=config.training.seed, condition=known)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = build_model(config.model, config.data, splits)
    if tuple(model.value_range) != tuple(splits.value_range) and config.data.value_range is None:
        splits = splits.in_range(model.value_range)
    size = world().size
    if config.training.batch_size < 2 * size and any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()
    ):
        raise ValueError(
            f"batch normalisation needs at least two images in {'a batch' if size == 1 else 'every share of a batch'}: set "
            f"training.batch_size to {2 * size} or more{_other_norms(str(config.model['recipe']))}"
        )
    if config.data.resolutions and model.image_size is not None:
        raise ValueError(
            f"data.resolutions is {list(config.data.resolutions)} and this model has a vector latent, which takes images of one "
            "size: choose a recipe with a spatial latent, such as transvae, or leave data.resolutions out"
        )
    if splits.channels != model.in_channels:
        raise ValueError(
            f"the images have {splits.channels} channels and the model takes {model.in_channels}; set data.channels"
        )
    if start is not None:
        assert config.checkpoint is not None
        options = inspect.signature(RECIPES[str(config.model.get("recipe", "transvae"))]).parameters
        start_from(
            model,
            start,
            config.checkpoint,
            rebuild=lambda changes: build_model({**config.model, **changes}, config.data, splits),
            options={name: option.default for name, option in options.items()},
        )
    model.statistics = model.statistics | {
        "image_size": list(splits.image_size),
        "data": {"name": splits.name, "alpha": splits.alpha}
        | {name: asdict(config.data)[name] for name in PREPARATION},
    }
    if splits.intensity is not None:
        model.statistics["intensity"] = splits.intensity
        if names := trained_channels(splits):
            model.statistics["channels"] = list(names)
    else:
        # What a recipe says of the values its weights were published for is not true of these: video has no Hounsfield units.
        model.statistics.pop("intensity", None)
    if config.training.corrupt != "none":
        corruption = Corruption(config.training.corrupt, config.training.corrupt_strength)
        model.statistics["corruption"] = corruption.to_dict()
    if splits.condition is not None:
        model.statistics[COND] = splits.condition.to_dict()
    return model, losses, splits


def _other_norms(recipe: str) -> str:
    """Return how a recipe's setting of its normalisation is called, and its other values, as the end of a sentence."""
    build = RECIPES[recipe]
    hints = get_type_hints(build.__init__ if inspect.isclass(build) else build)
    for name in ("norm", "norm_name"):
        others = [value for value in get_args(hints.get(name)) if value and value != "batch"]
        if others:
            return f", or model.{name} to {' or '.join(others)}"
    return ""


def train(
    config: RunConfig,
    output: str | Path,
    *,
    progress: bool = True,
    report: bool = True,
    accept_changes: bool = False,
) -> FitResult:
    """Train a model into a run directory, or continue the run that is there.

    The directory holds ``config.yaml``, ``checkpoints/``, ``model/`` (a model directory), ``metrics.csv``,
    ``kl_per_dimension.csv``, ``tensorboard/``, ``pictures/``, ``data.tsv.gz`` (which images it was trained on) and, at the end,
    ``report.html``.

    Where ``config.training.devices`` asks for several processes they are started here; under ``torchrun`` this is one of them.

    Args:
        config: the run.
        output: its directory.
        progress: show progress on standard error.
        report: evaluate the model and write ``report.html`` at the end.
        accept_changes: continue the run also where its configuration or its data have changed since it was started.

    Returns:
        How far it came.

    Raises:
        FileExistsError: when the directory holds another run, or something else.
        ValueError: for data, model or losses that cannot work.
        FloatingPointError: when a loss stops being finite.
        ChildProcessError: when one of several processes fails or is lost.
    """
    directory = Path(output)
    if not launched() and num_processes(config.training) > 1:
        if not accept_changes:
            check_output(directory, config)
        wanted = {"progress": progress, "report": report, "accept_changes": accept_changes}
        return train_in_processes(config, directory, wanted)
    with joined(config.training):
        result = _train(config, directory, progress=progress, report=report, accept_changes=accept_changes)
        note(RESULT, json.dumps(asdict(result)))
    return result


def _train(config: RunConfig, directory: Path, *, progress: bool, report: bool, accept_changes: bool) -> FitResult:
    from omnivae.jobs.text import draw_sentences, without_compiling
    from omnivae.training import fit

    # Of several processes rank 0 alone looks at the directory and writes into it.
    first = world().rank == 0
    together(lambda: check_output(directory, config, accept_changes=accept_changes) if first else None)
    model, losses, splits = first_on_each_machine(lambda: prepare(config, directory))
    together(lambda: check_data(directory, splits, accept_changes=accept_changes) if first else None)
    if first:
        for folder in (directory, directory / CHECKPOINTS, directory / MODEL, directory / PICTURES):
            remove_leftovers(folder)
        write_atomic(directory / CONFIG, config.to_yaml().encode())
        if accept_changes or not (directory / MANIFEST).is_file():
            write_manifest(directory, splits)
    log.info(
        "%s: %s parameters; %d training, %d validation and %d test %s of %s",
        type(model).__name__,
        f"{model.num_parameters():,}",
        len(splits.train),
        len(splits.val),
        len(splits.test),
        "sentences" if isinstance(splits, TextSplits) else "images",
        splits.name,
    )

    splits.train.keep_decoded(config.data.cache, any_size=bool(config.data.resolutions))
    splits.val.keep_decoded(config.data.cache)

    sentences = isinstance(splits, TextSplits)

    def look(trained: nn.Module, step: int) -> None:
        path = directory / PICTURES / f"step-{step:08d}.png"
        (draw_sentences(trained, splits, path.with_suffix(".txt")) if sentences else draw(trained, splits, path))  # type: ignore[arg-type]

    def save(trained: nn.Module) -> None:
        trained.save_pretrained(directory / MODEL)  # type: ignore[operator]

    result = fit(
        model,
        losses,
        splits.train,
        splits.val,
        config=without_compiling(config.training) if sentences else config.training,
        directory=directory,
        save_model=save,
        collate=collate_text if sentences else collate,
        num_workers=config.data.num_workers,
        resolutions=config.data.resolutions,
        draw=look,
        progress=progress,
    )
    if result.complete and report and first:
        write_run_report(directory, splits)
    if splits.skipped and first:
        tell_skipped(directory, splits)
    return result


def tell_skipped(directory: Path, splits: DataSplits) -> None:
    """Write ``skipped.tsv`` and log which files were left out because they could not be read.

    Args:
        directory: the run.
        splits: its data.
    """
    lines = "".join(f"{one_line(name)}\t{one_line(reason)}\n" for name, reason in splits.skipped)
    write_atomic(directory / SKIPPED, lines.encode())
    shown = "; ".join(f"{name}: {reason}" for name, reason in splits.skipped[:5])
    more = f"; and {len(splits.skipped) - 5} more" if len(splits.skipped) > 5 else ""
    log.warning(
        "%d files could not be read and were left out of this run, listed in %s: %s%s",
        len(splits.skipped), directory / SKIPPED, shown, more,
    )  # fmt: skip


def write_run_report(directory: Path, splits: DataSplits, *, output: Path | None = None) -> Path:
    """Evaluate a run's model on its test images and write its report.

    Args:
        directory: the run.
        splits: its data.
        output: where to write; ``report.html`` in the run by default.

    Returns:
        The report.
    """
    from omnivae.jobs.doctor import diagnose
    from omnivae.jobs.factors import process_of
    from omnivae.jobs.provenance import provenance_of
    from omnivae.metrics import evaluate
    from omnivae.metrics.registry import measurable
    from omnivae.report import write_report

    if isinstance(splits, TextSplits):
        from omnivae.jobs.text import report_text

        return report_text(directory, output or directory / REPORT)
    model = VAE.from_pretrained(directory)
    shown: Any = for_report(splits.test)
    subset = torch.utils.data.Subset(shown, range(min(len(shown), REPORT_IMAGES)))
    known = provenance_of(directory, splits, "test")
    # Of a world, also what a vector of codes knows of its factors.
    process = process_of(splits, model, num_rows=REPORT_ROWS) if model.image_size is not None else None
    usual = (
        measurable(REPORT_METRICS, model)
        if splits.intensity is None
        else [*usual_metrics(model), *measurable(["kl"], model)]
    )
    names = [*usual, *(("mig", "dci_disentanglement") if process else ())]
    # An expectation over ten decoded samples of a volume would take longer than all else.
    draws = 10 if splits.intensity is None else 1
    evaluation = evaluate(
        model, subset, names, num_samples_elbo=draws, provenance=known, process=process, progress=False
    )
    evaluation.to_json(directory / "evaluation.json")
    return write_report(
        model,
        shown,
        output or directory / REPORT,
        evaluation=evaluation,
        history=directory / "metrics.csv",
        config_text=(directory / CONFIG).read_text(),
        advice=[finding.row() for finding in diagnose(directory, look=False)],
        title=f"{splits.name}: {type(model).__name__}",
        dataset_name=splits.name,
        classes=splits.classes,
    )


def check_output(directory: Path, config: RunConfig, *, accept_changes: bool = False) -> None:
    """Refuse a directory that holds another run or foreign files.

    Args:
        directory: the run's directory.
        config: what is asked for.
        accept_changes: continue a run with another configuration; what differs is logged.

    Raises:
        FileExistsError: names what differs.
    """
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; give --output a directory")
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not (directory / CONFIG).is_file():
        raise FileExistsError(f"{directory} is not empty and holds no run; give --output a new or empty directory")
    different = differences(read_yaml(directory / CONFIG), config.to_dict())
    # A run that never saved anything (its batch was larger than the data, say) has nothing to lose.
    if different and (directory / CHECKPOINTS).exists():
        model = [change for change in different if change.startswith("model.")]
        if accept_changes and model:
            raise FileExistsError(
                f"{directory} holds a run of another model ({'; '.join(model[:3])}), whose weights do not fit this one; give "
                "--output another directory"
            )
        if accept_changes:
            log.warning("continuing with another configuration: %s", "; ".join(different))
            if any(change.startswith("training.ema: ") and change.endswith(" 0.0 asked") for change in different):
                log.warning("without a moving average the run continues from the average that it had")
            return
        shown = "; ".join(different[:3]) + (f"; and {len(different) - 3} more" if len(different) > 3 else "")
        raise FileExistsError(
            f"{directory} holds another run ({shown}); give --output another directory, repeat that run's command to continue it, "
            "or continue it as it is asked for with --accept_changes true"
        )


def check_data(directory: Path, splits: DataSplits, *, accept_changes: bool = False) -> None:
    """Refuse to continue a run on other images than it was started with.

    Args:
        directory: the run's directory.
        splits: its data as it is now.
        accept_changes: continue; what differs is logged.

    Raises:
        ValueError: names what was added, changed or is gone.
    """
    if not (directory / CHECKPOINTS).exists():
        (directory / MANIFEST).unlink(missing_ok=True)
        return
    changes = data_changes(directory, splits) + told_changes(directory, splits)
    if not changes:
        return
    if not accept_changes:
        raise ValueError(
            f"the images are not those that {directory} was started with: {'; '.join(changes)}; restore them, give --output "
            "another directory, or continue on what is there with --accept_changes true"
        )
    log.warning("continuing on other images than before: %s", "; ".join(changes))


def draw(model: nn.Module, splits: DataSplits, path: Path) -> None:
    """Draw reconstructions of validation images, and samples, into one picture.

    Args:
        model: in evaluation mode.
        splits: the data.
        path: PNG file to write.
    """
    from omnivae.report import run_picture

    shown = collate([splits.val[i] for i in range(min(8, len(splits.val)))])
    device = next(model.parameters()).device
    cond = shown.get("cond")
    cond = None if cond is None else cond.to(device)
    picture = run_picture(model, shown["x"].to(device), cond=cond, spacing=shown.get("spacing_mm"))
    replace_atomic(path, lambda beside: picture.save(beside, format="PNG"))
