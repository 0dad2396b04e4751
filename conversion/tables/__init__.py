"""One table per architecture, and the table of a whole model."""

import dataclasses
from types import ModuleType

from conversion.rules import AnyRow, Rows, linear, under
from conversion.tables import bart, beit, bert, dinov2, distilbert, electra, gpt2, mbart, roberta, swin, trocr, vit
from ved_core.configs import Config, VisionEncoderDecoderConfig

TABLES: dict[str, ModuleType] = {
    "vit": vit,
    "deit": vit,
    "beit": beit,
    "swin": swin,
    "donut-swin": swin,
    "swinv2": swin,
    "dinov2": dinov2,
    "dinov2_with_registers": dinov2,
    "bart": bart,
    "bert": bert,
    "camembert": roberta,
    "distilbert": distilbert,
    "electra": electra,
    "gpt2": gpt2,
    "mbart": mbart,
    "roberta": roberta,
    "trocr": trocr,
    "xlm-roberta": roberta,
}
"""model_type -> module with `rows(cfg)` and `PREFIXES`."""

WRAPPERS = ("", "module.", "_orig_mod.", "model.")
"""What wrappers (DataParallel, torch.compile, a training module) put before every name of a checkpoint."""

OLDER_LEAVES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
"""What checkpoints that were once converted from TensorFlow call a leaf (bert-base-uncased among them)."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A model's or a part's rows, and the prefixes under which published checkpoints may keep them.

    `prefixes`: canonical prefix -> its alternatives, itself among them.
    """

    rows: tuple[AnyRow, ...]
    prefixes: dict[str, tuple[str, ...]]

    def spellings(self, stored: str) -> list[str]:
        """All names under which a tensor may be found, the canonical one first."""
        names = [stored]
        for canonical, alternatives in self.prefixes.items():
            if stored.startswith(canonical):
                names += [other + stored[len(canonical) :] for other in alternatives if other != canonical]
        return [spelling for name in names for spelling in with_older_leaf(name)]


def with_older_leaf(name: str) -> list[str]:
    """A stored name, and what the same tensor was called in older checkpoints."""
    return [name] + [name.removesuffix(leaf) + older for leaf, older in OLDER_LEAVES.items() if name.endswith(leaf)]


def part_table(cfg: Config, part: str = "") -> Table:
    """The rows of an encoder or a decoder, stored and kept under `part` ("encoder" or "decoder"), or by itself."""
    module = TABLES[cfg.model_type]
    canonical, *others = module.PREFIXES
    prefix = f"{part}." if part else ""
    return Table(
        tuple(under(module.rows(cfg), prefix, prefix)),
        {prefix + canonical: (prefix + canonical, *(prefix + other for other in others))},
    )


def projection_rows(config: VisionEncoderDecoderConfig) -> Rows:
    """The rows of what stands between an encoder and a decoder of different widths."""
    return linear("enc_to_dec_proj", "enc_to_dec_proj", config.encoder.hidden_size, config.decoder.hidden_size)


def model_table(config: VisionEncoderDecoderConfig) -> Table:
    """The rows of a whole vision-encoder-decoder."""
    encoder, decoder = part_table(config.encoder, "encoder"), part_table(config.decoder, "decoder")
    projection = projection_rows(config) if config.needs_projection else ()
    return Table((*encoder.rows, *decoder.rows, *projection), encoder.prefixes | decoder.prefixes)


def table_of(config: Config) -> Table:
    """The rows of what a config describes, a whole model or a part by itself."""
    return model_table(config) if isinstance(config, VisionEncoderDecoderConfig) else part_table(config)
