"""Where the decoder looked: tokens as words, image tokens as places, both frameworks alike, and the picture of it."""

import json

import numpy as np
import pytest
from PIL import Image

import ved_cli
from tests import cases, test_streaming
from tests.cases import DIGITS, ENCODERS, READER
from ved_core import drawing
from ved_core.attention_maps import TokenGrid, chosen, group, look_at, token_spans
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.configs.fields import as_pair
from ved_core.errors import GenerationError, VedError
from ved_core.pipeline import Reading
from ved_core.processing import Processor

torch = pytest.importorskip("torch")
IMAGES = sorted(DIGITS.glob("*.png"))[:4]


def config_of(encoder):
    return VisionEncoderDecoderConfig.from_dict(cases.model_config(encoder, "gpt2")).encoder


# Places --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_every_output_token_has_a_place(name):
    from ved_torch.encoders import build_encoder
    from ved_torch.layers.build import Builder

    config = config_of(name)
    height, width = as_pair(config.image_size)
    pixels = torch.zeros(1, config.num_channels, height, width)
    with torch.no_grad():
        tokens = build_encoder(config, Builder(generator=None, dtype=torch.float32)).eval()(pixels).last_hidden_state
    assert TokenGrid.of(config, height, width).tokens == tokens.shape[1]


@pytest.mark.parametrize("name", [name for name in ENCODERS if not name.startswith(("swin", "donut"))])
def test_a_pixel_is_lit_by_the_token_that_sees_it(name):
    """Before the first block, a pixel is in one token only."""
    from ved_torch.encoders import build_encoder
    from ved_torch.layers.build import Builder

    config = config_of(name)
    height, width = as_pair(config.image_size)
    encoder = build_encoder(config, Builder(generator=None, dtype=torch.float32)).eval()
    grid = TokenGrid.of(config, height, width)
    blank = torch.zeros(1, config.num_channels, height, width)

    def embedded(pixels):
        with torch.no_grad():
            return encoder(pixels, output_hidden_states=True).hidden_states[0][0]

    for y, x in [(0, 0), (height // 2, width // 3), (grid.rows * grid.cell[0] - 1, grid.columns * grid.cell[1] - 1)]:
        marked = blank.clone()
        marked[..., y, x] = 9.0
        changed = (embedded(marked) - embedded(blank)).abs().amax(dim=1).numpy()
        assert np.count_nonzero(changed) == 1
        lit = grid.pixels(grid.cells(changed / changed.max()))
        assert lit.shape == (height, width)
        assert lit[y, x] == 1
        assert lit.sum() == grid.cell[0] * grid.cell[1]


@pytest.mark.parametrize(
    ("encoder", "token", "box"),
    [
        ("vit", 1 + 6, (8, 16, 16, 24)),
        ("vit-nobias-1layer", 1 + 15, (24, 24, 32, 32)),  # 35 pixels: three are in no patch
        ("vit-rectangular", 1 + 5 * 2 + 4, (16, 32, 24, 40)),
        ("deit", 2 + 6, (8, 16, 16, 24)),
        ("registers", 1 + 4 + 5 * 4, (32, 0, 40, 8)),
        ("swin", 4 * 2 + 3, (16, 24, 24, 32)),
        ("swin-rectangular", 0, (0, 0, 16, 16)),
        ("swin-rectangular", 4 * 2 + 3, (32, 48, 44, 62)),  # the last row and column of cells are cut
        ("donut", 7 * 4 + 1, (32, 8, 40, 16)),
        ("swinv2-wide-1stage", 8 * 2 + 7, (8, 28, 12, 30)),
    ],
)
def test_a_token_lights_its_rectangle(encoder, token, box):
    config = config_of(encoder)
    grid = TokenGrid.of(config, *as_pair(config.image_size))
    lit = grid.pixels(grid.cells(np.eye(grid.tokens)[token]))
    top, left, bottom, right = box
    expected = np.zeros((grid.height, grid.width))
    expected[top:bottom, left:right] = 1
    assert np.array_equal(lit, expected)


def test_another_image_size_has_another_grid():
    config = config_of("dinov2")
    assert TokenGrid.of(config, 48, 24).tokens == 1 + 6 * 3
    with pytest.raises(ValueError, match="5 weights"):
        TokenGrid.of(config, 48, 24).cells(np.zeros(5))


# Words ---------------------------------------------------------------------------------------------------------------


def units(processor_decode, ids, by="word"):
    """Text and tokens of each unit."""
    text = processor_decode(ids)
    return [(text[start:end], tokens) for start, end, tokens in group(text, token_spans(ids, processor_decode), by)]


def decoding(make, clean=False):
    tokenizer = test_streaming.tokenizer(make, clean)
    return tokenizer, lambda ids: tokenizer.decode(ids, skip_special_tokens=True)


def test_tokens_are_merged_into_words():
    processor = Processor.from_pretrained(READER)
    ids = [0, *processor.tokenizer("three seven")["input_ids"], 2, 1]
    found = units(lambda ids: processor.decode([ids])[0], ids)
    assert [text for text, _ in found] == ["three", "seven"]
    used = [token for _, tokens in found for token in tokens]
    assert used == sorted(set(used))
    assert not {0, len(ids) - 1, len(ids) - 2} & set(used)


@pytest.mark.parametrize(
    ("make", "tokens"),
    [(test_streaming.byte_level, [[0], [2], [3, 4, 5]]), (test_streaming.byte_fallback, [[0], [2, 3], [4, 5, 6]])],
)
def test_the_bytes_of_a_character_belong_to_it(make, tokens):
    tokenizer, decode = decoding(make)
    ids = tokenizer("a é字")["input_ids"]
    assert units(decode, ids) == list(zip(["a", "é", "字"], tokens, strict=True))
    assert units(decode, ids, "token") == units(decode, ids)


def test_clean_up_takes_nothing_away():
    tokenizer, decode = decoding(test_streaming.word_piece, clean=True)
    ids = tokenizer("do n't")["input_ids"]
    assert decode(ids) == "don't"
    assert units(decode, ids) == [("don't", list(range(len(ids))))]


def look(ids, log_probs, attention, grid=None, by="word"):
    processor = Processor.from_pretrained(READER)
    decode = lambda ids: processor.decode([ids])[0]  # noqa: E731
    grid = grid or TokenGrid.of(config_of("deit"), 32, 32)
    return look_at(
        np.zeros((32, 32, 3), np.uint8), Reading(decode(ids), 1.0), ids, log_probs, attention, grid, decode, by
    )


def test_a_word_is_the_mean_of_its_tokens():
    processor = Processor.from_pretrained(READER)
    prompt, word = processor.tokenizer("two")["input_ids"], processor.tokenizer(" seven")["input_ids"]
    ids = [0, *prompt, *word, 2]
    rng = np.random.default_rng(0)
    attention = rng.dirichlet(np.ones(18), len(word) + 1)
    log_probs = np.log(rng.uniform(0.1, 1, len(word) + 1))
    (seven,) = look(ids, log_probs, attention).words
    assert seven.text == "seven"
    assert seven.confidence == pytest.approx(np.exp(log_probs[:-1].mean()))
    np.testing.assert_allclose(seven.attention, attention[:-1, 2:].mean(axis=0).reshape(4, 4), rtol=1e-6)
    assert seven.elsewhere == pytest.approx(attention[:-1, :2].mean(axis=0).sum())
    with pytest.raises(GenerationError, match="'line' should be one of word, token"):
        look(ids, log_probs, attention, by="line")


@pytest.mark.parametrize(("wanted", "places"), [(None, None), ([-1], (3,)), ([2, 0, 0], (0, 2))])
def test_layers_and_heads_are_chosen(wanted, places):
    assert chosen("layers", wanted, 4) == places


@pytest.mark.parametrize("wanted", [[], [4], [-5]])
def test_there_must_be_such_layers(wanted):
    with pytest.raises(GenerationError, match="the decoder has 4, 0 to 3"):
        chosen("layers", wanted, 4)


# Both frameworks -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_frameworks_look_alike(tmp_path):
    pytest.importorskip("flax")
    from tests.flax_models import perturbed
    from ved_torch import VisionEncoderDecoderModel

    ours = perturbed("vit-nobias-1layer", "gpt2-unscaled-1layer")
    ours.save_pretrained(tmp_path)
    theirs = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    pixels = cases.inputs(ours.config.to_dict(), batch=2).pixel_values
    (here, one), (there, other) = (model.generate_and_look(pixels, max_new_tokens=4) for model in (ours, theirs))
    assert np.array_equal(here.sequences, there.sequences)
    assert one.shape == (2, here.sequences.shape[1] - 1, 1 + 4 * 4)
    np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(one.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.slow
def test_readers_look_alike():
    pytest.importorskip("flax")
    import ved_flax
    import ved_torch

    here, there = (
        library.ImageToText.from_pretrained(READER).look(IMAGES, layers=[1, -1], heads=[0], batch_size=3)
        for library in (ved_flax, ved_torch)
    )
    for ours, theirs in zip(here, there, strict=True):
        assert ours.reading.text == theirs.reading.text
        assert np.array_equal(ours.image, theirs.image)
        assert [word.text for word in ours.words] == ours.reading.text.split() == [word.text for word in theirs.words]
        for one, other in zip(ours.words, theirs.words, strict=True):
            np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)
            assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
            assert one.attention.sum() + one.elsewhere == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("prompt", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "pair",
    [
        ("swin-rectangular", "roberta"),
        pytest.param(("deit", "trocr"), marks=pytest.mark.slow),
        pytest.param(("donut", "mbart"), marks=pytest.mark.slow),
    ],
    ids="+".join,
)
def test_one_more_pass_gives_what_decoding_saw(pair, prompt, tmp_path):
    """Of several layers, heads, beams and returned sequences."""
    from tests import reference
    from ved_torch import VisionEncoderDecoderModel

    reference.build(*pair, tmp_path)
    model = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    pixels = cases.inputs(model.config.to_dict(), batch=2).pixel_values
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5}
    if prompt:
        options |= {"decoder_input_ids": np.array([[5, 6], [1, 7]]), "decoder_attention_mask": [[1, 1], [0, 1]]}
    whole = model.generate(pixels, **options, output_attentions=True, return_dict_in_generate=True)
    output, attention = model.generate_and_look(pixels, **options, heads=[1])
    assert torch.equal(output.sequences, whole.sequences)
    expected = torch.stack(whole.cross_attentions)[:, :, 1].mean(dim=0)
    assert attention.shape == expected.shape
    torch.testing.assert_close(attention, expected)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("deit", "trocr"), ("donut", "mbart"), ("registers", "bert")], ids="+".join)
