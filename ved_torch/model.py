"""`VisionEncoderDecoderModel`: encode, project, decode, loss."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conversion.checkpoint import fitting, of_part
from conversion.source import asked
from conversion.tables import model_table
from ved_core.attention_maps import chosen
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.configs.model import joined_config
from ved_core.errors import ConfigError, InputError
from ved_core.generation.config import GenerationConfig
from ved_core.generation.options import Options
from ved_core.generation.plan import Request, check_request
from ved_core.inputs import Given, check_cache, check_vectors
from ved_core.publishing import push_model
from ved_torch import inputs, loading, state, warm_start
from ved_torch.decoders import build_decoder
from ved_torch.decoders.base import Decoder
from ved_torch.encoders import build_encoder
from ved_torch.encoders.base import Encoder
from ved_torch.generate import ARGUMENTS, Generation, make_request
from ved_torch.layers.attention import set_implementation
from ved_torch.layers.blocks import set_checkpointing
from ved_torch.layers.build import Builder
from ved_torch.layers.cache import Cache
from ved_torch.loss import cross_entropy, shift_right
from ved_torch.outputs import EncoderOutput, GenerateOutput, VisionEncoderDecoderOutput

TensorLike = Tensor | np.ndarray
EncoderOutputs = EncoderOutput | tuple[Tensor, ...] | Tensor

HEADROOM = 32
"""Positions that a new cache has behind its first tokens."""


class VisionEncoderDecoderModel(nn.Module):
    """A vision encoder joined to a text decoder (`transformers`' VisionEncoderDecoderModel, in our own modules).

    Arguments of its methods may be NumPy arrays; they go to the device of the parameters, pixels to their dtype too.
    """

    main_input_name = "pixel_values"
    accepts_loss_kwargs = True
    """Tells transformers' Trainer that `forward` takes `num_items_in_batch`."""

    def __init__(
        self,
        config: VisionEncoderDecoderConfig | Mapping[str, Any] | None = None,
        encoder: Encoder | None = None,
        decoder: Decoder | None = None,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        attn_implementation: str = "sdpa",
    ) -> None:
        """A model of a config, of two built halves, or of a config and a built half; what is not built is newly
        initialised, from `generator` or torch's seed, on torch's default device, in `dtype`. `attn_implementation`: as
        `set_attn_implementation` takes it.

        Raises ConfigError where a half is of another config than the one given.
        """
        super().__init__()
        self.config = joined_config(config, getattr(encoder, "config", None), getattr(decoder, "config", None))
        make = Builder(generator=generator, dtype=dtype)
        self.encoder = build_encoder(self.config.encoder, make) if encoder is None else encoder
        self.decoder = build_decoder(self.config.decoder, make) if decoder is None else decoder
        self.encoder.config, self.decoder.config = self.config.encoder, self.config.decoder
        width_in, width_out = self.config.encoder.hidden_size, self.config.decoder.hidden_size
        self.enc_to_dec_proj = make.linear(width_in, width_out) if self.config.needs_projection else None
        self.set_attn_implementation(attn_implementation)
        self._generation_config = GenerationConfig()

    # What belongs to the model beside its parameters ----------------------------------------------------------------

    @property
    def generation_config(self) -> GenerationConfig:
        """Decoding defaults, from generation_config.json."""
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig | Mapping[str, Any]) -> None:
        self._generation_config = value if isinstance(value, GenerationConfig) else GenerationConfig.from_dict(value)

    @property
    def carried(self) -> dict[str, np.ndarray]:
        """Stored tensors that decoding never uses (poolers), by their stored names; written back by save_pretrained."""
        halves = (("encoder", self.encoder), ("decoder", self.decoder))
        return {f"{part}.{name}": array for part, half in halves for name, array in half.carried.items()}

    @carried.setter
    def carried(self, value: Mapping[str, np.ndarray]) -> None:
        self.encoder.carried, self.decoder.carried = of_part(value, "encoder"), of_part(value, "decoder")

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.decoder.tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the parameters are kept in."""
        return self.decoder.tokens.weight.dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the parameters hold, a tied head once; of those that train, or outside embedding tables."""
        tables = {id(part.weight) for part in self.modules() if exclude_embeddings and isinstance(part, nn.Embedding)}
        counted = (p for p in self.parameters() if id(p) not in tables and (p.requires_grad or not only_trainable))
        return sum(parameter.numel() for parameter in counted)

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """How attention is computed where its weights are not asked for: by torch's fused kernels ("sdpa") or by plain
        operations ("eager"). Raises ValueError for any other name."""
        set_implementation(self, attn_implementation)

    # Loading and saving ----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        config: VisionEncoderDecoderConfig | Mapping[str, Any] | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        attn_implementation: str = "sdpa",
        revision: str | None = None,
        subfolder: str | None = None,
        from_pt: bool | None = None,
        from_flax: bool | None = None,
        from_tf: bool | None = None,
        check_digests: bool | None = None,
    ) -> "VisionEncoderDecoderModel":
        """Load a checkpoint from a local folder or, by name, from the Hugging Face hub, in evaluation mode.

        `config` replaces the checkpoint's own. The format is found by looking; `from_pt`, `from_flax` and `from_tf` are
        unneeded, and choose where a checkpoint has several. `dtype`: torch's or its name, float32 by default;
        `torch_dtype` is its older spelling. `check_digests`: whether files are compared with the checkpoint's
        ved_digests.json first, by default yes, unless the environment's VED_CHECK_DIGESTS is 0. Raises
        HubError, ConfigError or CheckpointError, each naming the file and the fix, and ValueError for what is no
        floating-point dtype.
        """
        return loading.load(
            cls,
            name_or_path,
            config=config,
            dtype=state.as_dtype(dtype or torch_dtype or torch.float32),
            device=None if device is None else torch.device(device),
            attn_implementation=attn_implementation,
            revision=revision,
            subfolder=subfolder,
            wanted=asked(from_pt, from_flax, from_tf),
            check_digests=check_digests,
        )

    @classmethod
    def from_encoder_decoder_pretrained(
        cls,
        encoder_pretrained_model_name_or_path: str | Path | None = None,
        decoder_pretrained_model_name_or_path: str | Path | None = None,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        **options: Any,
    ) -> "VisionEncoderDecoderModel":
        """Join two pretrained halves, each out of any checkpoint that contains it: by itself, with other heads, beside
        another half, or in a whole model. What neither has (cross-attention, `enc_to_dec_proj`, a vocabulary head) is
        newly initialised from `generator` or torch's seed and named in one warning of the "ved" logger. The model is in
        evaluation mode.

        `options`: fields of the encoder's and the decoder's config with the prefix encoder_ or decoder_, those of the
        whole one without; encoder_config, encoder_model (a built half), encoder_revision, encoder_subfolder, and the
        same for the decoder; encoder_from_pt and the like, and check_digests, as `from_pretrained` takes them. Raises
        HubError, ConfigError or CheckpointError, each naming the file and the fix.
        """
        return warm_start.load(
            cls,
            encoder_pretrained_model_name_or_path,
            decoder_pretrained_model_name_or_path,
            options | {"revision": revision, "subfolder": subfolder},
            generator=generator,
            dtype=state.as_dtype(dtype or torch_dtype or torch.float32),
            device=None if device is None else torch.device(device),
        )

    def save_pretrained(
        self, folder: str | Path, *, format: str = "safetensors", max_shard_size: int | str | None = None
    ) -> None:
        """Write config.json, generation_config.json and weights under Hugging Face's names, all of them or none.

        `format`: safetensors, torch, flax, tf or orbax; `max_shard_size`: the most bytes in one file, as a number or as
        "2GB". Weights that were in the folder go, other files stay. Raises OSError, CheckpointError.
        """
        loading.save(self, Path(folder), format, max_shard_size)

    def push_to_hub(
        self, repo_id: str, *, format: str = "safetensors", max_shard_size: int | str | None = None, **hub: Any
    ) -> str:
        """save_pretrained to "owner/name" on the Hugging Face hub, in one commit with a model card where there is none;
        returns the commit's address. `hub`: `results`, for the card, and private, token, revision, create_pr,
        commit_message and replace_card of `ved_core.publishing.push`. Raises HubError, CheckpointError."""
        return push_model(self, repo_id, format=format, max_shard_size=max_shard_size, **hub)

    # Computing -------------------------------------------------------------------------------------------------------

    def encode(
        self,
        pixel_values: TensorLike,
        *,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> EncoderOutput:
        """pixel_values (B, C, H, W) to image tokens (B, P, D). Raises InputError for what are no images that fit."""
        pixels = self._tensor("pixel_values", pixel_values)
        inputs.check_images(pixels, self.encoder, interpolate_pos_encoding)
        return self.encoder(
            pixels,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )

    def project(self, encoder_outputs: EncoderOutputs) -> Tensor:
        """Image tokens in the width that cross-attention reads."""
        hidden = encoded(encoder_outputs)
        return hidden if self.enc_to_dec_proj is None else self.enc_to_dec_proj(hidden)

    def init_cache(self, batch_size: int, max_length: int, encoder_outputs: EncoderOutputs) -> Cache:
        """A cache for `max_length` tokens, with the keys and values of all image tokens: computed once, here."""
        check_cache(batch_size, max_length, self._images(encoder_outputs))
        return self.decoder.init_cache(self.project(encoder_outputs), max_length)

    def decode(
        self,
        decoder_input_ids: TensorLike | None,
        encoder_outputs: EncoderOutputs | None,
        *,
        cache: Cache | None = None,
        decoder_attention_mask: TensorLike | None = None,
        decoder_inputs_embeds: TensorLike | None = None,
        labels: TensorLike | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> VisionEncoderDecoderOutput:
        """Score tokens (B, T) behind those in `cache`, whose successor is in the output, or without a cache.

        `encoder_outputs` may be None where there is a cache, which knows the images. A cache grows as needed.
        Raises InputError for what does not fit; values are not looked at on a device, which would have to be waited
        for, nor while compiling.
        """
        if encoder_outputs is None and cache is None:
            raise InputError("give encoder_outputs or a cache")
        given = self._decoder_inputs(
            cache,
            None if encoder_outputs is None else self._images(encoder_outputs),
            decoder_input_ids=decoder_input_ids,
            decoder_inputs_embeds=decoder_inputs_embeds,
            decoder_attention_mask=decoder_attention_mask,
            labels=labels,
        )
        hidden = self.project(encoder_outputs) if encoder_outputs is not None and cache is None else None
        out = self.decoder(
            given["decoder_input_ids"],
            inputs_embeds=given["decoder_inputs_embeds"],
            attention_mask=given["decoder_attention_mask"],
            encoder_hidden_states=hidden,
            cache=cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        return VisionEncoderDecoderOutput(
            None if labels is None else cross_entropy(out.logits, given["labels"], num_items_in_batch),
            out.logits,
            out.cache,
            out.hidden_states,
            out.attentions,
            out.cross_attentions,
            None if encoder_outputs is None else encoded(encoder_outputs),
            getattr(encoder_outputs, "hidden_states", None),
            getattr(encoder_outputs, "attentions", None),
        )

    def forward(
        self,
        pixel_values: TensorLike | None = None,
        decoder_input_ids: TensorLike | None = None,
        decoder_attention_mask: TensorLike | None = None,
        labels: TensorLike | None = None,
        encoder_outputs: EncoderOutputs | None = None,
        past_key_values: Cache | None = None,
        decoder_inputs_embeds: TensorLike | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        interpolate_pos_encoding: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> VisionEncoderDecoderOutput | tuple[Any, ...]:
        """Scores of every decoder position, and the loss where `labels` (B, T; -100 is ignored) are given.

        `labels` alone make the decoder inputs. `num_items_in_batch`: what the summed loss is divided by, the number of
        labels by default. `use_cache=True` returns a cache in `past_key_values`; given back with new tokens alone, it
        stands for the tokens and images before them. `return_dict=False` returns a tuple of what is not None.
        Raises InputError for what is missing, contradicts or does not fit, as `decode` does, ConfigError where `labels`
        need a token that is not set.
        """
        wanted: dict[str, Any] = {
            "output_attentions": bool(output_attentions),
            "output_hidden_states": bool(output_hidden_states),
        }
        if pixel_values is not None and encoder_outputs is not None:
            raise InputError("give either pixel_values or encoder_outputs")
        pixels = None if past_key_values is not None else self._tensor("pixel_values", pixel_values)
        images = None
        if pixels is not None:
            inputs.check_images(pixels, self.encoder, interpolate_pos_encoding)
            images = inputs.given("pixel_values", pixels)
        elif encoder_outputs is not None:
            images = self._images(encoder_outputs)
        elif past_key_values is None:
            raise InputError("give either pixel_values or encoder_outputs")
        given = self._decoder_inputs(
            past_key_values,
            images,
            decoder_input_ids=decoder_input_ids,
            decoder_inputs_embeds=decoder_inputs_embeds,
            decoder_attention_mask=decoder_attention_mask,
            labels=labels,
        )
        if pixels is not None:
            encoder_outputs = self.encode(pixels, interpolate_pos_encoding=interpolate_pos_encoding, **wanted)
        tokens = given["decoder_input_ids"] if decoder_inputs_embeds is None else given["decoder_inputs_embeds"]
        if tokens is None:
            tokens = self.prepare_decoder_input_ids_from_labels(given["labels"])
            given["decoder_input_ids"] = tokens
        if use_cache and past_key_values is None:
            assert encoder_outputs is not None
            past_key_values = self.decoder.init_cache(self.project(encoder_outputs), tokens.shape[1] + HEADROOM)
        output = self.decode(
            encoder_outputs=encoder_outputs,
            cache=past_key_values,
            num_items_in_batch=num_items_in_batch,
            **given,
            **wanted,
        )
        # torch's DataParallel gathers tuples of tensors, and no dataclass of them.
        as_tuple = return_dict is False or getattr(self, "_is_replica", False)
        return output.to_tuple() if as_tuple else output

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """What the decoder is given to predict `labels` (B, T). Raises ConfigError where a token for it is not set."""
        return shift_right(labels, *self._start_and_pad())

    def _start_and_pad(self) -> tuple[int, int]:
        options = Options({}, self.generation_config, self.config)
        tokens = []
        for name in ("decoder_start_token_id", "pad_token_id"):
            value = options.value(name)
            if value is None:
                raise ConfigError(f"{name} is not set, and labels need it: set it with model.config.{name} = ...")
            tokens.append(value)
        return tokens[0], tokens[1]

    def _tensor(self, name: str, value: Any) -> Any:
        """An optional argument as a tensor on the parameters' device. Raises InputError for what is no array."""
        return None if value is None else inputs.tensor(name, value, self.device)

    def _decoder_inputs(self, cache: Cache | None, images: Given | None, **arguments: Any) -> dict[str, Any]:
        """The decoder's arguments as tensors. Raises InputError for what does not fit."""
        given = {name: inputs.wide(self._tensor(name, value)) for name, value in arguments.items()}
        inputs.check_tokens(self.decoder, cache, images, **given)
        return given

    def _images(self, encoder_outputs: EncoderOutputs) -> Given:
        """What the decoder reads, for the checks. Raises InputError for anything but image tokens of the encoder's."""
        images = inputs.given("encoder_outputs", encoded(encoder_outputs))
        check_vectors(images, self.config.encoder.hidden_size)
        return images

    # Decoding --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        pixel_values: TensorLike | None = None,
        decoder_input_ids: TensorLike | None = None,
        decoder_attention_mask: TensorLike | None = None,
        *,
        encoder_outputs: EncoderOutputs | None = None,
        streamer: Any = None,
        chunk_size: int = 1,
        interpolate_pos_encoding: bool = False,
        **options: Any,
    ) -> Tensor | GenerateOutput:
        """Decode, in evaluation mode whatever mode the model is in.

        `decoder_input_ids` (B, T): prompts; `decoder_attention_mask`: False for their padding, on either side, so that
        each row gives what it gives alone. `streamer`: has `put(ids)`, called for the prompt and then every
        `chunk_size` steps for each column of new tokens, and `end()`.

        `options`: every field of `GenerationConfig`; defaults as transformers takes them. And `generation_config`,
        whose fields stand behind the call's own; `generator` for sampling (torch's own by default); `tokenizer`, which
        stop_strings need; `prefix_allowed_tokens_fn(row, ids)`, which gives the ids that may follow;
        `logits_processor`, one or a list of functions of ids (R, T) and scores (R, V); `prepend_start`: whether the
        start token stands before the prompt (transformers' rule by default); `batch_buckets`: batch sizes, to the next
        of which a batch is filled up. Or, in place of all options but generator, `request`: what `generation_request`
        made of them.

        Returns ids (R, L) int64, num_return_sequences for each image, or a GenerateOutput where
        return_dict_in_generate=True. Raises GenerationError for an option that is missing, contradicting or not
        supported, ConfigError for one of a wrong type.
        """
        options |= {"decoder_input_ids": decoder_input_ids, "decoder_attention_mask": decoder_attention_mask}
        with evaluating(self):
            generation = self._generation(pixel_values, encoder_outputs, interpolate_pos_encoding, options)
            generated = generation.search() if streamer is None else generation.streamed(streamer, chunk_size)
            if not generation.request.config.return_dict_in_generate:
                return generation.sequences(generated)[0]
            return generation.output(generated)

    @torch.no_grad()
    def generate_and_look(
        self,
        pixel_values: TensorLike,
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        interpolate_pos_encoding: bool = False,
        **options: Any,
    ) -> tuple[GenerateOutput, Tensor]:
        """generate(), and where each new token looked: cross-attention (R, N, P) float32, the mean over decoder
        `layers` and `heads`, all by default, negative ones counted from the last. `ved_core.attention_maps.TokenGrid`
        says where the P image tokens lie. Raises as `generate`."""
        layers = chosen("layers", layers, len(self.decoder.blocks))
        heads = chosen("heads", heads, self.decoder.cross_heads)
        options["return_dict_in_generate"] = True
        with evaluating(self):
            generation = self._generation(pixel_values, None, interpolate_pos_encoding, options)
            generated = generation.search()
            return generation.output(generated), generation.cross_attention(generated, layers, heads)

    def stream(
        self,
        pixel_values: TensorLike | None = None,
        *,
        encoder_outputs: EncoderOutputs | None = None,
        chunk_size: int = 1,
        interpolate_pos_encoding: bool = False,
        **options: Any,
    ) -> Iterator[np.ndarray]:
        """generate(), token by token: yields the ids (R, up to `chunk_size`) that are new, padding for rows that have
        ended. Takes the options of `generate`; beam search, which decides at the end, is refused."""
        with torch.no_grad(), evaluating(self):
            generation = self._generation(pixel_values, encoder_outputs, interpolate_pos_encoding, options)
        return self._streamed(generation.chunks(chunk_size))

    def _streamed(self, chunks: Iterator[tuple[np.ndarray, Any]]) -> Iterator[np.ndarray]:
        while True:
            # Not around the yield: what the caller does meanwhile is none of our business.
            with torch.no_grad(), evaluating(self):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk[0]

    def generation_request(self, batch_size: int, **options: Any) -> Request:
        """What `generate` with these options does for a batch. Raises GenerationError, ConfigError."""
        arguments = {name: options.pop(name) for name in ARGUMENTS if name in options and name != "generator"}
        return make_request(self, batch_size, options, **arguments)

    def _generation(
        self,
        pixel_values: TensorLike | None,
        encoder_outputs: EncoderOutputs | None,
        interpolate_pos_encoding: bool,
        options: dict[str, Any],
    ) -> Generation:
        """A call of `generate`, its images encoded."""
        if (pixel_values is None) == (encoder_outputs is None):
            raise InputError("give either pixel_values or encoder_outputs")
        generator, ready = options.pop("generator", None), options.pop("request", None)

        def resolved(batch: int) -> Request:
            return self.generation_request(batch, **options) if ready is None else check_request(ready, batch, options)

        if encoder_outputs is not None:
            self._images(encoder_outputs)
            hidden = encoded(encoder_outputs)
            images = encoder_outputs if isinstance(encoder_outputs, EncoderOutput) else EncoderOutput(hidden)
            return Generation(self, resolved(len(hidden)), images, generator)
        pixels = self._tensor("pixel_values", pixel_values)
        inputs.check_images(pixels, self.encoder, interpolate_pos_encoding, wait=True)
        request = resolved(len(pixels))
        wanted = {name: bool(request.config.get(name)) for name in ("output_attentions", "output_hidden_states")}
        images = self.encode(pixels, interpolate_pos_encoding=interpolate_pos_encoding, **wanted)
        return Generation(self, request, images, generator)

    def decode_step(self, ids_B: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Scores (B, V) float32 of what follows ids (B,), and the cache with them in it."""
        output = self.decoder(ids_B[:, None], cache=cache)
        return output.logits[:, 0], output.cache

    # Training --------------------------------------------------------------------------------------------------------

    def freeze_encoder(self) -> None:
        """Let training leave the encoder as it is."""
        self.encoder.requires_grad_(False)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """In training, compute each layer's activations again instead of keeping them. Arguments: those of
        torch.utils.checkpoint. Raises ValueError for its reentrant variant, which loses gradients."""
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        if options["use_reentrant"]:
            raise ValueError("use_reentrant=True loses the gradients of what is passed in tuples: leave it out")
        set_checkpointing(self, options)

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations."""
        set_checkpointing(self, None)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """`gradient_checkpointing_enable` under the name that newer releases of transformers call."""
        if every_n_layers != 1 or offload:
            raise ValueError("only every_n_layers=1 without offload is supported")
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs)

    # The vocabulary --------------------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.decoder.tokens

    def get_output_embeddings(self) -> nn.Module:
        """The module whose `weight` (V, D) scores the vocabulary: the token embedding where the head is tied to it."""
        return self.decoder.tokens if self.decoder.head is None else self.decoder.head

    def tie_weights(self) -> None:
        """Let the token embedding serve as the vocabulary head, where config.decoder.tie_word_embeddings says so."""
        if self.config.decoder.tie_word_embeddings:
            self.decoder.tie()

    def untie_weights(self) -> None:
        """Give the vocabulary head a weight of its own, a copy of the token embedding; the config follows."""
        self.decoder.untie()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Cut the vocabulary, or add newly initialised entries; an untied head follows, and config.decoder.vocab_size.

        Returns the token embedding. Call it before an optimizer takes the parameters: they are new ones.
        """
        entries = self.config.decoder.vocab_size if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            entries += -entries % pad_to_multiple_of
        carried = self.carried
        self.decoder.resize_token_embeddings(entries)
        self.carried = fitting(carried, model_table(self.config))
        if self.config.get("vocab_size") is not None:
            self.config.vocab_size = entries
        return self.decoder.tokens


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every submodule's own mode comes back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def encoded(encoder_outputs: EncoderOutputs) -> Tensor:
    """The last hidden state (B, P, D) of an EncoderOutput, of a tuple that begins with it, or the tensor itself."""
    hidden = encoder_outputs if isinstance(encoder_outputs, Tensor) else encoder_outputs[0]
    if not isinstance(hidden, Tensor):
        raise InputError(f"encoder_outputs should begin with a tensor (B, P, D), got {type(hidden).__name__}")
    return hidden
