"""Components: objects that know their own configuration, and the registry that rebuilds them from it.

Defining a subclass of :class:`Component` registers it under its class name; constructing one records the
arguments. ``to_config`` turns a tree of components into plain JSON data and ``from_config`` builds it again.
Only registered names resolve: nothing that a configuration names is ever imported.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from typing import Any, TypeVar

KEY = "component"

_REGISTRY: dict[str, type[Component]] = {}

T = TypeVar("T", bound="Component")


class ComponentMeta(type):
    """Records the bound constructor arguments of every component (its configuration)."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        instance = super().__call__(*args, **kwargs)
        bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)  # type: ignore[misc]
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])
        for name, parameter in bound.signature.parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and arguments.pop(name, None):
                raise TypeError(
                    f"{cls.__name__} was given arguments that its constructor does not name: {args} {kwargs}"
                )
        # Sub-components are recorded as configuration, not by reference: a reference kept beside
        # nn.Module's own registration would survive a replaced submodule and describe the wrong one.
        recorded = {name: _snapshot(value) for name, value in arguments.items()}
        instance.__dict__["_arguments"] = recorded
        return instance


class Component(metaclass=ComponentMeta):
    """Base of everything that a model directory can hold; subclasses register by being defined.

    Example:
        >>> class Doubler(Component):
        ...     def __init__(self, factor: float = 2.0) -> None:
        ...         self.factor = factor
        >>> to_config(Doubler(3.0))
        {'component': 'Doubler', 'factor': 3.0}
        >>> from_config({"component": "Doubler", "factor": 4.0}).factor
        4.0
    """

    _arguments: dict[str, Any]
    #: Set to True in the body of a class that is only a base: it is not registered under its name.
    abstract = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = _REGISTRY.get(cls.__name__)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"a component named {cls.__name__!r} is already defined in {known.__module__}; "
                f"rename the one in {cls.__module__}"
            )
        _REGISTRY[cls.__name__] = cls
        # The metaclass's __call__ would otherwise hide the constructor from help() and inspect.
        signature = inspect.signature(cls.__init__)
        cls.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]

    def config_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments that rebuild this object.

        Override where an argument is a shorthand (a variant's name) whose meaning must be pinned in files.

        Returns:
            Argument name to value; components appear as their own configuration.
        """
        return dict(self._arguments)


def to_config(value: Any) -> Any:
    """Turn a component, or a container of components, into JSON data.

    Args:
        value: a component, number, string, ``None``, or a list, tuple or dict of these.

    Returns:
        Dicts, lists and scalars; a component becomes ``{"component": name, **arguments}``.

    Raises:
        TypeError: when a value is neither data nor a component.
    """
    if isinstance(value, Component):
        return {KEY: type(value).__name__} | {k: to_config(v) for k, v in value.config_arguments().items()}
    if isinstance(value, Mapping):
        return {str(k): to_config(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_config(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"got {value} in a configuration; expected a finite number")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"got a {type(value).__name__} in a configuration; expected a component, number, string, list or dict. "
        "Make its class a subclass of omnivae.Component"
    )


def from_config(config: Any) -> Any:
    """Build the object that a configuration describes.

    Args:
        config: what :func:`to_config` returned, or the same written by hand.

    Returns:
        The component; plain data is returned as it is.

    Raises:
        ValueError: for a component name that is not registered or arguments that it does not take.

    Example:
        >>> from_config([1, {"a": 2}])
        [1, {'a': 2}]
    """
    if isinstance(config, Mapping):
        values = {key: from_config(value) for key, value in config.items() if key != KEY}
        if KEY not in config:
            return values
        cls: type[Component] = component_class(config[KEY])
        parameters = inspect.signature(cls.__init__).parameters
        for name in values:
            if name not in parameters:
                known = [p for p in parameters if p != "self"]
                raise ValueError(f"{config[KEY]} has no argument {name!r}{suggestion(name, known)}")
        return cls(**values)
    if isinstance(config, (list, tuple)):
        return [from_config(value) for value in config]
    return config


def component_class(name: str, base: type[T] = Component) -> type[T]:  # type: ignore[assignment]
    """Look a component's class up by its registered name.

    Args:
        name: class name, as in ``config.json``.
        base: class that the result must derive from.

    Returns:
        The class.

    Raises:
        ValueError: when no such component is registered, or it is of another kind.
    """
    known = registered(base)
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"unknown {base.__name__.lower()} {name!r}{suggestion(name, known)}; registered: {', '.join(sorted(known))}"
        )
    return known[name]


def registered(base: type[T] = Component) -> dict[str, type[T]]:  # type: ignore[assignment]
    """Return the registered components that derive from ``base``, by name.

    Args:
        base: class to filter by.

    Returns:
        Name to class; abstract bases are left out.
    """
    return {
        name: cls
        for name, cls in _REGISTRY.items()
        if issubclass(cls, base) and cls is not base and not cls.__dict__.get("abstract", False)
    }


def suggestion(name: str, known: Any) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or an empty string.

    Args:
        name: what was got.
        known: the names that would have been right.

    Returns:
        A clause to append to an error message.

    Example:
        >>> suggestion("lerning_rate", ["learning_rate", "seed"])
        "; did you mean 'learning_rate'?"
    """
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _snapshot(value: Any) -> Any:
    if isinstance(value, Component):
        return to_config(value)
    if isinstance(value, Mapping):
        return {k: _snapshot(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return (
            type(value)(_snapshot(v) for v in value) if type(value) in (list, tuple) else [_snapshot(v) for v in value]
        )
    return value
