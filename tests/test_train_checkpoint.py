"""Checkpoints: what is written is what comes back, or it is noticed."""

import dataclasses
import gc
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("orbax.checkpoint")
from tests.training import tiny
from ved_core.errors import CheckpointError
from ved_flax import parallel
from ved_flax.train.checkpoint import Checkpoints, named
from ved_flax.train.config import CheckpointConfig, EvaluationConfig, OptimizerConfig, ParallelConfig
from ved_flax.train.digests import digests
from ved_flax.train.optimizer import make_optimizer
from ved_flax.train.placement import Placement
from ved_flax.train.step import split_parameters


def placed(seed=0, keep=("decoder.norm", "tokens", "mlp.up"), optimizer="adamw", **axes):
    """A state of few parameters, with moments that are not zero."""
    placement = Placement(ParallelConfig(**axes or {"data": 1}))
    params, _ = split_parameters(tiny())
    params = {name: value for name, value in params.items() if any(part in name for part in keep)}
    update = make_optimizer(OptimizerConfig(name=optimizer), lambda step: 0.1, params)
    state = placement.initial(params, {}, update, seed, average=True)
    laid = placement.layouts.optimizer
    moments = jax.tree.map(lambda x: x + jnp.asarray(seed + 1, x.dtype), parallel.unpack(state.optimizer, laid))
    moments = jax.device_put(parallel.pack(moments, laid), placement.shardings().optimizer)
    return placement, dataclasses.replace(state, optimizer=moments)


def opened(folder, evaluation=None, **fields):
    return Checkpoints(folder, CheckpointConfig(**fields), evaluation or EvaluationConfig())


