"""Checkpoint files are read without torch and without running them, whatever they hold."""

import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
import zlib
from itertools import islice

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch writes the files that are read here: pip install torch")

from pygpt.convert import (  # noqa: E402
    characters,
    checkpoint,
    convert_checkpoint,
    json_file,
    pickled_module,
    sentencepiece_model,
    torch_file,
    unpickle,
)
from pygpt.convert.raw_file import RawFile  # noqa: E402
from pygpt.convert.torch_file import Tensor, TorchFile  # noqa: E402
from pygpt.convert.unpickle import Damaged, Global, Key, Stub, read_pickle, shown  # noqa: E402
from reference.nanogpt_checkpoint import write_zip  # noqa: E402

import pygpt  # noqa: E402

both_containers = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "stream"])


def saved(tmp_path, value, legacy=False):
    path = tmp_path / "file.pt"
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def arrays(file):
    return {name: tensor.array() for name, tensor in file.value.items()}


def joined(tensor):
    return np.concatenate(list(tensor.blocks())).reshape(tensor.shape)


def refused(path):
    """The sentence that a file is refused with."""
    with pytest.raises(pygpt.Error) as caught:
        with TorchFile(path) as file:
            for value in file.value.values() if type(file.value) is dict else []:
                if type(value) is Tensor:
                    list(value.blocks())
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and len(sentence) < 400, sentence
    return sentence


# ---- what torch writes


@both_containers
def test_every_float_type_becomes_float32(tmp_path, legacy):
    w = torch.randn(5, 7)
    value = {str(t): w.to(t) for t in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}
    with TorchFile(saved(tmp_path, value, legacy)) as file:
        for name, tensor in file.value.items():
            assert np.array_equal(joined(tensor), value[name].float().numpy()), name
            assert np.array_equal(tensor.array(), value[name].float().numpy()), name


@both_containers
def test_whole_numbers_keep_their_type(tmp_path, legacy):
    kinds = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    value = {str(t): torch.tensor([0, 1, 1]).to(t) for t in kinds}
    with TorchFile(saved(tmp_path, value, legacy)) as file:
        for name, array in arrays(file).items():
            assert np.array_equal(array, value[name].numpy()), name


@both_containers
def test_views_are_what_they_are_in_torch(tmp_path, legacy):
    base = torch.randn(6, 8)
    value = {
        "base": base,
        "transposed": base.t(),
        "slice": base[2:5],
        "columns": base[:, 3:6],
        "every other": base[::2, ::3],
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "no dimension": base[1, 1],
        "empty": base[:0],
        "one row": base[3],
    }
    with TorchFile(saved(tmp_path, value, legacy)) as file:
        for name, tensor in file.value.items():
            assert tensor.shape == tuple(value[name].shape)
            assert np.array_equal(tensor.array(), value[name].numpy()), name
            if name != "empty":
                assert np.array_equal(joined(tensor), value[name].numpy()), name


@both_containers
def test_shared_memory_is_seen(tmp_path, legacy):
    a = torch.randn(4, 4)
    with TorchFile(saved(tmp_path, {"a": a, "b": a, "c": a.clone(), "t": a.t()}, legacy)) as file:
        v = file.value
        assert v["a"].is_same_memory(v["b"])
        assert not v["a"].is_same_memory(v["c"]) and not v["a"].is_same_memory(v["t"])


@both_containers
def test_parameters_and_modules_and_unknown_classes_are_read(tmp_path, legacy):
    module = torch.nn.Linear(3, 2)
    tagged = torch.nn.Parameter(torch.ones(2))
    tagged.note = "mine"
    value = {"parameter": module.weight, "state": module.state_dict(), "tagged": tagged, "module": module}
    with TorchFile(saved(tmp_path, value, legacy)) as file:
        assert np.array_equal(file.value["parameter"].array(), module.weight.detach().numpy())
        assert list(file.value["state"]) == ["weight", "bias"]
        assert np.array_equal(file.value["tagged"].array(), np.ones(2))
        stub = file.value["module"]
        kind = stub.function.function if legacy else stub.function  # a stream stores the source code with the class
        assert type(stub) is Stub and str(kind) == "torch.nn.modules.linear.Linear"
        assert np.array_equal(stub.state["_parameters"]["bias"].array(), module.bias.detach().numpy())


