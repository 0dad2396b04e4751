"""`from_encoder_decoder_pretrained` in both frameworks: every kind of checkpoint, apart and together again."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conversion import checkpoint, warm_start
from conversion.formats import safetensors
from conversion.parts import kind_of_new
from conversion.rules import Row
from conversion.tables import model_table
from tests import cases
from tests.cases import INDEX_FILE, WEIGHTS_FILE
from ved_core.configs import VisionEncoderDecoderConfig, ViTConfig
from ved_core.errors import CheckpointError, ConfigError, HubError

HEAD = "vocabulary head"
CROSS = "cross-attention"
EVERY = {CROSS, HEAD}

ENCODERS = [
    ("ViTModel", "vit"),
    ("ViTForImageClassification", "vit"),
    ("ViTForMaskedImageModeling", "vit"),
    ("DeiTForImageClassificationWithTeacher", "deit"),
    ("DeiTForMaskedImageModeling", "deit"),
    ("BeitModel", "beit"),
    ("BeitForImageClassification", "beit"),
    ("BeitForMaskedImageModeling", "beit"),
    ("BeitForMaskedImageModeling", "beit-shared-rectangular"),
    ("SwinModel", "swin"),
    ("SwinForImageClassification", "swin"),
    ("SwinForMaskedImageModeling", "swin"),
    ("DonutSwinForImageClassification", "donut"),
    ("Swinv2ForMaskedImageModeling", "swinv2"),
    ("Dinov2Model", "dinov2"),
    ("Dinov2ForImageClassification", "dinov2-swiglu"),
    ("Dinov2WithRegistersForImageClassification", "registers"),
]
"""Class that made a checkpoint, and the tiny case of its config."""

DECODERS = [
    ("BertForMaskedLM", "bert", {CROSS}),
    ("GPT2LMHeadModel", "gpt2", {CROSS}),
    ("BertModel", "bert", EVERY),
    ("BartForConditionalGeneration", "bart", set()),
    ("GPT2Model", "gpt2", {CROSS}),
    ("GPT2Model", "gpt2-untied-scaled", EVERY),
    ("GPT2DoubleHeadsModel", "gpt2", {CROSS}),
    ("BertForPreTraining", "bert", {CROSS}),
    ("BertForMaskedLM", "bert-untied-relu", {CROSS}),
    ("BertForSequenceClassification", "bert-samewidth-pad0", EVERY),
    ("RobertaForMaskedLM", "roberta", {CROSS}),
    ("RobertaForCausalLM", "roberta-untied-pad5", {CROSS}),
    ("RobertaModel", "roberta", EVERY),
    ("XLMRobertaForMaskedLM", "xlm-roberta", {CROSS}),
    ("CamembertForMaskedLM", "camembert", {CROSS}),
    ("ElectraForMaskedLM", "electra", {CROSS}),
    ("ElectraForPreTraining", "electra", EVERY),
    ("BartModel", "bart", set()),
    ("BartForCausalLM", "bart-scaled-untied", set()),
    ("BartForConditionalGeneration", "bart-deeper", set()),
    ("MBartForConditionalGeneration", "mbart", set()),
    ("MBartModel", "mbart-untied-1layer", {HEAD}),
    ("TrOCRForCausalLM", "trocr", set()),
    ("TrOCRForCausalLM", "trocr-plain", set()),
]
"""Class, case, and what such a checkpoint lacks."""


def some_slow(params: list[Any], fast: int) -> list[Any]:
    """The first few in every run, all in the full one."""
    return [
        pytest.param(*values, id="-".join(values[:2]), marks=[] if i < fast else [pytest.mark.slow])
        for i, values in enumerate(params)
    ]


def part_values(part: str, case: str) -> dict[str, Any]:
    """A case's config as a pretrained encoder or a language model has it."""
    pair = cases.model_config(case, "gpt2") if part == "encoder" else cases.model_config("vit", case)
    return {name: x for name, x in pair[part].items() if name not in ("is_decoder", "add_cross_attention")}


