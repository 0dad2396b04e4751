"""Exported programs, loaded back: what they decode is what the model decodes."""

import json
import shutil

import numpy as np
import pytest

import ved_cli
from tests import reference
from tests.cases import DECODERS, DIGITS, ENCODERS, READER, inputs
from ved_core.errors import CheckpointError, ConfigError, VedError
from ved_core.processing import Processor

torch = pytest.importorskip("torch")
SMALL = ("vit-nobias-1layer", "gpt2-unscaled-1layer")
EVERY = [("vit", decoder) for decoder in DECODERS] + [(encoder, "gpt2") for encoder in ENCODERS if encoder != "vit"]
KINDS = ("onnx", "torch-export")


def built(encoder, decoder, folder):
    """A tiny checkpoint, and our torch model of it."""
    from ved_torch import VisionEncoderDecoderModel

    if decoder == "trocr-sinusoidal" or "distilbert" in decoder:
        from tests.flax_models import perturbed

        perturbed(encoder, decoder).save_pretrained(folder)
    else:
        reference.build(encoder, decoder, folder)
    return VisionEncoderDecoderModel.from_pretrained(folder)


def loaded(kind, folder):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        from ved_core.exported import OnnxModel

        return OnnxModel(folder)
    from ved_torch.export import ExportedModel

    return ExportedModel(folder)


def run(capsys, *arguments):
    status = ved_cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "decoder"), EVERY)
@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_greedy_ids_are_the_models(kind, encoder, decoder, tmp_path):
    from ved_torch import export, onnx

    if kind == "onnx":
        pytest.importorskip("onnxscript")
    model = built(encoder, decoder, tmp_path)
    (onnx if kind == "onnx" else export).write(model, tmp_path)
    other = loaded(kind, tmp_path)
    for batch in (1, 3):
        pixels = inputs(model.config.to_dict(), batch=batch, seed=batch).pixel_values
        assert np.array_equal(other.greedy(pixels, 7), model.generate(pixels, max_new_tokens=7, num_beams=1))


@pytest.mark.parametrize(
    ("forced", "expected"),
    [
        ({}, [0, 5, 6, 7]),
        ({"forced_bos_token_id": 3}, [0, 3, 4, 5]),
        ({"forced_eos_token_id": 2}, [0, 5, 6, 2]),
        ({"forced_bos_token_id": 3, "forced_eos_token_id": [9, 2]}, [0, 3, 4, 2]),
        ({"forced_bos_token_id": 3, "forced_eos_token_id": 2, "max_new_tokens": 1}, [0, 2]),
    ],
)
def test_greedy_decoding_around_a_step_forces_tokens_as_generate_does(forced, expected):
    from ved_core.configs import VisionEncoderDecoderConfig
    from ved_core.exported import greedy
    from ved_core.generation.config import GenerationConfig

    config = VisionEncoderDecoderConfig.from_dict(
        {"model_type": "vision-encoder-decoder", "encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2"}}
    )
    settings = {"decoder_start_token_id": 0, "eos_token_id": 2, "max_new_tokens": 3, **forced}

    def step(ids):
        return np.eye(12)[np.where(ids[:, -1] == 0, 5, ids[:, -1] + 1)]

    assert greedy(step, 2, config, GenerationConfig(**settings)).tolist() == [expected] * 2


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["gpt2", "trocr"])
def test_the_onnx_layout_is_optimums(decoder, tmp_path):
    """Names as optimum and transformers.js feed them; without a cache its content and its length do not matter."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from ved_torch import onnx

    model = built("vit", decoder, tmp_path)
    onnx.write(model, tmp_path)
    encoder, merged = (
        onnxruntime.InferenceSession(tmp_path / "onnx" / f"{name}.onnx")
        for name in ("encoder_model", "decoder_model_merged")
    )
    parts = ("",) if decoder == "gpt2" else ("decoder.", "encoder.")
    cache = {f"{i}.{part}{kind}" for i in range(2) for part in parts for kind in ("key", "value")}
    assert {entry.name for entry in merged.get_inputs()} == {
        *("input_ids", "encoder_hidden_states", "use_cache_branch"),
        *(f"past_key_values.{name}" for name in cache),
    }
    assert {entry.name for entry in merged.get_outputs()} == {"logits", *(f"present.{name}" for name in cache)}
    pixels = inputs(model.config.to_dict(), batch=2).pixel_values
    (hidden,) = encoder.run(["last_hidden_state"], {"pixel_values": pixels})
    ids = np.array([[2, 5, 7], [2, 9, 4]])
    expected = model(torch.tensor(pixels), decoder_input_ids=torch.tensor(ids)).logits.detach().numpy()
    feeds = {"input_ids": ids, "encoder_hidden_states": hidden, "use_cache_branch": np.array([False])}
    for length in (0, 1):  # transformers.js feeds none, optimum one
        past = {f"past_key_values.{name}": np.ones((2, 3, length, 8), np.float32) for name in cache}
        logits = merged.run(["logits"], feeds | past)[0]
        np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_exports_the_reader(kind, capsys, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "params.safetensors").touch()
    (target / "notes.txt").touch()
    status, out, err = run(capsys, "export", READER, target, "--to", kind)
    assert (status, err) == (0, "")
    assert str(target) in out
    assert not (target / "params.safetensors").exists()
    assert {"notes.txt", "config.json", "tokenizer.json", "preprocessor_config.json"} <= {
        path.name for path in target.iterdir()
    }
    processor = Processor.from_pretrained(target)
    texts = processor.decode(loaded(kind, target).greedy(processor.pixel_values(sorted(DIGITS.glob("*.png"))[:3])))
    assert texts == ["three two", "five four two", "eight seven"]


# StableHLO -----------------------------------------------------------------------------------------------------------


def same(exported, model, pixels, **options):
    """The exported loop gives what the model's own does."""
    found = exported.generate(pixels)
    expected = model.generate(pixels, return_dict_in_generate=True, **options)
    length = expected.sequences.shape[1]
    assert np.array_equal(found.ids[:, :length], expected.sequences)
    assert np.all(np.asarray(found.ids[:, length:]) == 1)
    np.testing.assert_allclose(found.confidences, expected.confidences, rtol=1e-4)