def test_types_of_no_use_do_not_spoil_the_file(tmp_path):
    value = {"complex": torch.ones(2, dtype=torch.complex64), "float8": torch.ones(2).to(torch.float8_e4m3fn)}
    value["sparse"] = torch.eye(2).to_sparse()
    with TorchFile(saved(tmp_path, value | {"w": torch.ones(2)})) as file:
        assert np.array_equal(file.value["w"].array(), np.ones(2))
        assert all(type(file.value[name]) is Stub for name in value)


def test_plain_containers_of_every_protocol_are_read(tmp_path):
    value = {
        "set": {1, "a"},
        "frozen": frozenset({2}),
        "tuple": (1, 2.5, None, True),
        "list": [[], {}],
        "bytes": b"\0\xff",
    }
    value |= {"long": -(1 << 40), "text": "ключ", 3: "int key", b"b": "bytes key", True: "bool key"}
    for protocol in range(6):
        path = tmp_path / "plain.pkl"
        path.write_bytes(pickle.dumps(value, protocol))
        assert read_pickle(str(path)) == value, protocol
        torch.save(value, tmp_path / "file.pt", pickle_protocol=max(2, protocol))
        with TorchFile(tmp_path / "file.pt") as file:
            assert file.value == value


def test_big_endian_zips_are_read(tmp_path):
    path = saved(tmp_path, {"w": torch.arange(4.0)})
    with TorchFile(path) as file, zipfile.ZipFile(path) as archive:
        pkl = archive.read("file/data.pkl")
        data = file.value["w"].storage.read(0, 4).astype(">f4").tobytes()
    write_zip(path, pkl, {"0": data}, entries={"archive/byteorder": b"big"})
    with TorchFile(path) as file:
        assert np.array_equal(file.value["w"].array(), np.arange(4.0))


def test_checksums_are_optional_as_in_torch(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path, {"w": torch.arange(4.0)})
    finally:
        torch.serialization.set_crc32_options(True)
    with TorchFile(path) as file:
        assert np.array_equal(file.value["w"].array(), np.arange(4.0))


def test_only_the_wanted_storages_are_read(tmp_path, monkeypatch):
    path = saved(tmp_path, {"small": torch.ones(10), "big": torch.ones(1 << 20)})
    n_read = 0
    read = TorchFile.read

    def counted(self, position, size):
        nonlocal n_read
        n_read += size
        return read(self, position, size)

    monkeypatch.setattr(TorchFile, "read", counted)
    with TorchFile(path) as file:
        file.value["small"].array()
    assert n_read < 10_000


def test_large_tensors_come_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("pygpt.convert.torch_file.CHUNK", 4096)
    w = torch.randn(100, 70)
    with TorchFile(saved(tmp_path, {"w": w, "t": torch.randn(70, 100).t()})) as file:
        for tensor in file.value.values():
            blocks = list(tensor.blocks())
            assert max(block.nbytes for block in blocks) <= 4096 and len(blocks) > 1
        assert np.array_equal(joined(file.value["w"]), w.numpy())


# ---- pickles that would run code


class Runs:
    """Pickles as a call of os.system."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.marker}",)


def attacks(marker):
    """Pickles that run `touch marker` in Python's own unpickler, one by each road to a call."""
    command = f"touch {marker}".encode()
    line = b"X" + struct.pack("<I", len(command)) + command
    code = f"open({str(marker)!r}, 'w').close()".encode()
    expression = f"__import__('os').system('touch {marker}')".encode()
    short = lambda text: b"\x8c" + bytes([len(text)]) + text  # noqa: E731
    return {
        "reduce": b"\x80\x02cposix\nsystem\n" + line + b"\x85R.",
        "reduce of eval": b"\x80\x02cbuiltins\neval\nX" + struct.pack("<I", len(expression)) + expression + b"\x85R.",
        "reduce of exec": b"\x80\x02c__builtin__\nexec\nX" + struct.pack("<I", len(code)) + code + b"\x85R.",
        "inst": b"(S'" + command + b"'\niposix\nsystem\n.",
        "obj": b"(cposix\nsystem\n" + line + b"o.",
        "newobj": b"\x80\x02cbuiltins\nbytes\ncbuiltins\nmap\ncposix\nsystem\n]" + line + b"a\x86\x81\x85\x81.",
        "newobj_ex": b"\x80\x04" + short(b"builtins") + short(b"bytes") + b"\x93" + short(b"builtins") + short(b"map")
        + b"\x93" + short(b"posix") + short(b"system") + b"\x93]" + short(command) + b"a\x86}\x92\x85}\x92.",
        "stack_global": b"\x80\x04" + short(b"posix") + short(b"system") + b"\x93" + short(command) + b"\x85R.",
        "build": b"\x80\x02c__main__\nX\n)\x81}X\x0c\0\0\0__setstate__cposix\nsystem\nsb" + line + b"b.",
        "build of a list": b"\x80\x02]cposix\nsystem\n" + line + b"\x85Rb.",
        "extension": b"\x80\x02\x82\x01.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\ncposix\n__dict__\nX\x06\0\0\0system\x86R" + line + b"\x85R.",
        "storage class": b"\x80\x02(X\x07\0\0\0storagecposix\nsystem\n" + line + b"X\x03\0\0\0cpuK\x01tQ.",
        "known function": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nN" + line + b"\x85}tR.",
    }  # fmt: skip


