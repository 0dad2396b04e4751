"""What encoding, a decoding step, generation and a train step cost on TPUs that are not there: each is compiled by
libtpu, and the compiler's own account is read.

ViT-GPT2 (ViT-B/16 at 224 x 224, GPT-2 with cross-attention), TrOCR base (ViT-B/16 at 384 x 384, 12 layers of width
1024) and Donut (DonutSwin at 1280 x 960, 4 layers of mBART), 32 images a chip where no other number is said. Train
steps compute in bfloat16 with float32 parameters, 64 tokens; all else is bfloat16. Beside ViT-GPT2 stands transformers'
last Flax class, on the same compiler, where an environment that has it is named by PEER_PYTHON.

    python -m benchmarks.tpu [--only TEXT ...] [--write]
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.models import donut, trocr_base, vit_gpt2
from ved_core.configs import VisionEncoderDecoderConfig
from ved_core.configs.fields import as_pair
from ved_core.errors import VedError
from ved_flax import FlaxVisionEncoderDecoderModel, parallel, state
from ved_flax.aot import hlo
from ved_flax.aot.compiling import compile_ahead, described
from ved_flax.aot.report import Memory, Report, analysed, lines, make_report
from ved_flax.aot.topology import Topology, topology
from ved_flax.compiled import jit_steps, parameters
from ved_flax.train.ahead import compile_model_step
from ved_flax.train.config import OptimizerConfig, ParallelConfig, TrainConfig
from ved_flax.train.data import DataConfig

RESULT = Path(__file__).parent / "results" / "tpu.json"
BATCH, TOKENS, NEW = 32, 64, 24
"""Images of a chip, label tokens (and places in a cache), tokens that are generated."""
SINGLE = " of one image"
SGD = "train step by SGD"
PARTS = "train step in {} parts"
PEER = "ViT-GPT2 in transformers 4.48.3"
PEERS = {"encode": "encode", "decode step": "decode", f"decode step{SINGLE}": "decode", SGD: "train"}
"""Program -> its name in peer/program.py."""


class Case(NamedTuple):
    """A row of the table."""

    model: str
    program: str
    topology: str
    mesh: str

    def __str__(self) -> str:
        return ", ".join(self)


MODELS = {"ViT-GPT2": vit_gpt2, "TrOCR base": trocr_base, "Donut": donut}
DRY = {
    "encoder": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "decoder": {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
}
"""ViT-GPT2 without dropout."""


def shape(config: VisionEncoderDecoderConfig, batch: int) -> tuple[int, ...]:
    """Of pixel_values."""
    return batch, config.encoder.num_channels, *as_pair(config.encoder.image_size)


def inference(program: str, config: VisionEncoderDecoderConfig, chips: Topology) -> Report:
    """Encode, decode step or generate, the batch spread over the chips and each holding all parameters."""
    model = state.abstract(lambda: FlaxVisionEncoderDecoderModel(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    steps, batch = jit_steps(model), 1 if program.endswith(SINGLE) else BATCH * len(chips.devices)
    mesh = parallel.make_mesh(devices=chips.devices)
    everywhere, spread = NamedSharding(mesh, P()), NamedSharding(mesh, parallel.ROWS)
    params = described(parameters(model), everywhere)
    pixels = jax.ShapeDtypeStruct(shape(config, batch), jnp.float32, sharding=spread)

    def rows(tree: Any) -> Any:
        return jax.tree.map(lambda x: described(x, spread if x.shape[:1] == (batch,) else everywhere), tree)

    if program == "encode":
        return make_report(compile_ahead(steps.encode, params, pixels), chips.chip)
    if program.startswith("decode step"):
        encoded = jax.eval_shape(steps.encode, params, pixels)
        cache = jax.eval_shape(lambda p, e: steps.init_cache(p, e, TOKENS), params, encoded)
        ids = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=spread)
        return make_report(compile_ahead(steps.decode_step, params, ids, rows(cache)), chips.chip)
    request = model.generation_request(batch, max_new_tokens=NEW)
    generate = jax.jit(functools.partial(steps.generate, plan=request.plan))
    given = params, pixels, rows(request.rows), rows(jax.tree.map(jnp.asarray, request.numbers))
    return make_report(compile_ahead(generate, *given), chips.chip, loops=NEW)


def train(program: str, mesh: str, config: VisionEncoderDecoderConfig, chips: Topology) -> Report:
    """The step of `ved train`, over a mesh as data=8: with AdamW and dropout, or with SGD and without; of the whole
    batch at once, or of one part after another."""
    axes = {name: int(count) for name, _, count in (axis.partition("=") for axis in mesh.split())}
    batch = BATCH * len(chips.devices)
    parts = re.search(PARTS.format(r"(\d+)"), program)
    optimizer = OptimizerConfig()
    if program == SGD:
        optimizer = OptimizerConfig(name="sgd", clip_norm=None)
        for half, fields in DRY.items():
            for name, value in fields.items():
                setattr(getattr(config, half), name, value)
    run = TrainConfig(
        batch_size=batch,
        accumulation=int(parts[1]) if parts else 1,
        parallel=ParallelConfig(**axes),
        data=DataConfig(max_length=TOKENS),
        optimizer=optimizer,
    )
    model = state.abstract(lambda: FlaxVisionEncoderDecoderModel(config, dtype=jnp.bfloat16))
    return compile_model_step(run, chips, model, shape(config, batch)).report


def peer(program: str, chips: Topology) -> Report:
    """The same program of transformers' class, compiled in its own environment."""
    batch = 1 if program.endswith(SINGLE) else BATCH
    script = Path(__file__).parent / "peer" / "program.py"
    with tempfile.TemporaryDirectory() as folder:
        arguments = [os.environ["PEER_PYTHON"], script, PEERS[program], str(batch), str(TOKENS), folder]
        subprocess.run(arguments, check=True)
        numbers = json.loads(Path(folder, "memory.json").read_text(encoding="utf-8"))
        text = Path(folder, "program.txt").read_text(encoding="utf-8")
    flops = numbers.pop("flops")
    return analysed(hlo.parse(text), Memory(**numbers), flops, chips.chip)


