"""Programs compiled for TPUs that are not there: what is read from their text, and the step of `ved train`."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("flax")
pytest.importorskip("yaml")
from tests.cases import READER, TESTS, model_config
from tests.training import SMALL, WET, Synthetic, tiny
from ved_core.errors import ConfigError, VedError
from ved_flax import state
from ved_flax.aot import hlo
from ved_flax.aot import topology as topologies
from ved_flax.aot.flops import flops
from ved_flax.aot.report import Memory, analysed, lines
from ved_flax.train import ahead, command
from ved_flax.train.ahead import image_shape
from ved_flax.train.building import build_model, describe_model, merged
from ved_flax.train.config import AverageConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from ved_flax.train.placement import Placement
from ved_flax.train.program import make_program

CHIP = topologies.CHIPS["v5e"]
TEXT = (TESTS / "program.hlo.txt").read_text()
"""As libtpu writes it: a loop of 12 matrix products, collectives, a kernel."""


def report(text=TEXT, **options):
    return analysed(hlo.parse(text, **options), Memory(2**30, 0, 2**30, 2**20), 1e6, CHIP)


def named(name):
    return next(op for op in hlo.parse(TEXT).operations if op.name == name)


def test_matrix_products_are_counted_where_numbers_meet():
    assert flops(named("convolution.1")) == 2 * 8 * 16 * 32
    assert named("convolution.1").times == 12
    program = hlo.parse(TEXT.replace("copy(%x)", "fusion(%x), calls=%batched"))
    batched = next(op for op in program.operations if op.name == "convolution.2")
    assert flops(batched) == 2 * 4 * 8 * 16 * 8


def test_a_padded_convolution_counts_no_padding():
    text = "ENTRY %m (a: f32[1]) -> f32[1] {\n  %a = f32[1,5,2]{2,1,0} parameter(0)\n"
    text += "  %b = f32[3,2,7]{2,1,0} parameter(1)\n"
    text += "  ROOT %c = f32[1,5,7]{2,1,0} convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f\n}\n"
    assert flops(hlo.parse(text).operations[-1]) == 2 * (5 * 3 - 2) * 2 * 7


def test_dots_of_other_compilers_are_counted_too():
    compiled = jax.jit(lambda a, b: jnp.einsum("bij,bjk->bik", a, b)).lower(jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5)))
    found = hlo.parse(compiled.compile().as_text())
    assert sum(flops(op) * op.times for op in found.operations) == 2 * 2 * 3 * 4 * 5


def test_a_loop_counts_as_often_as_it_runs():
    kernel = max(4 * 2 * 3 * 128 * 128 * 64 / CHIP.flops, 4 * 2 * 3 * 128 * 64 * 2 / CHIP.bandwidth)
    assert report().seconds == pytest.approx((3000 + 12 * 1000) / CHIP.clock + kernel)
    assert report().open_loops == 0
    dynamic = TEXT.replace("constant(12)", "get-tuple-element(%c), index=0")
    assert report(dynamic, loops=5).seconds == pytest.approx((3000 + 5 * 1000) / CHIP.clock + kernel)
    assert report(dynamic).open_loops == 1
    told = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert report(told).seconds == pytest.approx((3000 + 7 * 1000) / CHIP.clock + kernel)


def test_collectives_are_listed_once_with_whole_sizes():
    found = {(each.kind, each.chips): (each.count, each.bytes) for each in report().traffic}
    assert found == {
        ("all-gather", 8): (1, 64 * 16 * 2),
        ("all-reduce", 4): (1, 8 * 16 * 2),
        ("reduce-scatter", 2): (1, 8 * 16 * 2),
    }


def test_kernels_are_counted_and_make_a_lower_bound():
    found = report()
    assert (found.kernels, found.lower_bound) == (1, False)
    assert found.flops == 12 * 2 * 8 * 16 * 32 + 4 * 2 * 3 * 128 * 128 * 64
    fast = report(TEXT.replace('"1000"', '"10"').replace('"3000"', '"30"'))
    assert fast.lower_bound
    assert "at least" in "\n".join(lines(fast, CHIP))


def test_costs_name_our_line():
    first, second, *_ = report().costliest
    assert (first.source, first.what, first.count) == (
        "ved_flax/layers/mlp.py:31 Mlp.__call__",
        "backward dot_general",
        12,
    )
    assert (second.source, second.what, second.count) == ("", "copy", 1)
    text = "\n".join(lines(report(), CHIP))
    for part in (
        "2.00 GiB of 16.00 GiB, fits",
        "1 x all-gather of 8 chips, 2.0 KiB",
        "12 x backward dot_general, ved_f",
    ):
        assert part in text


def test_reading_arguments_takes_its_time():
    assert report().read_seconds == pytest.approx(2**30 / 819e9)
    assert "1.311 ms, beside" in "\n".join(lines(report(), CHIP))


def test_too_much_does_not_fit():
    found = analysed(hlo.parse(TEXT), Memory(16 * 2**30, 0, 1, 0), 0.0, CHIP)
    assert not found.fits
    assert "DOES NOT FIT" in "\n".join(lines(found, CHIP))


def test_a_program_of_this_machine_has_our_lines():
    model = tiny()
    compiled = jax.jit(lambda x: model.encode(x).last_hidden_state).lower(
        jnp.zeros((2, *Synthetic(model.config).shape[1:]))
    )
    program = hlo.parse(compiled.compile().as_text())
    files = {frame.file.rpartition("/")[2] for op in program.operations if (frame := program.source(op, "ved_flax"))}
    assert {"attention.py", "mlp.py"} <= files


@pytest.mark.parametrize(
    "changes",
    [{"fsdp": 8}, {"data": 1, "fsdp": 5}, {"data": 2, "fsdp": 2, "model": 2}, {"mode": "pmap"}],
    ids=["fsdp", "padded", "all", "pmap"],
)
def test_shapes_are_those_of_a_run(changes):
    """What is compiled ahead of time is what a run compiles: from a model without arrays, the same state and batch."""
    config = TrainConfig(
        batch_size=16,
        parallel=ParallelConfig(**changes),
        average=AverageConfig(decay=0.9),
        optimizer=OptimizerConfig(freeze_encoder=True),
    )
    placement, model = Placement(config.parallel), tiny()
    program = make_program(config, model)
    real = placement.initial(program.params, program.frozen, program.optimizer, 0, average=True)
    abstract = make_program(config, state.abstract(lambda: type(model)(model.config)))
    found = Placement(config.parallel).lay_out(abstract.params, abstract.frozen, abstract.optimizer, average=True)

    def same(array, shape):
        assert (array.shape, array.dtype) == (shape.shape, shape.dtype)
        assert array.sharding.is_equivalent_to(shape.sharding, array.ndim)

    jax.tree.map(same, real, found)
    batch = next(Synthetic(model.config, size=2 * placement.rows))
    shapes = placement.batch_shapes(batch["pixel_values"].shape, batch["labels"].shape)
    jax.tree.map(same, (placement.batch(batch), placement.signals(0)), shapes)


def test_described_models_are_the_built_ones(tmp_path):
    folder = tmp_path / "config.json"
    folder.write_text(json.dumps(merged(model_config(*SMALL), WET)))
    for options in (
        {"config": str(folder), "dtype": "bfloat16"},
        {"pretrained": str(READER), "checkpoint_activations": True},
        {"encoder": str(READER), "decoder": str(READER), "overrides": {"decoder": {"resid_pdrop": 0.2}}},
    ):
        config = ModelConfig(**options)
        built, found = build_model(config, 0), describe_model(config)
        assert state.shapes(found) == state.shapes(built)
        assert found.attached.new == built.attached.new
        assert (found.dtype, found.config) == (built.dtype, built.config)
        assert found.generation_config == built.generation_config
        assert all(
            isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(make_program(TrainConfig(), found).params)
        )


def test_images_have_the_size_that_training_gives_them():
    for interpolate in (False, True):
        config = ModelConfig(pretrained=str(READER), interpolate_pos_encoding=interpolate)
        model = describe_model(config)
        assert image_shape(config, model) == Synthetic(model.config).shape[1:]


def run(tmp_path, *arguments):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {{pretrained: '{READER}'}}\nbatch_size: 16\ndata: {{max_length: 8}}\n")
    return command.main(["--config", str(file), *arguments])


def test_what_is_wrong_is_said(tmp_path, capsys, monkeypatch):
    with pytest.raises(ConfigError, match="v5e:1x1"):
        topologies.topology("v9:1x1")
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(tmp_path, "--compile-only", "--topology", "v5e:2x4") == command.NOTHING_DONE
    assert "pip install 'libtpu==" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path, "--compile-only")
    with pytest.raises(SystemExit):
        run(tmp_path, "--topology", "v5e:2x4")
    chips = topologies.Topology("v5e:1x1", CHIP, ())
    with pytest.raises(ConfigError, match="pmap"):
        ahead.compile_step(TrainConfig(parallel=ParallelConfig(mode="pmap")), chips)


def test_memory_that_does_not_suffice_is_said():
    from ved_flax.aot.compiling import compile_ahead

    class Function:
        def __getattr__(self, name):
            return lambda *arguments, **options: self

        def compile(self):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory. Used 20.1G of 15.75G hbm. Exceeded"
            )

    with pytest.raises(VedError, match=r"20\.1G where a chip has 15\.75G"):
        compile_ahead(Function())


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("name", "setting"), [("v5e:1x1", "parallel.fsdp=1"), ("v5e:2x4", "parallel.fsdp=8")])
def test_a_step_is_compiled_for_a_tpu(tmp_path, capsys, name, setting):
    assert run(tmp_path, "--compile-only", "--topology", name, setting) == command.DONE
    text = capsys.readouterr().out
    assert ", fits" in text
    assert "ved_flax/layers/attention.py" in text
    assert ("all-gather of 8 chips" in text) == (name == "v5e:2x4")


@pytest.mark.slow
@needs_libtpu
def test_a_topology_that_libtpu_has_not_got():
    with pytest.raises(ConfigError, match="v5e:2x4"):
        topologies.topology("v5e:3x7")