@pytest.mark.parametrize("attack", attacks("x"))
def test_nothing_in_a_pickle_runs(tmp_path, attack):
    marker = tmp_path / "ran"
    pkl = attacks(marker)[attack]
    container = write_zip(tmp_path / "evil.pt", pkl)
    path = tmp_path / "evil.pkl"
    path.write_bytes(pkl)
    for read in (lambda: read_pickle(str(path)), lambda: TorchFile(container).close()):
        try:
            read()
        except pygpt.Error as error:
            assert "\n" not in str(error)
    assert not marker.exists()


def test_the_attacks_do_run_in_pythons_own_unpickler(tmp_path):
    works = []
    for name in ("reduce", "reduce of eval", "inst", "obj", "newobj", "newobj_ex", "stack_global"):
        marker = tmp_path / "ran"
        (tmp_path / "evil.pkl").write_bytes(attacks(marker)[name])
        program = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "evil.pkl")], capture_output=True, timeout=60)
        works.append((name, marker.exists()))
        marker.unlink(missing_ok=True)
    assert works == [(name, True) for name, _ in works]


@both_containers
def test_nothing_in_a_checkpoint_runs_beside_its_tensors(tmp_path, legacy):
    marker = tmp_path / "ran"
    path = saved(tmp_path, {"w": torch.ones(3), "config": Runs(marker), "list": [Runs(marker)]}, legacy)
    with TorchFile(path) as file:
        assert np.array_equal(file.value["w"].array(), np.ones(3))
        assert type(file.value["config"]) is Stub and type(file.value["config"].function) is Global
    assert not marker.exists()


# ---- pickles that would exhaust the machine


def parsed(pkl):
    return unpickle.unpickle(io.BytesIO(pkl))


def quick(function, *args):
    """The result and the peak of memory in MB, of what has to be done in 20 seconds."""
    import tracemalloc

    begin = time.perf_counter()
    tracemalloc.start()
    try:
        return function(*args), tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
        assert time.perf_counter() - begin < 20


def test_deep_recursion_is_no_problem():
    for opening, closing in (
        (b"]" * 200_000, b"a" * 199_999),
        (b"", b"\x85" * 200_000),
        (b"(" * 200_000, b"l" * 200_000),
    ):
        value = parsed((opening or b"N") + closing + b".")
        assert value is not None
        del value
    deep = parsed(b"cos\nsystem\n" + b"N" + b"\x85R" + b"\x85cos\nsystem\nN\x85R" * 0 + b".")
    assert type(deep) is Stub
    assert type(parsed(b"N" + b"\x85" * 200_000 + b"q\0" + b"]h\0a.")) is list


def test_hashing_never_follows_a_structure():
    """t = (t, t), sixty times: to hash it takes 2^60 steps."""
    doubled = b"N\x85" + b"q\0h\0\x86" * 60
    value = quick(parsed, b"}" + doubled + b"Ns.")[0]
    assert type(next(iter(value))) is Key
    assert len(quick(parsed, b"\x8f(" + doubled + b"\x90.")[0]) == 1
    assert len(quick(parsed, b"(" + doubled + b"\x91.")[0]) == 1


def test_keys_that_share_a_hash_cost_nothing():
    n = 20_000
    keys = b"".join(b"\x8a\x0c" + (i * ((1 << 61) - 1)).to_bytes(12, "little") + b"N" for i in range(1, n))
    assert len(quick(parsed, b"}(" + keys + b"u.")[0]) == n - 1


