"""Compiled steps: jit, and pmap over eight simulated devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import inputs
from tests.flax_models import decode, encode, perturbed
from ved_core.errors import GenerationError

pytest.importorskip("flax")
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ved_core import slicing
from ved_flax import compiled, parallel, platforms
from ved_flax.decoders.base import Decoder
from ved_flax.layers import slicing as rows
from ved_flax.layers.mlp import GatedMlp, Mlp
from ved_flax.layers.relative import ContinuousBias, WindowBias

STRATEGIES = {
    "greedy": {},
    "sample": {"do_sample": True, "num_return_sequences": 2, "temperature": 1.5},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "beam sample": {"num_beams": 2, "do_sample": True, "top_k": 9},
}
PAIRS = [("vit", "gpt2"), pytest.param(("vit-rectangular", "trocr"), marks=pytest.mark.slow)]
SHOWN_BY_ANOTHER = {"sample": pytest.mark.slow, "beams": pytest.mark.slow}
"""Beam sampling does both."""


@pytest.fixture(scope="module", params=PAIRS, ids=str)
def case(request):
    model = perturbed(*request.param)
    return model, inputs(model.config.to_dict(), batch=8).pixel_values


def generate(steps, params, pixels, request):
    return steps.generate(params, pixels, request.rows, request.numbers, request.plan)


def test_steps_equal_the_model(case):
    model, pixels = case
    steps, params = compiled.jit_steps(model), compiled.parameters(model)
    encoded = steps.encode(params, pixels)
    np.testing.assert_allclose(encoded, encode(model, pixels).last_hidden_state, atol=1e-5)
    cache = steps.init_cache(params, encoded, 8)
    ids, scores = np.full((8, 1), 2), []
    for _ in range(8):
        score, cache = steps.decode_step(params, ids[:, -1], cache)
        scores.append(score)
        ids = np.concatenate([ids, np.argmax(score, axis=-1)[:, None]], axis=1)
    np.testing.assert_allclose(np.stack(scores, axis=1), decode(model, ids[:, :-1], encoded).logits, atol=1e-5)
    generated = generate(steps, params, pixels, model.generation_request(8, max_length=9))
    for row, whole in zip(np.asarray(generated.ids_RL), ids, strict=True):
        end = next((t for t in range(1, 9) if whole[t] == 2), 8)
        assert row.tolist() == [*whole[: end + 1], *[1] * (8 - end)]


@pytest.mark.parametrize(("platform", "limit"), [("cpu", "AT_ONCE"), ("tpu", "AT_ONCE_TPU")])
def test_a_large_batch_is_encoded_in_slices(case, monkeypatch, platform, limit):
    """Where as many images do not fit a platform's memory. Other platforms take it whole."""
    model, pixels = case
    monkeypatch.setattr(slicing, limit, 4 * pixels[0].size)
    steps, params = compiled.jit_steps(model), compiled.parameters(model)
    for name in ("cpu", "tpu", "cuda"):
        program = jax.export.export(steps.encode, platforms=[name])(params, pixels).mlir_module()
        assert program.count("stablehlo.while") == (name == platform)
    program = jax.export.export(steps.encode, platforms=[platform])(params, pixels[:4]).mlir_module()
    assert "stablehlo.while" not in program


def test_the_platform_of_arrays():
    devices = jax.devices()
    assert platforms.platform_of(jnp.ones(3)) == "cpu"
    assert platforms.platform_of(jax.device_put(jnp.ones(3), devices[5])) == "cpu"
    assert platforms.platform_of(jax.ShapeDtypeStruct((3,), "float32")) is None
    seen = []
    jax.jit(lambda x: seen.append(platforms.platform_of(x)) or x)(1.0)
    assert seen == [None]


def test_a_call_is_traced_for_its_platform_alone(monkeypatch):
    """A TPU's token in two rows is none of a CPU's business; compiled steps are for wherever their arguments lie."""
    model = perturbed("vit", "gpt2")
    pixels = inputs(model.config.to_dict(), batch=2).pixel_values
    copies, call = [], Decoder.__call__

    def recorded(*arguments, **options):
        copies.append(options.get("copies", 1))
        return call(*arguments, **options)

    monkeypatch.setattr(Decoder, "__call__", recorded)
    found = model.generate(pixels, max_new_tokens=3)
    assert copies == [1]
    request = model.generation_request(2, max_new_tokens=3)
    same = generate(compiled.jit_steps(model), compiled.parameters(model), pixels, request)
    assert sorted(copies) == [1, 1, 2]
    np.testing.assert_array_equal(same.ids_RL[:, : found.shape[1]], found)


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_slices_make_what_the_whole_batch_makes(case, monkeypatch, rows):
    """What is left over by itself."""
    model, pixels = case
    monkeypatch.setattr(slicing, "AT_ONCE", rows * pixels[0].size)
    steps, params = compiled.jit_steps(model), compiled.parameters(model)
    found = steps.encode(params, pixels[:7])
    np.testing.assert_allclose(found, encode(model, pixels[:7]).last_hidden_state, atol=1e-5)


