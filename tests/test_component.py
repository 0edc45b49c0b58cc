"""Objects to configurations and back, and what a configuration cannot do."""

import builtins
import importlib
import json
import math
import sys

import pytest
import torch
from torch import nn

from omnivae.component import Component, component_class, from_config, registered, suggestion, to_config
from omnivae.likelihoods import CategoricalLikelihood, GaussianLikelihood, Likelihood
from omnivae.losses import KL, NLL, CosineSchedule, CyclicalSchedule, LinearSchedule, Loss, Schedule
from omnivae.posteriors import GaussianPosterior, PosteriorHead
from omnivae.priors import Prior, StandardNormal


class ComponentTestLeaf(Component):
    def __init__(self, size: int, name: str = "leaf", *, flag: bool = False, scale: float | None = None) -> None:
        self.size, self.name, self.flag, self.scale = size, name, flag, scale


class ComponentTestTree(nn.Module, Component):
    def __init__(self, left: Component, others: list | dict | tuple = (), depth: int = 0) -> None:
        super().__init__()
        self.left, self.others, self.depth = left, others, depth


def through_json(value):
    return from_config(json.loads(json.dumps(to_config(value), allow_nan=False)))


# -- registry


def test_defining_a_component_registers_it():
    assert registered()["ComponentTestLeaf"] is ComponentTestLeaf
    assert component_class("ComponentTestTree") is ComponentTestTree


def test_the_registry_filters_by_base():
    assert {"GaussianLikelihood", "LaplaceLikelihood", "BernoulliLikelihood"} <= set(registered(Likelihood))
    assert {"LinearSchedule", "CosineSchedule", "CyclicalSchedule", "ConstantSchedule"} <= set(registered(Schedule))
    assert all(issubclass(cls, Loss) for cls in registered(Loss).values())
    assert "KL" not in registered(Likelihood)
    with pytest.raises(ValueError, match="unknown schedule 'KL'"):
        component_class("KL", Schedule)


def test_abstract_bases_are_not_offered():
    offered = registered()
    for base in (Likelihood, Loss, Prior, PosteriorHead, Schedule):
        assert base.__name__ not in offered
    assert [name for name in offered if name.startswith("_")] == []


def test_a_second_component_of_the_same_name_is_refused():
    with pytest.raises(TypeError, match=r"'GaussianPosterior' is already defined in omnivae\.posteriors\.gaussian"):
        type("GaussianPosterior", (Component,), {})
    assert component_class("GaussianPosterior") is GaussianPosterior


# -- round trips


def test_configuration_holds_every_argument_defaults_too():
    assert to_config(ComponentTestLeaf(3)) == {
        "component": "ComponentTestLeaf",
        "size": 3,
        "name": "leaf",
        "flag": False,
        "scale": None,
    }
    assert to_config(ComponentTestLeaf(3, "x", scale=0.5))["scale"] == 0.5


def test_nested_components_round_trip():
    tree = ComponentTestTree(
        ComponentTestTree(ComponentTestLeaf(1), depth=2),
        others={"a": ComponentTestLeaf(2, flag=True), "b": [ComponentTestLeaf(3), 4, None, "five"]},
    )
    again = through_json(tree)
    assert to_config(again) == to_config(tree)
    assert isinstance(again.left.left, ComponentTestLeaf)
    assert again.others["a"].flag is True
    assert again.others["b"][0].size == 3
    assert again.others["b"][1:] == [4, None, "five"]


def test_schedules_inside_losses_round_trip():
    loss = KL(
        weight=CyclicalSchedule(end=4.0, cycle_length=7, ramp=0.25, unit="epoch"),
        capacity=CosineSchedule(0.0, 25.0, length=100),
    )
    again = through_json(loss)
    assert to_config(again) == to_config(loss)
    for t in range(30):
        assert again.weight(t) == loss.weight(t)
        assert again.capacity(t) == loss.capacity(t)
    assert again.weight.unit == "epoch"


@pytest.mark.parametrize(
    "component",
    [
        GaussianPosterior(4, 2, dim=1, kernel_size=3),
        GaussianLikelihood("per_pixel"),
        CategoricalLikelihood(16, (0.0, 1.0)),
        StandardNormal(),
        NLL(num_samples=5, weight=LinearSchedule(length=3)),
    ],
    ids=lambda c: type(c).__name__,
)
def test_library_components_round_trip(component):
    again = through_json(component)
    assert type(again) is type(component)
    assert to_config(again) == to_config(component)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in component.state_dict().items()
    }


