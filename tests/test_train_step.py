"""The train step: the same numbers however a batch is cut, and what its options do."""

import collections
import dataclasses
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

pytest.importorskip("flax")
pytest.importorskip("yaml")
from tests.training import DRY, SMALL, WET, Synthetic, tiny, train
from ved_core.errors import ConfigError
from ved_flax import platforms, state
from ved_flax.aot import hlo
from ved_flax.loss import cross_entropy, cross_entropy_sums, log_sum_exp
from ved_flax.train.building import build_model
from ved_flax.train.config import ModelConfig, OptimizerConfig, ParallelConfig, ScheduleConfig, TrainConfig
from ved_flax.train.optimizer import decays, frozen_by, make_optimizer, make_schedule
from ved_flax.train.placement import Placement
from ved_flax.train.program import make_program
from ved_flax.train.step import if_finite, split_parameters

SGD = OptimizerConfig(name="sgd", learning_rate=0.05, arguments={"momentum": 0.9}, clip_norm=None)
ADAMW = OptimizerConfig(name="adamw", learning_rate=1e-3)
CUTS = {
    "data": {"parallel": ParallelConfig(data=8)},
    "fsdp": {"parallel": ParallelConfig(fsdp=8)},
    "model": {"parallel": ParallelConfig(data=4, model=2)},
    "all axes": {"parallel": ParallelConfig(data=2, fsdp=2, model=2)},
    "pmap": {"parallel": ParallelConfig(mode="pmap")},
    "accumulation": {"accumulation": 4},
    "accumulation, data": {"accumulation": 2, "parallel": ParallelConfig(data=8)},
}

NO_DROPOUT = DRY["decoder"] | {"dropout": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SCANNED = [("beit", "mbart"), ("dinov2", "bert"), ("deit", "gpt2")]


def cuts(*quick):
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in CUTS]


