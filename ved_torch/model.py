"""`VisionEncoderDecoderModel`: encode, project, decode, loss."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ved_core.attention_maps import chosen
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.configs.model import joined_config
from ved_core.errors import InputError
from ved_core.generation.config import GenerationConfig
from ved_core.generation.options import start_and_pad
from ved_core.generation.plan import Request, check_request
from ved_core.inputs import Given, check_cache, check_vectors
from ved_torch import inputs
from ved_torch.decoders import build_decoder
from ved_torch.decoders.base import Decoder
from ved_torch.encoders import build_encoder
from ved_torch.encoders.base import Encoder
from ved_torch.generate import ARGUMENTS, Generation, make_request
from ved_torch.layers.build import Builder
from ved_torch.layers.cache import Cache
from ved_torch.layers.slicing import by_images
from ved_torch.loss import cross_entropy, shift_right
from ved_torch.outputs import EncoderOutput, GenerateOutput, VisionEncoderDecoderOutput
from ved_torch.pretrained import PreTrainedModel

TensorLike = Tensor | np.ndarray
EncoderOutputs = EncoderOutput | tuple[Tensor, ...] | Tensor

HEADROOM = 32
"""Positions that a new cache has behind its first tokens."""


class VisionEncoderDecoderModel(PreTrainedModel):
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
        encode = partial(self.encoder, interpolate_pos_encoding=interpolate_pos_encoding)
        if output_attentions or output_hidden_states:
            return encode(pixels, output_attentions=output_attentions, output_hidden_states=output_hidden_states)
        return EncoderOutput(by_images(lambda some: encode(some).last_hidden_state, pixels))

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
        return shift_right(labels, *start_and_pad(self.generation_config, self.config))

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
