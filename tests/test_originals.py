"""Checkpoints in the layouts of the repositories that first published them, those of `tests.originals`."""

import importlib.util
import re

import numpy as np
import pytest

from conversion import checkpoint, originals
from conversion.formats import safetensors
from conversion.originals import donut
from conversion.originals.rows import Row
from conversion.rules import Row as StoredRow
from conversion.tables import model_table
from tests import reference
from tests.cases import FIXTURES, PAIRS, WEIGHTS_FILE
from tests.originals import (
    MILLIONS,
    PUBLISHED,
    SMALL,
    SPECIAL,
    buffers,
    config_of,
    donut_original,
    random_original,
    trocr_original,
    trocr_shapes,
    weightless,
)
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.errors import CheckpointError


def later(cases, *slow):
    """The cases, of which the named ones are left to the full run."""
    return [pytest.param(case, marks=[pytest.mark.slow] if case in slow else []) for case in cases]


def stored_rows(config):
    return {row.stored for row in model_table(config).rows if isinstance(row, StoredRow)}


@pytest.mark.oracle
@pytest.mark.parametrize("case", later(SMALL, "donut-untied"))
def test_an_original_is_the_model_that_it_came_from(case, tmp_path):
    pytest.importorskip("flax")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from ved_flax import FlaxVisionEncoderDecoderModel
    from ved_torch import VisionEncoderDecoderModel

    config = config_of(case)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.VisionEncoderDecoderModel._from_config(
            transformers.VisionEncoderDecoderConfig.from_dict(config.to_dict()), attn_implementation="eager"
        )
    reference.perturbed(model.eval()).save_pretrained(tmp_path / "expected")
    expected = checkpoint.read(tmp_path / "expected")
    inverse = donut_original if case.startswith("donut") else trocr_original
    original = inverse(expected) | buffers(case)
    assert {name: tensor.shape for name, tensor in original.items()} == SMALL[case][0]

    found = originals.translate(original, "model.bin")
    assert found.config == config
    assert found.tensors.keys() == stored_rows(config)
    for name, tensor in found.tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.tobytes() == expected[name].tobytes(), name

    folder = tmp_path / "found"
    found.config.save_pretrained(folder)
    safetensors.write(folder / WEIGHTS_FILE, found.tensors)
    rng = np.random.default_rng(0)
    height, width = np.broadcast_to(config.encoder.image_size, 2)
    pixels = rng.standard_normal((2, 3, height, width)).astype(np.float32)
    ids = rng.integers(3, 61, (2, 7))
    with torch.no_grad():
        wanted = model(pixel_values=torch.tensor(pixels), decoder_input_ids=torch.tensor(ids)).logits.numpy()
        torch_logits = VisionEncoderDecoderModel.from_pretrained(folder)(pixels, decoder_input_ids=ids).logits.numpy()
    flax_logits = FlaxVisionEncoderDecoderModel.from_pretrained(folder)(pixels, decoder_input_ids=ids).logits
    for logits in (torch_logits, np.asarray(flax_logits)):
        np.testing.assert_allclose(logits, wanted, atol=1e-3 * np.abs(wanted).max())


# Published sizes -----------------------------------------------------------------------------------------------------

QUICK = ("trocr-small-printed", "trocr-base-handwritten", "donut-base-finetuned-cord-v2")


@pytest.mark.parametrize("name", later(PUBLISHED, *(PUBLISHED.keys() - set(QUICK))))
def test_published_sizes_fit(name):
    shapes, encoder, decoder = PUBLISHED[name]
    tied = decoder.get("tie_word_embeddings", True)
    found = originals.translate(weightless(shapes, encoder["image_size"], tied), name)
    config = found.config
    assert {field: getattr(config.encoder, field) for field in encoder} == encoder
    assert {field: getattr(config.decoder, field) for field in decoder} == decoder
    tokens = {"bos_token_id": 0, **SPECIAL, "decoder_start_token_id": 2 if "trocr" in name else None}
    assert {field: getattr(config.decoder, field) for field in tokens} == tokens
    assert config.decoder_start_token_id == tokens["decoder_start_token_id"]
    assert found.tensors.keys() == stored_rows(config)
    if name.startswith("trocr"):
        count = sum(tensor.size for tensor in found.tensors.values()) / 1e6
        size = name.split("-")[1]
        more = 50265 * 1024 / 1e6 if size != "small" and not tied else 0
        assert count == pytest.approx(MILLIONS[size] + more, rel=0.01)
    for framework in filter(importlib.util.find_spec, ("torch", "flax")):
        checkpoint.from_stored(found.tensors, model_table(config), framework, name)


# Variants ------------------------------------------------------------------------------------------------------------


