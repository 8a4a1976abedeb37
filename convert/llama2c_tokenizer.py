"""llama2.c's tokenizer.bin: the pieces of a sentencepiece model with their scores, as run.c reads them.

    | u32 length of the longest piece | for each token: f32 score | i32 length | bytes |

How many tokens there are is not said: they go on to the end of the file. Spaces stand as such, ids 1 and 2 are
"\\n<s>\\n" and "\\n</s>\\n", and ids 3 to 258 are the 256 bytes, spelled <0x00> and so on.

run.c puts BOS and a space before a text, looks up its characters, spells those that it does not find in bytes, and
joins the pair whose piece has the best score, the leftmost of equals, until no pair is a piece. It ends a text at BOS.
"""

from __future__ import annotations

import struct

from pygpt._lib import BadFormat, Unsupported
from pygpt.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN

from .checkpoint import Vocabulary
from .hf_tokenizer import SPACE, Table, llama_vocabulary
from .unpickle import shown
from .whole_file import read_whole

MAX_BYTES = 64 << 20  # Llama 2's has half a MB
LLMC = (20240328).to_bytes(4, "little")  # what llm.c's tokenizers begin with
UNK, BOS, EOS, FIRST_BYTE = 0, 1, 2, 3
CONTROLS = {BOS: "<s>", EOS: "</s>"}


def from_bin(path: str, n_vocab: int) -> Vocabulary:
    pieces = read_pieces(path)
    if len(pieces) != n_vocab:
        raise BadFormat(
            f"{path}: expected a tokenizer of {n_vocab} tokens, as many as the model has ids, found {len(pieces)}; "
            "name the one that it was trained with by --tokenizer"
        )
    table = Table(path, n_vocab)
    for id, (text, score) in enumerate(pieces):
        table.put(id, *spelled(path, id, text), score)
    vocabulary = llama_vocabulary(table, add_prefix=True)
    vocabulary.keys["tokenizer.ggml.tokens"] = table.fill()
    vocabulary.keys["tokenizer.ggml.token_type"] = table.types
    for name, id in (("unknown", UNK), ("bos", BOS), ("eos", EOS)):
        vocabulary.keys[f"tokenizer.ggml.{name}_token_id"] = id
    vocabulary.text += f", {n_vocab} tokens from {path}"
    return as_run_c(vocabulary)


def as_run_c(vocabulary: Vocabulary) -> Vocabulary:
    """BOS stands before a text, and where it comes again a text is over."""
    keys = vocabulary.keys
    bos = keys.get("tokenizer.ggml.bos_token_id")
    if keys["tokenizer.ggml.model"] == "llama" and bos is not None:
        keys |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False}
        keys["tokenizer.ggml.eot_token_id"] = bos
    return vocabulary


def read_pieces(path: str) -> list[tuple[str, float]]:
    """(text, score) of each token."""
    data = read_whole(path, MAX_BYTES, "a tokenizer")
    if data[:4] == LLMC:
        raise Unsupported(f"{path}: is a tokenizer of llm.c, which can only decode; expected one of llama2.c")
    pieces: list[tuple[str, float]] = []
    try:
        (longest,) = struct.unpack_from("<I", data)
        at = 4
        while at < len(data):
            score, size = struct.unpack_from("<fi", data, at)
            at += 8
            if not 0 < size <= min(longest, len(data) - at) or abs(score) > 1e30 or score != score:
                raise ValueError
            pieces.append((data[at : at + size].decode(), score))
            at += size
    except (struct.error, ValueError):  # UnicodeDecodeError is one too
        raise BadFormat(
            f"{path}: expected llama2.c's tokenizer.bin, found something else behind token {len(pieces)}; "
            "it was cut short or damaged, copy it again"
        ) from None
    return pieces


def spelled(path: str, id: int, text: str) -> tuple[str, int]:
    """A token's text and kind as GGUF has them."""
    if id == UNK:
        return text, UNKNOWN
    if id in CONTROLS:
        return CONTROLS[id], CONTROL
    byte = id - FIRST_BYTE
    if byte < 256:
        if text not in (f"<0x{byte:02X}>", chr(byte)):  # chr in older files
            raise BadFormat(
                f"{path}: expected the byte {byte:#04x} at id {id}, where run.c has it, found {shown(text)}; "
                "it was not written by llama2.c's tokenizer.py"
            )
        return f"<0x{byte:02X}>", BYTE
    return text.replace(" ", SPACE), NORMAL
