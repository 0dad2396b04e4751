"""Donut as its own repository publishes it: a timm Swin and an mBART decoder (arXiv:2111.15664). Nougat's original
checkpoints (arXiv:2308.13418) are of the same layout.

Sizes are the tensors' own. A text begins with its task's prompt, so that no start token is set.
"""

import numpy as np

from conversion.originals import bart
from conversion.originals.found import Found
from conversion.originals.rows import Copy, Dropped, Rows, dropped, embedding, linear, norm, parameter
from conversion.tensors import equal
from ved_core.configs import DonutSwinConfig, MBartConfig, VisionEncoderDecoderConfig
from ved_core.configs.fields import as_pair

LAYOUT = "Donut of the donut repository"
MARKS = ("encoder.model.layers.", "encoder.model.patch_embed.")
"""What some names of this layout begin with, and none of another."""
ENCODERS = ("donut-swin",)
DECODERS = ("mbart",)

IMAGE_SIZE = (2560, 1920)
"""Height and width that donut-base was trained with, taken where no tensor tells: newer releases of timm store no
attention masks. A config that is given says it for other models."""
DECODER_HEADS = {1024: 16}
"""Width -> heads."""
OFFSET = 2
"""Rows of a position table before the first token's (BART's)."""
TOKENS = {"pad_token_id": 1, "eos_token_id": 2}

STAGES = "encoder.model.layers."
DECODER = "decoder.model.model.decoder"
HEAD = "decoder.model.lm_head.weight"


def derived(found: Found) -> VisionEncoderDecoderConfig:
    """The config that names and shapes tell. Raises CheckpointError where they are of no published kind."""
    return VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder_config(found), decoder_config(found), **TOKENS
    )


def encoder_config(found: Found) -> DonutSwinConfig:
    """The encoder's config. A table of relative positions tells the window's side and the heads."""
    width, channels, height, side = found.shape("encoder.model.patch_embed.proj.weight", 4)
    stages = range(found.count(STAGES))
    tables = [f"{STAGES}{stage}.blocks.0.attn.relative_position_bias_table" for stage in stages]
    shapes = [found.shape(table, 2) for table in tables]
    hidden = found.shape(f"{STAGES}0.blocks.0.mlp.fc1.weight", 2)[0]
    window = (found.square(tables[0], shapes[0][0]) + 1) // 2
    return DonutSwinConfig(
        image_size=image_size(found, window, (height, side)),
        patch_size=side if height == side else [height, side],
        num_channels=channels,
        embed_dim=width,
        depths=[found.count(f"{STAGES}{stage}.blocks.") for stage in stages],
        num_heads=[heads for _, heads in shapes],
        window_size=window,
        mlp_ratio=hidden / width,
        qkv_bias=any(name.endswith(".attn.qkv.bias") for name in found.tensors),
    )


