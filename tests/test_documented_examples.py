"""The code examples of transformers' vision-encoder-decoder page, with our imports and tiny local folders for names."""

import importlib.util
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import cases
from tests.cases import DIGITS, READER
from ved_core.configs import BertConfig, VisionEncoderDecoderConfig, ViTConfig

transformers = pytest.importorskip("transformers")

TEXT = "an image of two cats chilling on a couch"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(TEXT.split()))]
TINY_VIT = {name: value for name, value in cases.ENCODERS["vit"].items() if name != "model_type"}
TINY_BERT = {name: value for name, value in cases.DECODERS["bert"].items() if name != "model_type"}

# A Flax model that is not compiled takes its time.
slow_in_flax = pytest.mark.parametrize("framework", ["torch", pytest.param("flax", marks=pytest.mark.slow)])
in_both = pytest.mark.parametrize("framework", ["torch", "flax"])


def ours(framework: str) -> Any:
    """A framework's class."""
    if framework == "flax":
        pytest.importorskip("flax")
        from ved_flax import FlaxVisionEncoderDecoderModel

        return FlaxVisionEncoderDecoderModel
    pytest.importorskip("torch")
    from ved_torch import VisionEncoderDecoderModel

    return VisionEncoderDecoderModel


TENSORS = {"torch": "pt", "flax": "np"}


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Tiny stand-ins for the names of the examples: checkpoints, their image processors, a tokenizer."""
    folder = tmp_path_factory.mktemp("names")
    cls = ours("torch" if importlib.util.find_spec("torch") else "flax")
    for encoder, decoder in (("vit", "bert"), ("swin", "gpt2")):
        model = cls(VisionEncoderDecoderConfig.from_dict(cases.model_config(encoder, decoder)))
        model.encoder.save_pretrained(folder / encoder)
        model.decoder.save_pretrained(folder / decoder)
        processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
        (folder / encoder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "bert" / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "bert" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return SimpleNamespace(**{path.name: str(path) for path in folder.iterdir()}, captioner=str(READER))


@pytest.fixture
def image():
    return Image.open(DIGITS / "00.png").convert("RGB")


def image_processor_of(name: str) -> Any:
    """The example's ViTImageProcessor, without torchvision."""
    return transformers.AutoImageProcessor.from_pretrained(name, backend="pil")


@slow_in_flax
def test_from_configs(framework, tmp_path, monkeypatch):
    """Randomly initialising a model from configurations, and what the config's own page does with it."""
    monkeypatch.chdir(tmp_path)
    cls = ours(framework)
    config_encoder = ViTConfig(**TINY_VIT)
    config_decoder = BertConfig(**TINY_BERT)

    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(config_encoder, config_decoder)
    model = cls(config=config)

    config_encoder = model.config.encoder
    config_decoder = model.config.decoder
    config_decoder.is_decoder = True
    config_decoder.add_cross_attention = True
    model.save_pretrained("my-model")
    encoder_decoder_config = VisionEncoderDecoderConfig.from_pretrained("my-model")
    model = cls.from_pretrained("my-model", config=encoder_decoder_config)
    assert model.config.decoder.hidden_size == TINY_BERT["hidden_size"]


