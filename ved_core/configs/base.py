"""`Config`: a flat dataclass with Hugging Face's field names, checked at construction and at every assignment."""

import copy
import dataclasses
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from ved_core import json_text
from ved_core.errors import ConfigError

MISSING = object()


class Spelled(type):
    """Lets a config's constructor take the other spellings of its fields, as files may have them."""

    def __call__(cls: Any, *args: Any, **values: Any) -> Any:
        fields, spelled = cls.by_field(values)
        self = super().__call__(*args, **fields)
        self._spelled.extend(spelled)
        return self

    @property
    def __signature__(cls: Any) -> inspect.Signature:
        """What help() shows: the fields."""
        signature = inspect.signature(cls.__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class Config(metaclass=Spelled):
    """Base of all configurations.

    A field that a subclass declares is checked whenever it is set; anything else that a file or a user brings is kept
    as it is (`config.anything`), written back by `to_dict`, and never interpreted. Two configs are equal when they are
    of one class and write the same dict.
    """

    model_type: ClassVar[str] = ""
    architecture: ClassVar[str] = ""
    """The class of transformers that a checkpoint names for this kind of model."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Other spellings of a field (`hidden_size` for GPT-2's `n_embd`): read, assigned and written like the field."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        # Past __setattr__, which needs them.
        self.__dict__.update(_extras={}, _spelled=[], _assigned=set(), _ready=False)
        return self

    def __post_init__(self) -> None:
        self.check()
        self.__dict__["_ready"] = True

    def check(self) -> None:
        """Raise ConfigError where fields contradict each other. Subclasses extend it."""

    @classmethod
    def field_names(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def by_field(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Values by the names of their fields, and which were spelled otherwise. A null gives way to what stands under
        another spelling. Raises ConfigError where two spellings contradict each other."""
        fields: dict[str, Any] = {}
        names: dict[str, str] = {}
        for name, value in values.items():
            field = cls.aliases.get(name, name)
            before = fields.get(field)
            if before is not None and value is not None and value != before:
                raise ConfigError(
                    f"{cls.__name__}: {name} = {shorten(value)} contradicts {names[field]} = {shorten(before)}"
                )
            if before is None:
                fields[field], names[field] = value, name
        return fields, [name for name in values if name in cls.aliases]

    # Attributes ------------------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        name = self.aliases.get(name, name)
        if name not in self.__dataclass_fields__:
            self._extras[name] = value
        else:
            before = self.__dict__.get(name, MISSING)
            self.__dict__[name] = self.checked(name, value)
            if self._ready:
                try:
                    self.check()
                except ConfigError:
                    self.__dict__[name] = before
                    raise
        if self._ready:
            self._assigned.add(name)

    def __getattr__(self, name: str) -> Any:
        # Only reached where the ordinary look-up found nothing.
        if name in self.aliases:
            return getattr(self, self.aliases[name])
        extras = self.__dict__.get("_extras", {})
        if name in extras:
            return extras[name]
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def checked(self, name: str, value: Any) -> Any:
        """The value as it is stored; raises ConfigError where the field's own check refuses it."""
        check = self.__dataclass_fields__[name].metadata.get("check")
        wanted = check(value) if check else None
        if wanted:
            raise self.error(name, value, f"should be {wanted}")
        return value

    def error(self, name: str, value: Any, problem: str) -> ConfigError:
        """The error for one field, naming it and its value."""
        return ConfigError(f"{type(self).__name__}.{name} = {shorten(value)}: {problem}")

    def get(self, name: str, default: Any = None) -> Any:
        """A field or extra value, or `default` where there is none."""
        return getattr(self, name, default)

    @property
    def assigned(self) -> frozenset[str]:
        """Names that were assigned after construction: a person's word, which wins over what a file says."""
        return frozenset(self._assigned)

    # Dicts and files -------------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a config from `config.json`'s content; unknown entries are kept. Raises ConfigError."""
        values = dict(copy.deepcopy(values))
        found = values.pop("model_type", None) or cls.model_type
        if found != cls.model_type:
            raise ConfigError(f"{cls.__name__} cannot be made from a config with model_type {found!r}")
        names = cls.field_names()
        known = {name: values.pop(name) for name in list(values) if cls.aliases.get(name, name) in names}
        self = cls(**known)
        self._extras.update(values)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Every field and every kept extra as JSON-ready values."""
        values = {name: getattr(self, name) for name in self.field_names()}
        values |= {name: getattr(self, name) for name in self._spelled}
        values |= self._extras
        if self.model_type:
            values["model_type"] = self.model_type
        return {name: plain(value) for name, value in sorted(values.items())}

    def to_json(self) -> str:
        """`to_dict` as the text of a file."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_json_string(self, **kwargs: Any) -> str:
        """`to_json` under transformers' name, which its Trainer calls."""
        return self.to_json()

    def copy(self) -> Self:
        """An independent config of equal content."""
        return type(self).from_dict(self.to_dict())

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Config) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json().rstrip()}"


def plain(value: Any) -> Any:
    """Configs inside a config become dicts, tuples become lists; all else is copied as it is."""
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def shorten(value: Any, width: int = 60) -> str:
    """repr() that fits into an error message."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def as_mapping(config: Any, what: str) -> Mapping[str, Any]:
    """The dict behind a plain dict, one of our configs or a transformers config (anything with `to_dict()`)."""
    if isinstance(config, Mapping):
        return config
    to_dict = getattr(config, "to_dict", None)
    if callable(to_dict):
        values = to_dict()
        if isinstance(values, Mapping):
            return values
    raise ConfigError(f"{what} should be a config object or a dict, got {type(config).__name__}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ConfigError naming the file."""
    try:
        values = json_text.read(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; a checkpoint folder needs a {path.name}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: should hold a JSON object, holds {type(values).__name__}")
    return values
