"""`VisionEncoderDecoderConfig`: an encoder's and a decoder's config joined."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from ved_core import digests
from ved_core.configs.bart import BartConfig, MBartConfig
from ved_core.configs.base import Config, as_mapping, read_json
from ved_core.configs.beit import BeitConfig
from ved_core.configs.bert import BertConfig, CamembertConfig, ElectraConfig, RobertaConfig, XLMRobertaConfig
from ved_core.configs.decoder import DecoderConfig
from ved_core.configs.dinov2 import Dinov2Config, Dinov2WithRegistersConfig
from ved_core.configs.distilbert import DistilBertConfig
from ved_core.configs.encoder import EncoderConfig
from ved_core.configs.fields import flag, token, tokens
from ved_core.configs.gpt2 import GPT2Config
from ved_core.configs.swin import DonutSwinConfig, SwinConfig, Swinv2Config
from ved_core.configs.trocr import TrOCRConfig
from ved_core.configs.vit import DeiTConfig, ViTConfig
from ved_core.errors import ConfigError
from ved_core.hub import resolve

CONFIG_FILE = "config.json"
JOINING = {"is_decoder": True, "add_cross_attention": True}
"""What a joined model's decoder is marked with."""
C = TypeVar("C", bound=Config)

DECODERS: dict[str, type[DecoderConfig]] = {
    cls.model_type: cls
    for cls in (
        BartConfig,
        BertConfig,
        CamembertConfig,
        DistilBertConfig,
        ElectraConfig,
        GPT2Config,
        MBartConfig,
        RobertaConfig,
        TrOCRConfig,
        XLMRobertaConfig,
    )
}
ENCODERS: dict[str, type[EncoderConfig]] = {
    cls.model_type: cls
    for cls in (
        ViTConfig,
        DeiTConfig,
        BeitConfig,
        SwinConfig,
        DonutSwinConfig,
        Swinv2Config,
        Dinov2Config,
        Dinov2WithRegistersConfig,
    )
}


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class VisionEncoderDecoderConfig(Config):
    """The whole model. `encoder` and `decoder` take our configs, dicts, or transformers' config objects (copied)."""

    model_type: ClassVar[str] = "vision-encoder-decoder"
    architecture: ClassVar[str] = "VisionEncoderDecoderModel"

    encoder: Any = None
    decoder: Any = None
    is_encoder_decoder: bool = flag(True)
    tie_word_embeddings: bool = flag(False)
    bos_token_id: int | None = token(None)
    pad_token_id: int | None = token(None)
    eos_token_id: int | list[int] | None = tokens(None)
    decoder_start_token_id: int | None = token(None)

    def checked(self, name: str, value: Any) -> Any:
        if name == "encoder":
            return part_config(value, "encoder", ENCODERS)
        if name == "decoder":
            return part_config(value, "decoder", DECODERS)
        return super().checked(name, value)

    def check(self) -> None:
        super().check()
        cross = self.decoder.cross_attention_hidden_size
        if cross is not None and cross != self.encoder.hidden_size:
            raise ConfigError(
                f"decoder.cross_attention_hidden_size = {cross} is not the encoder's hidden_size = "
                f"{self.encoder.hidden_size}; set it to that, or to null for a projection between the two"
            )

    def get_text_config(self, **kwargs: Any) -> DecoderConfig:
        """The half that writes text; transformers' Trainer sets a tokenizer's special tokens in it."""
        return self.decoder

    @property
    def needs_projection(self) -> bool:
        """Whether `enc_to_dec_proj` stands between encoder and decoder (transformers' rule)."""
        return self.encoder.hidden_size != self.decoder.hidden_size and self.decoder.cross_attention_hidden_size is None

    @classmethod
    def from_encoder_decoder_configs(cls, encoder_config: Any, decoder_config: Any, **kwargs: Any) -> Self:
        """Join two configs; the decoder's copy gets `is_decoder` and `add_cross_attention`. `kwargs`: more fields."""
        decoder = dict(as_mapping(decoder_config, "decoder_config"), **JOINING)
        return cls.from_dict({"encoder": encoder_config, "decoder": decoder, **kwargs})

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """As `Config.from_dict`; transformers' VisionEncoderDecoderConfig is understood too."""
        values = as_mapping(values, cls.__name__)
        found = values.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ConfigError(
                f"model_type = {found!r} is not a {cls.model_type} checkpoint, which joins an encoder "
                f"({', '.join(ENCODERS)}) and a decoder ({', '.join(DECODERS)})"
            )
        return super().from_dict(values)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, revision: str | None = None, subfolder: str | None = None
    ) -> Self:
        """Read config.json from a local folder or a hub name. Raises HubError, ConfigError naming the file."""
        folder = resolve(name_or_path, revision=revision, subfolder=subfolder, allow_patterns=[CONFIG_FILE])
        path = folder / CONFIG_FILE
        try:
            return cls.from_dict(read_json(path))
        except ConfigError as error:
            if str(path) in str(error):
                raise
            raise ConfigError(f"{path}: {error}") from None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json into `folder`, which is made where it does not exist."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(self.to_json(), encoding="utf-8")
        digests.refresh(folder, [CONFIG_FILE])


