"""Malformed HDF5 files of TensorFlow."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import hostile
from tests.torture.malformed.changes import Change, by_hand


def with_dataset(change: Callable[[Any, str, Any, random.Random], None]) -> Change:
    """An HDF5 file one of whose arrays is put otherwise; `change(group, name, array, rng)` puts it."""
    import h5py

    def changed(folder: Path, rng: random.Random) -> None:
        path = folder / "tf_model.h5"
        with h5py.File(path, "r+") as file:
            names: list[str] = []
            file.visititems(lambda name, item: names.append(name) if getattr(item, "ndim", 0) == 2 else None)
            where, _, name = rng.choice(sorted(names)).rpartition("/")
            array = file[where][name][...]
            del file[where][name]
            change(file[where], name, array, rng)

    return changed


def h5_link(group: Any, name: str, array: np.ndarray, rng: random.Random) -> None:
    import h5py

    (Path(group.file.filename).parent / "outside.h5").write_bytes(hostile.h5_file(lambda layer: None))
    links = (h5py.SoftLink("/none"), h5py.SoftLink(group.name), h5py.ExternalLink("outside.h5", "/encoder"))
    links += (h5py.ExternalLink("/etc/passwd", "/"), h5py.SoftLink(f"{group.name}/{name}"), h5py.SoftLink("/"))
    group[name] = rng.choice(links)


def h5_external(group: Any, name: str, array: np.ndarray, rng: random.Random) -> None:
    place = rng.choice(("/etc/passwd", "outside", "../outside"))
    group.create_dataset(name, array.shape, array.dtype, external=[(place, 0, array.nbytes)])


def h5_virtual(group: Any, name: str, array: np.ndarray, rng: random.Random) -> None:
    import h5py

    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[:] = h5py.VirtualSource(rng.choice((".", "/etc/passwd", "outside.h5")), "x", array.shape)
    group.create_virtual_dataset(name, layout)


def h5_dtype(group: Any, name: str, array: np.ndarray, rng: random.Random) -> None:
    import h5py

    kinds = ([("a", "f4"), ("b", "i4")], "V8", "S4", h5py.vlen_dtype("f4"), h5py.string_dtype(), h5py.ref_dtype, ">f4")
    kinds += (h5py.enum_dtype({"a": 1}), np.dtype(("f4", (2,))), "i4", "u1", "c8", "f2,f2", h5py.opaque_dtype("M8[s]"))
    group.create_dataset(name, array.shape, rng.choice(kinds))


def h5_shape(group: Any, name: str, array: np.ndarray, rng: random.Random) -> None:
    bombs = ((2**31, 2**31), (2**62,), (0, 2**40), (1,) * 32, (3,), ())
    size = rng.choice(bombs)
    chunked = len(size) in (1, 2) and 0 not in size
    group.create_dataset(name, size, "f4", chunks=(2**5,) * len(size) if chunked and min(size) > 2**5 else None)


def h5_packed(group: Any, name: str, array: np.ndarray, rng: random.Random) -> None:
    group.create_dataset(name, data=np.zeros(2**23, np.float32), compression="gzip", shuffle=rng.random() < 0.5)


def h5_group(group: Any, name: str, array: np.ndarray, rng: random.Random) -> None:
    if rng.random() < 0.5:
        group[name] = group
    else:
        group.create_group("/".join([name] * rng.choice((2, 70, 500))))["x"] = array


KINDS: dict[str, Change] = {
    **{each.__name__: with_dataset(each) for each in (h5_link, h5_external, h5_virtual, h5_dtype, h5_shape)},
    **{each.__name__: with_dataset(each) for each in (h5_packed, h5_group)},
    **by_hand("tf", [(hostile.h5_file(fill), match) for fill, match in hostile.TENSORFLOW[:2]]),
}
