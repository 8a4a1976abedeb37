"""Writes models of random weights in several types, small enough to be made on the spot.

python make_tiny.py OUT.gguf            a gpt2
python make_tiny.py OUT-nanochat.gguf   a nanochat
"""

import sys

import gguf
import numpy as np

N_VOCAB, N_CTX, N_EMBD, N_HEAD, N_LAYER = 65, 32, 64, 2, 2
F32, F16, BF16, Q8_0, Q4_0 = (getattr(gguf.GGMLQuantizationType, t) for t in ("F32", "F16", "BF16", "Q8_0", "Q4_0"))
MATRICES = {"attn_qkv": (3, 1), "attn_output": (1, 1), "ffn_up": (4, 1), "ffn_down": (1, 4)}  # out, in, in n_embd
TYPES = {"attn_qkv": [Q8_0, Q4_0], "attn_output": [F16, F32], "ffn_up": [BF16, Q8_0], "ffn_down": [Q4_0, F16]}


class Tiny:
    """A file to which random tensors are added."""

    def __init__(self, path: str, architecture: str) -> None:
        self.random = np.random.default_rng(1)
        self.writer = writer = gguf.GGUFWriter(path, architecture)
        writer.add_context_length(N_CTX)
        writer.add_embedding_length(N_EMBD)
        writer.add_feed_forward_length(4 * N_EMBD)
        writer.add_block_count(N_LAYER)
        writer.add_head_count(N_HEAD)
        writer.add_vocab_size(N_VOCAB)
        writer.add_tokenizer_model("none")
        writer.add_token_list([f"token {i}" for i in range(N_VOCAB)])  # arrays of strings are parsed, too

    def add(self, name: str, *shape: int, type=F32, mean: float = 0) -> None:
        data = self.random.normal(mean, 0.1, shape).astype(np.float32)
        self.writer.add_tensor(name, gguf.quantize(data, type), raw_dtype=type)

    def finish(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def write_gpt2(path: str) -> None:
    tiny = Tiny(path, "gpt2")
    tiny.writer.add_layer_norm_eps(1e-5)
    add = tiny.add

    def add_norm(name: str) -> None:
        add(f"{name}.weight", N_EMBD, mean=1)
        add(f"{name}.bias", N_EMBD)

    add("token_embd.weight", N_VOCAB, N_EMBD, type=Q8_0)
    add("position_embd.weight", N_CTX, N_EMBD, type=F16)
    for layer in range(N_LAYER):
        add_norm(f"blk.{layer}.attn_norm")
        add_norm(f"blk.{layer}.ffn_norm")
        for name, (n_out, n_in) in MATRICES.items():
            add(f"blk.{layer}.{name}.weight", n_out * N_EMBD, n_in * N_EMBD, type=TYPES[name][layer])
            add(f"blk.{layer}.{name}.bias", n_out * N_EMBD)
    add_norm("output_norm")
    tiny.finish()


def write_nanochat(path: str) -> None:
    tiny = Tiny(path, "nanochat")
    writer, add, head = tiny.writer, tiny.add, N_EMBD // N_HEAD
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_head_count_kv(1)
    writer.add_key_length(head)
    writer.add_rope_freq_base(1e5)
    writer.add_float32("nanochat.attention.qk_scale", 1.2)
    writer.add_float32("nanochat.final_logit_softcapping", 15.0)
    writer.add_float32("nanochat.value_gate_scale", 3.0)
    writer.add_uint32("nanochat.backout_layer", 0)
    writer.add_array("nanochat.attention.sliding_window", [9, 0])
    for name in ("token_embd", "output"):
        add(f"{name}.weight", N_VOCAB, N_EMBD, type=Q8_0)
    for name, n in (("resid", N_LAYER), ("x0", N_LAYER)):
        add(f"{name}_lambdas.weight", n, mean=0.5)
    for name, n in (("smear_gate", 24), ("smear_lambda", 1), ("backout_lambda", 1)):
        add(f"{name}.weight", n)
    for layer in range(N_LAYER):
        for name, n_out, n_in, type in (
            ("attn_q", N_EMBD, N_EMBD, Q8_0),
            ("attn_k", head, N_EMBD, Q4_0),
            ("attn_v", head, N_EMBD, F16),
            ("attn_output", N_EMBD, N_EMBD, Q4_0),
            ("ffn_up", 4 * N_EMBD, N_EMBD, Q8_0),
            ("ffn_down", N_EMBD, 4 * N_EMBD, BF16),
        ):
            add(f"blk.{layer}.{name}.weight", n_out, n_in, type=type)
    add("blk.1.attn_value_embd.weight", N_VOCAB, head, type=Q8_0)
    add("blk.1.attn_value_gate.weight", 1, 12)
    tiny.finish()


if __name__ == "__main__":
    (write_nanochat if sys.argv[1].endswith("nanochat.gguf") else write_gpt2)(sys.argv[1])
