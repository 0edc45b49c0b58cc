"""Parsing of arguments: typed, one clear sentence for a mistake, the nearest name for an unknown one."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jsonargparse

from omnivae.component import suggestion


def make_parser(command: str, description: str, example: str) -> jsonargparse.ArgumentParser:
    """Return a parser for a command.

    Args:
        command: its name.
        description: one sentence.
        example: command lines shown at the end of the help.

    Returns:
        The parser; mistakes raise ``ValueError``.
    """
    return jsonargparse.ArgumentParser(
        prog=f"omnivae {command}",
        description=description,
        epilog=f"example: {example}",
        exit_on_error=False,
        allow_abbrev=False,
    )


def parse(parser: jsonargparse.ArgumentParser, argv: Sequence[str]) -> jsonargparse.Namespace:
    """Parse arguments.

    Args:
        parser: the parser.
        argv: the arguments.

    Returns:
        Their values.

    Raises:
        ValueError: says in one sentence what was got and what was expected.
    """
    try:
        return parser.parse_args(list(argv))
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        raise ValueError(explain(str(error), option_names(parser))) from error


def positionals_first(parser: jsonargparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Return arguments with what belongs to no option in front.

    A positional that may be empty is taken for empty by argparse where the first option comes before its values.

    Args:
        parser: the parser.
        argv: the arguments.

    Example:
        >>> parser = make_parser("x", "y", "z")
        >>> _ = parser.add_argument("a"), parser.add_argument("b", nargs="*"), parser.add_argument("--window", nargs=2)
        >>> positionals_first(parser, ["1", "--window", "-5", "5", "2", "3"])
        ['1', '2', '3', '--window', '-5', '5']
    """
    first, rest, left = [], [], [str(argument) for argument in argv]
    while left:
        argument = left.pop(0)
        if not argument.startswith("-") or argument == "-":
            first.append(argument)
            continue
        rest.append(argument)
        action = parser._option_string_actions.get(argument)
        if action is None:  # also --option=value
            continue
        if action.nargs in ("+", "*", "?"):
            while left and not left[0].startswith("-"):
                rest.append(left.pop(0))
        else:
            count = 1 if action.nargs is None else int(action.nargs)
            rest, left = rest + left[:count], left[count:]
    return first + rest


def option_names(parser: jsonargparse.ArgumentParser) -> list[str]:
    """Return every option of a parser, without its dashes, sorted."""
    names = {o.removeprefix("--") for action in parser._actions for o in action.option_strings if o.startswith("--")}
    return sorted(name for name in names if not name.endswith("+"))


def explain(message: str, known: Iterable[str]) -> str:
    """Turn an argument parser's message into one sentence.

    Args:
        message: what the parser says.
        known: names of the options.

    Returns:
        The sentence.

    Example:
        >>> explain('Parser key "training.batch_size":\\n  Expected a <class \\'int\\'>. Got value: abc', [])
        "training.batch_size: expected int, got 'abc'"
    """
    known = list(known)
    unknown = re.search(r"[Uu]nrecognized arguments: (\S+)", message)
    if unknown:
        name = unknown[1].split("=")[0].removeprefix("--")
        return f"unknown option --{name}{suggestion(name, known)}"
    key = re.search(r"(?:Parser key|argument) \"?(?:--)?([\w.]+)\"?:", message)
    choices = re.search(r"Expected a typing\.Literal\[(.*?)\]", message)
    kinds = re.search(r"Expected a <class '([\w.]+)'>", message)
    union = re.search(r"Subtypes: \[(.*)\]", message)
    got = re.search(r"(?:Got|Given) value: (.*)", message)
    if key and got and (choices or kinds or union):
        if union:
            expected = " or ".join(dict.fromkeys(_readable(part) for part in re.split(r", (?![^\[]*\])", union[1])))
        else:
            expected = f"one of {choices[1]}" if choices else _readable(kinds[0].removeprefix("Expected a "))  # type: ignore[index]
        return f"{key[1]}: expected {expected}, got {got[1].strip()!r}"
    return " ".join(message.split())


def check_keys(values: Mapping[str, Any], known: Sequence[str], source: str) -> None:
    """Refuse keys of a configuration that no option has.

    Args:
        values: dotted key to value.
        known: names of the options.
        source: file that they come from.

    Raises:
        ValueError: names the first unknown key and the nearest known one.
    """
    for key in values:
        if key not in known and not any(key.startswith(f"{name}.") for name in known if "." in name):
            raise ValueError(f"unknown key {key!r} in {source}{suggestion(key, known)}")


def to_arguments(values: Mapping[str, Any]) -> list[str]:
    """Return ``--key=value`` for each entry, values as JSON, so that one parser checks files and command lines alike.

    Args:
        values: dotted key to value.

    Returns:
        Arguments.

    Example:
        >>> to_arguments({"training.max_steps": None, "data.path": "x", "model.depths": [1, 2]})
        ['--training.max_steps=null', '--data.path=x', '--model.depths=[1, 2]']
    """
    import json

    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def _readable(kind: str) -> str:
    kind = kind.strip()
    plain = re.match(r"<class '(?:[\w]+\.)*(\w+)'>", kind)
    if plain:
        return {"NoneType": "null", "dict": "a mapping", "str": "text"}.get(plain[1], plain[1])
    if kind.startswith("typing.Literal"):
        return f"one of {kind[len('typing.Literal[') : -1]}"
    return "a mapping" if kind.startswith("dict") else kind
