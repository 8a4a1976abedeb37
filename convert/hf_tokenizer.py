"""The tokenizer of a Hugging Face folder as GGUF's keys: byte-level BPE as `gpt2`, sentencepiece's BPE as `llama`.

Read are tokenizer.json, or tokenizer.model where there is none, or GPT-2's old vocab.json and merges.txt. The rule that
splits text into words is stored by llama.cpp's name for it, where it has one, and as it is where it has none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from pygpt._lib import BadFormat, NotFound, Unreadable, Unsupported
from pygpt.split_rules import GPT2, RULES
from pygpt.tokenizer import ALWAYS, FIRST, Borders
from pygpt.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

from . import gpt2_bpe
from .checkpoint import Vocabulary
from .json_file import read_object
from .sentencepiece_model import SentencepieceModel, read_model
from .unpickle import shown

SPACE = "\u2581"  # how sentencepiece spells a space
OWN_RULE = "pygpt-split"  # for what has no name: the rule is in pygpt.tokenizer.split, and llama.cpp refuses the file

# texts of tokens that end a turn in a chat
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<|endoftext|>")
SPECIAL_IDS = (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))  # theirs, GGUF's


class Added(NamedTuple):
    """A token that was added to the vocabulary or stands out of it. flags: of AddedToken, those that are set."""

    id: Any
    text: Any
    flags: frozenset[str] = frozenset()

    @staticmethod
    def of(id: Any, entry: dict[str, Any]) -> Added:
        flags = ("special", "normalized", *Borders._fields)
        return Added(id, entry.get("content"), frozenset(flag for flag in flags if entry.get(flag) is True))


class Table:
    """The tokens by their ids, as they are found in the file `path` for a model of `n_vocab` ids."""

    def __init__(self, path: str, n_vocab: int) -> None:
        self.path, self.n_vocab = path, n_vocab
        self.tokens: list[str | None] = [None] * n_vocab
        self.types = [UNUSED] * n_vocab
        self.scores = [-10000.0] * n_vocab  # as llama.cpp's converter gives to what is unused
        self.added: dict[int, Added] = {}

    def put(self, id: Any, text: Any, kind: int, score: float = 0.0) -> None:
        if type(id) is not int or type(text) is not str or id < 0:
            raise BadFormat(f"{self.path}: expected tokens with ids, found {shown(text)} with the id {shown(id)}")
        if id >= self.n_vocab:
            raise BadFormat(
                f"{self.path}: {shown(text)} has the id {shown(id)}, but the model has only {self.n_vocab} ids; "
                "its tokenizer is another one, or tokens were added without resizing the embedding"
            )
        if kind == USER_DEFINED:  # such tokens are found in text as they stand
            text = text.replace(SPACE, " ")
        self.tokens[id], self.types[id], self.scores[id] = text, kind, score

    def add(self, entries: Iterable[Added]) -> None:
        for entry in entries:
            id, text, flags = entry
            is_control = "special" in flags or (type(text) is str and looks_special(text))
            known = self.types[id] if type(id) is int and 0 <= id < self.n_vocab and self.tokens[id] == text else None
            kind = known if known in (UNKNOWN, BYTE) else CONTROL if is_control else USER_DEFINED
            self.put(id, text, kind, -1000.0)  # as llama.cpp's converter
            self.added[id] = entry

    def borders(self) -> dict[str, list[int]]:
        """Keys for the added tokens that have to do with the text beside them."""
        found = {
            flag: sorted(id for id, entry in self.added.items() if flag in entry.flags) for flag in Borders._fields
        }
        return {f"pygpt.tokenizer.{flag}": ids for flag, ids in found.items() if ids}

    def fill(self) -> list[str]:
        """All tokens. Ids without one are padding: they get a name, and no text can produce them."""
        tokens = [f"[PAD{id}]" if text is None else text for id, text in enumerate(self.tokens)]
        seen: dict[str, int] = {}
        for id, text in enumerate(tokens):
            if seen.setdefault(text, id) != id:
                raise BadFormat(f"{self.path}: the token {shown(text)} has two ids, {seen[text]} and {id}")
        check_text("".join(tokens), f"{self.path}: its tokens")
        return tokens

    @property
    def n_padding(self) -> int:
        return self.tokens.count(None)


def looks_special(text: str) -> bool:
    """Tokens that should be special and are not marked so in some models, as llama.cpp's converter has it."""
    return (text[:2], text[-2:]) in (("<|", "|>"), ("<\uff5c", "\uff5c>")) or text in ("<pad>", "<mask>")