@pytest.mark.parametrize("cut", cuts("all axes", "pmap", "accumulation"))
def test_a_batch_may_be_cut_anyhow_under_sgd(cut):
    expected = train(tiny(), 20, optimizer=SGD)
    found = train(tiny(), 20, optimizer=SGD, **CUTS[cut])
    assert np.abs(found.params["decoder.norm.scale"] - state.arrays(tiny())["decoder.norm.scale"]).max() > 0.01
    np.testing.assert_allclose(found.losses, expected.losses, atol=1e-5)
    for name, value in expected.params.items():
        np.testing.assert_allclose(found.params[name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("cut", cuts("all axes"))
def test_a_batch_may_be_cut_anyhow_under_adamw(cut):
    expected = train(tiny(), 20, optimizer=ADAMW)
    found = train(tiny(), 20, optimizer=ADAMW, **CUTS[cut])
    np.testing.assert_allclose(found.losses, expected.losses, atol=1e-5)
    for name, value in expected.params.items():
        # A key's bias adds the same to all of a query's scores, which softmax takes out again: its gradient is zero
        # but for rounding, and Adam divides that by its own size.
        if not name.endswith("attn.k.bias"):
            np.testing.assert_allclose(found.params[name], value, atol=1e-5, err_msg=name)


def described(config):
    """A program, and where its state and batch lie."""
    model = state.abstract(lambda: type(tiny())(tiny().config))
    program, placement = make_program(config, model), Placement(config.parallel)
    return program, placement, placement.lay_out(program.params, program.frozen, program.optimizer)


@pytest.mark.parametrize("cut", ["data", "fsdp"])
def test_devices_exchange_gradients_and_whole_parameters_only(cut):
    config = TrainConfig(batch_size=16, optimizer=SGD, **CUTS[cut])
    program, placement, arrays = described(config)
    shapes = placement.batch_shapes(Synthetic(tiny().config).shape, (16, 6))
    compiled = placement.compile(program.make_step).lower(arrays, *shapes).compile()
    moved = collections.Counter()
    for operation in hlo.parse(compiled.as_text()).collectives():
        moved[operation.collective] += operation.moved
    sizes = {name: 4 * math.prod(array.shape) for name, array in program.params.items()}
    if cut == "fsdp":
        assert moved.pop("all-gather") == sum(sizes.values())
    assert moved.keys() <= {"all-reduce", "reduce-scatter"}
    # A tied table has two gradients, as embedding and as head; positions behind the last token have none.
    unused = sizes["decoder.positions.embedding"] * (1 - 6 / tiny().config.decoder.n_positions)
    gradients = sum(sizes.values()) + sizes["decoder.tokens.embedding"] - unused
    assert gradients <= moved.total() < gradients + 64 + 8 * len(sizes)  # and sums that are single numbers


def test_the_state_is_written_over():
    """No array of the one that was given is copied first."""
    program, placement, arrays = described(TrainConfig(batch_size=16, optimizer=ADAMW, **CUTS["data"]))
    shapes = placement.batch_shapes(Synthetic(tiny().config).shape, (16, 6))
    text = placement.compile(program.make_step).lower(arrays, *shapes).compile().as_text()
    written = [part for part in re.split(r"\n(?=%|ENTRY)", text) if not re.match("%(wrapped|fused)_", part)]
    assert any(" conditional(" in part for part in written)
    assert not re.findall(r"= (f32\[\d.*?\])\S* copy\(", "\n".join(written))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("finite", [False, True])
def test_only_a_finite_step_changes_what_was_learned(platform, finite):
    kept = {"a": jnp.ones(2)}, {}, [jnp.zeros(2), jnp.asarray(3)]

    def update(kept, grads):
        params, average, (moment, count) = kept
        return {"a": params["a"] - grads["a"]}, average, [moment + grads["a"], count + 1]

    run = platforms.traced_for(platform, jax.jit(partial(if_finite, update=update)))
    found = run(jnp.asarray(finite), kept=kept, grads={"a": jnp.full(2, 0.5)})
    expected = ({"a": [0.5, 0.5]}, {}, [[0.5, 0.5], 4]) if finite else ({"a": [1, 1]}, {}, [[0, 0], 3])
    jax.tree.map(np.testing.assert_array_equal, found, expected, is_leaf=lambda x: isinstance(x, jax.Array))


def test_fsdp_leaves_each_device_its_share_of_parameters_and_optimizer():
    config = TrainConfig(batch_size=16, optimizer=ADAMW, **CUTS["fsdp"])
    _, _, arrays = described(config)
    held = [array for array in jax.tree.leaves((arrays.params, arrays.optimizer)) if array.ndim]
    own = sum(math.prod(array.sharding.shard_shape(array.shape)) for array in held)
    assert len(held) == 3 * len(arrays.params)
    assert own <= 1.05 * sum(math.prod(shape) for shape in state.shapes(tiny()).values()) * 3 / 8


def test_dropout_does_not_depend_on_the_devices():
    expected = train(tiny(changes=WET), 3, optimizer=SGD)
    assert abs(expected.losses[0] - train(tiny(), 1, optimizer=SGD).losses[0]) > 1e-3
    found = train(tiny(changes=WET), 3, optimizer=SGD, parallel=ParallelConfig(data=2, fsdp=2, model=2))
    np.testing.assert_allclose(found.losses, expected.losses, atol=1e-5)
    other_seed = train(tiny(changes=WET), 1, optimizer=SGD, seed=1)
    assert abs(other_seed.losses[0] - expected.losses[0]) > 1e-4


@pytest.mark.oracle
@pytest.mark.parametrize("pair", [SMALL, pytest.param(("donut", "mbart"), marks=pytest.mark.slow)])
def test_the_first_step_is_that_of_torch(pair, tmp_path):
    torch = pytest.importorskip("torch")
    from conversion.checkpoint import Weights, to_stored
    from conversion.tables import model_table
    from tests import reference

    expected = reference.build(*pair, tmp_path)
    drop = DRY if pair == SMALL else {"encoder": {"drop_path_rate": 0.0}, "decoder": {"dropout": 0.0}}
    model = build_model(ModelConfig(pretrained=str(tmp_path), overrides=drop), seed=0)
    before = state.arrays(model)
    batch = next(Synthetic(model.config))
    real = batch["weight"] > 0
    loss = expected(
        pixel_values=torch.tensor(batch["pixel_values"][real]),
        labels=torch.tensor(batch["labels"][real], dtype=torch.long),
    ).loss
    loss.backward()
    # With a learning rate of 1 and nothing else, what SGD takes away is the gradient.
    run = train(model, 1, optimizer=OptimizerConfig(name="sgd", learning_rate=1.0, clip_norm=None))
    assert run.losses[0] == pytest.approx(loss.item(), abs=1e-4)
    gradients = Weights({name: before[name] - value for name, value in run.params.items()}, {})
    stored = to_stored(gradients, model_table(model.config), "flax")
    named = {name: value.grad for name, value in expected.named_parameters() if value.grad is not None}
    names = stored.keys() & named.keys()
    assert len(names) > 30
    for name in names:
        np.testing.assert_allclose(stored[name], named[name].numpy(), atol=1e-4, err_msg=name)


def test_the_loss_is_torchs_with_label_smoothing():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 5, 11)).astype(np.float32)
    labels = rng.integers(0, 11, (3, 5))
    labels[0, 2:] = -100
    sums = cross_entropy_sums(jnp.asarray(logits), jnp.asarray(labels), jnp.ones(3), smoothing=0.1)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).flatten(0, 1), torch.tensor(labels).flatten(), label_smoothing=0.1
    )
    assert float(sums.loss / sums.tokens) == pytest.approx(expected.item(), abs=1e-6)
    assert float(sums.tokens) == 12


