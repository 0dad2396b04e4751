"""The typed errors that users meet. Each message names what was wrong and what to do about it."""

LONGEST = 4000


def printable(text: str) -> str:
    """A text in one line, without what a stranger's names may do to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class VedError(Exception):
    """Base of every error that this library raises on purpose."""

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > LONGEST:  # names may be of any length
            text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        return printable(text)


class ConfigError(VedError, ValueError):
    """A configuration that cannot describe a model: names the field and its value."""


class CheckpointError(VedError, ValueError):
    """A checkpoint that cannot be read, is incomplete, or does not fit its configuration."""


class GenerationError(VedError, ValueError):
    """A decoding option that is missing, contradictory or not supported."""


class InputError(VedError, ValueError):
    """An argument of a model that does not fit it: names the argument and what was expected."""


class HubError(VedError, OSError):
    """A checkpoint name that could not be turned into local files."""


class ImageError(VedError, ValueError):
    """An image that cannot be read: names the file and the reason."""


class ProcessorError(VedError, ValueError):
    """An image processor or tokenizer that is missing from a checkpoint or cannot be used."""


class DataError(VedError, ValueError):
    """Training data that cannot be read, or too much of it that is bad: names the file or the sample."""


class SampleError(DataError):
    """One sample that cannot be used; training goes on without it, up to a stated share."""


class TrainingError(VedError, RuntimeError):
    """A training run that cannot go on: names the step and what to do about it."""