def image_size(found: Found, window: int, patch: tuple[int, int]) -> list[int]:
    """Height and width of the images, from the first attention mask where one is stored.

    It has an entry (W*W, W*W) for each window, row by row; windows are marked where shifting brought parts together
    that are no neighbours: in the last row and in the last column. Raises CheckpointError where none is.
    """
    blocks = (f"{STAGES}0.blocks.{i}.attn_mask" for i in range(found.count(f"{STAGES}0.blocks.")))
    name = next((name for name in blocks if name in found.tensors), None)
    if name is None:
        return list(IMAGE_SIZE)
    windows = found.shape(name, 3)[0]
    mask = np.asarray(found.tensors[name])
    columns = next((i + 1 for i in range(windows) if mask[i].any()), 0)
    if not columns or windows % columns:
        raise found.unknown(f"{name} marks no last column of {windows} windows")
    return [windows // columns * window * patch[0], columns * window * patch[1]]


def decoder_config(found: Found) -> MBartConfig:
    """The decoder's config."""
    table = f"{DECODER}.embed_tokens.weight"
    vocabulary, width = found.shape(table, 2)
    if width not in DECODER_HEADS:
        raise found.unknown(f"{table} is of width {width}")
    return MBartConfig(
        vocab_size=vocabulary,
        d_model=width,
        decoder_layers=found.count(f"{DECODER}.layers."),
        decoder_attention_heads=DECODER_HEADS[width],
        decoder_ffn_dim=found.shape(f"{DECODER}.layers.0.fc1.weight", 2)[0],
        max_position_embeddings=found.shape(f"{DECODER}.embed_positions.weight", 2)[0] - OFFSET,
        scale_embedding=True,
        tie_word_embeddings=HEAD not in found.tensors or equal(found.tensors[table], found.tensors[HEAD]),
    )


def rows(config: VisionEncoderDecoderConfig, found: Found) -> Rows:
    """All tensors of a model of this layout."""
    # timm has moved the merging of patches from the end of a stage to the start of the next.
    yield from encoder_rows(config.encoder, merged_in=0 if found.has(f"{STAGES}0.downsample.") else 1)
    yield from decoder_rows(config.decoder, config.encoder.hidden_size)


def encoder_rows(cfg: DonutSwinConfig, merged_in: int) -> Rows:
    """timm's Swin, from `encoder.model`. `merged_in`: how many stages later than here patches are merged."""
    yield from linear(
        "encoder.model.patch_embed.proj",
        "encoder.embeddings.patch_embeddings.projection",
        shape=(cfg.embed_dim, cfg.num_channels, *as_pair(cfg.patch_size)),
    )
    yield from norm("encoder.model.patch_embed.norm", "encoder.embeddings.norm", cfg.embed_dim)
    for stage, width in enumerate(cfg.widths):
        place = f"encoder.encoder.layers.{stage}"
        for i in range(cfg.depths[stage]):
            yield from block_rows(cfg, f"{STAGES}{stage}.blocks.{i}", f"{place}.blocks.{i}", stage)
        if stage + 1 < len(cfg.depths):
            merge = f"{STAGES}{stage + merged_in}.downsample"
            yield from norm(f"{merge}.norm", f"{place}.downsample.norm", 4 * width)
            yield from linear(
                f"{merge}.reduction", f"{place}.downsample.reduction", shape=(2 * width, 4 * width), bias=False
            )
    # Donut reads the last stage as it is.
    yield from dropped("encoder.model.norm")


def block_rows(cfg: DonutSwinConfig, block: str, layer: str, stage: int) -> Rows:
    """One block's tensors."""
    width, heads = cfg.widths[stage], cfg.num_heads[stage]
    hidden = int(cfg.mlp_ratio * width)
    attention = f"{layer}.attention.self"
    table = "relative_position_bias_table"
    yield from norm(f"{block}.norm1", f"{layer}.layernorm_before", width)
    yield from linear(
        f"{block}.attn.qkv",
        *(f"{attention}.query", f"{attention}.key", f"{attention}.value"),
        shape=(3 * width, width),
        bias=cfg.qkv_bias,
    )
    yield from linear(f"{block}.attn.proj", f"{layer}.attention.output.dense", shape=(width, width))
    yield from parameter(f"{block}.attn.{table}", f"{attention}.{table}", ((2 * cfg.window_size - 1) ** 2, heads))
    yield Dropped(f"{block}.attn.relative_position_index")
    yield Dropped(f"{block}.attn_mask")
    yield from norm(f"{block}.norm2", f"{layer}.layernorm_after", width)
    yield from linear(f"{block}.mlp.fc1", f"{layer}.intermediate.dense", shape=(hidden, width))
    yield from linear(f"{block}.mlp.fc2", f"{layer}.output.dense", shape=(width, hidden))


def decoder_rows(cfg: MBartConfig, encoder_width: int) -> Rows:
    """The decoder, which is transformers' own class."""
    stored = "decoder.model.decoder"
    vocabulary, width = cfg.vocab_size, cfg.d_model
    yield from embedding(f"{DECODER}.embed_tokens", f"{stored}.embed_tokens", (vocabulary, width))
    positions = (cfg.max_position_embeddings + OFFSET, width)
    yield from embedding(f"{DECODER}.embed_positions", f"{stored}.embed_positions", positions)
    yield from norm(f"{DECODER}.layernorm_embedding", f"{stored}.layernorm_embedding", width)
    yield from bart.layers(DECODER, stored, cfg, encoder_width)
    yield from norm(f"{DECODER}.layer_norm", f"{stored}.layer_norm", width)
    if cfg.tie_word_embeddings:
        yield Copy(HEAD, f"{DECODER}.embed_tokens.weight")
    else:
        yield from parameter(HEAD, "decoder.lm_head.weight", (vocabulary, width))