def pretrained(cls: str, values: dict[str, Any], folder: Path, **options: Any) -> Any:
    """A model of a class of transformers in which every parameter is random, saved to `folder`."""
    pytest.importorskip("torch")
    import transformers

    from tests.reference import perturbed

    config = transformers.AutoConfig.for_model(**values)
    model = perturbed(getattr(transformers, cls)(config)).eval()
    model.save_pretrained(folder, **options)
    return model


def models(framework: str) -> Any:
    """A framework's class."""
    if framework == "flax":
        pytest.importorskip("flax")
        from ved_flax import FlaxVisionEncoderDecoderModel

        return FlaxVisionEncoderDecoderModel
    pytest.importorskip("torch")
    from ved_torch import VisionEncoderDecoderModel

    return VisionEncoderDecoderModel


def outputs(model: Any, batch: cases.Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Image tokens and scores, of any of the three classes."""
    arguments = (batch.pixel_values, batch.decoder_input_ids)
    if type(model).__name__.startswith("Flax"):
        from tests.flax_models import forward

        out = forward(model, *arguments)
    else:
        import torch

        with torch.no_grad():
            out = model(
                pixel_values=torch.from_numpy(arguments[0]),
                decoder_input_ids=torch.from_numpy(arguments[1]),
                **({"use_cache": False} if type(model).__module__.startswith("transformers") else {}),
            )
    return np.asarray(out.encoder_last_hidden_state), np.asarray(out.logits)


def as_saved(model: Any, folder: Path) -> dict[str, np.ndarray]:
    """What transformers writes of a model: in memory, release 5 has other names."""
    model.save_pretrained(folder)
    return read_tensors(folder)


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """A checkpoint's tensors without the indices that only some releases write."""
    tensors = safetensors.read(folder / WEIGHTS_FILE)
    return {name: array for name, array in tensors.items() if not name.endswith("relative_position_index")}


def new_names(config: VisionEncoderDecoderConfig, kinds: set[str]) -> set[str]:
    """Stored names of what is newly initialised."""
    rows = [row for row in model_table(config).rows if isinstance(row, Row)]
    return {row.stored for row in rows if kind_of_new(row) in kinds or row.stored.startswith("enc_to_dec_proj")}


def check_against_transformers(encoder: Path, decoder: Path, framework: str, lacking: set[str], folder: Path) -> None:
    """Make the model in ours and in transformers' class; compare what was loaded, and what both compute."""
    import transformers

    # Left to itself, transformers 5 asks GPT-2's config for a field that it has not.
    config = transformers.AutoConfig.from_pretrained(decoder)
    config.is_decoder = config.add_cross_attention = True
    make = transformers.VisionEncoderDecoderModel.from_encoder_decoder_pretrained
    theirs = make(encoder, decoder, decoder_config=config).eval()
    ours = models(framework).from_encoder_decoder_pretrained(encoder, decoder)
    ours.save_pretrained(folder)
    saved = read_tensors(folder)
    expected = as_saved(theirs, folder / "theirs")
    # transformers 5 initialises the embedding anew where BART stores it as `shared` alone.
    stored = safetensors.read(decoder / WEIGHTS_FILE)
    shared = [array for name, array in stored.items() if name.endswith("shared.weight")]
    if shared and not any(name.endswith("decoder.embed_tokens.weight") for name in stored):
        expected["decoder.model.decoder.embed_tokens.weight"] = shared[0]
    new = new_names(ours.config, lacking)
    assert saved.keys() == expected.keys()
    source = safetensors.read(encoder / WEIGHTS_FILE)
    for name in saved.keys() - new:
        pooler_is_new = name.startswith("encoder.pooler") and not any("pooler" in stored for stored in source)
        assert pooler_is_new or np.array_equal(saved[name], expected[name]), name

    again, info = transformers.VisionEncoderDecoderModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = cases.inputs(ours.config.to_dict())
    tokens, scores = outputs(ours, batch)
    np.testing.assert_allclose(tokens, outputs(theirs, batch)[0], atol=1e-4, rtol=0)
    np.testing.assert_allclose(scores, outputs(again.eval(), batch)[1], atol=1e-4, rtol=0)


@pytest.mark.oracle
@pytest.mark.parametrize("framework", ["torch", pytest.param("flax", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("cls", "case"), some_slow(ENCODERS, 2))
def test_encoder_sources(cls, case, framework, tmp_path):
    pretrained(cls, part_values("encoder", case), tmp_path / "encoder")
    pretrained("GPT2LMHeadModel", part_values("decoder", "gpt2"), tmp_path / "decoder")
    check_against_transformers(tmp_path / "encoder", tmp_path / "decoder", framework, {CROSS}, tmp_path / "ours")


@pytest.mark.oracle
@pytest.mark.parametrize("framework", ["torch", pytest.param("flax", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("cls", "case", "lacking"), some_slow(DECODERS, 4))
def test_decoder_sources(cls, case, lacking, framework, tmp_path, caplog):
    pretrained("ViTModel", part_values("encoder", "vit"), tmp_path / "encoder")
    pretrained(cls, part_values("decoder", case), tmp_path / "decoder")
    check_against_transformers(tmp_path / "encoder", tmp_path / "decoder", framework, lacking, tmp_path / "ours")
    warnings = [record.getMessage() for record in caplog.records if record.name == "ved"]
    assert len(warnings) <= 1
    assert all((kind in "".join(warnings)) == (kind in lacking) for kind in EVERY)


@pytest.mark.oracle
@pytest.mark.parametrize("framework", ["torch", pytest.param("flax", marks=pytest.mark.slow)])
@pytest.mark.parametrize("cls", ["DistilBertForMaskedLM", "DistilBertModel", "DistilBertForSequenceClassification"])
def test_distilbert_sources(cls, framework, tmp_path):
    """No other library has its cross-attention: what it stores is to be found again."""
    source = pretrained(cls, part_values("decoder", "distilbert"), tmp_path / "decoder")
    pretrained("ViTModel", part_values("encoder", "vit"), tmp_path / "encoder")
    ours = models(framework).from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "decoder")
    ours.save_pretrained(tmp_path / "ours")
    saved = safetensors.read(tmp_path / "ours" / WEIGHTS_FILE)
    new = new_names(ours.config, {CROSS} if cls.endswith("LM") else EVERY)
    prefix = "decoder.distilbert." if cls.endswith("Model") else "decoder."
    expected = {prefix + name: tensor.numpy() for name, tensor in source.state_dict().items()}
    names = {name for name in saved if name.startswith("decoder.")} - new
    assert len(names) > 20
    assert all(np.array_equal(saved[name], expected[name]) for name in names)


@pytest.mark.oracle
@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_whole_models_as_sources(framework, tmp_path, caplog):
    """Of each the half that is asked for, cross-attention included."""
    from tests import reference

    pytest.importorskip("torch")
    reference.build("vit", "gpt2", tmp_path / "first")
    reference.build("deit", "trocr", tmp_path / "second", seed=1)
    first, second = (safetensors.read(tmp_path / name / WEIGHTS_FILE) for name in ("first", "second"))
    ours = models(framework).from_encoder_decoder_pretrained(tmp_path / "second", tmp_path / "first")
    assert ours.config.decoder_start_token_id is None
    ours.save_pretrained(tmp_path / "ours")
    saved = safetensors.read(tmp_path / "ours" / WEIGHTS_FILE)
    for name, array in saved.items():
        if not name.startswith("enc_to_dec_proj"):
            expected = (second if name.startswith("encoder.") else first)[name]
            assert np.array_equal(array, expected), name
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "ved"]
    assert "projection (2 tensors: enc_to_dec_proj.weight, enc_to_dec_proj.bias)" in warning


@pytest.mark.oracle
def test_shards_and_older_names(tmp_path):
    """Several files, and the gamma and beta of checkpoints from TensorFlow."""
    pretrained("ViTModel", part_values("encoder", "vit"), tmp_path / "encoder", max_shard_size="20KB")
    pretrained("BertForMaskedLM", part_values("decoder", "bert"), tmp_path / "decoder")
    assert (tmp_path / "encoder" / INDEX_FILE).is_file()
    file = tmp_path / "decoder" / WEIGHTS_FILE
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array.copy()
        for name, array in safetensors.read(file).items()
    }
    safetensors.write(file, older | {"bert.embeddings.position_ids": np.arange(40)[None]})
    ours = models("torch").from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "decoder")
    ours.save_pretrained(tmp_path / "ours")
    saved = read_tensors(tmp_path / "ours")
    assert np.array_equal(saved["decoder.bert.embeddings.LayerNorm.weight"], older["bert.embeddings.LayerNorm.gamma"])
    for name, array in checkpoint.read(tmp_path / "encoder").items():
        assert np.array_equal(saved[f"encoder.{name}"], array)


# Apart and together again ------------------------------------------------------------------------------------------

EVERY_ENCODER = ["vit", "deit", "beit", "beit-shared-rectangular", "swin", "donut", "swinv2", "dinov2", "registers"]
EVERY_DECODER = ["gpt2", "bert", "bert-untied-relu", "roberta", "xlm-roberta", "camembert", "electra", "bart", "mbart"]
EVERY_DECODER += ["trocr", "gpt2-untied-scaled"]
HALVES = [(encoder, "gpt2") for encoder in EVERY_ENCODER] + [("vit", decoder) for decoder in EVERY_DECODER[1:]]


@pytest.mark.oracle
@pytest.mark.parametrize("framework", ["torch", "flax"])
@pytest.mark.parametrize(("encoder", "decoder"), some_slow(HALVES, 1))
def test_halves_as_transformers_loads_them(encoder, decoder, framework, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    cls = models(framework)
    config = VisionEncoderDecoderConfig.from_dict(cases.model_config(encoder, decoder))
    model = cls(config)
    model.encoder.save_pretrained(tmp_path / "encoder")
    model.decoder.save_pretrained(tmp_path / "decoder")
    for auto, part in ((transformers.AutoModel, "encoder"), (transformers.AutoModelForCausalLM, "decoder")):
        loaded, info = auto.from_pretrained(tmp_path / part, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert [type(loaded).__name__] == loaded.config.architectures
        stored = read_tensors(tmp_path / part)
        again = as_saved(loaded, tmp_path / f"{part}-again")
        assert stored.keys() == again.keys()
        assert all(np.array_equal(stored[name], again[name]) for name in stored)


@pytest.mark.parametrize("frameworks", [("torch", "torch"), ("flax", "torch"), ("torch", "flax"), ("flax", "flax")])
@pytest.mark.parametrize("decoder", ["bert-samewidth-pad0", pytest.param("distilbert", marks=pytest.mark.slow)])
def test_apart_and_together_again(decoder, frameworks, tmp_path, caplog):
    """Saved by one framework and joined by one: the same model, but for a projection, which is in neither half."""
    first, second = frameworks
    config = cases.model_config("vit", decoder)
    cls = models(second)
    model = models(first)(VisionEncoderDecoderConfig.from_dict(config))
    model.encoder.save_pretrained(tmp_path / "encoder")
    model.decoder.save_pretrained(tmp_path / "decoder")
    again = cls.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "decoder", encoder_from_pt=True)
    for name, one in (("one", model), ("two", again)):
        one.save_pretrained(tmp_path / name)
    one, two = (safetensors.read(tmp_path / name / WEIGHTS_FILE) for name in ("one", "two"))
    assert one.keys() == two.keys()
    different = {name for name in one if not np.array_equal(one[name], two[name])}
    assert different <= {"enc_to_dec_proj.weight"}
    assert bool(caplog.records) == bool(different) == again.config.needs_projection
    if not different:
        batch = cases.inputs(config)
        for mine, other in zip(outputs(model.eval() or model, batch), outputs(again, batch), strict=True):
            np.testing.assert_allclose(mine, other, atol=0 if first == second else 1e-5, rtol=0)


# Options -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> tuple[Path, Path]:
    """A ViT and a BERT with another width, saved apart."""
    pytest.importorskip("flax")
    from tests.flax_models import perturbed

    folder = tmp_path_factory.mktemp("halves")
    model = perturbed("vit", "bert")
    model.encoder.save_pretrained(folder / "encoder")
    model.decoder.save_pretrained(folder / "decoder")
    return folder / "encoder", folder / "decoder"


def test_fields_by_prefix(halves):
    warm = warm_start.plan(
        *halves,
        {
            "encoder_hidden_dropout_prob": 0.25,
            "encoder_from_pt": True,
            "decoder_hidden_dropout_prob": 0.5,
            "decoder_decoder_start_token_id": 3,
            "decoder_start_token_id": 5,
            "pad_token_id": 7,
            "tie_word_embeddings": True,
            "from_tf": True,
            "anything": "kept",
        },
    )
    config = warm.config
    assert (config.encoder.hidden_dropout_prob, config.decoder.hidden_dropout_prob) == (0.25, 0.5)
    assert (config.decoder_start_token_id, config.decoder.decoder_start_token_id) == (5, 3)
    assert (config.pad_token_id, config.anything, config.tie_word_embeddings) == (7, "kept", False)
    assert config.decoder.is_decoder
    assert config.decoder.add_cross_attention
    assert config.get("from_tf") is config.encoder.get("from_pt") is None


@pytest.mark.parametrize("framework", ["flax", "torch"])
def test_formats_by_prefix(framework, halves):
    """They choose, and are refused where the checkpoint has no such weights."""
    cls = models(framework)
    for options in ({"encoder_from_flax": True}, {"from_tf": True}):
        with pytest.raises(CheckpointError, match=r"no (Flax msgpack|TensorFlow h5) weights are there"):
            cls.from_encoder_decoder_pretrained(*halves, **options)


def test_given_configs_and_derived_values(halves, tmp_path):
    given = ViTConfig.from_dict(part_values("encoder", "vit") | {"hidden_act": "relu"})
    assert warm_start.plan(*halves, {"encoder_config": given}).config.encoder.hidden_act == "relu"
    (tmp_path / "config.json").write_text(json.dumps(cases.ENCODERS["swin"]))
    config = warm_start.plan(tmp_path, halves[1], {"encoder_embed_dim": 8}).config.encoder
    assert (config.embed_dim, config.hidden_size) == (8, 16)


def test_fewer_layers_are_left_out_and_more_are_missing(halves, caplog):
    cls = models("flax")
    model = cls.from_encoder_decoder_pretrained(*halves, decoder_num_hidden_layers=1)
    assert len(model.decoder.blocks) == 1
    assert any("left out" in record.getMessage() for record in caplog.records)
    with pytest.raises(CheckpointError, match=r"misses bert.encoder.layer.2.attention.self.query.weight"):
        cls.from_encoder_decoder_pretrained(*halves, decoder_num_hidden_layers=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_cross_attention_hidden_size": 32}, "bert attends over vectors of hidden_size = 24 only"),
        ({"encoder_num_hiden_layers": 3}, "did you mean encoder_num_hidden_layers"),
        ({"decoder_token": "secret"}, "decoder_token is no option here"),
        ({"cache_dir": "/"}, "cache_dir is no option here"),
        ({"encoder_model": "vit"}, "encoder_model should be an image encoder"),
        ({"encoder_config": {"model_type": "clip"}}, "'clip' is not supported; known: vit"),
        ({"encoder_hidden_act": "new"}, "ViTConfig.hidden_act = 'new'"),
    ],
)
def test_contradictions(options, message, halves):
    with pytest.raises(ConfigError, match=message):
        warm_start.plan(*halves, options)


def test_sources_that_hold_no_such_part(halves, tmp_path):
    encoder, decoder = halves
    with pytest.raises(ConfigError, match="bert is a text decoder; it cannot be the encoder: give it as the decoder"):
        warm_start.plan(decoder, encoder, {})
    with pytest.raises(ConfigError, match="vit is an image encoder; it cannot be the decoder"):
        warm_start.plan(encoder, encoder, {})
    with pytest.raises(ConfigError, match="decoder_pretrained_model_name_or_path is missing"):
        warm_start.plan(encoder, None, {})
    with pytest.raises(HubError, match="no revision 'v2'"):
        warm_start.plan(encoder, decoder, {"decoder_revision": "v2"})
    (tmp_path / "config.json").write_text('{"model_type": "vision-encoder-decoder", "encoder": {"model_type": "vit"}}')
    with pytest.raises(ConfigError, match="describes no decoder"):
        warm_start.plan(encoder, tmp_path, {})


def put(folder, tensors, like):
    """A checkpoint of tensors, with the config of another."""
    safetensors.write(folder / WEIGHTS_FILE, tensors)
    shutil.copy(like / "config.json", folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("bert.embeddings.LayerNorm.bias"), "misses bert.embeddings.LayerNorm.bias"),
        (lambda x: x.pop("cls.predictions.bias"), "misses cls.predictions.bias"),
        (lambda x: x.pop("bert.encoder.layer.1.crossattention.self.key.bias"), "layer.1.crossattention.self.key.bias"),
        (lambda x: x.update({"bert.more": np.zeros(1)}), "holds bert.more, which"),
        (lambda x: x.update({"cls.predictions.bias": np.zeros(3)}), r"has shape \(3,\), the config asks for \(61,\)"),
        (lambda x: [x.pop(name) for name in list(x)] and x.update(other=np.zeros(1)), "none of its tensors"),
    ],
)
def test_damaged_sources(change, message, halves, tmp_path):
    encoder, decoder = halves
    tensors = {name: array.copy() for name, array in safetensors.read(decoder / WEIGHTS_FILE).items()}
    change(tensors)
    put(tmp_path, tensors, decoder)
    with pytest.raises(CheckpointError, match=message):
        models("flax").from_encoder_decoder_pretrained(encoder, tmp_path)


