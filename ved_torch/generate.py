"""generate(): a call's arguments to a request, the decoding loop, and the outputs that were asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ved_core.generation.config import GenerationConfig
from ved_core.generation.options import Options
from ved_core.generation.plan import Plan, Request, Rows, check_streamable
from ved_core.generation.requests import plan_decoding
from ved_torch.generation import loop
from ved_torch.generation.loop import Generated, result, running
from ved_torch.generation.state import State, initial
from ved_torch.layers.cache import Cache
from ved_torch.outputs import DecoderOutput, EncoderOutput, GenerateOutput

if TYPE_CHECKING:
    from ved_torch.model import VisionEncoderDecoderModel

ARGUMENTS = (
    "decoder_input_ids",
    "decoder_attention_mask",
    "generation_config",
    "generator",
    "logits_processor",
    "prefix_allowed_tokens_fn",
    "tokenizer",
    "prepend_start",
    "batch_buckets",
)
"""What a call may have beside the fields of GenerationConfig."""


def make_request(
    model: "VisionEncoderDecoderModel",
    batch: int,
    options: Mapping[str, Any],
    *,
    decoder_input_ids: Any = None,
    decoder_attention_mask: Any = None,
    generation_config: Any = None,
    logits_processor: Any = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None,
    tokenizer: Any = None,
    prepend_start: bool | None = None,
    batch_buckets: Sequence[int] | None = None,
) -> Request:
    """What `generate` with these arguments does for a batch. Raises GenerationError, ConfigError."""
    given = None if generation_config is None else GenerationConfig.of(generation_config)
    return plan_decoding(
        Options(options, model.generation_config, model.config, given),
        model.config,
        batch,
        longest=model.decoder.max_positions,
        prompt=_host(decoder_input_ids),
        mask=_host(decoder_attention_mask),
        prepend_start=prepend_start,
        tokenizer=tokenizer,
        logits_processor=logits_processor,
        prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
        batch_buckets=batch_buckets,
    )


class Generation:
    """One call of generate(): the images, encoded, and the request."""

    def __init__(
        self,
        model: "VisionEncoderDecoderModel",
        request: Request,
        images: EncoderOutput,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.request, self.images = model, request, images
        self.batch = len(request.prompt)
        encoded = images.last_hidden_state
        self.numbers = {name: _tensors(value, encoded.device) for name, value in request.numbers.items()}
        self.rows = Rows(*(_tensors(array, encoded.device) for array in request.rows))
        self.generators = self._generators(generator, encoded.device) if self.plan.do_sample else []
        added = len(request.rows.row_B) - self.batch
        self.encoded = torch.cat([encoded, encoded[-1:].expand(added, -1, -1)]) if added else encoded

    @property
    def plan(self) -> Plan:
        return self.request.plan

    @property
    def patience(self) -> int:
        """How many steps to take with weights as they lie."""
        single = len(self.encoded) * self.plan.streams == 1
        return self.model.decoder.packing.patience if single else 0

    def _generators(self, generator: torch.Generator | None, device: torch.device) -> list[torch.Generator]:
        """One of each row, seeded from the caller's or torch's own, and from the row's place."""
        source = None if generator is None else generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=source))
        return [torch.Generator(device).manual_seed(seed ^ int(row)) for row in self.request.rows.row_B]

    def start(self) -> State:
        """The state of the loop, the prompt in its cache."""
        if not self.patience:
            self.model.decoder.pack()
        cache = self.model.init_cache(len(self.encoded), self.plan.slots, self.encoded)
        if self.plan.prompt > 1:
            prompt, mask = torch.as_tensor(self.rows.prompt_BT), torch.as_tensor(self.rows.mask_BT)
            output = self.model.decoder(
                prompt[:, :-1],
                attention_mask=mask[:, :-1] if self.plan.masked else None,
                cache=cache,
                positions=self.positions()[:, :-1],
            )
            cache = output.cache
        return initial(cache, self.rows, self.numbers, self.plan)

    def positions(self) -> Tensor:
        """Of the prompt's tokens (B or 1, T)."""
        prompt, mask = torch.as_tensor(self.rows.prompt_BT), torch.as_tensor(self.rows.mask_BT)
        if self.plan.masked:
            return (mask.cumsum(dim=1) - 1).clamp(min=0)
        return torch.atleast_2d(self.model.decoder.count_positions(prompt, prompt.shape[1], 0, prompt.device))

    def advance(self, state: State, until: int) -> State:
        """Steps until `until` tokens were generated or all rows have ended."""
        first_B = self.positions()[:, -1].expand(len(self.encoded))

        def advanced(state: State, until: int) -> State:
            return loop.advance(self._step, state, first_B, self.rows, self.numbers, self.plan, self.generators, until)

        decoder = self.model.decoder
        if self.patience:
            before = state.new
            state = advanced(state, min(until, before + self.patience))
            decoder.packing.patience -= state.new - before
            if self.patience or not running(state, self.plan):
                return state
            decoder.pack()
        with decoder.packing.lent():
            return advanced(state, until)

    def _step(
        self, ids_BK: Tensor, cache: Cache, visible_BKC: Tensor | None, position_B1: Tensor
    ) -> tuple[Tensor, Cache]:
        output = self.model.decoder(ids_BK, cache=cache, visible=visible_BKC, positions=position_B1)
        return output.logits, output.cache

    def search(self) -> Generated:
        """The whole loop."""
        return result(self.advance(self.start(), self.plan.steps), self.plan)

    def chunks(self, size: int) -> Iterator[tuple[np.ndarray, State]]:
        """The loop by and by: new ids (R, up to `size`) and the state behind them."""
        check_streamable(self.plan, size)
        return self._chunks(size)

    def _chunks(self, size: int) -> Iterator[tuple[np.ndarray, State]]:
        state = self.start()
        while running(state, self.plan):
            before = state.new
            state = self.advance(state, before + size)
            first = self.plan.prompt + before
            ids = state.sequences.ids_BKL[: self.batch, :, first : self.plan.prompt + state.new]
            yield ids.flatten(0, 1).cpu().numpy().copy(), state

    def streamed(self, streamer: Any, size: int) -> Generated:
        """The loop with `streamer.put` called for the prompt and every column of new tokens (B,), then `end`."""
        streamer.put(torch.as_tensor(self.request.prompt))
        state = None
        for ids, reached in self.chunks(size):
            state = reached
            for column in ids.T:
                streamer.put(torch.as_tensor(column))
        streamer.end()
        assert state is not None
        return result(state, self.plan)

    def sequences(self, generated: Generated) -> tuple[Tensor, Tensor]:
        """Ids (R, L) of the images that were given, no column behind the longest row's last token, and how many tokens
        each row has that were generated."""
        rows = self.batch * self.plan.returned
        lengths = (generated.path_RS[:rows] >= 0).sum(dim=1)
        new = int(lengths.max()) if self.plan.beams else generated.steps
        ids = generated.ids_RL[:rows, : self.plan.prompt + new]
        if self.plan.masked:
            prompt = torch.as_tensor(self.request.prompt, device=ids.device).repeat_interleave(
                self.plan.returned, dim=0
            )
            ids = torch.cat([prompt, ids[:, self.plan.prompt :]], dim=1)
        return ids, lengths

    def output(self, generated: Generated) -> GenerateOutput:
        """Everything that was asked for."""
        plan, config = self.plan, self.request.config
        ids, lengths = self.sequences(generated)
        rows, new = len(ids), ids.shape[1] - plan.prompt
        log_probs = generated.log_probs_RS[:rows, :new]
        path = generated.path_RS[:rows, :new]
        first = (torch.arange(rows, device=ids.device) // plan.returned * plan.streams)[:, None]
        inside: dict[str, tuple[Tensor, ...] | None] = {}
        if config.output_attentions or config.output_hidden_states:
            inside = self._inspect(generated.ids_RL[:rows, : plan.prompt + new])
        return GenerateOutput(
            ids,
            log_probs,
            torch.exp(log_probs.sum(dim=1) / lengths.clamp(min=1)),
            None if generated.scores_R is None else generated.scores_R[:rows],
            self._records(generated.records.scores),
            self._records(generated.records.logits),
            torch.where(path < 0, -1, path + first) if plan.beams else None,
            inside.get("attentions"),
            inside.get("cross_attentions"),
            inside.get("hidden_states"),
            self.images.attentions,
            self.images.hidden_states,
        )

    def _records(self, values: list[Tensor] | None) -> tuple[Tensor, ...] | None:
        return None if values is None else tuple(step[: self.batch * self.plan.streams] for step in values)

    def cross_attention(
        self, generated: Generated, layers: tuple[int, ...] | None, heads: tuple[int, ...] | None
    ) -> Tensor:
        """Where each generated token looked, (R, N, P) float32, the mean of these layers and heads: one more pass over
        the finished sequences, image by image, for all weights of a batch of large images take gigabytes."""
        ids_RL, _ = self.sequences(generated)
        ids_RL = generated.ids_RL[: len(ids_RL), : ids_RL.shape[1]]
        looks = []
        for image in range(self.batch):
            every = self._again(ids_RL, range(image, image + 1), attentions=True).cross_attentions or ()
            means = [
                (every[layer] if heads is None else every[layer][:, list(heads)]).float().mean(dim=1)
                for layer in layers or range(len(every))
            ]
            looks.append(torch.stack(means).mean(dim=0)[:, self.plan.prompt - 1 :])
        return torch.cat(looks)

    def _inspect(self, ids_RL: Tensor) -> dict[str, tuple[Tensor, ...] | None]:
        """The decoder's attentions and hidden states at generated tokens."""
        config = self.request.config
        wanted = {"attentions": bool(config.output_attentions), "hidden_states": bool(config.output_hidden_states)}
        output = self._again(ids_RL, range(self.batch), **wanted)
        first = self.plan.prompt - 1
        kinds = ("attentions", "cross_attentions", "hidden_states")
        return {
            kind: tuple(x[:, :, first:] if x.ndim == 4 else x[:, first:] for x in output[kind])
            for kind in kinds
            if kind in output
        }

    def _again(
        self, ids_RL: Tensor, images: range, *, attentions: bool = False, hidden_states: bool = False
    ) -> DecoderOutput:
        """One pass over some images' finished sequences, their last tokens left out."""
        times, new = self.plan.returned, ids_RL.shape[1] - self.plan.prompt
        own = slice(images.start, images.stop)
        mask = torch.as_tensor(self.rows.mask_BT)[own]
        before = self.positions().expand(len(self.encoded), -1)[own]
        behind = mask.sum(dim=1)[:, None] + torch.arange(new, device=mask.device)
        mask = torch.cat([mask, mask.new_ones(len(mask), new)], dim=1)
        return self.model.decoder(
            ids_RL[images.start * times : images.stop * times, :-1],
            attention_mask=mask.repeat_interleave(times, dim=0)[:, :-1],
            encoder_hidden_states=self.model.project(self.encoded[own].repeat_interleave(times, dim=0)),
            positions=torch.cat([before, behind], dim=1).repeat_interleave(times, dim=0)[:, :-1],
            output_attentions=attentions,
            output_hidden_states=hidden_states,
        )


def _host(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def _tensors(value: Any, device: torch.device) -> Any:
    """NumPy's arrays, one or a tuple of them, as tensors: indices want int64."""
    if isinstance(value, tuple):
        return tuple(_tensors(one, device) for one in value)
    tensor = torch.tensor(value, device=device)
    return tensor.long() if tensor.dtype == torch.int32 else tensor
