"""Training data: what is in which batch, whatever the workers, the processes and the place where a job goes on."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grain")
pytest.importorskip("datasets")

from tests.cases import ROOT
from tests.training_data import WORDS, assert_equal, joined, picture, taken, written
from ved_core.errors import ConfigError, DataError
from ved_core.processing import Processor
from ved_flax.train.data import DataConfig
from ved_flax.train.data.batches import Order, training_batches


def test_a_batch(train: Any, processor: Processor) -> None:
    batch = next(train(shuffle=False))
    assert {name: (x.shape, x.dtype) for name, x in batch.items() if isinstance(x, np.ndarray)} == {
        "pixel_values": ((4, 3, 48, 48), np.float32),
        "labels": ((4, 6), np.int32),
        "weight": ((4,), np.float32),
    }
    assert batch["ids"] == ["0", "1", "2", "3"]
    assert batch["references"] == [["one"], ["two"], ["three"], ["four"]]
    assert np.array_equal(batch["pixel_values"], processor.pixel_values([picture(i) for i in range(4)]))
    assert batch["weight"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_change_nothing_and_a_state_goes_from_any_number_to_any(
    processor: Processor, tmp_path: Path, workers: int
) -> None:
    manifest = written(tmp_path, [(f"{i}.png", WORDS[i]) for i in range(7)])
    config = DataConfig(source=str(manifest), max_length=6, augment=0.5)
    threads = training_batches(config, processor, batch_size=4)
    whole = [next(threads) for _ in range(6)]
    other = training_batches(dataclasses.replace(config, workers=workers), processor, batch_size=4)
    with training_batches(config, processor, batch_size=4) as first, other:
        for batch in whole[:3]:
            assert_equal(next(first), batch)
        other.set_state(json.loads(json.dumps(first.get_state())))
        for batch in whole[3:5]:
            assert_equal(next(other), batch)
        threads.set_state(other.get_state())
        assert_equal(next(threads), whole[5])
    threads.close()


KILLED = """
import multiprocessing, os, signal, sys, time

from tests.training_data import DataConfig, reader_processor, training_batches

if __name__ == "__main__":
    config = DataConfig(source=sys.argv[1], max_length=6, workers=2)
    batches = training_batches(config, reader_processor(), batch_size=4)
    ids = [next(batches)["ids"] for _ in range(2)]
    workers = [process.pid for process in multiprocessing.active_children()]
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    ids += [next(batches)["ids"] for _ in range(20)]
    print(*workers, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_workers_outlive_sigterm_and_end_with_a_killed_parent(tmp_path: Path) -> None:
    manifest = written(tmp_path, [(f"{i}.png", WORDS[i]) for i in range(7)])
    (tmp_path / "job.py").write_text(KILLED)
    with subprocess.Popen(
        [sys.executable, tmp_path / "job.py", manifest],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    ) as job:  # fmt: skip
        assert job.stdout is not None
        workers = job.stdout.readline().split()
        job.kill()
    assert len(workers) == 2
    waiting = 300
    while waiting and any(Path("/proc", worker).exists() for worker in workers):
        time.sleep(0.1)
        waiting -= 1
    assert waiting


def test_resumption_at_every_position_gives_the_rest(train: Any) -> None:
    batches, whole, states = train(augment=1.0), [], []
    for _ in range(8):
        states.append(json.loads(json.dumps(batches.get_state())))
        whole.append(next(batches))
    again = train(augment=1.0)
    for at, state in enumerate(states):
        again.set_state(state)
        for batch in whole[at : at + 2]:
            assert_equal(next(again), batch)


def test_another_batch_size_goes_on_behind_the_last_sample(train: Any) -> None:
    ids = joined(taken(train(batch_size=2), 12))
    batches = train(batch_size=4)
    first = joined(taken(batches, 3))
    other = train(batch_size=6)
    other.set_state(batches.get_state())
    assert first + joined(taken(other, 2)) == ids


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_same_global_batches(train: Any, processes: int) -> None:
    whole = taken(train(batch_size=6), 5)
    shares = [train(batch_size=6, process_index=i, process_count=processes) for i in range(processes)]
    assert [joined(next(share)["ids"] for share in shares) for _ in range(5)] == whole
    assert sorted(joined(whole)) == sorted(3 * [str(i) for i in range(10)])


def test_epochs_are_shuffled_each_in_its_own_way(train: Any) -> None:
    ids = np.array(taken(train(12), 9)).reshape(3, 12)
    assert all(sorted(epoch.tolist(), key=int) == [str(i) for i in range(12)] for epoch in ids)
    assert len({tuple(epoch) for epoch in ids}) == 3
    assert taken(train(12, seed=1), 3) != ids[0].reshape(3, 4).tolist()
    assert np.array(taken(train(12, shuffle=False), 6)).reshape(2, 12).tolist() == 2 * [[str(i) for i in range(12)]]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_sources_fill_a_batch_by_repeating(train: Any, size: int) -> None:
    assert sorted(next(train(size, batch_size=6))["ids"]) == sorted([str(i) for i in range(size)] * (6 // size))


def test_epochs_end_with_a_masked_tail(train: Any) -> None:
    batches = list(train(epochs=2, batch_size=8))
    assert len(batches) == 3
    assert sorted(joined(batch["ids"] for batch in batches)) == sorted(["", "", "", ""] + 2 * list(map(str, range(10))))
    tail = batches[-1]
    assert tail["weight"].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert (tail["labels"][4:] == -100).all()
    assert not tail["pixel_values"][4:].any()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_shows_every_sample_once_and_again(train: Any, processor: Processor, processes: int) -> None:
    shares = [
        train(13, evaluation=True, batch_size=6, process_index=i, process_count=processes, augment=1.0)
        for i in range(processes)
    ]
    for _ in range(2):
        passes = [list(share) for share in shares]
        assert {len(batches) for batches in passes} == {3}
        rows = [
            (w, i)
            for batches in passes
            for batch in batches
            for w, i in zip(batch["weight"], batch["ids"], strict=True)
        ]
        assert sorted(int(name) for weight, name in rows if weight) == list(range(13))
        assert all(name == "" for weight, name in rows if not weight)
        for share in shares:
            share.reset()
    first = next(shares[0])
    assert np.array_equal(first["pixel_values"], processor.pixel_values([picture(int(i)) for i in first["ids"]]))
    shares[0].reset()  # in the middle too
    assert_equal(next(shares[0]), passes[0][0])


def test_batches_that_do_not_divide_are_refused(train: Any) -> None:
    with pytest.raises(ConfigError, match="batch of 4 does not divide over 3"):
        train(process_count=3)
    with pytest.raises(ConfigError, match="process 2 of 2"):
        Order(5, 4, 2, 2)


@pytest.mark.parametrize(
    ("change", "match"),
    [({"fingerprint": "0"}, "not what it was"), ({"position": -4}, "not a state"), ({"bad": None}, "not a state")],
)
def test_a_state_that_does_not_fit_is_refused(train: Any, change: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        train().set_state(train().get_state() | change)


@pytest.mark.parametrize("other", [{"size": 11}, {"seed": 1}, {"shuffle": False}])
def test_a_state_of_other_data_is_refused(train: Any, other: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"data\.seed or data\.shuffle is not what it was"):
        train(**other).set_state(train().get_state())