def test_frameworks_look_alike_in_every_corner(pair, tmp_path):
    pytest.importorskip("flax")
    from tests import reference
    from ved_flax import FlaxVisionEncoderDecoderModel
    from ved_torch import VisionEncoderDecoderModel

    reference.build(*pair, tmp_path)
    one, other = (c.from_pretrained(tmp_path) for c in (FlaxVisionEncoderDecoderModel, VisionEncoderDecoderModel))
    pixels = cases.inputs(other.config.to_dict(), batch=2).pixel_values
    for options in ({}, {"num_beams": 2, "num_return_sequences": 2}, {"decoder_input_ids": np.array([[5, 6], [4, 7]])}):
        (here, ours), (there, theirs) = (m.generate_and_look(pixels, max_new_tokens=5, **options) for m in (one, other))
        assert np.array_equal(here.sequences, there.sequences)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_model_that_trains_looks_without_dropout():
    from ved_torch import ImageToText

    reader = ImageToText.from_pretrained(READER)
    before = reader.look(IMAGES[0])
    reader.model.train()
    assert np.array_equal(reader.look(IMAGES[0]).words[0].attention, before.words[0].attention)


# The picture ---------------------------------------------------------------------------------------------------------


def sample(text, size=(32, 32), name="deit"):
    """A made-up look whose words look at one cell each."""
    grid = TokenGrid.of(config_of(name), *size)
    words = text.split()
    attention = np.full((len(words), grid.tokens), 1e-3)
    attention[np.arange(len(words)), grid.leading + np.arange(len(words)) % (grid.tokens - grid.leading)] = 0.9
    starts = [0, *np.cumsum([len(word) + 1 for word in words]).tolist()]
    ids = list(range(len(words)))
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    return look_at(
        image,
        Reading(text, 0.9),
        ids,
        np.full(len(ids), -0.1),
        attention,
        grid,
        lambda ids: text[: starts[len(ids)]].rstrip(),
    )


