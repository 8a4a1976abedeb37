"""What the tokenizer and the converter both know of vocabularies: GGUF's kinds of tokens, GPT-2's spelling of bytes."""

from __future__ import annotations

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # values in tokenizer.ggml.token_type


def _byte_alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(moved)}


# Printable bytes are spelled as themselves, the others as U+0100 and up; the order is that of GPT-2's first 256 tokens.
BYTE_OF = _byte_alphabet()