def same_result(changed, case):
    """The translations of a random original and of a changed one, which must be the same."""
    plain = originals.translate(random_original(case), "plain")
    found = originals.translate(changed, "changed")
    assert found.config == plain.config
    assert found.tensors.keys() == plain.tensors.keys()
    for name, tensor in found.tensors.items():
        np.testing.assert_array_equal(tensor, plain.tensors[name], err_msg=name)


def test_timm_has_moved_the_merging_of_patches():
    older = random_original("donut")
    newer = {re.sub(r"(\d)\.downsample", lambda m: f"{int(m[1]) + 1}.downsample", n): x for n, x in older.items()}
    assert newer.keys() != older.keys()
    same_result(newer, "donut")


def test_fairseq_has_renamed_the_vocabulary_head():
    tensors = random_original("sinusoidal")
    tensors["decoder.embed_out"] = tensors.pop("decoder.output_projection.weight")
    tensors["decoder.embed_positions.weights"] = tensors.pop("decoder.embed_positions._float_tensor")
    same_result(tensors, "sinusoidal")


@pytest.mark.parametrize(
    ("case", "head"), [("learned", "decoder.output_projection"), ("donut", "decoder.model.lm_head")]
)
def test_a_tied_head_need_not_be_stored(case, head):
    tensors = random_original(case)
    del tensors[f"{head}.weight"]
    same_result(tensors, case)


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("wrapper", ["module.", "model."])
def test_wrappers_are_taken_off(case, wrapper):
    same_result({wrapper + name: tensor for name, tensor in random_original(case).items()}, case)


@pytest.mark.parametrize("case", SMALL)
def test_buffers_may_be_left_out(case):
    tensors = random_original(case)
    for name in buffers(case):
        if not name.endswith("attn_mask"):
            del tensors[name]
    same_result(tensors, case)


def test_without_masks_images_are_of_the_published_size():
    tensors = {name: x for name, x in random_original("donut").items() if not name.endswith("attn_mask")}
    assert originals.translate(tensors, "x").config.encoder.image_size == list(donut.IMAGE_SIZE)


def test_a_given_config_replaces_the_derived_one():
    shapes = trocr_shapes((1, 40, 24), (1, 24, 20, 61, 30), image=32, patch=8)
    shapes = {name: shape for name, shape in shapes.items() if "layernorm_embedding" not in name}
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    with pytest.raises(CheckpointError, match=r"patch_embed.proj.weight is of width 40.*Give the config"):
        originals.translate(tensors, "odd.pt")
    encoder = {"model_type": "vit", "hidden_size": 40, "num_hidden_layers": 1, "num_attention_heads": 5}
    encoder |= {"intermediate_size": 24, "image_size": 32, "patch_size": 8, "qkv_bias": False}
    decoder = {"model_type": "trocr", "d_model": 24, "decoder_layers": 1, "decoder_attention_heads": 3}
    decoder |= {"decoder_ffn_dim": 20, "vocab_size": 61, "max_position_embeddings": 30, "layernorm_embedding": False}
    decoder |= {"cross_attention_hidden_size": 40}
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    found = originals.translate(tensors, "odd.pt", config)
    assert found.config is config
    assert found.tensors.keys() == stored_rows(config)

    config.decoder.cross_attention_hidden_size = None
    with pytest.raises(CheckpointError, match=r"set decoder.cross_attention_hidden_size to 40"):
        originals.translate(tensors, "odd.pt", config)
    other = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, {"model_type": "gpt2"})
    with pytest.raises(CheckpointError, match=r"decoder of model_type trocr, its config says gpt2"):
        originals.translate(tensors, "odd.pt", other)


# What is read, and what is not ----------------------------------------------------------------------------------------


class Lazy:
    """A tensor that notes that it was read."""

    def __init__(self, name, array, read):
        self.name, self.array, self.read = name, array, read
        self.shape, self.dtype = array.shape, array.dtype

    def __array__(self, dtype=None, copy=None):
        self.read.append(self.name)
        return self.array


@pytest.mark.parametrize("case", SMALL)
def test_only_what_is_split_or_compared_is_read(case):
    read = []
    tensors = {name: Lazy(name, array, read) for name, array in random_original(case).items()}
    found = originals.translate(tensors, "lazy")
    compared = {name for name in tensors if re.search("embed_tokens|output_projection|lm_head", name)}
    masks = [name for name in tensors if name.endswith("attn_mask")][:1]
    assert set(read) == {name for name in tensors if ".qkv." in name} | compared | set(masks)
    for name, stored in found.became.items():
        for number, part in enumerate(stored):
            if len(stored) == 1:
                assert found.tensors[part] is tensors[name]
            else:
                rows = len(tensors[name].array) // 3
                assert np.shares_memory(found.tensors[part], tensors[name].array)
                np.testing.assert_array_equal(found.tensors[part], tensors[name].array[number * rows :][:rows])
    assert found.became.keys() == tensors.keys()
    assert {name for name, stored in found.became.items() if not stored} >= buffers(case).keys()


# What is none, and what is wrong --------------------------------------------------------------------------------------


