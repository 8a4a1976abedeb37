"""GPT-2 as `transformers` has it. The names are those of nanoGPT, which took them from there.

x = wte[id] + wpe[position]
for each layer:   x += c_proj(attention(c_attn(ln_1(x))))
                  x += c_proj(gelu(c_fc(ln_2(x))))
logits = lm_head(ln_f(x))
"""

from __future__ import annotations

from typing import Any

from pygpt._lib import BadFormat

from . import hf_tokenizer
from .checkpoint import Checkpoint, Weights
from .hf_weights import Model
from .nanogpt import EMBEDDINGS, FINAL, LAYER
from .unpickle import shown

CONV1D = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")  # stored [in, out]
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu_erf"}
USUAL = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


def convert(model: Model) -> Checkpoint:
    config = model.config
    n_layer = config.whole("n_layer", 1, 10_000)
    n_head = config.whole("n_head", 1, 10_000)
    n_embd = config.whole("n_embd", 1, 1 << 20)
    n_ff = config.whole("n_inner", 1, 1 << 24, 4 * n_embd)
    n_ctx = config.whole("n_positions", 1, 1 << 24, config.whole("n_ctx", 1, 1 << 24, 1024))
    n_vocab = config.whole("vocab_size", 1, 1 << 24)
    if n_embd % n_head:
        raise BadFormat(f"{config.path}: n_embd {n_embd} is no multiple of n_head {n_head}")
    activation = config.text("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise config.unsupported(f"its activation_function is {shown(activation)}")
    for key, usual in USUAL.items():
        if config.flag(key, usual) is not usual:
            raise config.unsupported(f"its {key} is {str(not usual).lower()}")

    tensors, is_tied = bind(model, n_layer, {"V": n_vocab, "T": n_ctx, "C": n_embd, "F": n_ff, "3": 3 * n_embd})
    vocabulary = hf_tokenizer.find_vocabulary(model.folder, config.values, n_vocab, is_gpt2=True)
    return Checkpoint(
        source="",
        recognised_by="",
        architecture="gpt2",
        keys={
            "gpt2.context_length": n_ctx,
            "gpt2.embedding_length": n_embd,
            "gpt2.feed_forward_length": n_ff,
            "gpt2.block_count": n_layer,
            "gpt2.attention.head_count": n_head,
            "gpt2.attention.layer_norm_epsilon": config.number("layer_norm_epsilon", 0, 1, 1e-5),
            "gpt2.vocab_size": n_vocab,
            "pygpt.activation": ACTIVATIONS[activation],
        },
        tensors=tensors,
        vocabulary=vocabulary,
        summary=f"{n_layer} layers, {n_head} heads, {n_embd} wide, context {n_ctx}, "
        f"{'tied head' if is_tied else 'a head of its own'}",
        assumptions=vocabulary.assumptions,
    )


def bind(model: Model, n_layer: int, sizes: dict[str, int]) -> tuple[dict[str, Weights], bool]:
    """The tensors by their GGUF names, checked; and whether the head is the embedding."""
    rows = [*EMBEDDINGS]
    for i in range(n_layer):
        rows += [(f"transformer.h.{i}.{theirs}", f"blk.{i}.{ours}", letters) for theirs, ours, letters in LAYER]
    tensors: dict[str, Weights] = {}
    for theirs, ours, letters in [*rows, *FINAL]:
        shape = tuple(sizes[letter] for letter in letters)
        if ours.endswith(CONV1D):
            tensors[ours] = model.claim(theirs, shape[::-1]).transposed()
        else:
            tensors[ours] = model.claim(theirs, shape)
    embedding: Any = tensors["token_embd.weight"]
    head = model.claim_head(embedding, model.config.flag("tie_word_embeddings", True))
    if head is not None:
        tensors["output.weight"] = head
    return tensors, head is None