def test_each_word_has_a_picture_lit_where_it_looked():
    look = sample("one two three")
    figure = drawing.draw([look, sample("four")])
    assert len(figure.axes) == 4 + 2
    image, *words = figure.axes[:4]
    assert len(image.images) == 1
    for place, axes in enumerate(words):
        lit = np.asarray(axes.images[1].get_array())[..., 3]
        assert np.argwhere(lit == lit.max()).tolist() == [[0, place]]
        assert axes.images[1].get_extent() == [0, 32, 32, 0]
        assert np.array_equal(look.heat(place)[:8, 8 * place : 8 * place + 8], np.ones((8, 8)))
    assert [text.get_text() for text in words[1].texts] == ["two", "90.5%"]
    boxes = [axes.get_position() for axes in figure.axes]
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[:i])


def test_cells_that_reach_beyond_the_image_are_cut():
    axes = drawing.draw(sample("one", (44, 62), "swin-rectangular")).axes[1]
    assert axes.images[1].get_extent() == [0, 64, 48, 0]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 62), (44, 0))


def test_a_page_is_drawn_small():
    axes = drawing.draw(sample("one two", (2048, 1536), "donut")).axes
    assert max(image.get_array().size for one in axes for image in one.images) < 4e6


@pytest.mark.parametrize("size", [(32, 32), (16, 256), (96, 24)])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_sheets_of_every_shape(size, count, tmp_path):
    looks = [sample(" ".join(["$a_{b$", "字"] * count), size, "dinov2") for _ in range(2)]
    figure = drawing.draw(looks, names=["a rather long name of a file/" + "x" * 80 + ".png"] * 2)
    assert len(figure.axes) == 2 * (1 + 2 * count)
    assert all(axes.get_position().y0 >= 0 for axes in figure.axes)
    if count == 1:
        drawing.save(figure, tmp_path / "sheet.png")
        assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(VedError, match="0 pictures"):
        drawing.draw([])
    with pytest.raises(VedError, match="draw fewer"):
        drawing.draw([sample("x " * 700)] * 2)
    for name, message in (("a.txt", r"end in .*\.png"), ("no/such/a.png", "in a folder that exists")):
        with pytest.raises(VedError, match=message):
            drawing.check_format(tmp_path / name)


