"""Configurations: fields, checks, round trips."""

import copy
import inspect
import json
import pickle

import pytest

from tests.cases import DECODERS, ENCODERS, FIXTURES, READER, model_config
from ved_core.configs import GPT2Config, TrOCRConfig, VisionEncoderDecoderConfig, ViTConfig
from ved_core.configs import model as registry
from ved_core.errors import ConfigError

FOLDERS = [READER, *sorted(path for path in FIXTURES.iterdir() if (path / "config.json").is_file())]


def readable(folder):
    """Whether both halves are of architectures that are there."""
    values = json.loads((folder / "config.json").read_text())
    return values["encoder"]["model_type"] in registry.ENCODERS and values["decoder"]["model_type"] in registry.DECODERS


@pytest.mark.parametrize("folder", [f for f in FOLDERS if readable(f)], ids=lambda f: f.name)
def test_reading_and_writing_loses_nothing(folder, tmp_path):
    written = json.loads((folder / "config.json").read_text())
    config = VisionEncoderDecoderConfig.from_pretrained(folder)
    config.save_pretrained(tmp_path / "new" / "folder")
    again = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    for part in ("encoder", "decoder"):
        assert written[part].items() <= again[part].items()
    assert {k: v for k, v in written.items() if k not in ("encoder", "decoder")}.items() <= again.items()
    assert VisionEncoderDecoderConfig.from_pretrained(tmp_path / "new" / "folder") == config


def test_unknown_fields_are_kept_as_they_are():
    values = {"hidden_size": 12, "future": {"deep": [1, {"x": None}]}, "id2label": {"0": "A"}, "model_type": "vit"}
    assert values.items() <= ViTConfig.from_dict(values).to_dict().items()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_encoder_defaults_are_those_of_transformers(encoder):
    transformers = pytest.importorskip("transformers")
    cls = registry.ENCODERS[ENCODERS[encoder]["model_type"]]
    same_defaults(cls, transformers)


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoder_defaults_are_those_of_transformers(decoder):
    transformers = pytest.importorskip("transformers")
    cls = registry.DECODERS[DECODERS[decoder]["model_type"]]
    same_defaults(cls, transformers)


def same_defaults(cls, transformers):
    reference = transformers.AutoConfig.for_model(cls.model_type)
    ours = cls()
    for name in cls.field_names():
        expected = getattr(reference, name, getattr(ours, name))
        expected = list(expected) if isinstance(expected, tuple) else expected
        assert getattr(ours, name) == expected, name


@pytest.mark.parametrize("decoder", DECODERS)
def test_transformers_objects_are_accepted(decoder):
    transformers = pytest.importorskip("transformers")
    values = model_config("vit", decoder)
    encoder = transformers.AutoConfig.for_model(**values["encoder"])
    half = transformers.AutoConfig.for_model(**values["decoder"])
    ours = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, half, pad_token_id=1)
    assert ours.encoder.hidden_size == values["encoder"]["hidden_size"]
    assert ours.decoder.vocab_size == values["decoder"]["vocab_size"]
    theirs = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, half)
    assert VisionEncoderDecoderConfig.from_dict(theirs).decoder.hidden_size == half.hidden_size


