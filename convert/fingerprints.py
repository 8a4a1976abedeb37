"""Says what a file looks like that no source recognises. It loads nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from pygpt._lib import BadFormat

from .checkpoint import Input
from .pickled_module import class_name
from .torch_file import LEGACY_MAGIC, ZIP_MAGIC
from .unpickle import Stub, shown

UNKNOWN = "this kind of checkpoint is not supported yet"

# first bytes of files that torch.save did not write
MAGICS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (b"\x93NUMPY", "is an array of numpy, not a checkpoint; expected a file of torch.save"),
    (b"\x89HDF", f"looks like a file of Keras or h5py; {UNKNOWN}"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
)

# What the state_dicts of sources are made of, with * for the number of a layer or head: the names that tell them apart.
KINDS: dict[str, str] = {
    "nanoGPT": """transformer.wte.weight transformer.wpe.weight transformer.h.*.ln_1.weight transformer.h.*.ln_1.bias
        transformer.h.*.attn.c_attn.weight transformer.h.*.attn.c_attn.bias transformer.h.*.attn.c_proj.weight
        transformer.h.*.attn.c_proj.bias transformer.h.*.ln_2.weight transformer.h.*.ln_2.bias
        transformer.h.*.mlp.c_fc.weight transformer.h.*.mlp.c_fc.bias transformer.h.*.mlp.c_proj.weight
        transformer.h.*.mlp.c_proj.bias transformer.ln_f.weight transformer.ln_f.bias lm_head.weight""",
    "minGPT of before June 2022": """tok_emb.weight pos_emb blocks.*.ln1.weight blocks.*.ln1.bias blocks.*.ln2.weight
        blocks.*.ln2.bias blocks.*.attn.key.weight blocks.*.attn.key.bias blocks.*.attn.query.weight
        blocks.*.attn.query.bias blocks.*.attn.value.weight blocks.*.attn.value.bias blocks.*.attn.proj.weight
        blocks.*.attn.proj.bias blocks.*.mlp.*.weight blocks.*.mlp.*.bias ln_f.weight ln_f.bias head.weight""",
    "Karpathy's lecture gpt.py": """token_embedding_table.weight position_embedding_table.weight
        blocks.*.sa.heads.*.key.weight blocks.*.sa.heads.*.query.weight blocks.*.sa.heads.*.value.weight
        blocks.*.sa.proj.weight blocks.*.sa.proj.bias blocks.*.ffwd.net.*.weight blocks.*.ffwd.net.*.bias
        blocks.*.ln1.weight blocks.*.ln1.bias blocks.*.ln2.weight blocks.*.ln2.bias ln_f.weight ln_f.bias
        lm_head.weight lm_head.bias""",
    "nanochat": """transformer.wte.weight transformer.h.*.attn.c_q.weight transformer.h.*.attn.c_k.weight
        transformer.h.*.attn.c_v.weight transformer.h.*.attn.c_proj.weight transformer.h.*.mlp.c_fc.weight
        transformer.h.*.mlp.c_proj.weight lm_head.weight""",
    "llama2.c": """tok_embeddings.weight layers.*.attention.wq.weight layers.*.attention.wk.weight
        layers.*.attention.wv.weight layers.*.attention.wo.weight layers.*.feed_forward.w1.weight
        layers.*.feed_forward.w2.weight layers.*.feed_forward.w3.weight layers.*.attention_norm.weight
        layers.*.ffn_norm.weight norm.weight output.weight""",
    "a Llama of Hugging Face (which is converted with its folder, by the config.json in it)": """
        model.embed_tokens.weight model.layers.*.self_attn.q_proj.weight model.layers.*.self_attn.k_proj.weight
        model.layers.*.self_attn.v_proj.weight model.layers.*.self_attn.o_proj.weight
        model.layers.*.mlp.gate_proj.weight model.layers.*.mlp.up_proj.weight model.layers.*.mlp.down_proj.weight
        model.layers.*.input_layernorm.weight model.layers.*.post_attention_layernorm.weight model.norm.weight
        lm_head.weight""",
    "GPT-2 of Hugging Face (which is converted with its folder, by the config.json in it)": """wte.weight wpe.weight
        h.*.ln_1.weight h.*.ln_1.bias h.*.attn.c_attn.weight h.*.attn.c_attn.bias h.*.attn.c_proj.weight
        h.*.attn.c_proj.bias h.*.ln_2.weight h.*.ln_2.bias h.*.mlp.c_fc.weight h.*.mlp.c_fc.bias h.*.mlp.c_proj.weight
        h.*.mlp.c_proj.bias ln_f.weight ln_f.bias""",
    "the Transformer of attention-is-all-you-need-pytorch (which is not supported yet)": """
        encoder.src_word_emb.weight encoder.layer_stack.*.slf_attn.w_qs.weight
        encoder.layer_stack.*.slf_attn.w_ks.weight encoder.layer_stack.*.slf_attn.w_vs.weight
        encoder.layer_stack.*.slf_attn.fc.weight encoder.layer_stack.*.pos_ffn.w_1.weight
        encoder.layer_stack.*.pos_ffn.w_2.weight encoder.layer_norm.weight decoder.trg_word_emb.weight
        decoder.layer_stack.*.slf_attn.w_qs.weight decoder.layer_stack.*.enc_attn.w_qs.weight trg_word_prj.weight""",
}
# what a source wants beside weights that are all its own, where it has not said so already
WANTED = {"llama2.c": "no model_args with its sizes lie beside the weights, as in the ckpt.pt that its train.py saves"}


def nearest(names: Iterable[str]) -> str:
    """The source whose tensors have the most names in common with these, and the difference; empty if there is none."""
    found = {re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names}
    common = {kind: len(found & set(text.split())) for kind, text in KINDS.items()}
    kind = max(common, key=lambda kind: common[kind] / len(found | set(KINDS[kind].split())))
    if not common[kind]:
        return ""
    known = set(KINDS[kind].split())
    lacks, more = sorted(known - found), sorted(found - known)
    parts = [f"{word} {some(names)}" for word, names in (("it lacks", lacks), ("it has", more)) if names]
    difference = " and ".join(parts) or WANTED.get(kind)
    return f"; the nearest is {kind}" + (f", but {difference}" if difference else "")


def some(names: list[str]) -> str:
    return shown(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def by_bytes(path: str) -> str | None:
    """What a file is that torch.save cannot have written; None if it may have."""
    from . import llama2c

    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith((ZIP_MAGIC, LEGACY_MAGIC)):
        return None
    for magic, kind in MAGICS:
        if head.startswith(magic):
            return kind
    if not head:
        return "is empty; expected a checkpoint of torch.save"
    if sentence := llama2c.cut_short(path):
        raise BadFormat(sentence)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= os.path.getsize(path):
        return "looks like a file of safetensors; it is converted with its folder, by the config.json beside it"
    if head[:1] == b"\x80" and 2 <= head[1] <= 5:
        return "is a pickle of Python but not of torch.save; expected a checkpoint such as nanoGPT's ckpt.pt"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return f"is a text ({shown(head[:24].decode())}...); expected a checkpoint of torch.save"
    return f"is not a file of torch.save: expected a zip or torch's older stream, found the bytes {head[:8].hex(' ')}"


def by_content(source: Input) -> str:
    """What the object in a file of torch.save looks like."""
    value, weights = source.value, source.weights
    if weights:
        first = shown(next(iter(weights)))
        return f"holds tensors of an unknown model ({first} and {len(weights) - 1} more){nearest(weights)}"
    if type(value) is Stub:
        kind = shown(name) if (name := class_name(value)) else "object of an unknown class"
        return f"holds a pickled {kind}, not weights; save its state_dict() instead"
    if type(value) is dict:
        keys = ", ".join(shown(key) for key in list(value)[:6])
        return f"holds a dictionary without weights (keys: {keys or 'none'}); expected one such as nanoGPT's ckpt.pt"
    return f"holds {shown(value)}; expected a checkpoint such as nanoGPT's ckpt.pt"
