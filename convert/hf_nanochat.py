"""nanochat as `transformers` has it: as it was until 2026-01-10, with sizes and constants from config.json.

x = norm(embed_tokens[id])
for each layer:   q, k, v = q_proj(y), k_proj(y), v_proj(y)  with y = norm(x)
                  x += o_proj(attention(norm(rope(q)), norm(rope(k)), v))
                  x += fc2(relu(fc1(norm(x)))^2)
logits = softcap(lm_head(norm(x)))

Norms have no weights, and RoPE turns the other way round than usual.
"""

from __future__ import annotations

from . import hf_tokenizer
from .checkpoint import Checkpoint, Weights
from .hf_config import Config, read_rope
from .hf_llama import Sizes, read_sizes
from .hf_weights import Model
from .unpickle import shown

# name in the checkpoint, name in GGUF, shape in V (ids), C (width), Q (queries), K (keys), F (feed-forward)
EMBEDDING = ("model.embed_tokens.weight", "token_embd.weight", "VC")
ATTENTION = (
    ("self_attn.q_proj.weight", "attn_q.weight", "QC"),
    ("self_attn.k_proj.weight", "attn_k.weight", "KC"),
    ("self_attn.v_proj.weight", "attn_v.weight", "KC"),
    ("self_attn.o_proj.weight", "attn_output.weight", "CQ"),
)
FEED_FORWARDS = (  # the names that its two matrices have had
    (("mlp.fc1.weight", "ffn_up.weight", "FC"), ("mlp.fc2.weight", "ffn_down.weight", "CF")),
    (("mlp.fc.weight", "ffn_up.weight", "FC"), ("mlp.proj.weight", "ffn_down.weight", "CF")),
)
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")  # the newer name, the older one


def convert(model: Model) -> Checkpoint:
    config = model.config
    s = read_sizes(config, {})
    refuse_unknown(config)
    rope = read_rope(config, s.head_dim, s.n_ctx)
    if rope.factors is not None or any(key.startswith("rope.scaling") for key in rope.keys):
        raise config.unsupported("its RoPE is scaled")
    tensors, is_tied = bind(model, s)
    vocabulary = hf_tokenizer.find_vocabulary(model.folder, config.values, s.n_vocab)
    keys = {
        "context_length": s.n_ctx,
        "embedding_length": s.n_embd,
        "feed_forward_length": s.n_ff,
        "block_count": s.n_layer,
        "vocab_size": s.n_vocab,
        "attention.head_count": s.n_head,
        "attention.head_count_kv": s.n_head_kv,
        "attention.key_length": s.head_dim,
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", 0, 1, 1e-6),
        "attention.qk_scale": 1.0,
        "attention.sliding_window": [0] * s.n_layer,
        "rope.freq_base": rope.keys["rope.freq_base"],
        "final_logit_softcapping": read_softcap(config),
    }
    groups = f" ({s.n_head_kv} for keys and values)" if s.n_head_kv != s.n_head else ""
    return Checkpoint(
        source="",
        recognised_by="",
        architecture="nanochat",
        keys={f"nanochat.{key}": value for key, value in keys.items()},
        tensors=tensors,
        vocabulary=vocabulary,
        summary=f"{s.n_layer} layers, {s.n_head} heads{groups}, {s.n_embd} wide, context {s.n_ctx}, {rope.text}, "
        f"{'tied head' if is_tied else 'a head of its own'}",
        assumptions=[*rope.assumptions, *vocabulary.assumptions],
    )


# ---- config.json


def refuse_unknown(config: Config) -> None:
    if (activation := config.text("hidden_act", "relu2")) != "relu2":
        raise config.unsupported(f"its hidden_act is {shown(activation)}")
    if config.flag("attention_bias", False):
        raise config.unsupported("it has biases in the attention (attention_bias)")


def read_softcap(config: Config) -> float:
    name = next((name for name in SOFTCAPS if name in config.values), SOFTCAPS[0])
    if name in config.values and config.values[name] is None:
        raise config.unsupported(f"its logits have no soft cap ({name} is null)")
    return config.number(name, 1e-3, 1e6, 15.0)


# ---- weights


def bind(model: Model, s: Sizes) -> tuple[dict[str, Weights], bool]:
    """The tensors by their GGUF names, checked; and whether the head is the embedding."""
    embedding = model.take(EMBEDDING[0], s.shape(EMBEDDING[2]))
    feed_forward = next((rows for rows in FEED_FORWARDS if has(model, rows[0][0])), FEED_FORWARDS[0])
    tensors: dict[str, Weights] = {EMBEDDING[1]: embedding, "output.weight": embedding}
    for i in range(s.n_layer):
        for theirs, ours, letters in (*ATTENTION, *feed_forward):
            tensors[f"blk.{i}.{ours}"] = model.take(f"model.layers.{i}.{theirs}", s.shape(letters))
    head = model.take_head(embedding, model.config.flag("tie_word_embeddings", False))
    if head is not None:
        tensors["output.weight"] = head
    return tensors, head is None


def has(model: Model, name: str) -> bool:
    """In the first layer; names may lack their first word."""
    return any(f"{prefix}layers.0.{name}" in model.weights for prefix in ("model.", ""))
