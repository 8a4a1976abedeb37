"""Converts checkpoints of PyTorch and folders of Hugging Face to GGUF without either: `convert_checkpoint("ckpt.pt")`.

One module per source makes a `Checkpoint` of a file, the writer writes it. Nothing from a checkpoint is ever run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING

from pygpt._lib import BadArgument, NotFound, Unreadable, Unsupported

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, Input, Options
    from .report import Report

__all__ = ["SOURCES", "convert_checkpoint"]

# A source is a module here with
#     recognise(Input) -> str | None                what in the file speaks for it, or nothing
#     load(Input, Options) -> Checkpoint
# The first row that recognises a file loads it. Modules are imported when a file is converted.
SOURCES = {
    "GGUF": "model_file",
    "Hugging Face": "huggingface",
    "nanoGPT": "nanogpt",
    "build-nanogpt": "build_nanogpt",
    "minGPT": "mingpt",
    "lecture gpt.py": "lecture",
    "lecture bigram.py": "bigram",
    "llama2.c": "llama2c",
    "llm.c": "llmc",
    "nanochat": "nanochat",
}
ENTRIES = ("ckpt.pt", "model.pt", "config.json")  # what a folder is read by: the first that is in it
WANTED = (
    "name a checkpoint, or a folder with a ckpt.pt, a model.pt, a model_{step}.pt or .bin, nanochat's base_checkpoints "
    "or Hugging Face's config.json"
)


def convert_checkpoint(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    type: str = "q8_0",
    *,
    meta: str | os.PathLike[str] | None = None,
    text: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    n_head: int | None = None,
    gelu: str | None = None,
    attention_scale: str | float | None = None,
    softcap: float | None = None,
    rope_base: float | None = None,
    qk_scale: float | None = None,
    proof: bool | None = None,
    check: str | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> Report:
    """Converts `src`, a checkpoint or a folder with one, to the GGUF file `out`, by default beside it.

    The vocabulary, when it is not found by itself:
    meta             nanoGPT's meta.pkl
    text             the training text, which its characters follow from; any model's candidates are tried on it
    tokenizer        "bytes", "gpt2", or a tokenizer.pkl, tokenizer.model or tokenizer.bin

    What the file does not tell, and is found out on text otherwise:
    n_head           heads per layer
    gelu             "erf" or "tanh"
    attention_scale  "head" or "width", whose square root scores are divided by, or the factor itself
    softcap, rope_base, qk_scale   nanochat's constants, the second one llama2.c's too

    proof            what the file does not tell is tried on text, and what rounding costs is measured: None, unless
                     that takes much memory; True: always; False: never
    check            "reference.py:ClassName": your own module, which is run (it needs torch) and compared with
    progress         True: a bar on stderr if that is a terminal; or a function of (bytes written, bytes in all)
    """
    from .checkpoint import Input, Options
    from .proof import Prover
    from .report import progress_shown, steps_shown
    from .writer import check_place, check_type, write

    check_type(type)
    path = find_file(os.fsdecode(src))
    options = Options(
        meta=named(meta),
        text=named(text),
        tokenizer=named(tokenizer),
        n_head=n_head,
        gelu=gelu,
        attention_scale=None if attention_scale is None else str(attention_scale),
        softcap=softcap,
        rope_base=rope_base,
        qk_scale=qk_scale,
    )
    with ExitStack() as stack:
        source = Input(path, stack)
        checkpoint = load(source, options)
        beside = checkpoint.output or os.path.splitext(path)[0] + ".gguf"
        if beside == path:  # a model file that is written in another type
            beside = f"{os.path.splitext(path)[0]}-{type}.gguf"
        target = os.fsdecode(out) if out is not None else beside
        check_place(target)
        reference = None if check is None else ready(check)
        vocabulary = checkpoint.vocabulary
        named_files = (options.meta, options.text, options.tokenizer, vocabulary.sample, reference)
        for name in filter(None, (path, *named_files, *vocabulary.files, *checkpoint.files)):
            if os.path.exists(target) and os.path.exists(name) and os.path.samefile(name, target):
                raise BadArgument(f"{target}: is an input too; name another output with -o")
        prover = Prover(checkpoint, options, target, proof, steps_shown(progress, stack))
        settled = prover.settle()
        compared = prover.check(check, source) if check is not None else ""
        report = write(settled, target, type, progress_shown(progress, stack))
        report.proof, report.check = prover.measure(target, report.type), compared
        return report


def ready(check: str) -> str:
    """The file that --check names, if it can be run at all: said before anything is done."""
    from .check import import_torch, split

    import_torch()
    return split(check)[0]


def named(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fsdecode(path)


def find_file(src: str) -> str:
    """The file that a checkpoint is read by."""
    path = src
    if os.path.isdir(src):
        from . import llmc, nanochat  # nanochat's rule finds build-nanogpt's models too

        paths = [os.path.join(src, name) for name in ENTRIES]
        usual = next((path for path in paths if os.path.exists(path)), None)
        path = usual or llmc.newest(src) or nanochat.find_in_folder(src) or paths[0]
    if not os.path.exists(path):
        raise NotFound(f"{path}: there is no such file; {WANTED}")
    if not os.path.isfile(path):
        raise BadArgument(f"{path}: is no ordinary file; {WANTED}")
    return path


def load(source: Input, options: Options) -> Checkpoint:
    from . import fingerprints, vocabularies

    try:
        for module_name in SOURCES.values():
            module = import_module("." + module_name, __name__)
            if module.recognise(source):
                checkpoint = module.load(source, options)
                vocabularies.with_sample(checkpoint.vocabulary, source.path, None)  # whatever the source looked for
                return checkpoint
        kind = fingerprints.by_bytes(source.path) or fingerprints.by_content(source)
    except (Unsupported, NotFound, Unreadable):
        raise
    except OSError as error:
        raise Unreadable(f"{source.path}: cannot be read: {error.strerror or error}") from None
    raise Unsupported(f"{source.path}: {kind} (known: {', '.join(SOURCES)})")