@in_both
def test_from_pretrained_encoder_and_decoder(framework, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cls = ours(framework)
    model = cls.from_encoder_decoder_pretrained(names.swin, names.bert)
    model.save_pretrained("./swin-bert")
    model = cls.from_pretrained("./swin-bert")
    assert (model.config.encoder.model_type, model.config.decoder.model_type) == ("swin", "bert")


@slow_in_flax
def test_inference(framework, names, image):
    """generate() of a captioning model, with its image processor and tokenizer."""
    model = ours(framework).from_pretrained(names.captioner)
    tokenizer = transformers.AutoTokenizer.from_pretrained(names.captioner)
    image_processor = image_processor_of(names.captioner)

    pixel_values = image_processor(image, return_tensors=TENSORS[framework]).pixel_values
    generated_ids = model.generate(pixel_values)
    generated_text = tokenizer.batch_decode(np.asarray(generated_ids), skip_special_tokens=True)[0]
    assert generated_text == "three two"


@in_both
def test_halves_of_another_framework(framework, names, tmp_path, monkeypatch):
    """What was the way out of TensorFlow: both halves saved apart, and read by the other framework."""
    monkeypatch.chdir(tmp_path)
    _model = ours("flax" if framework == "torch" else "torch").from_pretrained(names.captioner)
    cls = ours(framework)

    _model.encoder.save_pretrained("./encoder", format="tf")
    _model.decoder.save_pretrained("./decoder", format="tf")
    model = cls.from_encoder_decoder_pretrained("./encoder", "./decoder", encoder_from_tf=True, decoder_from_tf=True)
    # This is only for copying some specific attributes of this particular model.
    model.config = _model.config
    assert model.config.decoder_start_token_id == _model.config.decoder_start_token_id
    assert model.encoder.config.model_type == _model.encoder.config.model_type


@slow_in_flax
def test_training(framework, names, image):
    """A loss from an image and labels."""
    image_processor = image_processor_of(names.vit)
    tokenizer = transformers.BertTokenizer.from_pretrained(names.bert)
    model = ours(framework).from_encoder_decoder_pretrained(names.vit, names.bert)

    model.config.decoder_start_token_id = tokenizer.cls_token_id
    model.config.pad_token_id = tokenizer.pad_token_id

    pixel_values = image_processor(image, return_tensors=TENSORS[framework]).pixel_values
    labels = tokenizer(TEXT, return_tensors=TENSORS[framework]).input_ids
    assert labels.shape == (1, 11)

    # the forward function automatically creates the correct decoder_input_ids
    loss = model(pixel_values=pixel_values, labels=labels).loss
    assert 0 < loss.item() < 10


@slow_in_flax
def test_training_and_inference(framework, names, image):
    """The example of the model's forward method."""
    image_processor = image_processor_of(names.captioner)
    tokenizer = transformers.AutoTokenizer.from_pretrained(names.captioner)
    model = ours(framework).from_pretrained(names.captioner)

    # training
    model.config.decoder_start_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.vocab_size = model.config.decoder.vocab_size

    pixel_values = image_processor(image, return_tensors=TENSORS[framework]).pixel_values
    labels = tokenizer("three two", return_tensors=TENSORS[framework]).input_ids
    outputs = model(pixel_values=pixel_values, labels=labels)
    assert outputs.loss.item() > 0

    # inference (generation)
    generated_ids = model.generate(pixel_values)
    generated_text = tokenizer.batch_decode(np.asarray(generated_ids), skip_special_tokens=True)[0]
    assert isinstance(generated_text, str)


@pytest.mark.slow
def test_the_flax_pages_own(names, image):
    """Encoding, decoding and generating with the class that was transformers' Flax one."""
    jnp = pytest.importorskip("jax.numpy")
    image_processor = image_processor_of(names.vit)
    model = ours("flax").from_encoder_decoder_pretrained(names.vit, names.gpt2, encoder_from_pt=True)

    pixel_values = image_processor(images=image, return_tensors="np").pixel_values
    encoder_outputs = model.encode(pixel_values)
    decoder_start_token_id = model.config.decoder.bos_token_id
    decoder_input_ids = jnp.ones((pixel_values.shape[0], 1), dtype="i4") * decoder_start_token_id
    outputs = model.decode(decoder_input_ids, encoder_outputs)
    logits = outputs.logits
    assert logits.shape == (1, 1, model.config.decoder.vocab_size)

    # use GPT2's eos_token as the pad as well as eos token
    model.config.eos_token_id = model.config.decoder.eos_token_id
    model.config.pad_token_id = model.config.eos_token_id
    sequences = model.generate(pixel_values, max_length=12, decoder_start_token_id=decoder_start_token_id)
    assert sequences.shape[0] == 1