def test_tpus_log_of_a_sum_of_exponentials_and_its_gradient(monkeypatch):
    """Of scores whose exponentials are no numbers, of scores that are equal."""
    monkeypatch.setattr(platforms, "choose", lambda x, *, tpu, default: tpu(x))
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 500)) * 30, jnp.float32)
    scores = scores.at[0].add(1e4).at[1].add(-1e4).at[2].set(5.0)
    weight = jnp.arange(12.0).reshape(4, 3)
    found, back = jax.vjp(log_sum_exp, scores)
    expected, expected_back = jax.vjp(partial(jax.nn.logsumexp, axis=-1), scores)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(back(weight)[0], expected_back(weight)[0], rtol=1e-5, atol=1e-6)


def test_rows_that_fill_up_count_for_nothing():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((3, 5, 11)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 11, (3, 5)))
    sums = cross_entropy_sums(logits.at[2].set(jnp.nan), labels, jnp.array([1.0, 1.0, 0.0]))
    assert float(sums.loss / sums.tokens) == pytest.approx(float(cross_entropy(logits[:2], labels[:2])), abs=1e-6)
    with_z = cross_entropy_sums(logits, labels, jnp.ones(3), z_loss=0.5)
    plain = cross_entropy_sums(logits, labels, jnp.ones(3))
    squares = (jax.nn.logsumexp(logits, axis=-1) ** 2).sum()
    assert float(with_z.loss - plain.loss) == pytest.approx(0.5 * float(squares), rel=1e-5)


class Poisoned(Synthetic):
    """Batch 1 has a pixel that is not a number, in a row that counts."""

    def __next__(self):
        batch = super().__next__()
        if self.number == 2:
            batch["pixel_values"][0, 0, 0, 0] = np.nan
        return batch


def test_a_loss_that_is_not_finite_changes_nothing_and_averages_are_kept():
    model = tiny()
    batches = Poisoned(model.config)
    run = train(model, 3, optimizer=SGD, batches=batches, decay=0.5)
    assert [bool(metrics.finite) for metrics in run.metrics] == [True, False, True]
    assert (int(run.state.step), int(run.state.skipped)) == (3, 1)

    class Without(Synthetic):
        def __next__(self):
            batch = super().__next__()
            self.number += self.number == 1
            return batch

    clean = train(model, 2, optimizer=SGD, batches=Without(model.config), decay=0.5)
    for name, value in clean.params.items():
        np.testing.assert_array_equal(run.params[name], value)
    assert run.metrics[2].learning_rate == clean.metrics[1].learning_rate
    first = train(model, 1, optimizer=SGD, decay=0.5)
    name = "decoder.norm.scale"
    began = state.arrays(model)[name]
    average = 0.25 * (began + first.params[name]) + 0.5 * clean.params[name]
    np.testing.assert_allclose(clean.state.average[name], average, atol=1e-6)