def find_vocabulary(folder: str, config: dict[str, Any], n_vocab: int, is_gpt2: bool = False) -> Vocabulary:
    """config: that of the model, which names special tokens by their ids. is_gpt2: older files are understood too."""
    settings = read_optional(folder, "tokenizer_config.json")
    tokenizer = read_optional(folder, "tokenizer.json")
    model_path = os.path.join(folder, "tokenizer.model")
    if tokenizer:
        table = Table(os.path.join(folder, "tokenizer.json"), n_vocab)
        vocabulary = from_json(table, tokenizer, model_path)
    elif os.path.isfile(model_path):
        table = Table(model_path, n_vocab)
        vocabulary = from_folder(table, read_model(model_path), folder, settings)
    elif is_gpt2 and os.path.isfile(os.path.join(folder, "vocab.json")):
        table = Table(os.path.join(folder, "vocab.json"), n_vocab)
        vocabulary = from_vocab_and_merges(table, folder)
    elif is_gpt2 and n_vocab == gpt2_bpe.N_TOKENS:
        why = f"The vocabulary is GPT-2's BPE: the model has {n_vocab} ids, and there is no tokenizer.json."
        return Vocabulary(gpt2_bpe.vocabulary_keys(n_vocab), f"GPT-2's BPE, {n_vocab} tokens", [why])
    else:
        raise NotFound(
            f"{folder}: expected the vocabulary of {n_vocab} ids in tokenizer.json or tokenizer.model, found neither; "
            "copy the one that the model was trained with"
        )
    tokens = vocabulary.keys["tokenizer.ggml.tokens"] = table.fill()
    vocabulary.keys["tokenizer.ggml.token_type"] = table.types
    vocabulary.keys |= table.borders()
    vocabulary.keys |= special_ids(folder, tokens, settings, config)
    vocabulary.keys |= added_ids(tokenizer, tokens, settings, vocabulary.keys)
    vocabulary.text += f", {n_vocab - table.n_padding} tokens"
    if table.n_padding:
        vocabulary.text += f" and {table.n_padding} ids of padding"
    if templates := chat_templates(folder, settings):
        vocabulary.keys |= templates
        vocabulary.text += ", a chat template"
    return vocabulary


def read_optional(folder: str, name: str) -> dict[str, Any]:
    path = os.path.join(folder, name)
    return read_object(path) if os.path.exists(path) else {}


def check_text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadFormat(f"{where}: expected text that UTF-8 can hold, found half of a surrogate pair") from None
    return text


# ---- the kinds of tokenizers


def from_json(table: Table, tokenizer: dict[str, Any], model_path: str) -> Vocabulary:
    """tokenizer.json: {"model": {"type", "vocab", "merges"}, "normalizer", "pre_tokenizer", "added_tokens", ..}."""
    model = tokenizer.get("model")
    if type(model) is not dict or type(model.get("vocab")) not in (dict, list):
        raise BadFormat(f"{table.path}: expected a model with a vocab, found none; was it written by tokenizers?")
    kind = model.get("type", "BPE" if "merges" in model else "of no kind")  # missing in files of before 2020
    if kind != "BPE" or type(model["vocab"]) is not dict:
        raise Unsupported(f"{table.path}: the tokenizer is {shown(kind)}, and only BPE can be converted")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise Unsupported(f"{table.path}: its BPE has a {key}, {shown(model[key])}, which cannot be converted")
    if any(step.get("type") == "ByteLevel" for step in parts_of(tokenizer.get("pre_tokenizer"), "pretokenizers")):
        return from_byte_level(table, tokenizer)
    return from_metaspace(table, tokenizer, model_path)


