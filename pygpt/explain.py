"""What a model is and what it costs, as a text: its forward pass line by line, beside the tensors that each line reads.

Owns the sections, the counting and the layout. What the file holds is in anatomy.py, what the architectures compute in
formulas.py. Numbers come from the file; only the last section measures, and it measures the machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Any, NamedTuple

from pygpt import _lib, formulas
from pygpt.anatomy import PARTS, Anatomy, clean, number
from pygpt.formulas import Constant, Line
from pygpt.model import IdModel

BODY = tuple(part for part in PARTS if part not in ("embeddings", "head"))  # what all tokens of a prompt pass
FEW = 0.05  # floats beside so many int8 products change little of the time that those take
WIDTH = 100  # columns of a line
SHOWN = 24  # keys or sentences of a file that has very many
TILE = 16  # the cache keeps positions, and the values of a head, in multiples of it


def explain(model: IdModel, measured: bool = True) -> str:
    """The model as a text for people. measured: with what this machine can do, which takes half a second."""
    a = Anatomy(model)
    sections = [headline(a), forward_pass(a), where_the_bytes_are(a), cost(a), constants(a)]
    if measured:
        sections.append(speed(a))
    return "\n\n".join("\n".join(line.rstrip() for line in section) for section in sections) + "\n"


# ---- 1: what it is ---------------------------------------------------------------------------------------------------


def headline(a: Anatomy) -> list[str]:
    source = f", made from {clean(a.source, 40)}" if a.source else ""
    amounts = [(part, a.count(lambda p: p.size, part)) for part in PARTS]
    total = sum(n for _, n in amounts)
    shares = [f"{n:,} ({n / total:.1%}) in {part}" for part, n in amounts if n]
    if a.is_tied:
        shares.append("none in the head, which is the token embedding again")
    text = f"{clean(a.arch, 40)}{source}: {total:,} parameters, {', '.join(shares)}"
    return wrap(text, WIDTH, break_on_hyphens=False)


# ---- 2: the forward pass beside its tensors --------------------------------------------------------------------------

Cells = tuple[str, str, str, str]  # a tensor's name, shape, parameters, type; or a note and nothing


def forward_pass(a: Anatomy) -> list[str]:
    code = formulas.lines(a)
    rows: list[tuple[str, Cells]] = []
    left = {(p.stem, p.layer is None): None for p in a.pieces if not p.is_zeros}  # tensors that no line has read yet
    for line in code:
        cells = list(beside(a, line, left))
        rows += zip([line.text] + [""] * (len(cells) - 1), cells or [note("")], strict=True)
    for stem, is_global in left:
        rows += [("", cells) for cells in tensor_cells(a, stem, is_global)]
    header = ("the forward pass" if code else "", ("its tensors", "[out, in]", "parameters", "type"))
    return [*table([header, *rows]), *where(a)]


def note(text: str) -> Cells:
    return text, "", "", ""


def beside(a: Anatomy, line: Line, left: dict[tuple[str, bool], None]) -> Iterator[Cells]:
    """What a line reads, in rows. A bias stands below its weight."""
    if line.reads == ("blk",):
        yield layers_cells(a)
        return
    for stem in line.reads:
        if stem == "output" and a.is_tied:
            yield note("token_embd again")
        for name in (stem, stem + ".bias"):
            for is_global in (True, False):
                if (name, is_global) in left:
                    del left[name, is_global]
                    yield from tensor_cells(a, name, is_global)
    yield from map(note, line.notes(a) if line.notes else ())


def layers_cells(a: Anatomy) -> Cells:
    by_layer: dict[int, int] = {}
    for p in a.pieces:
        if p.layer is not None:
            by_layer[p.layer] = by_layer.get(p.layer, 0) + p.size
    sizes = [*by_layer.values()]
    each = f"{len(sizes)} x {sizes[0]:,}" if len(set(sizes)) == 1 else f"{len(sizes)} layers"
    name = f"blk.0 .. blk.{len(sizes) - 1}" if len(sizes) > 1 else "blk.0"
    return name, each, f"{sum(sizes):,}", ""


def tensor_cells(a: Anatomy, stem: str, is_global: bool) -> Iterator[Cells]:
    """A row for the tensors of one name in all layers; several where their shapes differ."""
    mine = [p for p in a.pieces if p.stem == stem and (p.layer is None) == is_global and not p.is_zeros]
    name = "  bias" if stem.endswith(".bias") and a.arch in formulas.FORMULAS else stem
    for shape in dict.fromkeys(p.shape for p in mine):
        group = [p for p in mine if p.shape == shape]
        types = sorted({p.type for p in group})
        kind = "/".join(types) if len(types) < 4 else f"{len(types)} types"
        yield name, f"[{', '.join(map(str, shape))}]", f"{group[0].size:,}", kind
        if not is_global and len(group) < a.n_layer:
            layers = ", ".join(str(p.layer) for p in group)
            yield note(f"  in layers {layers}" if len(layers) < 30 else f"  in {len(group)} of {a.n_layer} layers")


def table(rows: list[tuple[str, Cells]]) -> list[str]:
    """Lines of code and the cells beside them. Notes are as long as they need to be."""
    tensors = [cells for _, cells in rows if cells != note(cells[0])]
    name, shape, size, kind = (max(len(cells[i]) for cells in tensors) for i in range(4))
    sides = [(code, f"{c[0]:<{name}}  {c[1]:>{shape}}  {c[2]:>{size}}  {c[3]}".rstrip()) for code, c in rows]
    return columns(sides, name + shape + size + kind + 6)


def where(a: Anatomy) -> list[str]:
    """The functions that the lines use."""
    said = formulas.definitions(a)
    if n_zeros := sum(p.is_zeros for p in a.pieces):
        said.append(f"{n_zeros} tensors of zeros are in the file for biases that the model does not have")
    lines = [part for line in said for part in wrap(line, WIDTH - 7, subsequent_indent="    ")]
    return ["", "where  " + lines[0], *("       " + line for line in lines[1:])] if lines else []


# ---- 3: the file -----------------------------------------------------------------------------------------------------


def where_the_bytes_are(a: Anatomy) -> list[str]:
    """By part and type, largest first."""
    groups: dict[tuple[str, str], int] = {}
    for p in a.pieces:
        groups[p.part, p.type] = groups.get((p.part, p.type), 0) + p.bytes
    rest = a.file_bytes - sum(groups.values())
    rows = [*sorted(groups.items(), key=lambda row: -row[1]), (("keys, vocabulary, padding", ""), rest)]
    lines = [f"{'where the bytes are':<26}  {'type':<6}  {'bytes':>15}        %"]
    for (part, type), n in rows:
        share = n / a.file_bytes
        lines.append(f"{part:<26}  {type:<6}  {n:>15,}  {share:>7.1%}  {'#' * round(36 * share)}")
    return [*lines, f"{'in all':<26}  {'':<6}  {a.file_bytes:>15,}"]


# ---- 4: one token ----------------------------------------------------------------------------------------------------


def products(a: Anatomy, part: str) -> int:
    """out x in of the matrices of a part that every token passes."""
    if part == "embeddings":  # of which a token takes a row
        return 0
    tied = sum(p.size for p in a.pieces if p.stem == "token_embd") if part == "head" and a.is_tied else 0
    return tied + a.count(lambda p: p.size if p.is_matrix else 0, part)


def attention_products(a: Anatomy, position: int) -> int:
    """Those of a token with the keys and values of the positions up to its own, counted from 1."""
    if not a.has_attention:
        return 0
    seen = sum(min(position, window or position) for window in formulas.windows(a))
    return 2 * a.info.n_head * formulas.head_dim(a) * seen


def int8_products(a: Anatomy, parts: Iterable[str]) -> int:
    """Those of parts with quantized weights. Floats are multiplied as floats."""
    quantized = [p for p in a.pieces if p.is_quantized]
    tied = [p.size for p in quantized if p.stem == "token_embd" and a.is_tied and "head" in parts]
    return sum(p.size for p in quantized if p.part in parts and p.part != "embeddings") + sum(tied)


def float_share(a: Anatomy, parts: Iterable[str]) -> float:
    return 1 - int8_products(a, parts) / sum(products(a, part) for part in parts)


def flops(a: Anatomy, position: int) -> int:
    return 2 * (sum(products(a, part) for part in PARTS) + attention_products(a, position))


def cache_number(a: Anatomy) -> str:
    """The type of cached keys and values: f16 where a matrix is quantized."""
    return "f16" if any(p.is_quantized for p in a.pieces) else "f32"


def layer_bytes(a: Anatomy, positions: int) -> int:
    """Keys and values of a layer: keys lie in tiles of 16 positions, rows of values are padded to 16 numbers."""
    if not a.has_attention:
        return 0
    head_dim = formulas.head_dim(a)
    keys, values = rounded(positions) * head_dim, positions * rounded(head_dim)
    return a.info.n_head_kv * (keys + values) * (2 if cache_number(a) == "f16" else 4)


def cache_bytes(a: Anatomy, positions: int) -> int:
    """What is kept of one sequence."""
    return a.n_layer * layer_bytes(a, positions)


def seen_bytes(a: Anatomy, position: int) -> int:
    """What of that a token reads: windows see only a part."""
    return sum(layer_bytes(a, min(position, window or position)) for window in formulas.windows(a))


def cache_per_token(a: Anatomy) -> int:
    return cache_bytes(a, TILE) // TILE


def rounded(n: int) -> int:
    return -(-n // TILE) * TILE


def cost(a: Anatomy) -> list[str]:
    """Products and bytes, for the first token of a text and for the last one that the context holds."""
    last = a.info.n_ctx
    rows = [("what a token costs", "t is its position", "t = 1", f"t = {last:,}")]
    for part in PARTS:
        if n := products(a, part):
            how = "token_embd again" if part == "head" and a.is_tied else "its matrices, out x in"
            rows.append((part, how, f"{n:,}", f"{n:,}"))
    if a.has_attention:
        rows.append(("q @ k.T, p @ v", seen_formula(a), *(f"{attention_products(a, t):,}" for t in (1, last))))
    rows.append(("FLOPs", "2 x the products above", *(metric(flops(a, t)) for t in (1, last))))
    share = f"; by a prompt every {_lib.ROWS} tokens, the head once" if is_multiplied(a) else ""
    rows.append(("weights", "read" + share, *[metric(a.info.bytes_per_token) + "B"] * 2))
    if a.has_attention:
        sizes = (cache_per_token(a), cache_bytes(a, last))
        rows.append(("k and v kept", cache_formula(a), *(metric(n) + "B" for n in sizes)))
    name, _, first, full = (max(len(row[i]) for row in rows) for i in range(4))
    return columns([(f"{n:<{name}}  {how}", f"{x:>{first}}  {y:>{full}}") for n, how, x, y in rows], first + full + 2)


def is_multiplied(a: Anatomy) -> bool:
    return any(products(a, part) for part in PARTS)


def has_windows(a: Anatomy) -> bool:
    return any(0 < window < a.info.n_ctx for window in formulas.windows(a))


def seen_formula(a: Anatomy) -> str:
    i, head_dim = a.info, formulas.head_dim(a)
    if has_windows(a):
        return f"2 x {i.n_head} heads x {head_dim} x positions seen, over layers"
    return f"2 x {a.n_layer} layers x {i.n_head} heads x {head_dim} x t"


def cache_formula(a: Anatomy) -> str:
    head_dim = formulas.head_dim(a)
    return (
        f"{a.n_layer} layers x {a.info.n_head_kv} heads x ({head_dim} + {rounded(head_dim)}) {cache_number(a)} "
        f"= {cache_per_token(a):,} x t"
    )


# ---- 5: constants ----------------------------------------------------------------------------------------------------


def constants(a: Anatomy) -> list[str]:
    known = formulas.CONSTANTS.get(a.arch, ())
    rows = [row for constant in known if (row := found(a, constant))]
    names = {formulas.full_name(a.arch, constant.key) for constant in known if constant.key}
    others = [key for key in a.keys if key.startswith(a.arch + ".") and key not in names]
    rows += [("", shown(a.keys[key]), f"{clean(key, 50)} in the file") for key in others[:SHOWN]]
    if len(others) > SHOWN:
        rows.append(("", "", f"and {len(others) - SHOWN} keys more in the file"))
    sides = [(f"{name:<17}  {text}", origin) for name, text, origin in rows]
    lines = columns(sides, max((len(origin) for _, origin in sides), default=0))
    return ["its constants, and where each comes from", *lines, *assumptions(a)]


def found(a: Anatomy, constant: Constant) -> tuple[str, str, str] | None:
    """(name, value, origin)"""
    here = formulas.key(a, constant.key) if constant.key else None
    if here is not None:
        return constant.name, shown(here), f"{formulas.full_name(a.arch, constant.key or '')} in the file"
    default = constant.default(a)
    return (constant.name, shown(default[0]), default[1]) if default else None


def assumptions(a: Anatomy) -> list[str]:
    sentences = a.keys.get("pygpt.assumptions")
    sentences = [s for s in sentences if isinstance(s, str)] if isinstance(sentences, list) else []
    said = [line for s in sentences[:SHOWN] for line in wrap("- " + clean(s, 1000), WIDTH, subsequent_indent="  ")]
    return ["", "what the checkpoint did not say, and the converter assumed", *said] if said else []


# ---- 6: this machine -------------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """Bytes per second that memory gives to the model's threads, products of int8 per second, bytes of the processors'
    last caches (None: not known), and the instruction set."""

    read: float
    mac: float
    cache: int | None
    isa: str


def speed(a: Anatomy) -> list[str]:
    threads = a.info.n_threads
    machine = Machine(_lib.measure_read(threads), _lib.measure_mac(threads), cache_of_cpus(), _lib.isa_current())
    return ["what limits its speed here", *limits(a, machine)]


def limits(a: Anatomy, m: Machine) -> list[str]:
    threads = f"{a.info.n_threads} thread{'s' * (a.info.n_threads > 1)}"
    rows = [f"machine  memory gives {metric(m.read)}B/s to {threads}, {m.isa} makes {metric(m.mac)} products of int8/s"]
    if is_multiplied(a):
        rows.append(decode_limit(a, m))
    if int8 := int8_products(a, BODY):
        floats = float_share(a, BODY)
        which = "" if floats <= FEW else f", which are {1 - floats:.1%} of all"
        rows.append(f"prefill  products of int8{which}, attention left out: {pace(m.mac / int8)} tokens/s at most")
    return [*rows, *wrap(verdict(a, m), WIDTH, break_on_hyphens=False)]


def decode_limit(a: Anatomy, m: Machine) -> str:
    weights = a.info.bytes_per_token
    text = f"decode   memory / weights: {pace(m.read / weights)} tokens/s at most"
    if not a.has_attention:
        return text
    full = m.read / (weights + seen_bytes(a, a.info.n_ctx))
    return f"{text}, {pace(full)} with all keys and values{' seen' * has_windows(a)}"


def verdict(a: Anatomy, m: Machine) -> str:
    """One sentence: which limit binds, as far as it can be known from what was measured."""
    if not is_multiplied(a):
        return "Neither binds: a token is a row that is looked up."
    if m.cache is not None and a.info.bytes_per_token <= m.cache:
        return verdict_of_cache(a, m, m.cache)
    size = metric(a.info.bytes_per_token) + "B"
    unless = "" if m.cache is not None else f", unless the {size} fit into a cache, whose size is not known here"
    floats = float_share(a, PARTS)
    reading, multiplying = a.info.bytes_per_token / m.read, int8_products(a, PARTS) / m.mac
    if reading < multiplying:
        times = f"{'at least ' * (floats > FEW)}{multiplying / reading:.1f} times"
        return f"Multiplying binds, decoding too: it takes {times} as long as reading the weights."
    if floats > FEW:
        return f"Memory's limit holds{unless}; whether multiplying binds before it is not known: {of_floats(floats)}."
    return (
        f"Memory binds decoding{unless}: reading the weights takes {reading / multiplying:.1f} times as long as "
        f"multiplying with them; {verdict_of_prompt(a, m)}."
    )


def verdict_of_cache(a: Anatomy, m: Machine, cache: int) -> str:
    floats = float_share(a, PARTS)
    alone = of_floats(floats)
    if floats <= FEW:
        each = pace(m.mac / int8_products(a, PARTS))
        alone = f"multiplying with them, attention left out, would allow {each} tokens/s"
    full = a.info.bytes_per_token + seen_bytes(a, a.info.n_ctx)
    until = "" if full <= cache else f", until keys and values make them {metric(full)}B"
    return (
        f"Memory does not bind, and its limit does not hold: the {metric(a.info.bytes_per_token)}B of a token fit into "
        f"the processors' caches ({metric(cache)}B) and are read from there{until}; {alone}."
    )


def of_floats(share: float, whose: str = "a token's") -> str:
    part = f"{share:.1%} of {whose}" if share < 1 else "all"
    return f"{part} products are of floats, whose speed is not measured"


def verdict_of_prompt(a: Anatomy, m: Machine) -> str:
    """Of a prompt, whose tokens are read some at once. The head is for the last one."""
    body = sum(p.bytes for p in a.pieces if p.is_matrix and p.part in BODY)
    reading, multiplying = body / _lib.ROWS / m.read, int8_products(a, BODY) / m.mac
    if reading < multiplying:
        return "multiplying binds a prompt, whose tokens share what is read"
    if float_share(a, BODY) > FEW:
        return of_floats(float_share(a, BODY), "a prompt's")
    return f"it binds a prompt too, though {_lib.ROWS} tokens share what is read"


def cache_of_cpus(folder: str = "/sys/devices/system/cpu") -> int | None:
    """Bytes of the last caches of the processors that this process may use; None where the system does not say."""
    sizes = {}
    try:
        for cpu in os.sched_getaffinity(0):
            base = os.path.join(folder, f"cpu{cpu}", "cache")
            levels = {read_word(base, name, "level"): name for name in os.listdir(base) if name.startswith("index")}
            last = levels[max(levels)]
            text = read_word(base, last, "size")
            sizes[read_word(base, last, "shared_cpu_list")] = int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]]
    except (OSError, AttributeError, ValueError, KeyError, IndexError):
        return None
    return sum(sizes.values())


def read_word(*path: str) -> str:
    with open(os.path.join(*path), encoding="ascii") as file:
        return file.read().strip()


# ---- columns and numbers ---------------------------------------------------------------------------------------------


def columns(rows: list[tuple[str, str]], right: int) -> list[str]:
    """Two columns, of which the second needs `right`. A text that is too long for the first stands alone, its second
    below it; a second that is longer than `right` is wrapped at the end of the line."""
    left = max((len(text) for text, _ in rows if len(text) <= WIDTH - right - 2), default=0)
    lines = []
    for text, second in rows:
        parts = wrap(second, WIDTH - left - 2, subsequent_indent="  ") if len(second) > right else [second]
        if len(text) > left and second:
            lines.append(text)
            text = ""
        lines.append(f"{text:<{left}}  {parts[0]}")
        lines += [f"{'':<{left}}  {part}" for part in parts[1:]]
    return lines


def shown(value: object) -> str:
    return listed(value) if isinstance(value, list) else number(value)


def listed(values: list[Any]) -> str:
    """1, 3, 5; equal ones together: 512 x 3, 2048."""
    runs: list[list[Any]] = []
    for one in values:
        if runs and runs[-1][0] == one:
            runs[-1][1] += 1
        else:
            runs.append([one, 1])
    text = ", ".join(number(one) + f" x {n}" * (n > 1) for one, n in runs[:SHOWN])
    return clean(text, 40)


def metric(n: float) -> str:
    """1234567 as 1.2 M, to be followed by a unit."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:.0f} "


def pace(tokens_per_second: float) -> str:
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 10 else f"{tokens_per_second:.1f}"
