"""What a module keeps that is no part of its graph."""

from typing import Generic, TypeVar

T = TypeVar("T")


class Held(Generic[T]):
    """A value that may change and need not be hashable: equal only to itself, so that NNX and JAX pass it along."""

    def __init__(self, value: T) -> None:
        self.value = value