def from_byte_level(table: Table, tokenizer: dict[str, Any]) -> Vocabulary:
    model = tokenizer["model"]
    for text, id in model["vocab"].items():
        table.put(id, text, NORMAL)
    table.add(added_tokens(tokenizer, table.path))
    rules = split_rules(tokenizer.get("pre_tokenizer"), table.path)
    keep_words = model.get("ignore_merges") is True
    named = [rule for rule in RULES if (rule.patterns, rule.whole_words) == (tuple(rules), keep_words)]
    name = named[0].names.split()[0] if named else OWN_RULE
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.merges": merges_of(model, table.path),
    }
    assumptions = []
    if name == OWN_RULE:
        keys["pygpt.tokenizer.split"] = [check_text(rule, f"{table.path}: its split rule") for rule in rules]
        keys["pygpt.tokenizer.ignore_merges"] = keep_words
        assumptions = ["The tokenizer splits text by a rule of its own; other engines will refuse the file for it."]
    for normalizer in parts_of(tokenizer.get("normalizer"), "normalizers"):
        if normalizer.get("type") != "NFC":
            raise Unsupported(
                f"{table.path}: the tokenizer changes text by {shown(normalizer.get('type'))} before it splits it, "
                "which cannot be converted"
            )
        keys["pygpt.tokenizer.normalizer"] = "NFC"
    return Vocabulary(keys, "byte-level BPE" + (f" ({name})" if name != OWN_RULE else ""), assumptions)


def from_metaspace(table: Table, tokenizer: dict[str, Any], model_path: str) -> Vocabulary:
    """sentencepiece's BPE as tokenizers spells it. tokenizer.model, if it is the same, has the scores."""
    model = tokenizer["model"]
    add_prefix, scheme = space_prefix(tokenizer, table.path)
    vocab, merges = model["vocab"], merges_of(model, table.path)
    trained = read_model(model_path) if os.path.isfile(model_path) else SentencepieceModel()
    is_same = trained.model_type == "BPE" and all(vocab.get(piece[0]) == id for id, piece in enumerate(trained.pieces))
    if is_same:
        scores = {text: score for text, score, _ in trained.pieces}
    else:  # the merges are sorted by them, best first
        scores = {merge.replace(" ", "", 1): -float(rank) for rank, merge in reversed([*enumerate(merges)])}
    for text, id in vocab.items():
        kind = BYTE if model.get("byte_fallback") is True and re.fullmatch("<0x[0-9A-F]{2}>", text) else NORMAL
        table.put(id, text, UNKNOWN if text == unknown_token(model) else kind, scores.get(text, -float(len(merges))))
    table.add(added_tokens(tokenizer, table.path))
    vocabulary = llama_vocabulary(table, add_prefix, scheme)
    if model.get("fuse_unk") is not True and not has_all_bytes(table):
        vocabulary.keys["pygpt.tokenizer.fuse_unknown"] = False
    changed = [entry.text for entry in table.added.values() if "normalized" in entry.flags]
    if add_prefix and scheme is None and changed:
        vocabulary.assumptions.append(
            f"Tokens like {shown(changed[0])} are found wherever a text has them; transformers finds those that are "
            "marked as normalized only behind a space, and takes it away."
        )
    return vocabulary


def unknown_token(model: dict[str, Any]) -> str:
    token = model.get("unk_token")
    return token if type(token) is str else "<unk>"


