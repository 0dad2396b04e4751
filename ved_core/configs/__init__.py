"""Model configurations with Hugging Face's field names and defaults."""

from ved_core.configs.bart import BartConfig, MBartConfig
from ved_core.configs.base import Config
from ved_core.configs.beit import BeitConfig
from ved_core.configs.bert import BertConfig, CamembertConfig, ElectraConfig, RobertaConfig, XLMRobertaConfig
from ved_core.configs.decoder import DecoderConfig
from ved_core.configs.dinov2 import Dinov2Config, Dinov2WithRegistersConfig
from ved_core.configs.distilbert import DistilBertConfig
from ved_core.configs.encoder import EncoderConfig, PlainEncoderConfig
from ved_core.configs.gpt2 import GPT2Config
from ved_core.configs.model import CONFIG_FILE, DECODERS, ENCODERS, VisionEncoderDecoderConfig
from ved_core.configs.swin import DonutSwinConfig, SwinConfig, Swinv2Config
from ved_core.configs.trocr import TrOCRConfig
from ved_core.configs.vit import DeiTConfig, ViTConfig

__all__ = [
    "CONFIG_FILE",
    "DECODERS",
    "ENCODERS",
    "BartConfig",
    "BeitConfig",
    "BertConfig",
    "CamembertConfig",
    "Config",
    "DecoderConfig",
    "DeiTConfig",
    "Dinov2Config",
    "Dinov2WithRegistersConfig",
    "DistilBertConfig",
    "DonutSwinConfig",
    "ElectraConfig",
    "EncoderConfig",
    "GPT2Config",
    "MBartConfig",
    "PlainEncoderConfig",
    "RobertaConfig",
    "SwinConfig",
    "Swinv2Config",
    "TrOCRConfig",
    "ViTConfig",
    "VisionEncoderDecoderConfig",
    "XLMRobertaConfig",
]
