"""transformers' VisionEncoderDecoderModel on PyTorch: as it comes, or with a static cache and torch.compile."""

from typing import Any

import numpy as np
import torch
import transformers

from benchmarks import training
from benchmarks.sides.base import Base, Timed, seconds_of


class Side(Base):
    """`variant`: "" or "compiled"."""

    optimizer: Any = None

    def load(self) -> Any:
        model = transformers.VisionEncoderDecoderModel.from_pretrained(self.place).eval()
        for parameter in model.parameters():
            parameter.data.sum()  # what is mapped is read
        if self.variant == "compiled":
            model.encoder.forward = torch.compile(model.encoder.forward)
            model.decoder.forward = torch.compile(model.decoder.forward)
        return model

    def run(self, pixels: np.ndarray, beams: int, new: int) -> np.ndarray:
        options = {"num_beams": beams, "do_sample": False, "min_new_tokens": new, "max_new_tokens": new}
        if self.variant == "compiled":
            options["cache_implementation"] = "static"
        return self.model.generate(torch.from_numpy(pixels), **options).numpy()

    @torch.no_grad()
    def encoded(self, pixels: np.ndarray) -> Any:
        return self.model.encoder(torch.from_numpy(pixels)).last_hidden_state

    def train(self) -> Timed:
        """One step with AdamW."""
        self.ready()
        if self.optimizer is None:
            self.model.train()
            arguments = {"lr": training.LEARNING_RATE, "weight_decay": training.WEIGHT_DECAY}
            self.optimizer = torch.optim.AdamW(self.model.parameters(), **arguments)
        pixels, labels = map(torch.from_numpy, training.batch())

        def run() -> None:
            self.optimizer.zero_grad()
            self.model(pixel_values=pixels, labels=labels).loss.backward()
            self.optimizer.step()

        return {"seconds": seconds_of(run), "ids": []}
