"""Files of weights as a stranger may have made them, and what the errors of reading them say."""

import io
import json
import struct
import zipfile

import h5py
import msgpack
import numpy as np

# safetensors ----------------------------------------------------------------------------------------------------------


def safetensors_file(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape, first, last):
    return {"dtype": "F32", "shape": shape, "data_offsets": [first, last]}


MANY = b",".join(b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(200_000))

SAFETENSORS = [
    (safetensors_file({"a": entry([0, 2**63], 0, 0)}), "has the shape"),
    (safetensors_file({"a": entry([1] * 100, 0, 4)}, bytes(4)), "has the shape"),
    (safetensors_file({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4)), "not a whole"),
    (safetensors_file({"a": entry([2**40, 2**40], 0, 4)}, bytes(4)), "not a whole"),
    (safetensors_file(b"{" + MANY + b"}"), "its header of .* is larger"),
]

# Flax -----------------------------------------------------------------------------------------------------------------


def array(shape, size):
    return msgpack.ExtType(1, b"\x93" + msgpack.packb(shape) + msgpack.packb("int8") + msgpack.packb(bytes(size)))


def chunked(*shape):
    mark = {"__msgpack_chunked_array__": True}
    return msgpack.packb({"a": {**mark, "shape": dict(zip("01", shape, strict=False)), "chunks": {"0": array([6], 6)}}})


FLAX = [
    (chunked(-2, -3), "not of its shape"),
    (chunked(True, 6), "not of its shape"),
    (chunked(0, 2**63), "not of its shape"),
    (chunked(None), "not a whole Flax file"),
    (b"\x81\xa1a" * 1000 + b"\xc0", "more than 64 maps"),
    (b"\xdf\xff\xff\xff\xff", "more than 65536 entries"),
    (msgpack.packb({str(i): array([0], 0) for i in range(100_000)}), "more than 65536 entries"),
    (b"\x81\xa1a\xc9\x00\x40\x00\x00\x01\x93\xdd\x00\x40\x00\x00" + bytes(2**22), "an array of unknown shape"),
    (msgpack.packb({"a": array([-1, -1], 1)}), "unknown shape or dtype"),
    (msgpack.packb({"a/b": array([1], 1), "a": {"b": array([1], 1)}}), "is stored twice"),
    (msgpack.packb({"a": b"x" * 10_000}), "begins a value"),
    (msgpack.packb({"a": "x" * 10_000}), r"a is 'x{50,60}\.\.\., where a model has arrays only"),
]

# PyTorch --------------------------------------------------------------------------------------------------------------


def zipped(pickled, method=zipfile.ZIP_STORED, roots=("x",), numbers=bytes(16)):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for root in roots:
            archive.writestr(zipfile.ZipInfo(f"{root}/data.pkl"), b"\x80\x02" + pickled + b".", method)
        archive.writestr("x/data/0", numbers)
    return file.getvalue()


def number(value):
    data = value.to_bytes(20, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(offset=0, shape=(4,), strides=(1,), count=4):
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(count) + b"tQ"
    sizes = b"".join(b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (shape, strides))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + sizes + b"\x89NtR"


def state(value):
    return b"}" + text("a") + value + b"s"


def bomb(levels=28, width=8):
    """Lists of lists, each eight times the one before: few bytes, and 8**28 values."""
    lists = [b"]q\x00"]
    lists += [b"]q" + bytes([i]) + b"(" + (b"h" + bytes([i - 1])) * width + b"e" for i in range(1, levels)]
    return b"".join(lists)


BUILD_DTYPE = b"ctorch\nbfloat16\n(K\x03" + text(">") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
BUILD_FUNCTION = b"ctorch._utils\n_rebuild_parameter\n(N}" + text("__defaults__") + b"(K\x05tstb"
COLLIDING = b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(1, 60_000)) + b"u"


def large_directory():
    """An archive whose list of members is long."""
    data = zipped(state(tensor()))
    start, end = data.find(b"PK\x01\x02"), data.rfind(b"PK\x05\x06")
    member = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, *[0] * 8, 4, *[0] * 6)
    entries = data[start:end] + b"".join(member + b"%04x" % (i % 2**16) for i in range(100_000))
    return data[:start] + entries + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(entries), start, 0)


