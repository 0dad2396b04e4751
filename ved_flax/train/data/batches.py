"""`Batches`: an iterator over this process's share of every global batch, with a state to go on from.

Order is a pure function of seed and position: position p of the endless row of epochs is a sample, a global batch is
the next B positions, and a process takes its slice of it. Neither the number of decoding workers nor that of processes
changes what is in which batch, and the state is a position.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any, Self

from ved_core.errors import ConfigError, DataError
from ved_core.processing import Processor
from ved_flax.train.data.config import DataConfig
from ved_flax.train.data.decoding import Batch, Decoder, Notes, Place
from ved_flax.train.data.labels import Labels
from ved_flax.train.data.samples import Source, digest
from ved_flax.train.data.sources import open_source
from ved_flax.train.data.workers import start_worker

log = logging.getLogger("ved")

ENDLESS = sys.maxsize


def training_batches(
    config: DataConfig,
    processor: Processor,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    epochs: int | None = None,
    end_token_id: int | None = None,
    vocab_size: int | None = None,
    source: Source | None = None,
) -> "Batches":
    """Batches of `config.source`, or of `source`, without end or for so many epochs; `batch_size` is that of the global
    batch. Batches go on over the end of an epoch; the very last is filled up with rows of weight 0.

    `end_token_id` and `vocab_size`: see `Labels`. Raises DataError, ConfigError, ProcessorError.
    """
    source = open_source(config) if source is None else source
    labels = Labels(processor.tokenizer, config, end_token_id=end_token_id, vocab_size=vocab_size)
    order = Order(
        len(source), batch_size, process_index, process_count, epochs, config.seed if config.shuffle else None
    )
    return Batches(source, order, Decoder(source, config, processor, labels, training=True), config)


def evaluation_batches(
    config: DataConfig,
    processor: Processor,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    end_token_id: int | None = None,
    vocab_size: int | None = None,
    source: Source | None = None,
) -> "Batches":
    """Batches of `config.evaluation_source`, or of `source`: every sample once and as it is, in the source's order. All
    processes have equally many, filled up with rows of weight 0. Raises as `training_batches`."""
    source = open_source(config, evaluation=True) if source is None else source
    labels = Labels(processor.tokenizer, config, end_token_id=end_token_id, vocab_size=vocab_size)
    order = Order(len(source), batch_size, process_index, process_count, epochs=1, seed=None)
    return Batches(source, order, Decoder(source, config, processor, labels, training=False), config)


class Order:
    """Which sample stands in which row of which batch. Raises ConfigError for a batch that does not divide."""

    def __init__(
        self, samples: int, batch: int, process: int = 0, processes: int = 1, epochs: int | None = None,
        seed: int | None = None,
    ) -> None:  # fmt: skip
        """`seed`: None keeps the source's order."""
        import grain

        if batch < 1 or batch % processes:
            raise ConfigError(f"a global batch of {batch} does not divide over {processes} process(es)")
        if not 0 <= process < processes:
            raise ConfigError(f"process {process} of {processes}")
        self.samples, self.batch, self.seed = samples, batch, seed
        self.rows = range(process * batch // processes, (process + 1) * batch // processes)
        self.share = 1 / processes
        self.end = ENDLESS if epochs is None else samples * epochs
        self.first = 0
        """Position of the first batch."""
        indices = grain.MapDataset.range(samples)
        self.indices = indices if seed is None else indices.seed(seed).shuffle()
        self.indices = self.indices.repeat()

    def __len__(self) -> int:
        """Without end: behind the last batch comes the first again, so that workers are ready for the next pass."""
        return ENDLESS

    def __getitem__(self, step: int) -> list[Place | None]:
        start = self.first + step % self.steps(self.first) * self.batch
        return [self.place(start + row) for row in self.rows]

    def steps(self, position: int) -> int:
        """Batches from a position to the end."""
        return max(0, -(-(self.end - position) // self.batch))

    def place(self, position: int) -> Place | None:
        """What stands at a position; None behind the end."""
        if position >= self.end:
            return None
        return Place(position // self.samples, int(self.indices[position]))


class Batches:
    """This process's part of each global batch, decoded ahead; see `training_batches`. Use `close`, or `with`."""

    def __init__(
        self, source: Source, order: Order, decoder: Callable[[Any], dict[str, Any]], config: DataConfig
    ) -> None:
        self.source, self.order, self.config = source, order, config
        self.fingerprint = digest(source.fingerprint, f"{len(source)} {order.seed}")
        self.position = 0
        """Of the endless row of epochs: how many samples all processes have been given."""
        self.bad = 0
        """Bad samples of this process in the running epoch."""
        self.cut = 0
        """Texts that this process has cut to data.max_length."""
        self._epoch = 0
        self._named: set[str] = set()
        self._decoder = decoder
        self._iterator: Any = None

    @property
    def samples(self) -> int:
        """Samples of an epoch, those of all processes."""
        return len(self.source)

    @property
    def epoch(self) -> float:
        """How often all samples have been given."""
        return self.position / self.samples

    @property
    def counts(self) -> dict[str, int]:
        """For reports: bad samples of this epoch and texts cut so far, in this process."""
        return {"bad_samples": self.bad, "cut_texts": self.cut}

    def __len__(self) -> int:
        """Batches that are left."""
        return self.order.steps(self.position)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """Raises DataError when more than data.max_bad_share of an epoch's samples were bad."""
        if not len(self):
            raise StopIteration
        element = self._element()
        notes: Notes = element.pop("notes")
        self.position += self.order.batch
        self._count(notes)
        return {**element, "ids": notes.ids, "references": notes.references}  # type: ignore[typeddict-item]

    def _element(self) -> dict[str, Any]:
        if self._iterator is None:
            self._iterator = self._started()
        try:
            return next(self._iterator)
        except DataError:
            raise
        except RuntimeError as error:
            raise DataError(f"decoding failed: {error}; where memory ran out, set fewer data.workers") from error

    def _count(self, notes: Notes) -> None:
        for name in notes.cut:
            if not self.cut:
                log.warning("%s: its text is longer than data.max_length = %d, and cut", name, self.config.max_length)
            self.cut += 1
        allowed = self.config.max_bad_share * self.samples * self.order.share
        for epoch, problem in notes.bad:
            if epoch > self._epoch:
                self._epoch, self.bad = epoch, 0
            self.bad += 1
            if problem not in self._named:
                self._named.add(problem)
                log.warning("bad sample, left out: %s", problem)
            if self.bad > allowed:
                raise DataError(
                    f"{self.bad} bad samples in epoch {epoch}, where data.max_bad_share = "
                    f"{self.config.max_bad_share:g} allows {int(allowed)}; the last: {problem}"
                )

    # State -----------------------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """What `set_state` takes to go on behind the last batch that was given. JSON-ready."""
        return {
            "position": self.position,
            "epoch": self._epoch,
            "bad": self.bad,
            "cut": self.cut,
            "fingerprint": self.fingerprint,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state, whatever numbers of workers, of processes or of rows it was made with.

        Raises DataError where it is no state, or that of other data, of another seed or order.
        """
        numbers = [state.get(name) for name in ("position", "epoch", "bad", "cut")]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise DataError(f"not a state of the data: {state}")
        if state.get("fingerprint") != self.fingerprint:
            raise DataError(
                "the data, data.seed or data.shuffle is not what it was when this state was saved: what has been seen "
                "cannot be told from what has not. Restore what it was, or start a new job from the exported model"
            )
        self.position, self._epoch, self.bad, self.cut = numbers  # type: ignore[assignment]
        self.close()

    def reset(self) -> None:
        """Begin again with the first batch."""
        if self.order.first or len(self):
            self.close()
        self.position = self._epoch = self.bad = self.cut = 0

    def _started(self) -> Any:
        import grain

        self.order.first = self.position
        workers, ready = self.config.workers, self.config.prefetch
        threads = 1 if workers else ready
        data = grain.MapDataset.source(self.order).map(self._decoder)
        data = data.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
        if workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # grain looks at its own, and fails where a program does without absl
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ready)
            data = data.mp_prefetch(options, worker_init_fn=start_worker)
        return iter(data)

    def close(self) -> None:
        """Stop threads and workers; the next batch would start them again."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