def read_config(path: Path) -> Config:
    """The config of whatever a config.json describes: a whole model, an encoder or a decoder. Raises ConfigError."""
    values = read_json(path)
    model_type = values.get("model_type")
    known: dict[str, type[Config]] = {**ENCODERS, **DECODERS}
    described = known.get(model_type) if isinstance(model_type, str) else None
    try:
        return (described or VisionEncoderDecoderConfig).from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def given_or_read(config: Any, folder: Path) -> VisionEncoderDecoderConfig:
    """The config that a person gave, or else the folder's. Raises ConfigError naming the file."""
    if config is None:
        return VisionEncoderDecoderConfig.from_pretrained(folder)
    return config if isinstance(config, VisionEncoderDecoderConfig) else VisionEncoderDecoderConfig.from_dict(config)


def joined_config(
    config: Any, encoder: EncoderConfig | None, decoder: DecoderConfig | None
) -> VisionEncoderDecoderConfig:
    """The config of a whole model: the one that a person gave, which already built halves' configs have to agree with,
    or else those two joined. Its decoder is marked as one with cross-attention, as transformers' classes need it.

    Raises ConfigError where nothing is given, a half is of another config, or the halves do not fit each other.
    """
    if config is None:
        if encoder is None or decoder is None:
            raise ConfigError("give a config, or an encoder and a decoder")
        return VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    if not isinstance(config, VisionEncoderDecoderConfig):
        config = VisionEncoderDecoderConfig.from_dict(config)
    for name in JOINING:
        if not getattr(config.decoder, name):
            setattr(config.decoder, name, True)
    config.check()  # a half may have been changed since
    for name, half in (("encoder", encoder), ("decoder", decoder)):
        if half is not None and not _same_architecture(half, getattr(config, name)):
            raise ConfigError(f"the {name} was built from another config than config.{name}: build it from that one")
    return config


def _same_architecture(first: Config, second: Config) -> bool:
    """Whether two configs of a half are equal but for what joining sets in it."""
    return first.model_type == second.model_type and first.to_dict() | JOINING == second.to_dict() | JOINING


def part_config(value: Any, part: str, known: dict[str, type[C]]) -> C:
    """One half's config from a config object or dict. Raises ConfigError naming the half."""
    if value is None:
        raise ConfigError(f"{part} is missing; give a config or a dict with a model_type of {', '.join(known)}")
    values = as_mapping(value, part)
    model_type = values.get("model_type") or getattr(value, "model_type", None)
    if not isinstance(model_type, str) or model_type not in known:
        raise ConfigError(f"{part}.model_type = {model_type!r} is not supported; known: {', '.join(known)}")
    try:
        return known[model_type].from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{part}: {error}") from None
