"""Settings: from YAML and `key=value`, typed, checked and documented."""

import dataclasses

import pytest

pytest.importorskip("flax")
pytest.importorskip("yaml")
from tests import reference
from tests.cases import READER
from ved_core.errors import ConfigError
from ved_flax.train import settings
from ved_flax.train.building import build_model, processor_folder
from ved_flax.train.config import LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from ved_flax.train.optimizer import multiplier


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("steps: 7\noptimizer: {learning_rate: 3e-4, arguments: {b2: 0.98}}\n")
    return path


def test_values_come_from_the_file_and_then_from_overrides(file):
    overrides = ["optimizer.learning_rate=1e-3", "checkpoint.keep_period=5", "model.overrides={a: {b: 1}}"]
    overrides += ["optimizer.arguments.b1=.8e+0", "optimizer.arguments.eps=1e-8", "optimizer.clip_norm=null"]
    overrides += ["optimizer.weight_decay=1.5e1", "output=1e5e"]
    config = settings.read(TrainConfig, file, overrides)
    expected = TrainConfig(steps=7, output="1e5e")
    arguments = {"b2": 0.98, "b1": 0.8, "eps": 1e-8}
    expected.optimizer = OptimizerConfig(learning_rate=1e-3, weight_decay=15.0, arguments=arguments, clip_norm=None)
    expected.checkpoint.keep_period = 5
    expected.model.overrides = {"a": {"b": 1}}
    assert config == expected
    file.write_text("")
    assert settings.read(TrainConfig, file) == TrainConfig()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.name=sgd", "no setting optimiser: did you mean optimizer?"),
        ("optimizer.nmae=sgd", "no setting optimizer.nmae: did you mean optimizer.name?"),
        ("checkpoint.zzz=1", "no setting checkpoint.zzz: there are every, keep"),
        ("steps=0", "steps = 0 should be a whole number from 1"),
        ("steps=many", "steps = 'many' should be whole number"),
        ("steps=true", "steps = True should be whole number"),
        ("optimizer=3", "optimizer = 3 should hold settings"),
        ("model.dtype=fp8", "model.dtype = 'fp8' should be float32 or bfloat16"),
        (
            "model.attn_implementation=eager",
            "model.attn_implementation = 'eager' should be auto or xla or cudnn or flash",
        ),
        ("loss.label_smoothing=1.0", "loss.label_smoothing = 1.0 should be a number from 0 to 1, 1 left out"),
        ("optimizer.freeze=[1]", "optimizer.freeze = [1] should be list of text"),
        ("optimizer.clip_norm=0", "optimizer.clip_norm = 0 should be a number above 0, or null"),
        ("parallel.data=0", "parallel.data = 0 should be a whole number of at least 1, or -1"),
        ("steps", "'steps' should read section.name=value"),
        ("steps.x=1", "steps has no settings inside"),
        ("steps=[", "not readable as YAML"),
    ],
)
def test_what_is_wrong_is_named(file, override, message):
    with pytest.raises(ConfigError) as caught:
        settings.read(TrainConfig, file, [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("- 1", "should hold settings"), ("a: [", "not readable as YAML")])
def test_a_file_that_holds_no_settings_is_named(file, text, message):
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"run.yaml: {message}"):
        settings.read(TrainConfig, file)
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        settings.read(TrainConfig, file.with_name("none.yaml"))


def test_settings_made_in_python_are_checked_too():
    with pytest.raises(ConfigError, match="label_smoothing = 2 should be"):
        LossConfig(label_smoothing=2)


def test_every_setting_is_documented():
    described = list(settings.describe(TrainConfig))
    assert len({setting.name for setting in described}) == len(described) > 50
    assert [setting.name for setting in described if not setting.text.endswith(".")] == []
    assert {field.name for field in dataclasses.fields(TrainConfig)} == {s.name.split(".")[0] for s in described}


def test_a_model_of_two_checkpoints_has_new_parts(tmp_path):
    pytest.importorskip("torch")
    reference.new("vit", "bert").encoder.save_pretrained(tmp_path / "encoder")
    decoder = reference.new("vit", "bert").decoder
    decoder.config.add_cross_attention = decoder.config.is_decoder = False
    type(decoder)(decoder.config).save_pretrained(tmp_path / "decoder")
    tokens = {"decoder_start_token_id": 2, "pad_token_id": 1, "encoder": {"hidden_dropout_prob": 0.3}}
    config = ModelConfig(encoder=str(tmp_path / "encoder"), decoder=str(tmp_path / "decoder"), overrides=tokens)
    model = build_model(config, seed=0)
    assert (model.config.decoder_start_token_id, model.config.encoder.hidden_dropout_prob) == (2, 0.3)
    rates = OptimizerConfig(encoder_multiplier=0.1, decoder_multiplier=0.5, new_multiplier=2.0)
    found = {name: multiplier(rates, name, model.attached.new) for name in model_names(model)}
    assert found["encoder.blocks.0.attn.q.kernel"] == 0.1
    assert found["decoder.blocks.0.attn.q.kernel"] == 0.5
    assert found["decoder.blocks.1.cross_attn.q.kernel"] == found["enc_to_dec_proj.kernel"] == 2.0
    assert processor_folder(config) == tmp_path / "decoder"


def model_names(model):
    from ved_flax import state

    return state.shapes(model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give one of model.pretrained"),
        ({"pretrained": str(READER), "config": str(READER)}, "give one of model.pretrained"),
        ({"encoder": str(READER)}, "give one of model.pretrained"),
        ({"pretrained": str(READER), "overrides": {"encoder": {"dropout_prob": 1}}}, "ViTConfig has no such field"),
        ({"pretrained": str(READER), "checkpoint_policy": "dots_saveable"}, "needs model.checkpoint_activations"),
        ({"pretrained": str(READER), "checkpoint_activations": True, "checkpoint_policy": "x"}, "should be one of"),
        (
            {
                "pretrained": str(READER),
                "checkpoint_activations": True,
                "checkpoint_policy": "offload_dot_with_no_batch_dims",
            },
            "should be one of checkpoint_dots",
        ),
    ],
)
def test_a_model_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        build_model(ModelConfig(**fields), seed=0)