def from_folder(table: Table, model: SentencepieceModel, folder: str, settings: dict[str, Any]) -> Vocabulary:
    """tokenizer.model as transformers reads it, where tokenizer_config.json counts."""
    decoder = settings.get("added_tokens_decoder")
    entries = decoder.items() if type(decoder) is dict else ()
    added = [
        Added.of(int(id) if id.isdecimal() and len(id) < 10 else id, entry)
        for id, entry in entries
        if type(entry) is dict
    ]
    vocabulary = from_sentencepiece(table, model, folder, added)
    if type(add_prefix := settings.get("add_prefix_space")) is bool:
        vocabulary.keys["tokenizer.ggml.add_space_prefix"] = add_prefix
    if settings and vocabulary.keys["tokenizer.ggml.add_space_prefix"]:
        vocabulary.keys["pygpt.tokenizer.space_prefix"] = ALWAYS if settings.get("legacy") is True else FIRST
    if model.charsmap:
        vocabulary.assumptions.append(
            f"The tokenizer asks for the normalization {shown(model.normalizer)}, which is not applied, as in "
            "transformers: text that it would change gets other ids."
        )
    return vocabulary


def from_sentencepiece(table: Table, model: SentencepieceModel, folder: str, added: Iterable[Added] = ()) -> Vocabulary:
    """The pieces of tokenizer.model, with the tokens that were added to it."""
    if model.model_type != "BPE":
        raise Unsupported(f"{table.path}: the tokenizer is {model.model_type}, and only BPE can be converted")
    if model.whitespace_as_suffix:
        raise Unsupported(
            f"{table.path}: the tokenizer joins spaces to the words before them (treat_whitespace_as_suffix), and only "
            "one that joins them to those behind can be converted"
        )
    for id, (text, score, kind) in enumerate(model.pieces):
        table.put(id, text, kind, score)
    table.add(Added(id, text) for text, id in read_optional(folder, "added_tokens.json").items())
    table.add(added)
    vocabulary = llama_vocabulary(table, model.add_dummy_prefix)
    for name, ours in SPECIAL_IDS[:3]:
        if 0 <= model.ids[name] < table.n_vocab:
            vocabulary.keys[f"tokenizer.ggml.{ours}_token_id"] = model.ids[name]
    return vocabulary


def llama_vocabulary(table: Table, add_prefix: bool, scheme: str | None = None) -> Vocabulary:
    """scheme: which parts of a text get the space, by its name in pygpt.tokenizer."""
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": table.scores,
        "tokenizer.ggml.add_space_prefix": add_prefix,
    }
    if scheme:
        keys["pygpt.tokenizer.space_prefix"] = scheme
    assumptions = []
    if not has_all_bytes(table):
        assumptions.append("The vocabulary has no token for each byte: characters that it lacks become unknown.")
    return Vocabulary(keys, "sentencepiece BPE", assumptions)


def has_all_bytes(table: Table) -> bool:
    return table.types.count(BYTE) == 256


def from_vocab_and_merges(table: Table, folder: str) -> Vocabulary:
    """vocab.json and merges.txt, GPT-2's files of before tokenizer.json."""
    path = os.path.join(folder, "merges.txt")
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.rstrip("\n") for line in file if not line.startswith("#version")]
    except (OSError, UnicodeDecodeError):
        raise Unreadable(f"{path}: cannot be read; it belongs to vocab.json beside it") from None
    special = ("<|endoftext|>",)
    vocab = read_object(table.path)
    added = {text: id for text, id in vocab.items() if text in special} | read_optional(folder, "added_tokens.json")
    return from_byte_level(
        table,
        {
            "model": {"vocab": vocab, "merges": [line for line in lines if line]},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
            "added_tokens": [{"id": id, "content": text, "special": text in special} for text, id in added.items()],
        },
    )


# ---- parts of tokenizer.json