def cases() -> list[Case]:
    """All rows, in order."""
    single = f"decode step{SINGLE}"
    found = [Case("ViT-GPT2", program, "v5e:1x1", "data=1") for program in (single, SGD)]
    for model in ("ViT-GPT2", "TrOCR base"):
        for name, meshes in (("v5e:1x1", ("data=1",)), ("v5e:2x4", ("data=8", "data=1 fsdp=8"))):
            found += [Case(model, program, name, meshes[0]) for program in ("encode", "decode step", "generate")]
            found += [Case(model, "train step", name, mesh) for mesh in meshes]
    found += [Case("TrOCR base", program, "v5e:1x1", "data=1") for program in (PARTS.format(4), single)]
    donuts = "encode", "decode step", PARTS.format(32), single
    found += [Case("Donut", program, "v5e:1x1", "data=1") for program in donuts]
    found += [Case(PEER, program, "v5e:1x1", "data=1") for program in PEERS]
    return sorted(found, key=lambda case: [*MODELS, PEER].index(case.model))


def measured(case: Case) -> Report:
    """A row's numbers. Raises VedError where it does not fit."""
    chips = topology(case.topology)
    if case.model == PEER:
        return peer(case.program, chips)
    config = MODELS[case.model]()
    if case.program.startswith("train step"):
        return train(case.program, case.mesh, config, chips)
    return inference(case.program, config, chips)


def read() -> dict[str, Any]:
    """What was measured before: the row's name -> its numbers."""
    return json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}


def main() -> int:
    """Compile every row, one after another; the status is 1 where one does not fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], help="rows in whose name each of these is found")
    parser.add_argument("--write", action="store_true", help=f"keep the numbers in {RESULT.name}, for README's table")
    options = parser.parse_args()
    failed = False
    for case in cases():
        if not all(text in str(case) for text in options.only):
            continue
        if case.model == PEER and "PEER_PYTHON" not in os.environ:
            print(f"{case}: left out, PEER_PYTHON names no environment that has it\n", flush=True)
            continue
        start = time.monotonic()
        try:
            report = measured(case)
        except VedError as error:
            print(f"{case}: {error}\n", file=sys.stderr, flush=True)
            failed, numbers = True, {"error": str(error)}
        else:
            print(f"{case} (compiled in {time.monotonic() - start:.0f} s)")
            print("\n".join(lines(report, topology(case.topology).chip)), "\n", flush=True)
            numbers = report.to_dict()
        if options.write:
            kept = read() | {str(case): numbers}
            ordered = {str(case): kept[str(case)] for case in cases() if str(case) in kept}
            RESULT.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
