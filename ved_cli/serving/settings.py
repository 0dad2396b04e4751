"""`Settings`: what a server takes, and how much of it."""

import dataclasses

from ved_core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits of a server. Raises ConfigError for one that cannot be."""

    batch_size: int = 8
    """Most images of one compiled call."""
    linger: float = 0.005
    """Seconds that an idle server waits for more images to come."""
    max_waiting: int = 64
    """Images and uploads that may wait; what comes beyond is refused with 429."""
    max_bytes: int = 20_000_000
    """Largest body of a request."""
    max_images: int = 16
    """Most images of a request."""
    max_pixels: int = 25_000_000
    """Most pixels of an image, so that a small file cannot unpack into all memory."""
    upload_seconds: float = 30.0
    """How long a request's body may take to arrive."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 0 or (value == 0 and name != "linger"):
                raise ConfigError(f"{name} = {value} should be above 0")
        if self.max_images > self.max_waiting:
            raise ConfigError(
                f"max_images = {self.max_images} is more than max_waiting = {self.max_waiting}: such a request could "
                "never be taken"
            )

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes that are compiled: powers of two, and the largest."""
        powers = (1 << n for n in range((self.batch_size - 1).bit_length()))
        return (*powers, self.batch_size)
