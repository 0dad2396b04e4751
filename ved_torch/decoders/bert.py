"""BERT (arXiv:1810.04805) and its family: RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA's generator."""

import torch
from torch import Tensor, nn

from ved_core.configs import BertConfig, RobertaConfig
from ved_torch.decoders.base import Decoder
from ved_torch.decoders.blocks import BlockSpec, PostNormBlock
from ved_torch.layers.activations import ACTIVATIONS
from ved_torch.layers.blocks import Blocks
from ved_torch.layers.build import Builder, normal
from ved_torch.layers.positions import positions_beside_padding, rows_behind_padding


def block_spec(cfg: BertConfig) -> BlockSpec:
    """Any layer of a BERT."""
    return BlockSpec(
        cfg.hidden_size,
        cfg.num_attention_heads,
        cfg.intermediate_size,
        cfg.hidden_act,
        cfg.layer_norm_eps,
        dropout=cfg.hidden_dropout_prob,
        attention_dropout=cfg.attention_probs_dropout_prob,
    )


class Transform(nn.Module):
    """norm(activation(dense(x))): what a masked language model's vocabulary head reads."""

    def __init__(self, width: int, width_out: int, activation: str, epsilon: float, make: Builder) -> None:
        super().__init__()
        self.dense = make.linear(width, width_out)
        self.activation = ACTIVATIONS[activation]
        self.norm = make.norm(width_out, epsilon)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x_BTD)))


class BertDecoder(Decoder):
    """Learned positions, one token type, post-norm blocks, a transformed head with a bias.

    Embeddings may have a width of their own (ELECTRA); `project` then leads from it to the blocks' width.
    """

    def __init__(self, cfg: BertConfig, make: Builder) -> None:
        make = make.initialised(normal(cfg.initializer_range))
        super().__init__(cfg, make.init)
        width = cfg.embedding_width
        self.max_positions = cfg.max_positions
        self.tokens = make.embedding(cfg.vocab_size, width, padding=cfg.pad_token_id)
        self.positions = self.make_positions(cfg, make)
        self.token_types = make.embedding(cfg.type_vocab_size, width)
        self.norm_embedding = make.norm(width, cfg.layer_norm_eps)
        self.dropout = make.dropout(cfg.hidden_dropout_prob)
        self.project = None if width == cfg.hidden_size else make.linear(width, cfg.hidden_size)
        self.blocks = Blocks([PostNormBlock(block_spec(cfg), make) for _ in range(cfg.num_hidden_layers)])
        self.transform = Transform(cfg.hidden_size, width, cfg.head_act, cfg.layer_norm_eps, make)
        self.head = self.make_head(width, cfg.vocab_size, cfg.tie_word_embeddings, make)
        self.head_bias = make.parameter(cfg.vocab_size)

    @staticmethod
    def make_positions(cfg: BertConfig, make: Builder) -> nn.Embedding:
        """The table of positions."""
        return make.embedding(cfg.max_position_embeddings, cfg.embedding_width)

    def embed(self, input_ids: Tensor | None, embeds_BTD: Tensor, positions: Tensor) -> Tensor:
        first_type = self.token_types.weight[0]
        places = self.positions(self.position_rows(input_ids, positions))
        x = self.dropout(self.norm_embedding(embeds_BTD + first_type + places))
        return x if self.project is None else self.project(x)

    def position_rows(self, input_ids: Tensor | None, positions: Tensor) -> Tensor:
        """Rows of the table of positions, (T,) or (B, T)."""
        return positions


class RobertaDecoder(BertDecoder):
    """BERT whose positions begin behind the padding id and leave out padding."""

    def __init__(self, cfg: RobertaConfig, make: Builder) -> None:
        super().__init__(cfg, make)
        assert cfg.pad_token_id is not None
        self.pad = cfg.pad_token_id

    @staticmethod
    def make_positions(cfg: BertConfig, make: Builder) -> nn.Embedding:
        return make.embedding(cfg.max_position_embeddings, cfg.embedding_width, padding=cfg.pad_token_id)

    def count_positions(self, input_ids: Tensor | None, tokens: int, index: int, device: torch.device) -> Tensor:
        return positions_beside_padding(input_ids, tokens, index, self.pad, device)

    def position_rows(self, input_ids: Tensor | None, positions: Tensor) -> Tensor:
        return rows_behind_padding(input_ids, positions, self.pad)