@pytest.mark.parametrize(
    "pkl",
    {
        "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
        "gigabytes": b"\x80\x03B" + struct.pack("<I", 0xFFFFFFFF) + b"x.",
        "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
        "text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 50) + b"x.",
        "long": b"\x80\x02\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"x.",
        "negative long": b"\x80\x02\x8b" + struct.pack("<i", -5) + b"x.",
        "string": b"T" + struct.pack("<i", -1) + b"x.",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 63) + b"N",
        "digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "next buffer": b"\x80\x05\x97.",
        "protocol": b"\x80\xffN.",
        "no end": b"\x80\x02N",
        "empty stack": b"\x80\x02.",
        "empty": b"",
        "missing memo": b"h\x05.",
        "pop of nothing": b"000.",
        "no mark": b"NNt.",
        "odd keys": b"}(Nu.",
        "items of a number": b"K\x01(NNu.",
        "append to a dictionary": b"}Na.",
        "duplicate of nothing": b"2.",
        "unknown opcode": b"\xfe.",
        "persistent id": b"Pfile\n.",
        "binary persistent id": b"NQ.",
        "state of nothing": b"Nb.",
        "copies": b"(" + b"N" * 100_000 + b"lq\0" + b"cbuiltins\nset\nh\0\x85R" * 200 + b".",
        "lists": b"]" * 60_000 + b".",
        "sets": b"\x8f" * 60_000 + b".",
        "marks": b"(" * 60_000 + b".",
        "names": b"ca\nb\n" * 60_000 + b".",
        "names from the stack": b"\x80\x04\x8c\x01aq\0" + b"h\0h\0\x93" * 60_000 + b".",
        "memo indices that share a hash": b"N" + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(20_000)) + b".",
        "a negative memo index": b"Np-1\n.",
    }.items(),
    ids=lambda item: item[0],
)
def test_bombs_and_nonsense_are_refused_quickly(tmp_path, monkeypatch, pkl):
    monkeypatch.setattr(unpickle, "MAX_CONTAINERS", 50_000)  # tracing memory is slow
    monkeypatch.setattr(unpickle, "MAX_WORK", 1_000_000)
    path = tmp_path / "bomb.pkl"
    path.write_bytes(pkl[1])

    def read():
        with pytest.raises(pygpt.Error, match="bomb.pkl: .*; was it written by pickle.dump and copied whole") as caught:
            read_pickle(str(path))
        assert "\n" not in str(caught.value)

    assert quick(read)[1] < 50


def test_a_memo_index_of_billions_takes_no_memory():
    value, megabytes = quick(parsed, b"]r\xff\xff\xff\xff]r\xfe\xff\xff\xffj\xff\xff\xff\xffa.")
    assert value == [[]] and megabytes < 1


# An object whose class is a list of twice a list of twice a list .. : its text has 2^22 brackets.
DOUBLED_CLASS = b"\x80\x04]\x94" + b"".join(b"]\x94(h%ch%ce" % (i, i) for i in range(22)) + b")R."
DEEP_CLASS = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b")R."
CALLED_CLASS = b"\x80\x02ca\nb\n" + b")R" * 100_000 + b"."
HOSTILE_CLASSES = {"doubled": DOUBLED_CLASS, "deep": DEEP_CLASS, "called": CALLED_CLASS}


@pytest.mark.parametrize("pkl", HOSTILE_CLASSES.values(), ids=HOSTILE_CLASSES)
def test_an_object_of_what_is_no_class_is_told_without_it(tmp_path, pkl):
    value = parsed(pkl)
    text, megabytes = quick(shown, value)
    assert text == "an object of an unknown class" and megabytes < 1
    path = write_zip(tmp_path / "model.pt", pkl)
    with pytest.raises(pygpt.Error, match="holds a pickled object of an unknown class, not weights"):
        convert_checkpoint(path, tmp_path / "x.gguf")