def encrypted():
    data = bytearray(zipped(state(tensor())))
    for place in (6, data.find(b"PK\x01\x02") + 8):
        data[place] |= 1
    return bytes(data)


def broken(method):
    data = bytearray(zipped(state(tensor()), method))
    data[52:70] = b"\xff" * 18
    return bytes(data)


TORCH = [
    (zipped(bomb()), "more values than any model's state"),
    (zipped(b"\x8f" * 10), "opcode EMPTY_SET"),
    (zipped(b"N0" * 2**19 + b"N"), "longer than any state dict's"),
    (zipped(b"]" * 10_000 + b"a" * 9_999), "more than 32 dicts"),
    (zipped(b"r\xff\xff\xff\x7f"), "memorises out of turn"),
    (zipped(b"\x8b\xff\xff\xff\x7f1"), "not a whole file"),
    (zipped(b"}\x8b" + struct.pack("<i", 10_000) + b"\x7f" * 10_000 + b"Ns"), "numbers larger than"),
    (zipped(COLLIDING), "numbers larger than"),
    (zipped(b"}K\x01" + tensor() + b"s"), "something else than strings"),
    (zipped(state(tensor(strides=(-1,)))), "impossible shape or strides"),
    (zipped(state(tensor(strides=(2**61,)))), "larger than its storage"),
    (zipped(state(tensor(shape=(2**40, 2**40), strides=(0, 0)))), "larger than its storage"),
    (zipped(state(tensor(offset=1))), "larger than its storage"),
    (zipped(state(tensor(count=2**62))), "is too short"),
    (zipped(state(tensor()), numbers=b"12"), "is too short"),
    (zipped(state(tensor()), roots=("x", "y")), "should have one data.pkl"),
    (zipped(state(tensor()), roots=("x/y",)), "should have one data.pkl"),
    (zipped(b"N0" * 2**16 + b"N", zipfile.ZIP_DEFLATED), "compressed or encrypted"),
    *((broken(method), "compressed or encrypted") for method in (8, 12, 14)),
    (encrypted(), "compressed or encrypted"),
    (large_directory(), "list of members is larger"),
    (zipped(BUILD_DTYPE), "changes what a name stands for"),
    (zipped(BUILD_FUNCTION), "changes what a name stands for"),
]

# TensorFlow -----------------------------------------------------------------------------------------------------------


def doubled(layer):
    """Groups that lead to one array on 2**40 ways."""
    inner = layer.create_group("0")
    inner["x:0"] = np.ones(3, np.float32)
    for i in range(1, 40):
        outer = layer.create_group(f"{i}")
        outer["a"] = outer["b"] = inner
        inner = outer


def linked(layer):
    layer["m/x:0"] = np.ones(3, np.float32)
    for i in range(10_001):
        layer[f"m/{i}"] = layer["m/x:0"]


def dataset(*arguments, **options):
    return lambda layer: layer.create_dataset("m/x:0", *arguments, **options)


def h5_file(fill):
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        layer = file.create_group("encoder")
        layer.attrs["weight_names"] = ["m/x:0"]
        fill(layer)
    return data.getvalue()


TENSORFLOW = [
    (doubled, "is a group that is in another one too"),
    (lambda layer: layer.__setitem__("loop", layer), "is a group that is in another one too"),
    (linked, "more than 10000 groups and arrays"),
    (dataset((2,), [("a", "f4"), ("b", "i4")]), "not an array of numbers"),
    (dataset((2,), h5py.vlen_dtype("f4")), "not an array of numbers"),
    (dataset(data=["a"], dtype=h5py.string_dtype()), "not an array of numbers"),
    (dataset(dtype="f4", data=h5py.Empty("f4")), "not an array of numbers"),
    (dataset((2**31, 2**31), "f4", chunks=(2**10, 2**10)), "and not its numbers"),
    (dataset(data=np.zeros(2**23, np.float32), compression="gzip"), "and not its numbers"),
]