def test_frozen_parameters_stay_and_parts_have_rates_of_their_own():
    model = tiny()
    before = state.arrays(model)
    whole = train(model, 1, optimizer=SGD).params
    run = train(model, 1, optimizer=dataclasses.replace(SGD, encoder_multiplier=0.5, freeze=["mlp"]))
    assert run.params.keys() == {name for name in before if "mlp" not in name}
    assert run.state.frozen.keys() == {name for name in before if "mlp" in name}
    for name, value in run.state.frozen.items():
        np.testing.assert_array_equal(value, before[name])
    for name, factor in (("encoder.norm.scale", 0.5), ("decoder.norm.scale", 1.0)):
        moved, expected = run.params[name] - before[name], factor * (whole[name] - before[name])
        np.testing.assert_allclose(moved, expected, atol=1e-7)
        assert np.abs(moved).max() > 1e-5


def test_the_encoder_can_be_frozen_in_the_config_and_in_the_model():
    model = tiny()
    freezes = frozen_by(OptimizerConfig(freeze_encoder=True), state.shapes(model))
    by_config = [set(part) for part in split_parameters(model, freezes)]
    assert {name.split(".")[0] for name in by_config[0]} == {"decoder", "enc_to_dec_proj"}
    assert {name.split(".")[0] for name in by_config[1]} == {"encoder"}
    model.freeze_encoder()
    assert [set(part) for part in split_parameters(model)] == by_config


@pytest.mark.slow
def test_bfloat16_computes_on_float32_masters():
    exact = train(tiny(), 2, optimizer=ADAMW)
    run = train(tiny(dtype=jnp.bfloat16), 2, optimizer=ADAMW)
    assert {value.dtype for value in run.params.values()} == {np.dtype(np.float32)}
    assert 0 < abs(run.losses[0] - exact.losses[0]) < 0.1


@pytest.mark.slow
def test_activations_computed_again_change_nothing():
    model = tiny()
    del model.attached.made_of
    model.gradient_checkpointing_enable(jax.checkpoint_policies.dots_saveable)
    run, expected = train(model, 2, optimizer=SGD), train(tiny(), 2, optimizer=SGD)
    np.testing.assert_allclose(run.losses, expected.losses, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("pair", "again"), [(("vit", "trocr"), False), *((pair, True) for pair in SCANNED)])
def test_scanned_layers_change_nothing(pair, again):
    def gradients(scanned):
        model = tiny(pair, DRY | {"encoder": DRY["encoder"] | {"drop_path_rate": 0.0}, "decoder": NO_DROPOUT})
        del model.attached.made_of
        if again:
            model.gradient_checkpointing_enable()
        model.scan_layers(scanned)
        return train(model, 1, optimizer=dataclasses.replace(SGD, learning_rate=1.0))

    found, expected = gradients(True), gradients(False)
    assert found.losses == pytest.approx(expected.losses, abs=1e-6)
    for name, value in expected.params.items():
        np.testing.assert_allclose(found.params[name], value, atol=1e-5, err_msg=name)


def test_scanned_layers_are_traced_once():
    def products(scanned):
        model = tiny(("vit", "gpt2"))
        model.scan_layers(scanned)
        graphdef, parameters = nnx.split(model)
        pixels, ids = jnp.zeros((1, 3, 32, 32)), jnp.zeros((1, 4), int)
        traced = jax.make_jaxpr(lambda p: nnx.merge(graphdef, p)(pixels, decoder_input_ids=ids).logits)(parameters)
        return str(traced).count("dot_general")

    assert products(True) < 0.7 * products(False)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("donut", "gpt2"), "the layers of SwinStage differ in their windows"),
        (("vit", "gpt2-untied-scaled"), "layers 0 and 1 of GPT2Decoder differ in (cross_)?attn.scale"),
        (("beit", "gpt2"), "layers 0 and 1 of BeitEncoder differ in drop_path.rate"),
    ],
)
def test_layers_that_differ_are_not_scanned(pair, message):
    with pytest.raises(ConfigError, match=message):
        tiny(pair, {}).scan_layers()


