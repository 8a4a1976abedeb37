"""GPT-2 as `transformers` has it. Owns what its config.json means; its matrices lie turned, as Conv1D has them."""

from __future__ import annotations

from pygpt._lib import BadFormat

from . import gpt2_layers, hf_tokenizer
from .checkpoint import Checkpoint
from .gpt2_layers import Weighed
from .hf_weights import Model
from .open_questions import ACTIVATION, HEAD_COUNT, Found
from .unpickle import shown

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

    sizes = {"V": n_vocab, "T": n_ctx, "C": n_embd, "F": n_ff}
    tensors = gpt2_layers.bind_layers(model, n_layer, sizes, is_conv1d=True)
    head = model.take_head(tensors["token_embd.weight"], config.flag("tie_word_embeddings", True))
    if head is not None:
        tensors["output.weight"] = head
    vocabulary = hf_tokenizer.find_vocabulary(model.folder, config.values, n_vocab, is_gpt2=True)
    return gpt2_layers.gpt2(
        Weighed(n_layer, sizes, tensors),
        Found({HEAD_COUNT: n_head}),
        Found({ACTIVATION: ACTIVATIONS[activation]}),
        vocabulary,
        epsilon=config.number("layer_norm_epsilon", 0, 1, 1e-5),
    )
