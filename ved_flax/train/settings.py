"""Typed settings: dataclasses read from YAML and `key=value`, every field with a type, a default, a check and a text.

A field's text is the docstring under it, or "doc" in its metadata; its check, if any, is one of
`ved_core.configs.fields`.
"""

import ast
import dataclasses
import difflib
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from ved_core.configs.base import shorten
from ved_core.errors import ConfigError

S = TypeVar("S")


class Section:
    """Base of settings whose fields carry checks. Raises ConfigError where one fails."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, check = getattr(self, field.name), field.metadata.get("check")
            wanted = check(value) if check else None
            if wanted:
                raise ConfigError(f"{field.name} = {shorten(value)} should be {wanted}")


@dataclasses.dataclass(frozen=True)
class Described:
    """One setting: its dotted name, type and default as they are written, and its text."""

    name: str
    type: str
    default: str
    text: str


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but for numbers as 3e-4 and 1.5e3, which are texts there for want of a dot or a sign."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read(kind: type[S], file: str | Path, overrides: Sequence[str] = ()) -> S:
    """Settings of `kind` from a YAML file, changed by `section.name=value` texts. Raises ConfigError naming the file or
    the override."""
    values = load_yaml(file)
    for text in overrides:
        override(values, text)
    return build(kind, values, str(file))


def load_yaml(file: str | Path) -> dict[str, Any]:
    """A YAML file's mapping. Raises ConfigError."""
    try:
        values = yaml.load(Path(file).read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: not readable as YAML ({' '.join(str(error).split())})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: should hold settings, `name: value`, holds {shorten(values)}")
    return values


def override(values: dict[str, Any], text: str) -> None:
    """Put `section.name=value`, the value as in YAML, into a nested dict. Raises ConfigError."""
    name, equals, written = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"{text!r} should read section.name=value")
    try:
        value = yaml.load(written, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r}: not readable as YAML ({' '.join(str(error).split())})") from None
    section = values
    for part in parts[:-1]:
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise ConfigError(f"{text!r}: {part} has no settings inside")
    section[parts[-1]] = value


def build(kind: type[S], values: Mapping[str, Any], source: str, inside: str = "") -> S:
    """An instance of a dataclass from a nested mapping. Raises ConfigError for unknown names and bad values."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for name, value in values.items():
        dotted = f"{inside}{name}"
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, 1, cutoff=0.5)
            advice = f"did you mean {inside}{close[0]}?" if close else f"there are {', '.join(fields)}"
            raise ConfigError(f"{source}: no setting {dotted}: {advice}")
        found[name] = _value(hints[name], value, source, dotted)
    try:
        return kind(**found)
    except ConfigError as error:
        raise ConfigError(f"{source}: {inside}{str(error).removeprefix(inside)}") from None


def _value(hint: Any, value: Any, source: str, dotted: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping | None):
            raise ConfigError(f"{source}: {dotted} = {shorten(value)} should hold settings, `name: value`")
        return build(hint, value or {}, source, f"{dotted}.")
    fits, converted = _converted(hint, value)
    if not fits:
        raise ConfigError(f"{source}: {dotted} = {shorten(value)} should be {spelled(hint)}")
    return converted


def _converted(hint: Any, value: Any) -> tuple[bool, Any]:
    """Whether a value is of a type, and the value in that type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        tried = [_converted(kind, value) for kind in inner]
        return next((result for result in tried if result[0]), (False, None))
    if hint is type(None):
        return value is None, None
    if origin is Literal:
        return value in inner, value
    if hint is Any:
        return True, value
    if origin is list or hint is list:
        if not isinstance(value, list | tuple):
            return False, None
        items = [_converted(inner[0], item) for item in value] if inner else [(True, item) for item in value]
        return all(fits for fits, _ in items), [item for _, item in items]
    if origin is dict or hint is dict:
        return isinstance(value, Mapping) and all(isinstance(name, str) for name in value), value
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool), value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(value, hint), value


def spelled(hint: Any) -> str:
    """A type as users read it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(spelled(kind) for kind in inner)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is list:
        return f"list of {spelled(inner[0])}"
    names = {type(None): "null", bool: "true or false", int: "whole number", float: "number", str: "text"}
    return names.get(hint, "mapping" if dict in (hint, origin) else getattr(hint, "__name__", str(hint)))


def describe(kind: type, inside: str = "") -> Iterator[Described]:
    """Every setting of a dataclass and of those inside it, in order."""
    hints = typing.get_type_hints(kind)
    texts = docstrings(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        dotted = f"{inside}{field.name}"
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from describe(hint, f"{dotted}.")
            continue
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        written = "" if default is dataclasses.MISSING else plain(default)
        yield Described(dotted, spelled(hint), written, field.metadata.get("doc") or texts.get(field.name, ""))


def plain(value: Any) -> str:
    """A default as it would stand in YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
    return text if isinstance(value, float | int | None) else text.strip("'")


@cache
def docstrings(kind: type) -> dict[str, str]:
    """Field -> the docstring under it, on one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    found = {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    for statement, following in itertools.pairwise(body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found