def parts_of(value: Any, key: str, depth: int = 8) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or post-processor as the list of its steps."""
    if depth and type(value) is dict and value.get("type") == "Sequence" and type(value.get(key)) is list:
        return [step for part in value[key] for step in parts_of(part, key, depth - 1)]
    return [value] if type(value) is dict else []


def added_tokens(tokenizer: dict[str, Any], path: str) -> list[Added]:
    entries = tokenizer.get("added_tokens") or []
    if type(entries) is not list or any(type(entry) is not dict for entry in entries):
        raise BadFormat(f"{path}: expected added_tokens to be a list of tokens, found something else")
    return [Added.of(entry.get("id"), entry) for entry in entries]


def merges_of(model: dict[str, Any], path: str) -> list[str]:
    """["a b", ..]; newer files have pairs, ["a", "b"]."""
    merges = model.get("merges")
    if type(merges) is not list:
        raise BadFormat(f"{path}: expected a list of merges, found {shown(merges)}")
    result = []
    for merge in merges:
        pair = merge.split(" ") if type(merge) is str else merge
        if type(pair) is not list or [type(part) for part in pair] != [str, str] or "" in pair:
            raise BadFormat(f"{path}: expected each merge to be two tokens, found {shown(merge)}")
        if " " in pair[0] or " " in pair[1]:
            raise Unsupported(f"{path}: the merge {shown(' + '.join(pair))} has a space in it, which GGUF cannot hold")
        result.append(f"{pair[0]} {pair[1]}")
    check_text("".join(result), f"{path}: its merges")
    return result


def split_rules(pre_tokenizer: Any, path: str) -> list[str]:
    """The regular expressions that split text into words, one after the other; each word stands alone."""
    rules = []
    steps = parts_of(pre_tokenizer, "pretokenizers")
    for step in steps:
        kind, behavior, inverted = step.get("type"), step.get("behavior", "Isolated"), step.get("invert") is True
        pattern = step.get("pattern")
        if kind == "ByteLevel" and step is steps[-1] and step.get("add_prefix_space") is not True:
            rules += [GPT2] if step.get("use_regex", True) else []
        elif kind == "Split" and type(pattern) is dict and type(rule := pattern.get("Regex")) is str:
            rules.append(rule)
            if (behavior, inverted) != ("Isolated", False):
                # To remove what does not match is the same only where nothing is left between the matches.
                is_whole = rule.endswith(r"|\s+") and any(rule in known.patterns for known in RULES)
                if not is_whole or (behavior, inverted) != ("Removed", True):
                    raise unknown_step(step, path)
        elif kind == "Digits":
            rules.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif kind == "Punctuation" and behavior == "Isolated":
            rules.append(r"[\p{P}!-/:-@\[-`{-~]")
        else:
            raise unknown_step(step, path)
    return rules or [r"[\s\S]+"]  # without a rule a text is one word


def unknown_step(step: dict[str, Any], path: str) -> Unsupported:
    settings = ", ".join(f"{key} {shown(value)}" for key, value in step.items() if type(value) in (str, bool))
    return Unsupported(f"{path}: the tokenizer splits text by a step ({settings[:200]}) that cannot be converted")


def space_prefix(tokenizer: dict[str, Any], path: str) -> tuple[bool, str | None]:
    """(is a space put before a text, and by which scheme). Everything else must be as sentencepiece does it."""
    schemes: list[str | None] = []  # in the order of the steps: the first that puts a space leaves none to the others
    replaced = False
    for step in parts_of(tokenizer.get("normalizer"), "normalizers"):
        if step.get("type") == "Prepend" and step.get("prepend") == SPACE:
            schemes.append(None)
        elif step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == SPACE:
            replaced = True
        else:
            raise unknown_step(step, path)
    for step in parts_of(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") != "Metaspace" or step.get("replacement") != SPACE:
            raise unknown_step(step, path)
        if step.get("add_prefix_space") is not False:
            schemes += [scheme for scheme in (FIRST, ALWAYS) if step.get("prepend_scheme", ALWAYS) == scheme]
        replaced = True
    if not replaced:
        raise Unsupported(
            f"{path}: expected a tokenizer that spells bytes as GPT-2 does, or spaces as sentencepiece does"
        )
    return bool(schemes), schemes[0] if schemes else None


# ---- special tokens


def special_ids(folder: str, tokens: list[str], settings: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.ggml.bos_token_id and so on: by tokenizer_config.json, else by config.json."""
    place = {text: id for id, text in enumerate(tokens)}
    names = read_optional(folder, "special_tokens_map.json") | {k: v for k, v in settings.items() if v is not None}
    stops = [id for source in (config, read_optional(folder, "generation_config.json")) for id in stop_ids(source)]
    stops = [id for id in dict.fromkeys(stops) if id < len(tokens)]
    keys: dict[str, Any] = {}
    for name, ours in SPECIAL_IDS:
        entry = names.get(f"{name}_token")
        text = entry.get("content") if type(entry) is dict else entry
        ids = [place.get(text) if type(text) is str else None, config.get(f"{name}_token_id")]
        ids += stops[:1] if name == "eos" else []
        found = next((id for id in ids if type(id) is int and 0 <= id < len(tokens)), None)
        if found is not None:
            keys[f"tokenizer.ggml.{ours}_token_id"] = found
    # Chat models stop at more tokens than one. GGUF has keys for two more: the end of a turn, and of a message.
    more = [id for id in stops if id != keys["tokenizer.ggml.eos_token_id"]]
    for key, ends in (("eom", ("<|eom_id|>",)), ("eot", TURN_ENDS), ("eot", None), ("eom", None)):
        found = next((id for id in more if ends is None or tokens[id] in ends), None)
        if found is not None and f"tokenizer.ggml.{key}_token_id" not in keys:
            keys[f"tokenizer.ggml.{key}_token_id"] = found
            more.remove(found)
    return keys


