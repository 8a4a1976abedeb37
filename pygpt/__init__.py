"""pygpt runs GPTs that you trained from scratch, on an ordinary CPU.

    import pygpt

    with pygpt.Model("model.gguf") as model:
        for piece in model.generate("ROMEO:", max_tokens=200):
            print(piece, end="", flush=True)

Names are imported when they are first used: `import pygpt` itself costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pygpt._lib import Error
    from pygpt.chat import Chat
    from pygpt.generate import Model
    from pygpt.model import Session
    from pygpt.tokenizer import Tokenizer

__all__ = ["Chat", "Error", "Model", "Session", "Tokenizer", "__version__"]
__version__ = "0.1.0"

HOMES = {
    "Chat": "pygpt.chat",
    "Error": "pygpt._lib",
    "Model": "pygpt.generate",
    "Session": "pygpt.model",
    "Tokenizer": "pygpt.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'pygpt' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