def test_the_configuration_does_not_share_lists_with_the_component():
    others = [1, 2]
    tree = ComponentTestTree(ComponentTestLeaf(1), others=others)
    others.append(3)
    to_config(tree)["others"].append(4)
    assert to_config(tree)["others"] == [1, 2]


def test_building_from_a_configuration_does_not_change_it():
    config = to_config(ComponentTestTree(ComponentTestLeaf(1), others=[ComponentTestLeaf(2)]))
    before = json.dumps(config)
    from_config(config)
    assert json.dumps(config) == before


def test_plain_data_passes_through():
    data = {"a": [1, 2.5, None, True, "text", {"b": []}]}
    assert to_config(data) == data
    assert from_config(data) == data
    assert to_config((1, 2)) == [1, 2]


# -- refusals


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_cannot_hold_are_refused(value):
    for holder in (value, [value], {"a": {"b": value}}, ComponentTestLeaf(1, scale=value)):
        with pytest.raises((TypeError, ValueError), match=f"got {value}.*finite"):
            to_config(holder)


@pytest.mark.parametrize(
    "value", [object(), torch.zeros(2), nn.Linear(1, 1), {1, 2}, print], ids=lambda v: type(v).__name__
)
def test_what_is_neither_data_nor_component_is_refused(value):
    with pytest.raises(TypeError, match=f"got a {type(value).__name__} in a configuration"):
        to_config({"a": value})


def test_an_unknown_component_gets_a_suggestion_and_the_list():
    with pytest.raises(
        ValueError, match="unknown component 'GausianPosterior'; did you mean 'GaussianPosterior'"
    ) as error:
        from_config({"component": "GausianPosterior", "in_channels": 1, "latent_dim": 1})
    assert "StandardNormal" in str(error.value)


def test_an_unknown_argument_gets_a_suggestion():
    with pytest.raises(ValueError, match="GaussianPosterior has no argument 'latent_dims'; did you mean 'latent_dim'"):
        from_config({"component": "GaussianPosterior", "in_channels": 1, "latent_dims": 1})
    with pytest.raises(ValueError, match=r"LinearSchedule has no argument 'zzz'$"):
        from_config({"component": "KL", "weight": {"component": "LinearSchedule", "zzz": 1}})


def test_a_missing_argument_is_named():
    with pytest.raises((TypeError, ValueError), match=r"GaussianPosterior.*latent_dim"):
        from_config({"component": "GaussianPosterior", "in_channels": 1})


@pytest.mark.parametrize("name", [None, 3, ["KL"], {"a": 1}, ""], ids=repr)
def test_a_component_name_of_the_wrong_kind_is_an_unknown_component(name):
    with pytest.raises(ValueError, match="unknown component"):
        from_config({"component": name})


def test_suggestions():
    assert suggestion("free_bit", ["free_bits", "capacity"]) == "; did you mean 'free_bits'?"
    assert suggestion("zzz", ["free_bits", "capacity"]) == ""


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "torch.nn.Linear",
        "Linear",
        "builtins.eval",
        "antigravity",
        "this",
        "omnivae.losses.elbo.KL",
        "omnivae.component:Component",
        "wsgiref.handlers",
        "__import__('os')",
    ],
)
def test_nothing_that_a_configuration_names_is_imported(name, monkeypatch):
    imported = []
    original, original_module = builtins.__import__, importlib.import_module

    def watch(wanted, *args, **kwargs):
        imported.append(wanted)
        return original(wanted, *args, **kwargs)

    def watch_module(wanted, *args, **kwargs):
        imported.append(wanted)
        return original_module(wanted, *args, **kwargs)

    before = set(sys.modules)
    for config in (
        {"component": name, "command": "true"},
        {"component": "ComponentTestTree", "left": {"component": name}},
        {"component": "KL", "weight": {"component": name}},
        [{"deep": [{"component": name}]}],
    ):
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "__import__", watch)
            patch.setattr(importlib, "import_module", watch_module)
            with pytest.raises(ValueError) as error:
                from_config(config)
        assert f"unknown component {name!r}" in str(error.value)
    parts = name.replace(":", ".").split(".")
    assert {".".join(parts[: i + 1]) for i in range(len(parts))} & set(imported) == set()
    assert set(sys.modules) == before


@pytest.mark.parametrize("key", ["_target_", "class", "class_path", "type", "__reduce__"])
def test_other_ways_of_naming_a_class_are_plain_data(key):
    config = {key: "os.system", "args": ["true"]}
    assert from_config(config) == config
