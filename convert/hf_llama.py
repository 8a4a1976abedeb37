"""Llama, Mistral, Qwen2 and Qwen3 as `transformers` has them: their names, and what their config.json means.

x = embed_tokens[id]
for each layer:   q, k, v = q_proj(y), k_proj(y), v_proj(y)  with y = input_layernorm(x)
                  x += o_proj(attention(rope(q_norm(q)), rope(k_norm(k)), v))       the norms in Qwen3 alone
                  x += down_proj(silu(gate_proj(y)) * up_proj(y))  with y = post_attention_layernorm(x)
logits = lm_head(norm(x))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from pygpt._lib import BadFormat

from . import hf_tokenizer
from .checkpoint import Checkpoint, Values, Weights, whole_number
from .hf_config import Config, Rope, read_rope
from .hf_weights import Model
from .torch_file import Tensor
from .unpickle import shown


@dataclass(frozen=True)
class Family:
    """What an architecture is, beside what its config.json says.

    neighbours: GGUF's architecture turns elements 2 i and 2 i + 1 of a head; transformers always i and i + n / 2
    windows: which layers may have a sliding window: "none", "all", or as config.json "says"
    """

    architecture: str  # GGUF's
    model_type: str  # config.json's
    defaults: dict[str, int] = field(default_factory=dict)  # of what config.json leaves out, where not those of Llama
    neighbours: bool = False
    windows: str = "says"
    biases: tuple[str, ...] = ()  # rows of BIASES that it may have
    has_head_norms: bool = False


FAMILIES = {
    "LlamaForCausalLM": Family(
        "llama",
        "llama",
        neighbours=True,
        windows="none",
        biases=("attention_bias", "mlp_bias"),
    ),
    "MistralForCausalLM": Family(
        "llama",
        "mistral",
        {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
        neighbours=True,
        windows="all",
    ),
    "Qwen2ForCausalLM": Family(
        "qwen2",
        "qwen2",
        {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
        biases=("always",),
    ),
    "Qwen3ForCausalLM": Family(
        "qwen3",
        "qwen3",
        {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
        has_head_norms=True,
    ),
}

# switch in config.json ("always" is none): first letters of the projections that have a bias then
BIASES = {"always": "qkv", "attention_bias": "qkvo", "mlp_bias": "gud"}

# name in the checkpoint, name in GGUF, shape in V (ids), C (width), Q (queries), K (keys), D (a head), F (feed-forward)
EMBEDDING = ("model.embed_tokens.weight", "token_embd.weight", "VC")
LAYER = (
    ("input_layernorm.weight", "attn_norm.weight", "C"),
    ("self_attn.q_proj.weight", "attn_q.weight", "QC"),
    ("self_attn.q_proj.bias", "attn_q.bias", "Q"),
    ("self_attn.k_proj.weight", "attn_k.weight", "KC"),
    ("self_attn.k_proj.bias", "attn_k.bias", "K"),
    ("self_attn.v_proj.weight", "attn_v.weight", "KC"),
    ("self_attn.v_proj.bias", "attn_v.bias", "K"),
    ("self_attn.q_norm.weight", "attn_q_norm.weight", "D"),
    ("self_attn.k_norm.weight", "attn_k_norm.weight", "D"),
    ("self_attn.o_proj.weight", "attn_output.weight", "CQ"),
    ("self_attn.o_proj.bias", "attn_output.bias", "C"),
    ("post_attention_layernorm.weight", "ffn_norm.weight", "C"),
    ("mlp.gate_proj.weight", "ffn_gate.weight", "FC"),
    ("mlp.gate_proj.bias", "ffn_gate.bias", "F"),
    ("mlp.up_proj.weight", "ffn_up.weight", "FC"),
    ("mlp.up_proj.bias", "ffn_up.bias", "F"),
    ("mlp.down_proj.weight", "ffn_down.weight", "CF"),
    ("mlp.down_proj.bias", "ffn_down.bias", "C"),
)
FINAL = ("model.norm.weight", "output_norm.weight", "C")


@dataclass
class Sizes:
    n_layer: int
    n_embd: int
    n_ff: int
    n_vocab: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ctx: int

    def shape(self, letters: str) -> tuple[int, ...]:
        sizes = {
            "V": self.n_vocab,
            "C": self.n_embd,
            "Q": self.n_head * self.head_dim,
            "K": self.n_head_kv * self.head_dim,
            "D": self.head_dim,
            "F": self.n_ff,
        }
        return tuple(sizes[letter] for letter in letters)


def convert(model: Model, family: Family) -> Checkpoint:
    config = model.config
    s = read_sizes(config, family.defaults)
    refuse_unknown(config, family)
    rope = read_rope(config, s.head_dim, s.n_ctx)
    if rope.factors is not None and not family.neighbours:  # llama.cpp's Qwen has no such tensor
        raise config.unsupported(f"its RoPE is scaled as Llama 3's in the architecture {family.architecture}")
    assumptions = rope.assumptions
    window, n_sliding = read_window(config, family, s)
    if window:
        assumptions.append(
            f"The context is {window} instead of {s.n_ctx}: {n_sliding} of {s.n_layer} layers look back only that "
            "far, and llama.cpp would look back further."
        )
        s.n_ctx = window
    tensors, is_tied = bind(model, family, s, rope)
    keys = {
        "context_length": s.n_ctx,
        "embedding_length": s.n_embd,
        "block_count": s.n_layer,
        "feed_forward_length": s.n_ff,
        "attention.head_count": s.n_head,
        "attention.head_count_kv": s.n_head_kv,
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", 0, 1, 1e-6),
        "vocab_size": s.n_vocab,
        **rope.keys,
    }
    if s.head_dim * s.n_head != s.n_embd:
        keys |= {"attention.key_length": s.head_dim, "attention.value_length": s.head_dim}
    if window and n_sliding == s.n_layer:  # the key speaks of all layers
        keys["attention.sliding_window"] = window
    vocabulary = hf_tokenizer.find_vocabulary(model.folder, config.values, s.n_vocab)
    groups = f" ({s.n_head_kv} for keys and values)" if s.n_head_kv != s.n_head else ""
    return Checkpoint(
        source="",
        recognised_by="",
        architecture=family.architecture,
        keys={f"{family.architecture}.{key}": value for key, value in keys.items()},
        tensors=tensors,
        vocabulary=vocabulary,
        summary=f"{s.n_layer} layers, {s.n_head} heads{groups}, {s.n_embd} wide, context {s.n_ctx}, {rope.text}, "
        f"{'tied head' if is_tied else 'a head of its own'}",
        assumptions=[*assumptions, *vocabulary.assumptions],
    )


# ---- config.json


def read_sizes(config: Config, defaults: Mapping[str, int]) -> Sizes:
    default = defaults.get
    n_embd = config.whole("hidden_size", 1, 1 << 20)
    n_head = config.whole("num_attention_heads", 1, 10_000)
    # null says that there are no groups, a missing one that there are the usual ones
    n_groups = n_head if "num_key_value_heads" in config.values else default("num_key_value_heads", n_head)
    s = Sizes(
        n_layer=config.whole("num_hidden_layers", 1, 10_000),
        n_embd=n_embd,
        n_ff=config.whole("intermediate_size", 1, 1 << 24),
        n_vocab=config.whole("vocab_size", 1, 1 << 24),
        n_head=n_head,
        n_head_kv=config.whole("num_key_value_heads", 1, 10_000, n_groups),
        head_dim=config.whole("head_dim", 1, 1 << 16, default("head_dim", n_embd // n_head or 1)),
        n_ctx=config.whole("max_position_embeddings", 1, 1 << 24, default("max_position_embeddings", 2048)),
    )
    if s.n_head % s.n_head_kv:
        raise BadFormat(f"{config.path}: {s.n_head} heads cannot share {s.n_head_kv} heads of keys and values evenly")
    if s.head_dim % 2:
        raise BadFormat(f"{config.path}: expected heads of an even width for RoPE, found {s.head_dim}")
    return s


def refuse_unknown(config: Config, family: Family) -> None:
    if (activation := config.text("hidden_act", "silu")) not in ("silu", "swish"):  # two names of one function
        raise config.unsupported(f"its hidden_act is {shown(activation)}")
    if family.has_head_norms and config.flag("attention_bias", False):  # llama.cpp's qwen3 has none
        raise config.unsupported("it has biases in the attention (attention_bias)")


def read_window(config: Config, family: Family, s: Sizes) -> tuple[int | None, int]:
    """(how many positions are seen, the number of layers where it is so), if that is fewer than the context has."""
    size = config.values.get("sliding_window", family.defaults.get("sliding_window"))
    if family.windows == "none" or size is None:
        return None, 0
    n_sliding = s.n_layer
    if family.windows == "says":
        if not config.flag("use_sliding_window", False):
            return None, 0
        first = config.whole("max_window_layers", 0, 1 << 30, 28)
        kinds = ("full_attention", "sliding_attention")
        layers = config.get("layer_types", [kinds[i >= first] for i in range(s.n_layer)])
        if type(layers) is not list or len(layers) != s.n_layer or any(kind not in kinds for kind in layers):
            raise config.unsupported(f"its layer_types are not {s.n_layer} of {' and '.join(kinds)}")
        n_sliding = layers.count("sliding_attention")
    size = whole_number({"sliding_window": size}, "sliding_window", 1, 1 << 30, config.path)
    return (size, n_sliding) if n_sliding and size < s.n_ctx else (None, 0)


# ---- weights


def bind(model: Model, family: Family, s: Sizes, rope: Rope) -> tuple[dict[str, Weights], bool]:
    """The tensors by their GGUF names, checked; and whether the head is the embedding."""
    with_bias = "".join(BIASES[row] for row in family.biases if row == "always" or model.config.flag(row, False))
    tensors: dict[str, Weights] = {}
    if rope.factors is not None:
        tensors["rope_freqs.weight"] = Values(rope.factors)
    tensors[EMBEDDING[1]] = embedding = model.take(EMBEDDING[0], s.shape(EMBEDDING[2]))
    for i in range(s.n_layer):
        for theirs, ours, letters in LAYER:
            if letters == "D" and not family.has_head_norms:
                continue
            if theirs.endswith(".bias") and theirs.split(".")[1][0] not in with_bias:
                continue
            tensor = model.take(f"model.layers.{i}.{theirs}", s.shape(letters))
            is_turned = family.neighbours and ours.startswith(("attn_q.", "attn_k."))
            n_head = s.n_head if ours.startswith("attn_q.") else s.n_head_kv
            tensors[f"blk.{i}.{ours}"] = Neighbours(tensor, n_head) if is_turned else tensor
    tensors[FINAL[1]] = model.take(FINAL[0], s.shape(FINAL[2]))
    head = model.take_head(embedding, model.config.flag("tie_word_embeddings", False))
    if head is not None:
        tensors["output.weight"] = head
    return tensors, head is None


@dataclass
class Neighbours:
    """The rows of queries or keys in the order of GGUF's llama: in each head row i before row i + n / 2."""

    tensor: Tensor
    n_head: int

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def size(self) -> int:
        return self.tensor.size

    def check(self) -> None:
        self.tensor.check()

    def blocks(self) -> Iterator[np.ndarray]:
        """A head at a time."""
        n = self.shape[0] // self.n_head
        for head in range(self.n_head):
            block = self.tensor.rows(head * n, n)  # (n, width); of a bias (n, 1)
            block = block.reshape(2, n // 2, -1).swapaxes(0, 1).reshape(n, -1)
            yield block if len(self.shape) > 1 else block.reshape(1, n)
