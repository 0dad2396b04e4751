"""What we write, loaded by the libraries that it is for: transformers 4.48 in PyTorch, Flax and TensorFlow.

`make interop` sets up an environment of its own for them and runs this; elsewhere it is skipped.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from conversion.convert import convert
from tests import cases, reference
from tests.cases import ROOT

torch = pytest.importorskip("torch")
PYTHON = os.environ.get("INTEROP_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="make interop runs this")

FLAX = {
    "encoders": ("vit", "beit", "dinov2"),
    "decoders": ("gpt2", "bert", "bart", "electra", "roberta", "xlm-roberta"),
}
TF = {"encoders": ("vit", "deit", "swin"), "decoders": ("gpt2", "bert", "roberta", "xlm-roberta", "camembert")}
UNUSABLE = {
    "bart": "its model of two halves cannot be built with a BART decoder (no initializer_range)",
    "electra": "its decoder cannot be called inside a model of two halves (token_type_ids is None)",
}
"""Decoders that 4.48's Flax class has and does not join to an encoder; by themselves they load."""
OTHER_RESULTS = ("roberta", "xlm-roberta")
"""Decoders that 4.48's Flax class computes otherwise inside a model of two halves than its PyTorch class."""
OTHER_OPTIONS = {
    "gpt2-untied-scaled": "4.48 passes over scale_attn_by_inverse_layer_idx",
    "gpt2-unscaled-1layer": "4.48 passes over scale_attn_weights",
    "swin-positions-1stage": "4.48 has one position too many",
    "dinov2-swiglu": "4.48 has a mask token, whatever use_mask_token says",
}
"""Cases that 4.48 computes otherwise than later releases, which agree with us."""
KINDS = {
    "torch": [(e, "gpt2") for e in cases.ENCODERS] + [("vit", d) for d in cases.DECODERS][1:] + cases.MIXED,
    "flax": [(e, d) for e in FLAX["encoders"] for d in FLAX["decoders"] if d not in UNUSABLE],
    "tf": [(e, d) for e in TF["encoders"] for d in TF["decoders"]],
}
HALVES = {
    "torch": {"encoder": ("vit", "swin", "beit", "dinov2"), "decoder": ("gpt2", "bert", "bart", "camembert")},
    "flax": {"encoder": FLAX["encoders"], "decoder": ("gpt2", "bert", "bart", "roberta", "xlm-roberta")},
    "tf": {"encoder": TF["encoders"], "decoder": TF["decoders"]},
}
SHARDED = "40KB"


def peer(jobs):
    """What the other library reports of each folder."""
    keep = ("PATH", "HOME", "LANG", "TMPDIR")
    env = {name: os.environ[name] for name in keep if name in os.environ} | {
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [PYTHON, str(ROOT / "tests" / "interop" / "peer.py")],
        input=json.dumps(jobs),
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def source(encoder, decoder, folder):
    """A reference model of this process's transformers, its inputs, and what it computes."""
    place = folder / f"{encoder}-{decoder}"
    model = reference.build(encoder, decoder, place)
    batch = cases.inputs(cases.model_config(encoder, decoder))
    np.savez(f"{place}.npz", pixels=batch.pixel_values, ids=batch.decoder_input_ids)
    pixels, ids = torch.tensor(batch.pixel_values), torch.tensor(batch.decoder_input_ids)
    with torch.no_grad():
        outputs = {
            "model": model(pixel_values=pixels, decoder_input_ids=ids).logits,
            "encoder": model.encoder(pixels).last_hidden_state,
        }
        if decoder in ("gpt2", "bert", "bart", "camembert"):
            outputs["decoder"] = model.decoder(input_ids=ids).logits
    return place, f"{place}.npz", {name: output.numpy() for name, output in outputs.items()}


def check(jobs, expected):
    """Every folder loads with empty lists, and computes what it should."""
    problems = []
    for job, report, wanted in zip(jobs, peer(jobs), expected, strict=True):
        if any(report.values()):
            problems.append((Path(job["folder"]).name, report))
        elif wanted is not None:
            difference = float(np.abs(np.load(Path(job["folder"]) / "peer.npy") - wanted).max())
            if not difference < 1e-4:
                problems.append((Path(job["folder"]).name, difference))
    assert not problems


@pytest.mark.parametrize("framework", KINDS)
def test_models(framework, tmp_path):
    jobs, expected = [], []
    for encoder, decoder in KINDS[framework]:
        if decoder in cases.REFERENCE_FAILS or {encoder, decoder} & OTHER_OPTIONS.keys():
            continue
        place, inputs, outputs = source(encoder, decoder, tmp_path)
        folder = tmp_path / f"{encoder}-{decoder}-{framework}"
        convert(place, folder, framework)
        jobs.append({"folder": str(folder), "framework": framework, "kind": "model", "inputs": inputs})
        other = framework == "flax" and decoder in OTHER_RESULTS
        expected.append(None if other else outputs["model"])
    check(jobs, expected)


@pytest.mark.parametrize("framework", HALVES)
def test_halves(framework, tmp_path):
    jobs, expected = [], []
    for part, names in HALVES[framework].items():
        for name in names:
            pair = (name, "gpt2") if part == "encoder" else ("vit", name)
            place, inputs, outputs = source(*pair, tmp_path)
            folder = tmp_path / f"{name}-{part}-{framework}"
            convert(place, folder, framework, part=part)
            jobs.append({"folder": str(folder), "framework": framework, "kind": part, "inputs": inputs})
            expected.append(outputs.get(part))
    check(jobs, expected)


@pytest.mark.parametrize("framework", KINDS)
def test_shards(framework, tmp_path):
    place, inputs, outputs = source("vit", "gpt2", tmp_path)
    convert(place, tmp_path / "shards", framework, shard_size=SHARDED)
    job = {"folder": str(tmp_path / "shards"), "framework": framework, "kind": "model", "inputs": inputs}
    check([job], [outputs["model"]])