def content(state, placement):
    return named(jax.tree.map(lambda layout, array: np.asarray(layout.unpack(array)), placement.layouts, state))


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Checkpoints of two steps, and what is in the latest."""
    folder = tmp_path_factory.mktemp("checkpoints")
    placement, state = placed()
    checkpoints = opened(folder / "checkpoints")
    checkpoints.save(1, placed(seed=1)[1], placement.layouts, {"number": 1})
    checkpoints.save(2, state, placement.layouts, b"\x00two")
    checkpoints.close()
    return folder / "checkpoints", placement, state


@pytest.mark.parametrize(
    "axes", [{"data": 1}, {"fsdp": 8}, {"data": 2, "model": 4}, {"mode": "pmap"}], ids=lambda axes: str(axes)
)
def test_a_state_comes_back_on_other_devices(written, axes):
    folder, before, state = written
    placement, like = placed(seed=9, **axes)
    checkpoints = opened(folder)
    restored = checkpoints.restore(like, placement)
    checkpoints.close()
    assert (restored.step, restored.data) == (2, b"\x00two")
    same(content(restored.state, placement), content(state, before))
    wanted = named(placement.shardings())
    for name, array in named(restored.state).items():
        assert array.sharding.is_equivalent_to(wanted[name], array.ndim), name


def test_a_flat_array_comes_back_whole(tmp_path):
    placement, like = placed(keep=("cls_token", "positions"), fsdp=5, data=1)
    assert any(layout.padded is not None for layout in named(placement.layouts).values())
    checkpoints = opened(tmp_path)
    checkpoints.save(1, like, placement.layouts, None)
    other, target = placed(seed=3, keep=("cls_token", "positions"), fsdp=3, data=1)
    restored = checkpoints.restore(target, other)
    checkpoints.close()
    same(content(restored.state, other), content(like, placement))


def test_a_flipped_bit_never_gets_in(written, tmp_path, caplog):
    folder, placement, state = written
    files = [file for file in (folder / "2").rglob("*") if file.is_file()]
    noticed = []
    like = placed(seed=5)[1]
    for number, file in enumerate(files):
        data = file.read_bytes()
        for place in sorted({0, len(data) // 3, len(data) // 2, len(data) - 1} if data else ()):
            copy = tmp_path / f"{number}-{place}"
            linked(folder, copy / "checkpoints")
            flipped = copy / "checkpoints" / file.relative_to(folder)
            flipped.unlink()
            flipped.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            caplog.clear()
            with caplog.at_level(logging.WARNING, "ved"):
                checkpoints = opened(copy / "checkpoints")
                restored = checkpoints.restore(like, placement)
                checkpoints.close()
            assert restored.step in (1, 2)
            if restored.step == 2:  # nothing that is used was touched
                same(content(restored.state, placement), content(state, placement))
                assert restored.data == b"\x00two"
            else:
                assert "damaged, and left aside" in caplog.text
                assert (copy / "checkpoints-damaged" / "2.0").is_dir()
                noticed.append((file.relative_to(folder / "2").parts[:2], caplog.text))
    gc.collect()
    assert any(path[0] == "about" for path, _ in noticed)
    assert sum(path[:1] == ("state",) for path, _ in noticed) >= 4
    assert any("not what was written: " in text and "params/" in text for _, text in noticed)


def linked(source, copy):
    """A copy of a folder that shares its files."""
    for file in source.rglob("*"):
        if file.is_file():
            target = copy / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(file)


def damage(folder, step):
    description = folder / str(step) / "about" / "metadata"
    description.write_text(description.read_text().replace('{"step": ', '{"step": 1', 1))


def test_strictness_and_no_way_back(tmp_path):
    placement, state = placed(keep=("decoder.norm",))
    checkpoints = opened(tmp_path, strict=True)
    for step in (1, 2):
        checkpoints.save(step, state, placement.layouts, step)
    checkpoints.close()
    damage(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"2: its description is not what was written.*Remove it to go on"):
        opened(tmp_path, strict=True).restore(state, placement)
    aside = tmp_path.with_name(f"{tmp_path.name}-damaged")
    aside.write_text("a file where a folder is to be")
    with pytest.raises(CheckpointError, match=rf"cannot be moved to {aside.name} .*Remove 2"):
        opened(tmp_path).restore(state, placement)
    damage(tmp_path, 1)
    with pytest.raises(CheckpointError, match="no checkpoint is undamaged"):
        opened(tmp_path).restore(state, placement)


def test_another_model_or_optimizer_is_refused(written):
    folder, _, _ = written
    for changed in ({"keep": ("decoder.norm",)}, {"optimizer": "sgd"}):
        placement, like = placed(**changed)
        with pytest.raises(CheckpointError, match="of another model or optimizer: they differ in"):
            opened(folder).restore(like, placement)


def test_which_are_kept(tmp_path):
    placement, state = placed(keep=("decoder.norm",))
    evaluation = EvaluationConfig(every=1, metric="cer", mode="min")
    checkpoints = opened(tmp_path, evaluation, keep=2, keep_period=5)
    for step in range(1, 10):
        cer = {3: 0.1, 8: float("nan")}.get(step, 0.5)
        checkpoints.save(step, state, placement.layouts, step, {"cer": cer} if step % 2 or step == 8 else None)
        if step == 6:  # the best is remembered by the next process
            checkpoints.close()
            checkpoints = opened(tmp_path, evaluation, keep=2, keep_period=5)
    assert checkpoints.best() == tmp_path / "3"
    assert checkpoints.latest() == tmp_path / "9"
    assert sorted(int(entry.name) for entry in tmp_path.iterdir() if entry.name.isdigit()) == [3, 5, 8, 9]
    checkpoints.close()


@pytest.mark.parametrize(("metric", "mode", "best"), [("exact_match", None, 2), ("cer", None, 1), ("cer", "max", 2)])
def test_the_best_is_what_the_metric_says(tmp_path, metric, mode, best):
    placement, state = placed(keep=("decoder.norm",))
    checkpoints = opened(tmp_path, EvaluationConfig(every=1, metric=metric, mode=mode), keep=1)
    for step, value in enumerate((0.2, 0.7, 0.5), start=1):
        checkpoints.save(step, state, placement.layouts, step, {metric: value})
    assert checkpoints.best() == tmp_path / str(best)
    checkpoints.close()
    assert sorted(int(entry.name) for entry in tmp_path.iterdir() if entry.name.isdigit()) == [best, 3]


@pytest.mark.parametrize("damaged", [b'{"cer" 0.1}', b"\xff", b"[1]", b'{"cer": "low"}', b""])
def test_damaged_metrics_do_not_end_a_run(tmp_path, damaged, caplog):
    placement, state = placed(keep=("decoder.norm",))
    evaluation = EvaluationConfig(every=1, metric="cer")
    checkpoints = opened(tmp_path, evaluation)
    for step in (1, 2):
        checkpoints.save(step, state, placement.layouts, step, {"cer": step / 10})
    checkpoints.close()
    file = tmp_path / "1" / "metrics" / "metrics"
    file.write_bytes(damaged)
    checkpoints = opened(tmp_path, evaluation)
    assert f"{file}: damaged, and removed" in caplog.text
    assert checkpoints.best() == checkpoints.latest() == tmp_path / "2"
    checkpoints.close()


def test_digests_do_not_depend_on_the_devices():
    rng = np.random.default_rng(0)
    arrays = {"a": rng.standard_normal((16, 24)).astype(np.float32), "b": np.arange(40, dtype=np.int32)}
    arrays |= {"c": np.asarray(jnp.ones((8, 3), jnp.bfloat16)), "d": np.arange(8) % 2 == 0, "e": np.zeros((), np.int32)}
    one = digests({name: jnp.asarray(array) for name, array in arrays.items()})
    mesh = parallel.make_mesh(fsdp=8)
    spread = {
        name: jax.device_put(array, jax.NamedSharding(mesh, jax.P(*["fsdp"][: array.ndim])))
        for name, array in arrays.items()
    }
    assert digests(spread) == one
    for name, array in arrays.items():
        raw = bytearray(array.tobytes())
        raw[len(raw) // 2] ^= 1
        changed = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
        assert digests({name: jnp.asarray(changed)})[name] != one[name]
    swapped = arrays["b"][::-1]
    assert digests({"b": jnp.asarray(swapped)})["b"] != one["b"]
    json.dumps(one)