@pytest.mark.parametrize(("count", "most", "size"), [(32, 10, 8), (64, 32, 32), (48, 32, 24), (41, 32, 21), (5, 1, 1)])
def test_slices_are_even(count, most, size):
    assert slicing.even(count, most) == size


def test_slices_leave_each_image_on_its_device(case, monkeypatch):
    """Of a batch that is spread over devices, each encodes its own in slices, and tells the others nothing."""
    model, pixels = case
    pixels = np.concatenate([pixels, pixels[::-1]])
    monkeypatch.setattr(slicing, "AT_ONCE", pixels[0].size)
    mesh = parallel.make_mesh()
    given = jax.device_put(pixels, NamedSharding(mesh, parallel.ROWS))
    params = jax.device_put(compiled.parameters(model), NamedSharding(mesh, P()))
    program = compiled.jit_steps(model).encode.lower(params, given).compile()
    assert "while(" in program.as_text()
    assert not re.search(r"all-(gather|to-all|reduce)|collective-permute", program.as_text())
    found = program(params, given)
    assert found.sharding.shard_shape(found.shape)[0] == 2
    np.testing.assert_allclose(found, encode(model, pixels).last_hidden_state, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "donut", "swinv2", "dinov2-swiglu"])
def test_rows_in_slices(name, monkeypatch):
    """Hidden activations, and windows with their masks; the last slice is smaller. Only on CPUs, where nothing is
    learned, and not of a batch that is spread over devices."""
    model = perturbed(name, "gpt2")
    pixels = inputs(model.config.to_dict()).pixel_values
    whole, params = encode(model, pixels).last_hidden_state, compiled.parameters(model)
    graphdef = nnx.graphdef(model)
    monkeypatch.setattr(rows, "SLICE", 1200)

    def loops(function, params=params, pixels=pixels, platform="cpu"):
        lowered = jax.jit(function).trace(params, pixels).lower(lowering_platforms=(platform,))
        return lowered.as_text().count("stablehlo.while")

    assert loops(compiled.jit_steps(model).encode) == 0
    monkeypatch.setattr(rows, "LARGE", 0)
    encoded = compiled.jit_steps(model).encode
    kinds = Mlp | GatedMlp | WindowBias | ContinuousBias
    assert loops(encoded) == sum(isinstance(part, kinds) for _, part in nnx.iter_modules(model.encoder))
    np.testing.assert_allclose(encoded(params, pixels), whole, atol=1e-5)
    assert loops(encoded, platform="tpu") == 0
    assert loops(lambda params, pixels: nnx.merge(graphdef, params).encode(pixels).last_hidden_state) == 0
    mesh = parallel.make_mesh()
    everywhere = jax.device_put(params, NamedSharding(mesh, P()))
    spread = jax.device_put(np.concatenate([pixels] * 8)[:8], NamedSharding(mesh, parallel.ROWS))
    assert loops(encoded, everywhere, spread) == 0


def test_the_cache_is_reused_in_place(case):
    model, pixels = case
    steps, params = compiled.jit_steps(model), compiled.parameters(model)
    cache = steps.init_cache(params, steps.encode(params, pixels), 8)
    _, after = steps.decode_step(params, jnp.full(8, 2), cache)
    assert cache.self_kv[0].k.is_deleted()
    assert not after.self_kv[0].k.is_deleted()


def test_pmap_equals_jit(case):
    assert jax.local_device_count() == 8
    model, pixels = case
    params = compiled.parameters(model)
    jitted, mapped = compiled.jit_steps(model), compiled.pmap_steps(model)
    shards = compiled.shard(pixels)
    encoded = mapped.encode(params, shards)
    np.testing.assert_allclose(compiled.unshard(encoded), jitted.encode(params, pixels), atol=1e-5)
    cache = mapped.init_cache(params, encoded, 8)
    scores, cache = mapped.decode_step(params, compiled.shard(jnp.full(8, 2)), cache)
    one = jitted.init_cache(params, jitted.encode(params, pixels), 8)
    expected, one = jitted.decode_step(params, jnp.full(8, 2), one)
    np.testing.assert_allclose(compiled.unshard(scores), expected, atol=1e-5)
    assert cache.index.tolist() == [1] * 8


@pytest.mark.parametrize(
    "options",
    [pytest.param(options, id=name, marks=SHOWN_BY_ANOTHER.get(name, ())) for name, options in STRATEGIES.items()],
)
def test_a_result_does_not_depend_on_the_devices(case, options):
    model, pixels = case
    params = compiled.parameters(model)
    request = model.generation_request(8, max_length=9, prng_key=jax.random.key(3), **options)
    jitted, mapped = compiled.jit_steps(model), compiled.pmap_steps(model)
    expected = generate(jitted, params, pixels, request)

    def same(found):
        np.testing.assert_array_equal(found.ids_RL, expected.ids_RL)
        np.testing.assert_allclose(found.log_probs_RS, expected.log_probs_RS, atol=1e-5)

    shards = mapped.generate(params, *compiled.shard((pixels, request.rows)), request.numbers, request.plan)
    same(shards._replace(ids_RL=compiled.unshard(shards.ids_RL), log_probs_RS=compiled.unshard(shards.log_probs_RS)))
    assert int(np.max(shards.steps)) == int(expected.steps)
    for devices in (2, 8):
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        spread = jax.device_put((pixels, request.rows), jax.NamedSharding(mesh, jax.P("data")))
        everywhere = jax.device_put((params, request.numbers), jax.NamedSharding(mesh, jax.P()))
        same(jitted.generate(everywhere[0], *spread, everywhere[1], request.plan))


