"""The files of a Hugging Face folder as hostile input: each gives the numbers that are in it, or one sentence."""

import json
import random
import shutil
import struct
import time

import gguf
import numpy as np
import pytest

for package in ("torch", "transformers", "sentencepiece", "safetensors", "google.protobuf"):
    pytest.importorskip(package, reason=f"{package} writes the files that are read here: pip install {package}")

import safetensors.torch  # noqa: E402
import sentencepiece  # noqa: E402
import torch  # noqa: E402
from fuzz_checkpoint import mutated  # noqa: E402
from pygpt.convert import convert_checkpoint, json_file  # noqa: E402
from pygpt.convert.safetensors_file import MAX_HEADER, SafetensorsFile  # noqa: E402
from pygpt.convert.sentencepiece_model import read_model  # noqa: E402
from reference.gpt import GPT, Config, checkpoint  # noqa: E402
from reference.hf_folder import make_folder, sentencepiece_model  # noqa: E402

import pygpt  # noqa: E402
from pygpt._lib import File  # noqa: E402


def sentence(match, function, *arguments):
    with pytest.raises(pygpt.Error, match=match) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400, text
    return text


# ---- safetensors

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def test_every_type_is_read_as_safetensors_wrote_it(tmp_path):
    tensors = {name: (torch.arange(24).reshape(2, 3, 4) % 2).to(getattr(torch, name)) for name in DTYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert set(file.tensors) == set(tensors)
        for name, tensor in file.tensors.items():
            assert tensor.shape == tuple(tensors[name].shape) and tensor.name == name
            assert tensor.is_float == tensors[name].is_floating_point()
            assert np.array_equal(tensor.array(), tensors[name].float().numpy())


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    tensors = {"large": torch.randn(1000, 1000), "small": torch.randn(7, 5)}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        sizes = []
        read = SafetensorsFile.read
        monkeypatch.setattr(SafetensorsFile, "read", lambda *a: sizes.append(a[2]) or read(*a))
        assert np.array_equal(file.tensors["small"].rows(2, 3), tensors["small"][2:5].numpy())
        assert np.array_equal(file.tensors["small"].array(), tensors["small"].numpy())
        assert sum(sizes) == 4 * (15 + 35)
        assert np.array_equal(np.concatenate([*file.tensors["large"].blocks()]), tensors["large"].numpy())


def written(path, header, data=b"", length=None):
    text = header if type(header) is bytes else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape=(4,), begin=0, end=16, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


HEADERS = [
    ({"a": entry()}, bytes(15), None, "expected .* bytes, found .* cut short"),
    ({"a": entry()}, bytes(17), None, "there is more than its header says"),
    ({"a": entry()}, bytes(16), 1 << 62, "a header of 4611686018427387904 bytes does not fit"),
    ({"a": entry()}, bytes(16), 0, "cannot be read as JSON"),
    ({"a": entry()}, bytes(16), 5, "cannot be read as JSON"),
    (b"", b"", None, "a header of 0 bytes does not fit"),
    (b"[]", b"", None, "expected a JSON object, found a list"),
    (b"{" * 100_000, b"", None, "cannot be read as JSON"),
    (b'{"a":' * 100_000, b"", None, "cannot be read as JSON"),
    (b"\xff\xfe{}", b"", None, "cannot be read as JSON"),
    (b'{"a": ' + b"9" * 10_000 + b"}", b"", None, "cannot be read as JSON"),
    (b'{"a": {}, "a": {}}', b"", None, "the name 'a' stands twice"),
    ({"a": None}, b"", None, "the entry of the tensor 'a' is not understood"),
    ({"a": {}}, b"", None, "the entry of the tensor 'a' is not understood"),
    ({"a": entry(dtype=5)}, bytes(16), None, "is not understood"),
    ({"a": entry(dtype="F77")}, bytes(16), None, "numbers of the unknown type 'F77'"),
    ({"a": entry(shape=[-4])}, bytes(16), None, "is not understood"),
    ({"a": entry(shape=[True, 4])}, bytes(16), None, "is not understood"),
    ({"a": entry(shape=[4.0])}, bytes(16), None, "is not understood"),
    ({"a": entry(shape=[1] * 9)}, bytes(16), None, "is not understood"),
    ({"a": entry(shape=[1 << 61] * 8)}, bytes(16), None, "has 16 bytes by its offsets"),
    ({"a": entry(shape=[1 << 62])}, bytes(16), None, "is not understood"),
    ({"a": entry(shape=[5])}, bytes(16), None, "has 16 bytes by its offsets"),
    ({"a": entry(begin=16, end=0)}, bytes(16), None, "has -16 bytes by its offsets"),
    ({"a": entry(begin=-16, end=0)}, bytes(16), None, "is not understood"),
    ({"a": entry(begin=1 << 61, end=(1 << 61) + 16)}, bytes(16), None, "leaves a hole before it"),
    ({"a": entry(), "b": entry()}, bytes(16), None, "'b' overlaps another|'a' overlaps another"),
    ({"a": entry(), "b": entry(begin=8, end=24)}, bytes(24), None, "'b' overlaps another"),
    ({"a": entry(), "b": entry(begin=20, end=36)}, bytes(36), None, "'b' leaves a hole before it"),
    ({"a": entry(begin=4, end=20)}, bytes(20), None, "'a' leaves a hole before it"),
    ({"a" * 1000: None}, b"", None, "the tensor 'aaa"),
]


@pytest.mark.parametrize(("header", "data", "length", "match"), HEADERS, ids=range(len(HEADERS)))
def test_a_hostile_header_gives_a_sentence(tmp_path, header, data, length, match):
    path = written(tmp_path / "x.safetensors", header, data, length)
    assert sentence(match, SafetensorsFile, path).startswith(str(path))


def test_a_short_file_and_a_header_of_gigabytes_give_a_sentence(tmp_path):
    path = tmp_path / "x.safetensors"
    for n in range(10):
        path.write_bytes(bytes(n))
        sentence("does not fit|cannot be read", SafetensorsFile, path)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 3 << 30) + b"{")
        file.truncate(4 << 30)  # sparse: no disk is used
    begin = time.perf_counter()
    sentence(f"has a header of 3221225472 bytes, at most {MAX_HEADER} are expected", SafetensorsFile, path)
    assert time.perf_counter() - begin < 1


