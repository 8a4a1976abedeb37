"""Writes a GPT-2 of random weights in all types, small enough to be made on the spot: python make_tiny.py OUT.gguf"""

import sys

import gguf
import numpy as np

N_VOCAB, N_CTX, N_EMBD, N_HEAD, N_LAYER = 65, 32, 64, 2, 2
F32, F16, BF16, Q8_0, Q4_0 = (getattr(gguf.GGMLQuantizationType, t) for t in ("F32", "F16", "BF16", "Q8_0", "Q4_0"))
MATRICES = {"attn_qkv": (3, 1), "attn_output": (1, 1), "ffn_up": (4, 1), "ffn_down": (1, 4)}  # out, in, in n_embd
TYPES = {"attn_qkv": [Q8_0, Q4_0], "attn_output": [F16, F32], "ffn_up": [BF16, Q8_0], "ffn_down": [Q4_0, F16]}


def write(path: str) -> None:
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(4 * N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_head_count(N_HEAD)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("none")
    writer.add_token_list([f"token {i}" for i in range(N_VOCAB)])  # arrays of strings are parsed, too

    def add(name: str, *shape: int, type=F32, mean: float = 0) -> None:
        data = random.normal(mean, 0.1, shape).astype(np.float32)
        writer.add_tensor(name, gguf.quantize(data, type), raw_dtype=type)

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
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(sys.argv[1])