def test_joining_sets_what_a_decoder_needs_and_copies():
    encoder, decoder = ViTConfig(hidden_size=12, num_attention_heads=3), GPT2Config(n_embd=24, n_head=2)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, decoder_start_token_id=5)
    assert config.decoder.is_decoder
    assert config.decoder.add_cross_attention
    assert config.decoder_start_token_id == 5
    assert not decoder.is_decoder
    config.encoder.hidden_size = 24
    assert encoder.hidden_size == 12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViTConfig(hidden_size=0), r"ViTConfig.hidden_size = 0"),
        (lambda: ViTConfig(hidden_size=10), r"num_attention_heads = 12: does not divide hidden_size = 10"),
        (lambda: ViTConfig(hidden_size="768"), r"hidden_size = '768'"),
        (lambda: ViTConfig(hidden_size=True), r"hidden_size = True"),
        (lambda: ViTConfig(hidden_size=10**12), r"hidden_size = 1000000000000"),
        (lambda: ViTConfig(num_hidden_layers=10**6), r"num_hidden_layers = 1000000"),
        (lambda: ViTConfig(num_channels=-3), r"num_channels = -3"),
        (lambda: ViTConfig(image_size=[224]), r"image_size = \[224\]"),
        (lambda: ViTConfig(image_size=8), r"patch_size = 16: is larger than image_size = 8"),
        (lambda: ViTConfig(layer_norm_eps=float("nan")), r"layer_norm_eps = nan"),
        (lambda: ViTConfig(hidden_dropout_prob=1.5), r"hidden_dropout_prob = 1.5"),
        (lambda: ViTConfig(hidden_act="gulu"), r"hidden_act = 'gulu'"),
        (lambda: ViTConfig(qkv_bias=1), r"qkv_bias = 1"),
        (lambda: GPT2Config(n_head=7), r"n_head = 7: does not divide n_embd = 768"),
        (lambda: GPT2Config(eos_token_id=-1), r"eos_token_id = -1"),
        (lambda: GPT2Config(eos_token_id=[]), r"eos_token_id = \[\]"),
        (lambda: GPT2Config(cross_attention_hidden_size=32), r"cross_attention_hidden_size = 32"),
        (lambda: TrOCRConfig(use_learned_position_embeddings=False, pad_token_id=None), r"pad_token_id = None"),
        (lambda: GPT2Config.from_dict({"hidden_size": 24, "n_embd": 48}), r"n_embd = 48 contradicts hidden_size = 24"),
        (lambda: GPT2Config(hidden_size=24, n_embd=48), r"n_embd = 48 contradicts hidden_size = 24"),
        (lambda: GPT2Config.from_dict({"model_type": "vit"}), r"model_type 'vit'"),
        (lambda: VisionEncoderDecoderConfig(), r"encoder is missing"),
        (lambda: VisionEncoderDecoderConfig(encoder={"model_type": "resnet"}, decoder={}), r"'resnet' is not supp"),
        (lambda: VisionEncoderDecoderConfig(encoder=ViTConfig(), decoder=3), r"decoder should be a config"),
        (lambda: VisionEncoderDecoderConfig(encoder=ViTConfig(), decoder=ViTConfig()), r"'vit' is not supported"),
        (lambda: VisionEncoderDecoderConfig.from_dict({"model_type": "bert"}), r"'bert' is not a vision-enc"),
        (
            lambda: VisionEncoderDecoderConfig(encoder=ViTConfig(), decoder=TrOCRConfig(cross_attention_hidden_size=5)),
            r"cross_attention_hidden_size = 5 is not the encoder's hidden_size = 768",
        ),
    ],
)
def test_impossible_values_name_field_and_value(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_assignments_are_checked_and_a_refused_one_changes_nothing():
    config = ViTConfig()
    with pytest.raises(ConfigError, match="num_attention_heads = 7"):
        config.num_attention_heads = 7
    assert config.num_attention_heads == 12
    config.num_attention_heads = 6
    assert config.num_attention_heads == 6


def test_halves_that_no_longer_fit_are_refused_when_a_model_is_built():
    decoder = {**DECODERS["trocr-plain"], "cross_attention_hidden_size": 32}
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ENCODERS["vit"], decoder)
    registry.joined_config(config, None, None)
    config.encoder.hidden_size = 64
    with pytest.raises(ConfigError, match="cross_attention_hidden_size = 32 is not the encoder's hidden_size = 64"):
        registry.joined_config(config, None, None)


def test_documented_assignments_work():
    config = VisionEncoderDecoderConfig.from_dict(model_config("vit", "gpt2"))
    config.decoder_start_token_id = 7
    config.vocab_size = config.decoder.vocab_size
    config.max_length = 64
    config.decoder.is_decoder = True
    written = config.to_dict()
    assert (written["decoder_start_token_id"], written["vocab_size"], written["max_length"]) == (7, 61, 64)
    assert config.assigned == {"decoder_start_token_id", "vocab_size", "max_length"}


def test_old_spellings_are_read_assigned_and_written():
    config = TrOCRConfig.from_dict({"encoder_hidden_size": 384})
    assert config.cross_attention_hidden_size == 384
    config.encoder_hidden_size = 768
    assert config.to_dict()["cross_attention_hidden_size"] == config.to_dict()["encoder_hidden_size"] == 768
    gpt2 = GPT2Config.from_dict({"hidden_size": 48, "num_attention_heads": 3})
    assert (gpt2.n_embd, gpt2.hidden_size, gpt2.n_head) == (48, 48, 3)
    assert GPT2Config(hidden_size=48, num_attention_heads=3) == gpt2
    assert list(inspect.signature(GPT2Config).parameters) == GPT2Config.field_names()


@pytest.mark.parametrize("value", [384, None])
def test_a_null_gives_way_to_another_spelling(value):
    names = ("encoder_hidden_size", "cross_attention_hidden_size")
    for first, second in (names, names[::-1]):
        config = TrOCRConfig.from_dict({first: value, second: None})
        assert (config.encoder_hidden_size, config.cross_attention_hidden_size) == (value, value)


def test_copies_and_pickles_are_equal_and_apart():
    config = VisionEncoderDecoderConfig.from_dict(model_config("vit", "gpt2") | {"extra": [1]})
    for other in (config.copy(), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config
        other.encoder.image_size = 64
        assert other != config
    with pytest.raises(AttributeError, match="no field 'nothing'"):
        _ = config.nothing


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("{", "not readable as JSON"), ("[]", "JSON object"), ("[" * 10**5, "not readable")],
)
def test_unreadable_files_are_named(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        VisionEncoderDecoderConfig.from_pretrained(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
