"""Run in an environment with transformers 4.48, which has Flax and TensorFlow classes still: load checkpoint folders.

Reads a JSON list of {"folder", "framework", "kind", "inputs"} on standard input; prints a JSON list of what each load
reported, and writes `peer.npy` (logits, or the last hidden state of an encoder) into each folder.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import transformers

transformers.logging.set_verbosity_error()
PREFIXES = {"torch": "", "flax": "Flax", "tf": "TF"}
CLASSES = {"model": "VisionEncoderDecoderModel", "encoder": "AutoModel", "decoder": "AutoModelForCausalLM"}


def load(framework, kind, folder):
    """The model, and the lists of what did not fit."""
    name = PREFIXES[framework] + CLASSES[kind]
    cls = getattr(transformers, name)
    options = {"output_loading_info": True} if framework != "flax" else {}
    if framework == "torch":
        model, info = cls.from_pretrained(folder, **options)
        return model.eval(), {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if framework == "tf":
        model, info = cls.from_pretrained(folder, **options)
        return model, {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    return load_flax(cls, kind, folder)


def load_flax(cls, kind, folder):
    """Flax's classes report only by log: compare the tree of a model without weights with the file's."""
    from flax.traverse_util import flatten_dict, unflatten_dict

    config = transformers.AutoConfig.from_pretrained(folder)
    model = (cls.from_config if kind != "model" else cls)(config)
    state = read_flax(folder)
    wanted = {"/".join(k): v.shape for k, v in flatten_dict(model.params_shape_tree).items()}
    found = {name: x.shape for name, x in state.items()}
    info = {
        "missing_keys": sorted(wanted.keys() - found.keys()),
        "unexpected_keys": sorted(found.keys() - wanted.keys()),
        "mismatched_keys": sorted(k for k in wanted.keys() & found.keys() if tuple(wanted[k]) != tuple(found[k])),
    }
    model = cls.from_pretrained(folder)
    loaded = {"/".join(k): np.asarray(v) for k, v in flatten_dict(model.params).items()}
    info["mismatched_keys"] += [k for k, v in loaded.items() if k in state and not np.array_equal(v, state[k])]
    assert unflatten_dict  # the class itself rebuilds the tree
    return model, info


def read_flax(folder):
    from flax.serialization import msgpack_restore
    from flax.traverse_util import flatten_dict

    found = {}
    for path in sorted(Path(folder).glob("flax_model*.msgpack")):
        tree = msgpack_restore(path.read_bytes())
        found |= {"/".join(key) if isinstance(key, tuple) else key: x for key, x in flatten_dict(tree).items()}
    return found


def compute(model, framework, kind, inputs):
    pixels, ids = inputs.get("pixels"), inputs.get("ids")
    if framework == "torch":
        import torch

        pixels = None if pixels is None else torch.tensor(pixels)
        ids = None if ids is None else torch.tensor(ids)
        with torch.no_grad():
            return call(model, kind, pixels, ids).numpy()
    return np.asarray(call(model, kind, pixels, ids))


def call(model, kind, pixels, ids):
    if kind == "encoder":
        return model(pixel_values=pixels).last_hidden_state
    if kind == "decoder":
        return model(input_ids=ids).logits
    return model(pixel_values=pixels, decoder_input_ids=ids).logits


def main():
    reports = []
    for job in json.load(sys.stdin):
        try:
            model, info = load(job["framework"], job["kind"], job["folder"])
            with np.load(job["inputs"]) as file:
                output = compute(model, job["framework"], job["kind"], dict(file))
            np.save(Path(job["folder"]) / "peer.npy", output)
            reports.append({key: [str(name) for name in names] for key, names in info.items()})
        except Exception as error:
            reports.append({"error": f"{type(error).__name__}: {error}"[:2000]})
    print("\n" + json.dumps(reports))


main()
