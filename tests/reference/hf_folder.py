"""Folders as save_pretrained of transformers writes them: tiny random models, and tokenizers trained on the spot.

Every component matters: norms are far from 1, biases far from 0, queries and keys large enough that positions show.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPT2_SIZES = {
    "vocab_size": 320,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt2": "GPT2"}
TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families, that he is considered the rightful property of "
    "some one or other of their daughters.\n\nIn 1813 it cost 18s. 0d.: we'd say that's dear; they'll say it ISN'T!\n"
)
LLAMA3 = (  # as Meta's tokenizer.json has it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")  # as Qwen's has it


def make_model(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A model of transformers with random weights: make_model("llama", tie_word_embeddings=True)."""
    sizes = GPT2_SIZES if kind == "gpt2" else SIZES
    config = getattr(transformers, CLASSES[kind] + "Config")(**{**sizes, **changes})
    torch.manual_seed(seed)
    head = "LMHeadModel" if kind == "gpt2" else "ForCausalLM"
    model = getattr(transformers, CLASSES[kind] + head)(config).eval()
    with torch.no_grad():
        for name, w in model.named_parameters():
            if w.ndim == 1 and name.endswith("weight"):
                w.copy_(1 + 0.3 * torch.randn_like(w))
            elif w.ndim == 1:
                w.normal_(std=0.3)
            else:
                fan_in = w.shape[0] if kind == "gpt2" and ".h." in name else w.shape[1]
                w.normal_(std=0.5 if "emb" in name or "wte" in name or "wpe" in name else 1.5 * fan_in**-0.5)
    model.generation_config.eos_token_id = config.eos_token_id
    return model


def make_folder(
    path: Path, kind: str, seed: int = 0, shards: str | None = None, tokenizer: str = "gpt2", **changes: Any
):
    """The model and its folder, with a tokenizer. shards: their largest size, as save_pretrained takes it."""
    model = make_model(kind, seed, **changes)
    model.save_pretrained(path, **({"max_shard_size": shards} if shards else {}))
    add_tokenizer(path, tokenizer)
    return model


def logits(model: Any, ids: list[int]) -> Any:
    """What transformers computes: float32 [len(ids), n_vocab]."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def edit_json(path: Path, **changes: Any) -> None:
    """Sets values in a JSON file; those that are `...` are removed."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


# ---- tokenizers


def byte_level(rule: str | None = None, ignore_merges: bool = False, bos: str | None = None) -> Tokenizer:
    """Byte-level BPE of 300 tokens, trained here; the rule of GPT-2, or another one."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if rule:
        split = pre_tokenizers.Split(Regex(rule), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


@cache
def sentencepiece_model(**settings: Any) -> bytes:
    """tokenizer.model of 320 pieces, as Llama's was trained."""
    import sentencepiece

    folder = Path(mkdtemp())
    (folder / "text.txt").write_text(TEXT)
    settings = {
        "vocab_size": 320,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "minloglevel": 2,
    } | settings
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), **settings
    )
    data = (folder / "tokenizer.model").read_bytes()
    shutil.rmtree(folder)
    return data


def add_tokenizer(path: Path, kind: str) -> None:
    """kind: gpt2, llama3, qwen2 (byte-level BPE); sentencepiece (tokenizer.model), or both files; or none."""
    path.mkdir(exist_ok=True)
    if kind == "none":
        return
    if kind in ("sentencepiece", "both", "converted"):
        (path / "tokenizer.model").write_bytes(sentencepiece_model())
        if kind != "sentencepiece":
            transformers.LlamaTokenizer.from_pretrained(path).save_pretrained(path)
        if kind == "converted":
            (path / "tokenizer.model").unlink()
        return
    tokenizer = {
        "gpt2": lambda: byte_level(),
        "llama3": lambda: byte_level(LLAMA3, ignore_merges=True, bos="<|endoftext|>"),
        "qwen2": lambda: byte_level(QWEN2),
    }[kind]()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template="{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}",
    ).save_pretrained(path)