def test_one_program_for_all_platforms(tmp_path):
    pytest.importorskip("flax")
    from jax import export as jax_export

    from tests.flax_models import perturbed
    from ved_flax import export

    model = perturbed(*SMALL)
    export.write(model, tmp_path, max_new_tokens=4)
    description = json.loads((tmp_path / "export.json").read_text())
    assert description["platforms"] == ["cpu", "cuda", "tpu"]
    assert set(description["programs"]) == {"generate", "encode", "init_cache", "decode_step"}
    program = jax_export.deserialize(bytearray((tmp_path / "generate.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    pixels = inputs(model.config.to_dict(), batch=3).pixel_values
    same(export.ExportedModel(tmp_path), model, pixels, max_new_tokens=4)

    changed = json.loads((tmp_path / "export.json").read_text()) | {"platforms": ["tpu"]}
    (tmp_path / "export.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match="exported for tpu, not for cpu"):
        export.ExportedModel(tmp_path)
    (tmp_path / "export.json").write_text(json.dumps(changed | {"version": 99}))
    with pytest.raises(CheckpointError, match=r"export\.json: is ved-stablehlo 99"):
        export.ExportedModel(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "options"),
    [
        (("swin-rectangular", "bert"), {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2}),
        (("deit", "trocr"), {"repetition_penalty": 1.3, "suppress_tokens": [5, 6]}),
        (("beit", "roberta"), {"num_beams": 2, "early_stopping": True, "decoder_input_ids": np.array([[5, 6]])}),
        (("donut", "mbart"), {"forced_eos_token_id": 2}),
        (("swinv2", "electra"), {}),
        (("dinov2", "distilbert"), {"do_sample": True, "top_k": 5}),
        (("registers", "bart"), {"min_length": 4}),
    ],
    ids=str,
)
def test_any_batch_and_any_options(pair, options, tmp_path):
    pytest.importorskip("flax")
    import jax

    from tests.flax_models import perturbed
    from ved_flax import export

    model = perturbed(*pair)
    options = {"max_new_tokens": 6, **options}
    export.write(model, tmp_path, platforms=["cpu"], **options)
    exported = export.ExportedModel(tmp_path)
    for batch in (1, 3):
        pixels = inputs(model.config.to_dict(), batch=batch).pixel_values
        own = dict(options)
        if "decoder_input_ids" in own:
            own["decoder_input_ids"] = own["decoder_input_ids"].repeat(batch, axis=0)
        if own.get("do_sample"):
            own["prng_key"] = jax.random.key(0)
        same(exported, model, pixels, **own)
    encoded = exported.encode(pixels)
    cache = exported.init_cache(encoded)
    ids = np.full((batch, 1), 2)
    for _ in range(4):
        scores, cache = exported.decode_step(ids[:, -1], cache)
        ids = np.concatenate([ids, np.argmax(scores, axis=-1)[:, None]], axis=1)
    expected = model.decode(ids[:, :-1], encoded).logits[:, -1]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.slow
def test_another_image_size(capsys, tmp_path):
    pytest.importorskip("flax")
    from ved_flax import FlaxVisionEncoderDecoderModel, export

    arguments = ["--to", "stablehlo", "--image-size", "64,40", "--platforms", "cpu,tpu", "--max-new-tokens", "5"]
    status, _, err = run(capsys, "export", READER, tmp_path / "out", *arguments)
    assert (status, err) == (0, "")
    model = FlaxVisionEncoderDecoderModel.from_pretrained(READER)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 64, 40)).astype(np.float32)
    same(export.ExportedModel(tmp_path / "out"), model, pixels, max_new_tokens=5, interpolate_pos_encoding=True)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onnx", "--num-beams", "2"], "--num-beams"),
        (["--to", "torch-export", "--platforms", "cpu"], "--platforms"),
        (["--to", "onnx", "--dtype", "bfloat16"], "float32"),
        (["--to", "stablehlo", "--platforms", "cpu,gpu"], "--platforms gpu: there are cpu, cuda, tpu"),
        (["--to", "stablehlo", "--image-size", "48"], "--image-size 48"),
        (["--to", "stablehlo", "--max-new-tokens", "99"], "32 positions"),
        (["--to", "stablehlo", "--seed", "3"], "--seed"),
    ],
)
def test_wrong_usage(capsys, tmp_path, arguments, message):
    pytest.importorskip("flax")
    pytest.importorskip("onnx")
    status, out, err = run(capsys, "export", READER, tmp_path / "out", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_loaded(tmp_path):
    from ved_torch.export import ExportedModel

    with pytest.raises(CheckpointError, match=r"export\.json: describes no exported model"):
        ExportedModel(tmp_path)
    for name in ("config.json", "generation_config.json"):
        shutil.copy(READER / name, tmp_path)
    (tmp_path / "export.json").write_text('{"format": "ved-torch-export", "version": 1}')
    (tmp_path / "encoder.pt2").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"encoder\.pt2: is no exported program"):
        ExportedModel(tmp_path)
    pytest.importorskip("onnxruntime")
    with pytest.raises(CheckpointError, match=r"encoder_model\.onnx: cannot be run"):
        loaded("onnx", tmp_path)
    assert issubclass(CheckpointError, VedError)
