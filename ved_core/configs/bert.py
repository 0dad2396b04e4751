"""BERT (arXiv:1810.04805), RoBERTa (arXiv:1907.11692), XLM-RoBERTa (arXiv:1911.02116), CamemBERT (arXiv:1911.03894)
and ELECTRA's generator (arXiv:2003.10555)."""

import dataclasses
from typing import ClassVar

from ved_core.configs.decoder import DecoderConfig
from ved_core.configs.fields import (
    activation,
    constant,
    depth,
    non_negative,
    positive,
    probability,
    size,
    token,
    tokens,
)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class BertConfig(DecoderConfig):
    """BERT as a decoder with cross-attention."""

    model_type: ClassVar[str] = "bert"
    architecture: ClassVar[str] = "BertLMHeadModel"

    vocab_size: int = size(30522)
    hidden_size: int = size(768)
    num_hidden_layers: int = depth(12)
    num_attention_heads: int = size(12)
    intermediate_size: int = size(3072)
    hidden_act: str = activation("gelu")
    hidden_dropout_prob: float = probability(0.1)
    attention_probs_dropout_prob: float = probability(0.1)
    max_position_embeddings: int = size(512)
    type_vocab_size: int = size(2)
    initializer_range: float = non_negative(0.02)
    layer_norm_eps: float = positive(1e-12)
    position_embedding_type: str = constant("absolute")
    pad_token_id: int | None = token(0)

    def check(self) -> None:
        super().check()
        self.check_heads("num_attention_heads", "hidden_size")
        self.check_cross_width("hidden_size")
        self.check_padding()

    @property
    def embedding_width(self) -> int:
        """Width of the token embedding and of the vocabulary head's input."""
        return self.hidden_size

    @property
    def head_act(self) -> str:
        """The vocabulary head's activation."""
        return self.hidden_act

    @property
    def max_positions(self) -> int:
        """How many tokens the positions are enough for."""
        return self.max_position_embeddings


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class RobertaConfig(BertConfig):
    """BERT with positions that are counted from behind the padding id."""

    model_type: ClassVar[str] = "roberta"
    architecture: ClassVar[str] = "RobertaForCausalLM"

    vocab_size: int = size(50265)
    bos_token_id: int | None = token(0)
    pad_token_id: int | None = token(1)
    eos_token_id: int | list[int] | None = tokens(2)

    def check(self) -> None:
        super().check()
        if self.pad_token_id is None:
            raise self.error("pad_token_id", None, "positions are counted from it; set it")
        if self.max_positions < 1:
            raise self.error(
                "max_position_embeddings",
                self.max_position_embeddings,
                f"positions begin behind pad_token_id = {self.pad_token_id}, so it should be at least "
                f"{self.pad_token_id + 2}",
            )

    @property
    def head_act(self) -> str:
        return "gelu"

    @property
    def max_positions(self) -> int:
        assert self.pad_token_id is not None
        return self.max_position_embeddings - self.pad_token_id - 1


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class XLMRobertaConfig(RobertaConfig):
    """RoBERTa over a multilingual vocabulary."""

    model_type: ClassVar[str] = "xlm-roberta"
    architecture: ClassVar[str] = "XLMRobertaForCausalLM"

    vocab_size: int = size(30522)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class CamembertConfig(RobertaConfig):
    """RoBERTa over a French vocabulary."""

    model_type: ClassVar[str] = "camembert"
    architecture: ClassVar[str] = "CamembertForCausalLM"

    vocab_size: int = size(30522)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class ElectraConfig(BertConfig):
    """BERT with embeddings of a width of their own."""

    model_type: ClassVar[str] = "electra"
    architecture: ClassVar[str] = "ElectraForCausalLM"

    embedding_size: int = size(128)
    hidden_size: int = size(256)
    num_attention_heads: int = size(4)
    intermediate_size: int = size(1024)

    @property
    def embedding_width(self) -> int:
        return self.embedding_size

    @property
    def head_act(self) -> str:
        return "gelu"