def run(capsys, *arguments):
    status = ved_cli.main([*(str(a) for a in arguments), "--model", str(READER)])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def test_the_command_line_shows(capsys, tmp_path):
    file = tmp_path / "sheet.png"
    read = ["read", IMAGES[0], tmp_path / "none.png", IMAGES[1], "--framework", "torch"]
    status, lines, err = run(capsys, *read, "--show", file, "--json", "--show-by", "token", "--show-layers=-1,0")
    assert status == 1
    assert "none.png" in err
    first, bad, last = map(json.loads, lines)
    assert "error" in bad
    assert "".join(word["text"] for word in first["words"]) == first["text"].replace(" ", "")
    assert all(0 < word["confidence"] <= 1 for word in last["words"])
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("RGB")).std() > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--show", "x.bmpp"], "pictures end in"),
        (["--show", "x.png", "--stream"], "leave --stream out"),
        (["--show-heads", "1"], "give --show FILE"),
        (["--show", "x.png", "--show-layers", "9"], "layers = [9]"),
    ],
)
def test_wrong_usage(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, lines, err = run(capsys, "read", IMAGES[0], "--framework", "torch", *arguments)
    assert (status, lines, err.count("\n")) == (2, [], 1)
    assert message in err
    assert not list(tmp_path.iterdir())
