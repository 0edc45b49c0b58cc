"""A run's configuration: sections model, data, losses and training, and the flat form of other code bases."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omnivae.component import suggestion
from omnivae.data import DataConfig
from omnivae.jobs.video_form import from_video_form, is_video_form
from omnivae.losses import Loss, loss_classes
from omnivae.training import TrainingConfig

SECTIONS = ("model", "data", "losses", "training", "checkpoint")

#: What decides a run's result; the other fields may differ when a run is continued.
CONTINUABLE = {
    "max_steps", "num_epochs", "checkpoint_every", "validate_every", "log_every", "draw_every", "val_images", "devices",
    "num_nodes", "strategy", "num_workers", "on_nonfinite", "on_collapse", "verify", "on_error", "cache", "cache_gb", "download",
}  # fmt: skip


@dataclass
class RunConfig:
    """Everything that determines a training run.

    Args:
        model: ``{"recipe": name, **arguments of the recipe}``.
        data: what to train on.
        losses: loss name to its arguments.
        training: how to train.
        checkpoint: a model directory or run whose weights to start from, instead of random ones.
    """

    model: dict[str, Any]
    data: DataConfig = field(default_factory=DataConfig)
    losses: dict[str, dict[str, Any]] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as in ``config.yaml``."""
        sections = {
            "model": self.model,
            "data": asdict(self.data),
            "losses": self.losses,
            "training": asdict(self.training),
        }
        return _plain(sections | ({"checkpoint": self.checkpoint} if self.checkpoint else {}))

    def to_yaml(self) -> str:
        """Return ``config.yaml``'s text."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Build from plain data.

        Args:
            values: as :meth:`to_dict` returns it.

        Returns:
            The configuration.
        """
        data, training = dict(values.get("data", {})), dict(values.get("training", {}))
        for section, names in ((data, ("value_range", "input_range", "resolutions")), (training, ("betas", "freeze"))):
            for name in names:
                if section.get(name) is not None:
                    section[name] = tuple(section[name])
        return cls(
            dict(values["model"]),
            DataConfig(**data),
            dict(values["losses"]),
            TrainingConfig(**training),
            values.get("checkpoint"),
        )


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a configuration file; ``1e-4`` is a number (plain YAML 1.1 takes it for text).

    Args:
        path: a YAML file.

    Returns:
        Its sections, the flat form of other code bases translated (see :func:`normalise`).

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not YAML, or not a mapping.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration at {path}: give --config an existing YAML file")
    try:
        values = parse_yaml(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no sections; expected {', '.join(SECTIONS)}")
    return normalise(values)


def parse_yaml(text: str) -> Any:
    """Parse YAML in which ``1e-4`` is a number.

    Args:
        text: the YAML.

    Returns:
        Plain data.

    Example:
        >>> parse_yaml("{weight: 1e-8}")
        {'weight': 1e-08}
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )

    return yaml.load(text, Loader=Loader)


def normalise(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translate ``losses: {l1_weight: 1.0, kl_weight: 1e-8}`` to ``{l1: {weight: 1.0, per_element: true}, ...}``.

    In that form the pixel losses are means over every element, and the KL is summed over the latent and averaged over
    the batch; here both are spelt out. Unknown sections are refused.

    Args:
        values: sections as read.

    Returns:
        Sections in this library's form.

    Raises:
        ValueError: for an unknown section, or one that is not a mapping.
    """
    if is_video_form(values):
        values = from_video_form(values)
    for name, section in values.items():
        if name not in SECTIONS:
            raise ValueError(f"unknown section {name!r}{suggestion(name, SECTIONS)}; expected {', '.join(SECTIONS)}")
        if name != "checkpoint" and section is not None and not isinstance(section, Mapping):
            raise ValueError(f"the section {name!r} is {section!r}; expected names and values under it")
    result: dict[str, Any] = {
        name: values[name] if name == "checkpoint" else dict(values.get(name) or {})
        for name in SECTIONS
        if name in values
    }
    if "losses" in result:
        result["losses"] = {k: v for name, value in result["losses"].items() for k, v in [_loss_entry(name, value)]}
    refuse_class_paths(result)
    return result


def flat_loss(name: str, weight: float) -> dict[str, Any]:
    """Return a loss's arguments for a bare weight, as other code bases mean it.

    Args:
        name: loss name.
        weight: its weight.

    Returns:
        The arguments; pixel losses are means over every element.
    """
    per_element = {"per_element": True} if name in ("l1", "mse", "nll") else {}
    return {"weight": weight, **per_element}


def build_losses(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, Loss]:
    """Build the losses of a configuration.

    Args:
        specs: loss name to its arguments; a weight of 0 leaves a loss out.

    Returns:
        Name to loss.

    Raises:
        ValueError: for an unknown loss, naming the nearest.
    """
    classes = loss_classes()
    losses = {}
    for name, arguments in specs.items():
        if arguments.get("weight") == 0:
            continue
        check_loss_name(name, classes)
        losses[name] = classes[name](**arguments)
    return losses


def check_loss_name(name: str, classes: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless a loss of this name exists."""
    if name not in classes:
        raise ValueError(f"unknown loss {name!r}{suggestion(name, classes)}; expected {', '.join(sorted(classes))}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what two configurations disagree on, apart from what a continued run may change.

    Args:
        old: a run's ``config.yaml``; options that came later have their defaults.
        new: what is asked for.

    Returns:
        ``"training.batch_size: 32 there, 64 asked"``, one for each key.
    """
    left, right = flatten(_completed(old)), flatten(_completed(new))
    keys = [k for k in left | right if left.get(k) != right.get(k) and k.rsplit(".", 1)[-1] not in CONTINUABLE]
    return [f"{key}: {left.get(key, 'absent')} there, {right.get(key, 'absent')} asked" for key in keys]


def _completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the defaults of options that did not exist when it was written."""
    classes = loss_classes()
    defaults = {
        name: {
            key: parameter.default
            for key, parameter in inspect.signature(classes[name].__init__).parameters.items()
            if parameter.default is not parameter.empty
        }
        for name in values.get("losses", {})
        if name in classes
    }
    losses = {name: defaults.get(name, {}) | dict(given) for name, given in values.get("losses", {}).items()}
    sections = {"data": asdict(DataConfig()), "training": asdict(TrainingConfig())}
    completed = {name: section | dict(values.get(name, {})) for name, section in sections.items()}
    completed["data"]["volume"] = sections["data"]["volume"] | dict(values.get("data", {}).get("volume") or {})
    return _plain({**values, **completed, "losses": losses})


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys; components and schedules stay whole.

    Args:
        values: nested mappings.
        prefix: of the keys.

    Returns:
        Dotted key to value.

    Example:
        >>> flatten({"a": {"b": 1}, "c": 2})
        {'a.b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and "component" not in value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def refuse_class_paths(values: Any, where: str = "") -> None:
    """Raise ``ValueError`` when a configuration names Python classes to import: only registered names resolve."""
    if isinstance(values, Mapping):
        if "class_path" in values:
            raise ValueError(
                f"{where or 'the configuration'} names a class to import ({values['class_path']!r}); expected "
                "{component: NAME, ...} with the name of a registered component"
            )
        for key, value in values.items():
            refuse_class_paths(value, f"{where}.{key}" if where else str(key))


def _loss_entry(name: str, value: Any) -> tuple[str, Any]:
    if name.endswith("_weight") and isinstance(value, (int, float)):
        loss = name.removesuffix("_weight")
        return loss, flat_loss(loss, value)
    if value is None:
        return name, {}
    if isinstance(value, (int, float)):
        return name, {"weight": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"losses.{name} is {value!r}; expected a weight, or arguments such as {{weight: 1.0}}")
    return name, dict(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