def stop_ids(config: dict[str, Any]) -> list[int]:
    ids = config.get("eos_token_id")
    return [id for id in (ids if type(ids) is list else [ids]) if type(id) is int and id >= 0]


def added_ids(
    tokenizer: dict[str, Any], tokens: list[str], settings: dict[str, Any], keys: dict[str, Any]
) -> dict[str, bool]:
    """Does a text begin with the start token, and end with the end token? Said always, for other engines guess."""
    adds = {"bos": False, "eos": False}
    if not tokenizer:  # of LlamaTokenizer; GPT-2's adds nothing
        adds["bos"] = keys["tokenizer.ggml.model"] == "llama"
    ids = {name: keys.get(f"tokenizer.ggml.{name}_token_id") for name in adds}
    for step in parts_of(tokenizer.get("post_processor"), "processors"):
        template = step.get("single") if step.get("type") == "TemplateProcessing" else None
        if type(template) is list and template:
            for name, part in (("bos", template[0]), ("eos", template[-1])):
                special = part.get("SpecialToken") if type(part) is dict else None
                text = special.get("id") if type(special) is dict else None
                adds[name] = ids[name] is not None and text == tokens[ids[name]]
    for name in adds:
        if type(settings.get(f"add_{name}_token")) is bool:
            adds[name] = settings[f"add_{name}_token"]
    return {f"tokenizer.ggml.add_{name}_token": adds[name] and ids[name] is not None for name in adds}


# ---- chat


def chat_templates(folder: str, settings: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.chat_template, and those with other names: chat_template.jinja wins, as in transformers."""
    path = os.path.join(folder, "chat_template.jinja")
    templates = settings.get("chat_template")
    if os.path.isfile(path):
        try:
            with open(path, encoding="utf-8") as file:
                templates = file.read()
        except (OSError, UnicodeDecodeError):
            raise Unreadable(f"{path}: cannot be read as text") from None
    elif not templates:
        templates = read_optional(folder, "chat_template.json").get("chat_template")
    if type(templates) is str:
        templates = [{"name": "default", "template": templates}]
    named = {
        entry["name"]: check_text(entry["template"], f"{folder}: its chat template")
        for entry in (templates if type(templates) is list else [])
        if type(entry) is dict and type(entry.get("name")) is str and type(entry.get("template")) is str
    }
    keys: dict[str, Any] = {}
    if "default" in named:
        keys["tokenizer.chat_template"] = named.pop("default")
    named = {re.sub("[^a-z0-9_]", "_", name.lower()): template for name, template in named.items()}
    if named:
        keys["tokenizer.chat_templates"] = list(named)
    return keys | {f"tokenizer.chat_template.{name}": template for name, template in named.items()}