def test_the_name_of_a_class_cannot_write_to_the_terminal(tmp_path):
    names = ("\x1b[31mRED\x1b]0;title\x07", "\u202ex\ud800")
    pkl = b"\x80\x04" + b"".join(pickle.dumps(name, 2)[2:-3] for name in names) + b"\x93)R."
    assert shown(parsed(pkl)) == "an object of ?[31mRED?]0;title?.?x?"
    with pytest.raises(pygpt.Error) as caught:
        convert_checkpoint(write_zip(tmp_path / "model.pt", pkl), tmp_path / "x.gguf")
    assert str(caught.value).isprintable() and "?[31mRED?]0;title?.?x?" in str(caught.value)
    assert len(str(parsed(b"c" + b"a" * 100_000 + b"\n" + b"b" * 100_000 + b"\n."))) < 300


def test_millions_of_steps_end():
    with pytest.raises(Damaged, match="steps"):
        parsed(b"N0" * (unpickle.MAX_WORK // 2 + 1) + b".")


# ---- modules that would


def own_part(parameters, parts):
    """A pickled module that has parameters (names), and itself for its parts (names)."""
    text = lambda name: b"X" + struct.pack("<I", len(name)) + name  # noqa: E731
    return parsed(
        b"\x80\x02c__main__\nNet\n)Rq\1}(" + text(b"_parameters") + b"}("
        + b"".join(text(name) + b"N" for name in parameters) + b"u" + text(b"_modules") + b"}("
        + b"".join(text(name) + b"h\1" for name in parts) + b"uub."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "parts"),
    [
        ([b"w"], [b"m" * 20]),
        ([b"w"], [b"m" * 20_000]),
        ([b"w" * 20_000], [b"a", b"b"]),
        ([b"w%d" % i for i in range(1000)], [b""]),
        ([], [b"%d" % i for i in range(1000)]),
    ],
    ids=["deep", "long names", "many long names", "wide", "wide parts"],
)
def test_a_module_that_is_its_own_part_has_an_end(parameters, parts):
    module = own_part(parameters, parts)
    found, megabytes = quick(lambda: list(islice(pickled_module.module_tensors(module), 150_000)))
    assert len(found) < 100_000 and all(len(name) < 1000 for name, _ in found) and megabytes < 100
    assert quick(lambda: list(pickled_module.modules(module)))[0] == [module]


def test_modules_that_share_their_parts_are_walked_once():
    """Each of 3000 modules has all 3000 as its parts."""
    names = b"".join(b"X\4\0\0\0%04dcA\nB\n)R}X\x08\0\0\0_modulesh\1sb" % i for i in range(3000))
    module = parsed(b"\x80\x02}q\1(" + names + b"u0cA\nB\n)R}X\x08\0\0\0_modulesh\1sb.")
    found, megabytes = quick(lambda: list(pickled_module.modules(module)))
    assert len(found) == 3001 and megabytes < 5


def test_a_name_of_prefixes_is_stripped_at_once():
    begin = time.perf_counter()
    assert checkpoint.strip_prefixes("module._orig_mod." * 100_000 + "w.module.x") == "w.module.x"
    assert time.perf_counter() - begin < 2


# ---- containers that lie

TENSOR = (
    b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
    b"X\x01\0\0\0%(key)bX\x03\0\0\0cpu%(count)btQ%(offset)b%(shape)b%(stride)b\x89NtRs."
)


def number(n):
    return pickle.dumps(n, 2)[2:-1] if type(n) is int else pickle.dumps(n, 2)[2:-1].replace(b"q\0", b"")


def tensor_file(tmp_path, key=b"0", count=4, offset=0, shape=(2, 2), stride=(2, 1), data=bytes(16), **changes):
    numbers = {
        name: number(n) for name, n in (("count", count), ("offset", offset), ("shape", shape), ("stride", stride))
    }
    return write_zip(tmp_path / "tensor.pt", TENSOR % {b"key": key, **{k.encode(): v for k, v in numbers.items()}},
                     {"0": data}, **changes)  # fmt: skip


def test_the_handmade_file_is_a_good_one(tmp_path):
    data = np.arange(4, dtype="<f4").tobytes()
    with TorchFile(tensor_file(tmp_path, data=data)) as file:
        assert np.array_equal(file.value["w"].array(), [[0, 1], [2, 3]])
    assert np.array_equal(torch.load(tmp_path / "tensor.pt")["w"], [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    "lie",
    [
        {"shape": (3, 2)},
        {"shape": (1 << 40, 1 << 40)},
        {"shape": (1 << 63, 2)},
        {"shape": (-2, -2)},
        {"shape": (True, True)},
        {"shape": (2,)},
        {"shape": 4},
        {"shape": (2.0, 2.0)},
        {"shape": ((2,), 2)},
        {"shape": (1,) * 100, "stride": (1,) * 100},
        {"offset": 1},
        {"offset": -1},
        {"offset": 1 << 62},
        {"offset": None},
        {"stride": (3, 1)},
        {"stride": (-2, 1)},
        {"stride": (1 << 61, 1)},
        {"shape": (0, 1 << 61, 1 << 61), "stride": (0, 0, 0)},
        {"stride": (0, 0), "shape": (1 << 30, 1 << 30)},
        {"stride": (0, 1), "shape": (1000, 2)},
        {"count": 3},
        {"count": 5, "shape": (5,), "stride": (1,)},
        {"count": 1 << 60},
        {"count": -4},
        {"count": "4"},
        {"count": 1 << 4000},
        {"key": b"1"},
        {"data": bytes(15)},
        {"data": bytes(17)},
        {"data": b""},
        {"compression": zipfile.ZIP_DEFLATED},
        {"entries": {"archive/../../x": b""}},
        {"entries": {"/etc/x": b""}},
        {"entries": {"other/data.pkl": b""}},
        {"entries": {"archive/constants.pkl": b""}},
    ],
    ids=str,
)
def test_a_tensor_that_claims_what_is_not_there_is_refused(tmp_path, lie):
    refused(tensor_file(tmp_path, **lie))


@pytest.mark.parametrize("stride", [(1 << 61, 1), (0, 1), ((1 << 62) - 1, 1)])
def test_the_stride_of_a_single_row_means_nothing(tmp_path, stride):
    data = np.arange(4, dtype="<f4")
    with TorchFile(tensor_file(tmp_path, shape=(1, 4), stride=stride, data=data.tobytes())) as file:
        tensor = file.value["w"]
        for view in (tensor.array(), joined(tensor), tensor.rows(0, 1)):
            assert np.array_equal(view, [data])
        assert np.array_equal(tensor.transposed().array(), data[:, None])
        assert np.array_equal(joined(tensor.transposed()), data[:, None])


def test_an_empty_tensor_is_empty_whatever_its_strides(tmp_path):
    strange = {"offset": (1 << 62) - 1, "stride": ((1 << 62) - 1, 1 << 61)}
    with TorchFile(tensor_file(tmp_path, shape=(3, 0), **strange)) as file:
        tensor = file.value["w"]
        assert tensor.array().shape == (3, 0) and list(tensor.blocks()) == []


def test_what_float32_cannot_hold_is_infinite_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with TorchFile(saved(tmp_path, {"w": torch.tensor([1e300, -1e300, 1.0], dtype=torch.float64)})) as file:
            assert file.value["w"].array().tolist() == joined(file.value["w"]).tolist() == [np.inf, -np.inf, 1]
        (tmp_path / "x.bin").write_bytes(struct.pack("<4b2f", 127, 1, -127, 1, 3e38, 3e38))
        with RawFile(tmp_path / "x.bin") as file:
            tensor = file.place("w", (4,), "int8", group=2)
            assert joined(tensor).tolist() == [np.inf, np.float32(3e38), -np.inf, np.float32(3e38)]


def test_a_zip_of_too_many_entries_is_refused(tmp_path, monkeypatch):
    path = tensor_file(tmp_path, entries={f"archive/data/{i}": b"" for i in range(1, 1000)})
    with TorchFile(path) as file:
        assert file.value["w"].shape == (2, 2)
    monkeypatch.setattr(torch_file, "MAX_DIRECTORY", 10_000)
    assert "its zip has a directory of 6" in refused(path)


def test_a_bomb_of_zeros_is_refused_unopened(tmp_path):
    size = 1 << 28
    path = tensor_file(
        tmp_path, count=size // 4, shape=(size // 4,), stride=(1,), data=b"", compression=zipfile.ZIP_STORED
    )
    with zipfile.ZipFile(path) as archive:
        pkl = archive.read("archive/data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pkl)
        with archive.open(zipfile.ZipInfo("archive/data/0"), "w") as entry:
            entry._compressor, entry._zinfo.compress_type = (
                zlib.compressobj(9, zlib.DEFLATED, -15),
                zipfile.ZIP_DEFLATED,
            )
            for _ in range(size >> 20):
                entry.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    assert quick(refused, path)[1] < 5


def test_two_entries_of_one_name_are_refused(tmp_path):
    path = tensor_file(tmp_path)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", b"\xff" * 16)
    assert "one name" in refused(path)


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path):
    path = saved(tmp_path, {"w": torch.arange(1000.0)})
    data = bytearray(path.read_bytes())
    data[data.index(np.float32(500).tobytes())] ^= 1
    path.write_bytes(data)
    assert "checksum" in refused(path)


@pytest.mark.parametrize("pid", [b"N", b"K\x05", b")", b"X\x07\0\0\0storage", b"(X\x07\0\0\0storageNNNNt", b"]", b"}"])
def test_a_persistent_id_that_is_no_storage_is_refused(tmp_path, pid):
    refused(write_zip(tmp_path / "pid.pt", b"\x80\x02" + pid + b"Q."))


@both_containers
def test_every_truncation_is_refused(tmp_path, legacy):
    path = saved(tmp_path, {"w": torch.arange(30.0), "v": torch.arange(3.0)}, legacy)
    data = path.read_bytes()
    for n in range(0, len(data), 7):
        path.write_bytes(data[:n])
        refused(path)


def test_a_stream_whose_counts_lie_is_refused(tmp_path):
    path = saved(tmp_path, {"w": torch.arange(30.0)}, legacy=True)
    data = path.read_bytes()
    at = len(data) - 30 * 4 - 8
    assert struct.unpack_from("<q", data, at) == (30,)
    for count in (-1, 0, 29, 31, 1 << 62):
        path.write_bytes(data[:at] + struct.pack("<q", count) + data[at + 8 :])
        refused(path)
    path.write_bytes(data + b"\0")
    refused(path)


# ---- files beside a checkpoint


@pytest.mark.parametrize(
    "text",
    [b"[],", b"{},", b"0,", b'[["",', b'{"a":'],
    ids=["lists", "objects", "numbers", "nested lists", "nested objects"],
)
def test_json_of_millions_of_items_is_refused_before_it_is_read(monkeypatch, text):
    monkeypatch.setattr(json_file, "MAX_ITEMS", 300_000)
    data = b'{"a":[' + text * 300_001 + b"0]}"

    def read():
        with pytest.raises(pygpt.Error, match="x.json: expected JSON of at most 300000 items, found more"):
            json_file.parse_object(data, "x.json")

    assert quick(read)[1] < 1


def test_json_that_needs_all_its_items_is_read():
    """Half a million merges as pairs of texts, which is what the largest tokenizer.json has."""
    data = b'{"a":[' + b'["a","b"],' * 500_000 + b"0]}"
    assert len(json_file.parse_object(data, "x.json")["a"]) == 500_001


def test_a_sentencepiece_model_of_millions_of_fields_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sentencepiece_model, "MAX_FIELDS", 1000)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\x0a\x00" * 1001)
    with pytest.raises(pygpt.Error, match="tokenizer.model: expected a model of at most 1000 pieces, found more"):
        sentencepiece_model.read_model(str(path))
    path.write_bytes(b"\x0a\x00" * 1000)
    assert len(sentencepiece_model.read_model(str(path)).pieces) == 1000


def test_unknown_fields_of_a_sentencepiece_model_are_not_kept(tmp_path):
    """The settings of its training have a hundred thousand fields."""
    varint = lambda n: bytes((n >> 7 * i & 0x7F) | (0x80 if i < 2 else 0) for i in range(3))  # noqa: E731
    fields = b"".join(varint(n << 3) + b"\0" for n in range(50, 100_050))
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\x0a\x00\x12" + varint(len(fields)) + fields)
    model, megabytes = quick(sentencepiece_model.read_model, str(path))
    assert len(model.pieces) == 1 and megabytes < 20  # of which 16 are what is read at once


def test_a_file_without_an_end_is_refused_and_a_pipe_is_read(tmp_path):
    with pytest.raises(pygpt.Error, match="^/dev/zero: is a device; name a file with the text"):
        characters.from_text("/dev/zero", 65)
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe")):
        with pytest.raises(pygpt.Error, match=f"^{path}: is no ordinary file"):
            characters.from_meta(path, 65)
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("hello",))
    writer.start()
    assert characters.characters_of(str(tmp_path / "pipe")) == set("hello")
    writer.join()
