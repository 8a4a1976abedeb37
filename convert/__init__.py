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
    "Hugging Face": "huggingface",
    "nanoGPT": "nanogpt",
}
ENTRIES = ("ckpt.pt", "config.json")  # what a folder is read by: the first that is in it
WANTED = "name a checkpoint, or a folder with a ckpt.pt or with Hugging Face's config.json"


def convert_checkpoint(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    type: str = "q8_0",
    *,
    meta: str | os.PathLike[str] | None = None,
    text: str | os.PathLike[str] | None = None,
    gelu: str | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> Report:
    """Converts `src`, a checkpoint or a folder with one, to the GGUF file `out`, by default beside it.

    meta, text   the vocabulary, when it is not found by itself: nanoGPT's meta.pkl, or the training text
    gelu         "erf" or "tanh", when the file does not tell
    progress     True: a bar on stderr if that is a terminal; or a function of (bytes written, bytes in all)
    """
    from .checkpoint import Input, Options
    from .report import progress_shown
    from .writer import check_type, write

    check_type(type)
    path = find_file(os.fsdecode(src))
    options = Options(*(None if name is None else os.fsdecode(name) for name in (meta, text)), gelu)
    with ExitStack() as stack:
        checkpoint = load(Input(path, stack), options)
        beside = checkpoint.output or os.path.splitext(path)[0] + ".gguf"
        target = os.fsdecode(out) if out is not None else beside
        for name in filter(None, (path, options.meta, options.text, *checkpoint.files)):
            if os.path.exists(target) and os.path.exists(name) and os.path.samefile(name, target):
                raise BadArgument(f"{target}: is an input too; name another output with -o")
        return write(checkpoint, target, type, progress_shown(progress, stack))


def find_file(src: str) -> str:
    """The file that a checkpoint is read by."""
    path = src
    if os.path.isdir(src):
        paths = [os.path.join(src, name) for name in ENTRIES]
        path = next((path for path in paths if os.path.exists(path)), paths[0])
    if not os.path.exists(path):
        raise NotFound(f"{path}: there is no such file; {WANTED}")
    if not os.path.isfile(path):
        raise BadArgument(f"{path}: is no ordinary file; {WANTED}")
    return path


def load(source: Input, options: Options) -> Checkpoint:
    from . import fingerprints

    try:
        for module_name in SOURCES.values():
            module = import_module("." + module_name, __name__)
            if module.recognise(source):
                return module.load(source, options)
        kind = fingerprints.by_bytes(source.path) or fingerprints.by_content(source)
    except (Unsupported, NotFound, Unreadable):
        raise
    except OSError as error:
        raise Unreadable(f"{source.path}: cannot be read: {error.strerror or error}") from None
    raise Unsupported(f"{source.path}: {kind} (known: {', '.join(SOURCES)})")