# ---- JSON


def test_a_large_json_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(json_file, "MAX_BYTES", 1 << 20)
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": "' + bytes(2 << 20) + b'"}')
    sentence("a JSON file of at most 1 MB, found 2 MB", lambda: json_file.read_object(str(path), 1 << 20))
    sentence("no such file", json_file.read_object, str(tmp_path / "none.json"))
    sentence("cannot be read", json_file.read_object, str(tmp_path))


# ---- tokenizer.model


@pytest.mark.parametrize("settings", [{}, {"model_type": "unigram", "hard_vocab_limit": False},
                                      {"byte_fallback": False, "vocab_size": 60, "bos_id": -1, "unk_id": 3},
                                      {"user_defined_symbols": ["<x>"], "control_symbols": ["<y>"]},
                                      {"treat_whitespace_as_suffix": True}],
                         ids=str)  # fmt: skip
def test_a_model_is_read_as_sentencepiece_reads_it(tmp_path, settings):
    (tmp_path / "x.model").write_bytes(data := sentencepiece_model(**settings_key(settings)))
    expected, model = sentencepiece.SentencePieceProcessor(model_proto=data), read_model(str(tmp_path / "x.model"))
    assert len(model.pieces) == expected.get_piece_size()
    for id, (text, score, kind) in enumerate(model.pieces):
        assert (text, score) == (expected.id_to_piece(id), expected.get_score(id))
        said = [expected.is_unknown(id), expected.is_control(id), text == "<x>", expected.is_unused(id)]
        said.append(expected.is_byte(id))
        assert kind == (said.index(True) + 2 if any(said) else 1)
    ids = {"unk": expected.unk_id(), "bos": expected.bos_id(), "eos": expected.eos_id()}
    assert model.ids == ids and model.model_type == ("Unigram" if "model_type" in settings else "BPE")
    assert model.normalizer == "identity" and not model.charsmap and model.add_dummy_prefix
    assert model.whitespace_as_suffix is ("treat_whitespace_as_suffix" in settings)


def test_a_table_of_normalization_that_is_none_is_damage(tmp_path):
    data = sentencepiece_model(normalization_rule_name="nmt_nfkc")
    (tmp_path / "x.model").write_bytes(data)
    table = read_model(str(tmp_path / "x.model")).charsmap
    assert len(table) > 100_000 and data.count(table) == 1
    (tmp_path / "x.model").write_bytes(data.replace(table[:4], b"\xff" * 4))
    sentence("expected a model of sentencepiece", read_model, str(tmp_path / "x.model"))