def test_what_is_in_hugging_faces_layout_is_no_original():
    assert originals.translate({}, "nothing") is None
    for pair in PAIRS:
        tensors = checkpoint.read(FIXTURES / pair)
        assert originals.translate(tensors, pair) is None
        inside = {re.sub("^encoder.", "encoder.deit.", name): tensor for name, tensor in tensors.items()}
        assert originals.translate(inside, pair) is None


@pytest.mark.parametrize("case", SMALL)
def test_every_missing_tensor_is_named(case):
    tensors = random_original(case)
    may_miss = buffers(case).keys() | {"decoder.model.lm_head.weight"}
    may_miss |= {"decoder.output_projection.weight"} if case == "learned" else set()
    for name in tensors.keys() - may_miss:
        with pytest.raises(CheckpointError, match=r"file\.pt") as caught:
            originals.translate({other: x for other, x in tensors.items() if other != name}, "file.pt")
        assert name.removesuffix(".weight").removesuffix(".bias") in str(caught.value), name


@pytest.mark.parametrize("case", SMALL)
def test_every_mis_shaped_tensor_is_an_error(case):
    tensors, config = random_original(case), config_of(case)
    for name in tensors.keys() - buffers(case).keys():
        wrong = np.concatenate([tensors[name], tensors[name][:1]])
        with pytest.raises(CheckpointError, match=r"file\.pt") as caught:
            originals.translate(tensors | {name: wrong}, "file.pt", config)
        assert name in str(caught.value)
        if "embed_positions" not in name:  # a longer table is that of another model
            with pytest.raises(CheckpointError, match=r"file\.pt"):
                originals.translate(tensors | {name: wrong}, "file.pt")


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("name", ["decoder.surprise", "encoder.surprise.weight", "optimizer", "*.9.norm1.weight"])
def test_an_unexpected_tensor_is_named(case, name):
    name = name.replace("*", "encoder.model.layers.0.blocks" if case.startswith("donut") else "encoder.deit.blocks")
    with pytest.raises(CheckpointError, match=rf"file\.pt is no whole.*1 are unexpected: {name}"):
        originals.translate(random_original(case) | {name: np.zeros(3, np.float32)}, "file.pt")


BLOCK = "encoder.model.layers.0.blocks."


def changed(case, **tensors):
    return random_original(case) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (changed("learned", decoder__embed_tokens__weight=np.zeros((61, 512))), r"width 512, with learned positions"),
        (changed("learned", encoder__deit__pos_embed=np.zeros((1, 19, 64))), r"18 entries of encoder.deit.pos_embed"),
        (changed("learned", encoder__deit__pos_embed=np.zeros(64)), r"pos_embed has shape \(64,\)"),
        (changed("learned", decoder__embed_positions__weight=np.zeros((2, 1024))), r"max_position_embeddings = 0"),
        (changed("donut", decoder__model__model__decoder__embed_tokens__weight=np.zeros((61, 768))), r"width 768"),
        (
            changed(
                "donut", encoder__model__layers__0__blocks__0__attn__relative_position_bias_table=np.zeros((24, 4))
            ),
            r"24 entries of encoder.model.layers.0.blocks.0.attn.relative_position_bias_table",
        ),
        (changed("donut", **{f"{BLOCK}1.attn_mask": np.zeros((8, 9, 9))}), r"mask marks no last column of 8 windows"),
    ],
)
def test_unknown_sizes_ask_for_a_config(tensors, message):
    with pytest.raises(CheckpointError, match=rf"file\.pt: .*{message}.*Give the config"):
        originals.translate(tensors, "file.pt")


@pytest.mark.parametrize(
    ("case", "head"), [("learned", "decoder.output_projection"), ("donut", "decoder.model.lm_head")]
)
def test_a_broken_tie_is_named(case, head):
    tensors = random_original(case)
    tensors[f"{head}.weight"] = tensors[f"{head}.weight"] + 1
    found = originals.translate(tensors, "file.pt")
    assert not found.config.decoder.tie_word_embeddings
    with pytest.raises(CheckpointError, match=rf"file\.pt: {head}.weight differs from .*embed_tokens.weight"):
        originals.translate(tensors, "file.pt", config_of(case))


def test_endless_layers_are_refused():
    tensors = {f"encoder.deit.blocks.{i}.norm1.weight": np.zeros(2) for i in range(2000)}
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        originals.translate(random_original("learned") | tensors, "file.pt")


def test_tables_name_nothing_twice():
    for case in SMALL:
        layout = donut if case.startswith("donut") else originals.trocr
        found = originals.Found(random_original(case), case, layout.LAYOUT)
        rows = list(layout.rows(config_of(case), found))
        assert len({row.original for row in rows}) == len(rows)
        stored = [name for row in rows if isinstance(row, Row) for name in row.stored]
        assert len(set(stored)) == len(stored)