def test_schedules():
    def rates(**fields):
        schedule = make_schedule(ScheduleConfig(**fields), 2.0, 10)
        return [float(schedule(step)) for step in range(11)]

    np.testing.assert_allclose(rates(kind="constant", warmup_steps=4)[:6], [0, 0.5, 1, 1.5, 2, 2])
    np.testing.assert_allclose(rates(kind="linear", final=0.5), np.linspace(2, 1, 11))
    cosine = rates(kind="cosine", warmup_steps=2)
    np.testing.assert_allclose(cosine[2:], 1 + np.cos(np.pi * np.arange(9) / 8), atol=1e-6)
    with pytest.raises(ConfigError, match="warmup_steps = 10 should be less than steps = 10"):
        rates(warmup_steps=10)
    with pytest.raises(ConfigError, match=r"schedule\.final = 0\.1: a constant schedule does not fall"):
        rates(kind="constant", final=0.1)


def test_decay_is_for_matrices():
    shapes = state.shapes(tiny(("beit", "bert")))
    decayed = {name.rsplit(".", 1)[-1] for name, shape in shapes.items() if decays(name, shape)}
    assert decayed == {"kernel", "embedding", "positions"}
    assert not decays("encoder.cls_token", (1, 1, 32))
    params = {"a.kernel": jnp.ones((2, 2)), "a.bias": jnp.ones(2)}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), lambda step: 0.1, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert float(updates["a.kernel"][0, 0]) == pytest.approx(-0.05)
    assert float(updates["a.bias"][0]) == 0


@pytest.mark.parametrize("name", ["adafactor", "lion", "lamb", "rmsprop", "adam"])
def test_any_optimizer_of_optax(name):
    params = {"a.kernel": jnp.ones((2, 2)), "a.bias": jnp.ones(2)}
    config = OptimizerConfig(name=name, learning_rate=0.1, clip_norm=None)
    ours = make_optimizer(config, lambda step: 0.1, params)
    theirs = getattr(optax, name)(0.1)
    grads = jax.tree.map(lambda x: 0.3 * x, params)
    found, expected = (made.update(grads, made.init(params), params)[0] for made in (ours, theirs))
    np.testing.assert_allclose(found["a.kernel"], expected["a.kernel"], rtol=1e-6)


@pytest.mark.parametrize("name", ["adadelta", "adafactor", "adamw", "lars", "lion"])
def test_weight_decay_by_any_of_its_names(name):
    params = {"a.kernel": jnp.ones((2, 2)), "a.bias": jnp.ones(2)}
    grads = {"a.kernel": jnp.arange(4.0).reshape(2, 2), "a.bias": jnp.arange(2.0)}

    def updates(decay):
        made = make_optimizer(OptimizerConfig(name=name, weight_decay=decay, clip_norm=None), lambda step: 0.1, params)
        return made.update(grads, made.init(params), params)[0]

    without, found = updates(0.0), updates(0.5)
    assert not np.array_equal(found["a.kernel"], without["a.kernel"])
    np.testing.assert_array_equal(found["a.bias"], without["a.bias"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adamx"}, "no optimizer of optax: did you mean adamax?"),
        ({"name": "lbfgs"}, "cannot be used with gradients alone"),
        ({"name": "sgd", "weight_decay": 0.1}, "sgd has none"),
        ({"name": "novograd", "weight_decay": 0.1}, "novograd lets biases and norms decay too; give weight_decay in"),
        ({"arguments": {"weight_decay": 0.1}}, "give weight_decay as optimizer.weight_decay"),
        ({"arguments": {"beta": 1}}, "adamw has no beta; it takes learning_rate, b1"),
        ({"arguments": {"learning_rate": 1}}, "adamw has no learning_rate"),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(OptimizerConfig(**fields), lambda step: 0.1, {"a.kernel": jnp.ones((2, 2))})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"freeze": ["("]}, "no regular expression"),
        ({"freeze": ["nothing"]}, "'nothing' is found in no parameter's name"),
        ({"freeze": ["."]}, "all parameters are frozen"),
    ],
)
def test_freezing_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        train(tiny(), 0, optimizer=OptimizerConfig(**fields))