def compilations(call):
    """How many programs XLA compiles meanwhile."""
    counted = []

    def listen(event, seconds, **_):
        counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    call()
    jax.monitoring.unregister_event_duration_listener(listen)
    return sum(event == "/jax/core/compile/backend_compile_duration" for event in counted)


def test_numbers_do_not_compile_again(case):
    model, pixels = case
    steps, params = compiled.jit_steps(model), compiled.parameters(model)

    def run(batch=8, **options):
        request = model.generation_request(batch, max_length=6, **options)
        return lambda: jax.block_until_ready(generate(steps, params, pixels[:batch], request))

    fixed = {"do_sample": True, "num_beams": 2}
    first = {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9, "epsilon_cutoff": 1e-3}
    first |= {"eta_cutoff": 1e-3, "repetition_penalty": 1.2, "length_penalty": 0.5, "min_new_tokens": 2}
    first |= {"bad_words_ids": [[5], [6, 7]], "suppress_tokens": [9], "eos_token_id": 2, "pad_token_id": 1}
    other = {"temperature": 1.7, "top_k": 12, "top_p": 0.8, "min_p": 0.02, "typical_p": 0.8, "epsilon_cutoff": 2e-3}
    other |= {"eta_cutoff": 2e-3, "repetition_penalty": 0.8, "length_penalty": -1.0, "min_new_tokens": 3}
    other |= {"bad_words_ids": [[8], [4, 3]], "suppress_tokens": [7], "eos_token_id": 3, "pad_token_id": 4}
    run(**fixed, **first)()
    assert compilations(run(**fixed, **other, prng_key=jax.random.key(5))) == 0
    # Of other strategies, the encoder is there already; of other batch sizes, nothing is.
    assert compilations(run(num_beams=3)) == 1
    assert compilations(run(5, num_beams=3)) == 2
    assert compilations(run(5, num_beams=3, early_stopping=True)) == 1


def test_a_batch_is_filled_up_to_its_bucket(case):
    model, pixels = case
    options = {"max_length": 6, "num_beams": 2, "batch_buckets": [8, 4]}
    model.generate(pixels[:4], **options)
    assert compilations(lambda: [model.generate(pixels[:size], **options) for size in (1, 2, 3)]) == 0
    assert compilations(lambda: model.generate(pixels[:5], **options)) > 0
    with pytest.raises(GenerationError, match="batch_buckets = \\[2\\]: none holds a batch of 3"):
        model.generate(pixels[:3], batch_buckets=[2])


@pytest.mark.parametrize(("batch", "options"), [(1, {}), (1, {"num_beams": 2}), (2, {})])
def test_a_loop_copies_no_cache(case, batch, options):
    """XLA may keep or make copies of what a loop carries: a step would then cost more, the longer its caches are."""
    model, pixels = case
    steps, params = compiled.jit_steps(model), compiled.parameters(model)
    encoded = jax.eval_shape(steps.encode, params, pixels[:batch])
    request = model.generation_request(batch, max_new_tokens=13, **options)
    program = steps.search.lower(params, encoded, request.rows, request.numbers, request.plan).compile().as_text()
    names = re.findall(r" while\(.*body=%([\w.-]+)", program)
    bodies = [program[program.index(f"%{name} (") :].partition("\n}")[0] for name in names]
    loop = max(bodies, key=len)
    cache = rf"{request.plan.slots},\d+\]"
    assert re.search(cache, loop)
    assert not re.search(rf"{cache}\S* copy\(", loop)


def test_a_token_twice_is_the_same_as_once(case):
    """What is done for TPUs' sake, on a CPU."""
    model, pixels = case
    encoded = encode(model, pixels[:2]).last_hidden_state
    cache = model.init_cache(2, 5, encoded)

    @nnx.jit(static_argnums=3)
    def fed(model, ids, cache, copies):
        out = model.decoder(ids, cache=cache, copies=copies)
        return out.logits, out.cache

    once = twice = cache
    for ids in (np.array([[2], [3]]), np.array([[5], [1]])):
        expected, once = fed(model, ids, once, 1)
        logits, twice = fed(model, ids, twice, 2)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), twice, once)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="a batch of 6 does not divide over 8 devices"):
        compiled.shard(np.zeros((6, 3)))


def test_steps_lower_for_tpu(case):
    model, pixels = case
    steps, params = compiled.jit_steps(model), compiled.parameters(model)
    encoded = steps.encode(params, pixels)
    for options in STRATEGIES.values():
        request = model.generation_request(8, max_length=9, **options)
        arguments = (params, encoded, request.rows, request.numbers, request.plan)
        assert jax.export.export(steps.search, platforms=["tpu"])(*arguments).platforms == ("tpu",)