def settings_key(settings):
    """Lists cannot be kept by functools.cache; sentencepiece takes the same with commas."""
    return {key: ",".join(value) if type(value) is list else value for key, value in settings.items()}


def test_sentencepieces_normalization_goes_into_the_file(tmp_path):
    """Of a model that was trained on its ids; in a folder of transformers its own behaviour counts."""
    data = sentencepiece_model(normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True)
    (tmp_path / "x.model").write_bytes(data)
    torch.manual_seed(1)
    torch.save(checkpoint(GPT(Config(n_layer=1, n_head=2, n_embd=32, vocab_size=320))), tmp_path / "ckpt.pt")
    path = convert_checkpoint(tmp_path / "ckpt.pt", tokenizer=tmp_path / "x.model", proof=False).path
    with File(path) as file:
        name = "tokenizer.ggml.precompiled_charsmap"
        assert file.keys.type(name) == (gguf.GGUFValueType.UINT8, True)
        assert bytes(file.keys[name]) == read_model(str(tmp_path / "x.model")).charsmap
        assert file.keys["tokenizer.ggml.remove_extra_whitespaces"] is True
    own, theirs = pygpt.Tokenizer.from_file(path), sentencepiece.SentencePieceProcessor(model_proto=data)
    text = "  It is\n\na  truth\tu\uff4eiversally \ufb01ne, e\u0301 "
    assert own.encode(text) == theirs.encode(text) and own.decode(own.encode(text)) == theirs.decode(
        theirs.encode(text)
    )
    make_folder(tmp_path / "m", "llama", tokenizer="none", bos_token_id=1, eos_token_id=2)
    (tmp_path / "m/tokenizer.model").write_bytes(data)
    with File(convert_checkpoint(tmp_path / "m", proof=False).path) as file:
        assert not {name, "tokenizer.ggml.remove_extra_whitespaces"} & file.keys.keys()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\x0a",
        b"\x0a\x05\x0a\x03ab",  # a piece that ends beyond its end
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # 2^64 - 1 bytes
        b"\x0a" + b"\xff" * 20,  # a number without an end
        b"\x0b",  # a group
        b"\x08\x05",  # pieces as a number
        b"\x0a\x04\x0a\x02\xff\xfe",  # a text that is no UTF-8
        b"\x0a\x05\x15\x00\x00\xc0\x7f",  # a score that is no number
        b"\x0a\x02\x18\x07",  # a type that does not exist
        b"\x0a\x02\x10\x00",  # a score as an integer
        b"text",
    ],
)
def test_a_hostile_model_gives_a_sentence(tmp_path, data):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    assert sentence("expected a model of sentencepiece", read_model, str(path)).startswith(str(path))


# ---- all of them


@pytest.mark.parametrize("kind", ["llama", "sentencepiece"])
def test_damaged_folders_give_a_file_or_a_sentence(tmp_path, kind):
    """Accidents in one file of a folder at a time."""
    rng = random.Random(kind)
    if kind == "llama":
        make_folder(tmp_path / "m", "llama", shards="60kB", vocab_size=304)
    else:
        make_folder(tmp_path / "m", "llama", tokenizer="sentencepiece", bos_token_id=1, eos_token_id=2)
        (tmp_path / "m/tokenizer_config.json").write_text('{"added_tokens_decoder": {"5": {"content": "<z>"}}}')
    names = [path.name for path in (tmp_path / "m").iterdir() if path.name != "chat_template.jinja"]
    outcomes = {"file": 0, "sentence": 0}
    for i in range(250):
        name = names[i % len(names)]
        path = tmp_path / "m" / name
        data = path.read_bytes()
        head = 4000 if name.endswith("safetensors") else len(data)  # of weights nearly all accidents are harmless
        path.write_bytes(mutated(data[:head], rng) + data[head:])
        begin = time.perf_counter()
        try:
            convert_checkpoint(tmp_path / "m", tmp_path / "out.gguf", proof=False)
            outcomes["file"] += 1
        except pygpt.Error as error:
            assert "\n" not in str(error) and len(str(error)) < 700, error
            outcomes["sentence"] += 1
        assert time.perf_counter() - begin < 20
        path.write_bytes(data)
    assert min(outcomes.values()) > 20, outcomes
    shutil.rmtree(tmp_path / "m")