def test_ignored_tensors_are_mentioned(halves, tmp_path, caplog):
    encoder, decoder = halves
    tensors = {name: array.copy() for name, array in safetensors.read(encoder / WEIGHTS_FILE).items()}
    put(tmp_path, tensors | {"classifier.bias": np.zeros(2)}, encoder)
    with caplog.at_level(logging.INFO, "ved"):
        models("flax").from_encoder_decoder_pretrained(tmp_path, decoder)
    assert any("no part of the encoder: classifier.bias" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("framework", ["flax", "torch"])
def test_new_tensors_follow_the_seed(framework, halves):
    cls = models(framework)

    def projection(seed: int) -> np.ndarray:
        if framework == "torch":
            import torch

            model = cls.from_encoder_decoder_pretrained(*halves, generator=torch.Generator().manual_seed(seed))
            return model.enc_to_dec_proj.weight.detach().numpy()
        from flax import nnx

        model = cls.from_encoder_decoder_pretrained(*halves, rngs=nnx.Rngs(seed))
        return np.asarray(model.enc_to_dec_proj.kernel[...])

    first = projection(1)
    assert np.array_equal(first, projection(1))
    assert not np.array_equal(first, projection(2))
    assert 0.01 < first.std() < 0.03


@pytest.mark.parametrize("framework", ["flax", "torch"])
def test_built_halves(framework, halves):
    cls = models(framework)
    model = cls.from_encoder_decoder_pretrained(*halves)
    again = cls.from_encoder_decoder_pretrained(
        encoder_model=model.encoder, decoder_pretrained_model_name_or_path=halves[1]
    )
    assert again.encoder is model.encoder
    assert again.encoder.config is again.config.encoder
    assert {name for name in again.carried if "pooler" in name} == {name for name in model.carried if "pooler" in name}
    with pytest.raises(ConfigError, match="encoder_model is built already: leave out encoder_hidden_act"):
        cls.from_encoder_decoder_pretrained(None, halves[1], encoder_model=model.encoder, encoder_hidden_act="relu")
