"""The command pygpt. Commands are rows in COMMANDS; what one needs is imported when it runs, so text comes at once.

Results go to stdout, all else to stderr. Exit status: 0 done, 1 an error (one line), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from time import perf_counter
from typing import Any, NoReturn

from pygpt import __version__

SEPARATOR = "---------------"  # between samples, as nanoGPT prints it
MAX_THREADS = 256  # of the core's pool; written here too, because importing it takes time


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line and returns its exit status."""
    try:
        end_in_order()
        options = parser().parse_args(arguments)
        options.run(options)
        return 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read has seen enough
        return 0
    except OSError as error:
        return fail(f"{error.strerror}: {error.filename!r}" if error.filename and error.strerror else str(error))
    except MemoryError as error:
        return fail(str(error) or "not enough memory")
    except Exception as error:
        from pygpt._lib import Error

        if not isinstance(error, Error):
            raise  # a mistake of ours: the traceback is what a report needs
        return fail(str(error))


def end_in_order() -> None:
    """Being told to end, as by a terminal that closes, leaves no half-written files."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def fail(sentence: str) -> int:
    say(f"error: {sentence}")
    return 1


def say(sentence: str) -> None:
    """One line to stderr."""
    if sys.stderr is None:  # print would write to stdout instead
        return
    line = " ".join(f"pygpt: {sentence}".splitlines())
    try:
        print(line.encode("utf-8", "backslashreplace").decode(), file=sys.stderr, flush=True)
    except (OSError, UnicodeError, AttributeError):  # nobody listens
        pass


def write(text: str) -> None:
    """Text to stdout, at once, as UTF-8 whatever the locale."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.buffer.write(text.encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the way out does not try again
        raise


def bar(name: str, unit: str) -> Callable[[Iterable], Iterable]:
    """A progress bar on a terminal, nothing elsewhere."""
    if sys.stderr is None or not sys.stderr.isatty():
        return iter
    from tqdm import tqdm

    return lambda items: tqdm(items, desc=name, unit=unit, leave=False)


# ---- the commands ----------------------------------------------------------------------------------------------------


def run_convert(o: argparse.Namespace) -> None:
    from pygpt.convert import convert_checkpoint

    names = ("meta", "text", "tokenizer", "n_head", "gelu", "attention_scale", "softcap", "rope_base", "qk_scale")
    options = {name: getattr(o, name) for name in names}
    report = convert_checkpoint(o.source, o.output, type=o.type, proof=o.proof, check=o.check, progress=True, **options)
    write(f"{report}\n")


def run_generate(o: argparse.Namespace) -> None:
    prompt = read_stdin() if o.prompt == "-" else o.prompt
    begin = perf_counter()
    with open_model(o.model, o.threads) as model:
        model.tokenizer  # noqa: B018  the load time includes it
        load = perf_counter() - begin
        seed, samples = o.seed, []
        for i in range(o.num_samples):
            text = model.generate(
                prompt,
                o.tokens,
                temperature=o.temperature,
                top_k=o.top_k,
                top_p=o.top_p,
                min_p=o.min_p,
                repeat_penalty=o.repeat_penalty,
                seed=seed,
                stop=o.stop,
                on_full=o.on_full,
                unknown=o.unknown,
                stream=i,
            )
            seed = text.seed
            if i:
                write(f"\n{SEPARATOR}\n")
            for piece in text:
                write(piece)
            samples.append(text)
        if sys.stdout is not None and sys.stdout.isatty():
            write("\n")
        if o.stats:
            print_stats(model, samples, load)


def print_stats(model: Any, samples: list[Any], load: float) -> None:
    from pygpt import _lib

    info = model.info
    n_prompt, prompt = sum(s.n_prompt for s in samples), sum(s.prompt_seconds for s in samples)
    n_generated, seconds = sum(s.n_generated for s in samples), sum(s.seconds for s in samples)
    speed = n_generated / seconds if seconds else 0.0
    read = _lib.measure_read(info.n_threads)
    lines = {
        "seed": f"{samples[0].seed}",
        "load": f"{load * 1e3:.1f} ms",
        "prompt": f"{n_prompt} tokens, {n_prompt / prompt if prompt else 0:,.0f} tokens/s",
        "generation": f"{n_generated} tokens, {speed:,.0f} tokens/s, ended by {samples[-1].finish}",
        "weights read": f"{info.bytes_per_token * speed / 1e9:.1f} GB/s of the {read / 1e9:.1f} GB/s that memory gives",
        "threads": f"{info.n_threads}, {_lib.isa_current()}",
    }
    try:
        own, mapped = _lib.memory()
        lines["memory"] = f"{size(own)}, and {size(mapped)} mapped from files"
    except _lib.Unsupported:
        lines["memory"] = "not known on this system"
    for name, line in lines.items():
        say(f"{name:<14} {line}")


def run_info(o: argparse.Namespace) -> None:
    from pygpt import _lib
    from pygpt.tokenizer import Tokenizer

    with _lib.File(o.model) as file:
        tensors = list(file.tensors.values())
        by_type: dict[str, list[_lib.TensorInfo]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.type, []).append(tensor)
        show("file", f"{o.model}, {size(file.bytes)}")
        for key in ("general.architecture", "general.name", "general.description"):
            if isinstance(file.keys.get(key), str):
                show(key.removeprefix("general."), repr(file.keys[key])[1:-1])  # it may hold what a terminal obeys
        for name, group in by_type.items():
            show(name, f"{len(group)} tensor{'s' * (len(group) > 1)}, {size(sum(t.bytes for t in group))}")
        try:
            used = _lib.isa_current()
        except _lib.BadArgument:  # PYGPT_ISA names none; opening the model says so
            used = None
        for name, ok in _lib.isas().items():
            show(f"kernels {name}", ("used" if name == used else "available") if ok else "not on this CPU")
        tokenizer = Tokenizer.from_keys(file.keys)
        show(
            "vocabulary", f"{tokenizer.n_vocab} ids, {tokenizer.kind}" if tokenizer.n_vocab else "none: token ids only"
        )
        if not tensors:
            return
        with open_model(o.model, None) as model:
            i = model.info
            heads = f"{i.n_head} heads" + (f" ({i.n_head_kv} for keys and values)" if i.n_head_kv != i.n_head else "")
            shape = f"{i.n_layer} layers, {heads}, {i.n_embd} wide, feed-forward {i.n_ff}, context {i.n_ctx}"
            show("shape", shape if i.n_layer else f"no layers, context {i.n_ctx}")
            banned = len(tokenizer.banned_ids(i.n_vocab)) if tokenizer.n_vocab else 0
            show("ids", f"{i.n_vocab}" + (f", of which {banned} are padding and never chosen" if banned else ""))
            show("parameters", f"{i.n_params:,}")
            show("per token", f"{size(i.bytes_per_token)} of weights read")
            show("threads", f"{i.n_threads} of {_lib.cpu_count()} processors")
        width = max(len(t.name) for t in tensors)
        write("".join(f"{t.name:<{width}}  {t.type:<5} {' x '.join(map(str, t.shape))}\n" for t in tensors))


def run_bench(o: argparse.Namespace) -> None:
    import json

    from pygpt.measure import bench

    with open_model(o.model, o.threads) as model:
        if max(o.prompt_tokens, o.tokens) > model.info.n_ctx:
            say(f"note: the tests are cut to this model's context of {model.info.n_ctx} tokens")
        found = bench(model, o.prompt_tokens, o.tokens, o.repeats)
    if o.json:
        write(json.dumps(found, indent=1) + "\n")
        return
    machine, described = found["machine"], found["model"]
    for result in found["results"]:
        speed = result["tokens_per_second"]
        if result["test"].startswith("pp"):
            limit, unit, used = machine["int8_gmac_per_second"], "GMAC/s", speed * described["products_per_token"] / 1e9
        else:
            limit, unit, used = machine["read_gb_per_second"], "GB/s", speed * described["bytes_per_token"] / 1e9
        spread = f"({result['slowest']:,.0f} to {result['fastest']:,.0f})"
        show(result["test"], f"{speed:,.1f} tokens/s {spread}, {used:.1f} of {limit:.1f} {unit}: {used / limit:.0%}")
    show("machine", f"{machine['threads']} threads of {machine['cpus']} processors, {machine['isa']}")


def run_perplexity(o: argparse.Namespace) -> None:
    from pygpt.measure import perplexity

    with open(o.textfile, "rb") as file:
        text = utf8(file.read(), repr(o.textfile))
    with open_model(o.model, o.threads) as model:
        found = perplexity(model, text, o.windows, bar("perplexity", "window"), o.unknown, o.context)
    show("tokens", f"{found.n_tokens} in {found.windows} window{'s' * (found.windows > 1)}, {found.n_bytes} bytes")
    show("nats per token", f"{found.nats_per_token:.5f}")
    show("perplexity", f"{found.perplexity:.4f}")
    show("bits per byte", f"{found.bits_per_byte:.5f}")


def run_quantize(o: argparse.Namespace) -> None:
    from pygpt.convert.model_file import requantize

    write(f"{requantize(o.source, o.output, o.type, progress=True)}\n")


def run_explain(o: argparse.Namespace) -> None:
    from pygpt.explain import explain

    with open_model(o.model, o.threads) as model:
        write(explain(model))


def run_chat(o: argparse.Namespace) -> None:
    import_module("pygpt.chat_cli").run(o)  # it uses our words, so it stands above us


# ---- their words -----------------------------------------------------------------------------------------------------


def open_model(path: str | None, threads: int | None) -> Any:
    from pygpt._lib import cpu_count
    from pygpt.generate import Model

    if threads is not None and threads > cpu_count():
        say(f"note: {threads} threads share {cpu_count()} processors, which makes them slower, not faster")
    return Model(path, threads)


def read_stdin() -> str:
    return utf8(sys.stdin.buffer.read() if sys.stdin else b"", "stdin")


def utf8(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        from pygpt._lib import BadFormat

        raise BadFormat(f"{name} is no UTF-8 text: byte {error.start} is {data[error.start]:#04x}") from None


def show(name: str, value: str) -> None:
    write(f"{name:<16} {value}\n")


def size(n: int) -> str:
    for unit, digits in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= digits:
            return f"{n / digits:.1f} {unit}"
    return f"{n} bytes"


# ---- the command line ------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Wrong usage is one line too."""

    def error(self, message: str) -> NoReturn:
        say(f"error: {message} (see {self.prog} --help)")
        sys.exit(2)


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """A whole number from low to high."""

    def parse(text: str) -> int:
        value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,19}", text) else low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, found {text!r}")
        return value

    return parse


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e30:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return value


def setting(name: str, number: Callable[[str], Any]) -> Callable[[str], Any]:
    """A sampling setting: what may be is written in pygpt.model alone."""

    def parse(text: str) -> Any:
        from pygpt._lib import BadArgument
        from pygpt.model import Sampling

        try:
            value = number(text)
        except ValueError:
            value = text
        try:
            return getattr(Sampling.checked(**{name: value}), name)
        except BadArgument as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def type_name(text: str) -> str:
    """A type of weights, or a mixture of types."""
    from pygpt._lib import BadArgument
    from pygpt.convert.mixtures import find

    try:
        return find(text)
    except BadArgument as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def nonempty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a stop text must not be empty")
    return text


TYPES = "f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0 or another of those in docs/format.md"


def arguments_convert(p: argparse.ArgumentParser) -> None:
    p.add_argument("source", metavar="SRC", help="a checkpoint: a file or a folder")
    p.add_argument("-o", "--output", metavar="OUT.gguf", help="default: beside the input")
    p.add_argument("--type", type=type_name, default="q8_0", help=TYPES + "; default q8_0")
    p.add_argument("--meta", metavar="META.pkl", help="the vocabulary that nanoGPT's data preparation wrote")
    p.add_argument("--text", metavar="INPUT.txt", help="the training text: its characters, and what is tried on it")
    p.add_argument("--tokenizer", metavar="FILE", help="a tokenizer.pkl, .model or .bin; or bytes, or gpt2")
    p.add_argument("--n-head", metavar="N", type=whole(1), help="heads per layer")
    p.add_argument("--gelu", choices=["erf", "tanh"], help="the GELU that the model was trained with")
    scale = "scores are divided by the root of the head size (head), of the width (width), or multiplied by a number"
    p.add_argument("--attention-scale", metavar="S", help=scale)
    for name, of in (("softcap", "nanochat"), ("qk-scale", "nanochat"), ("rope-base", "nanochat or llama2.c")):
        p.add_argument(f"--{name}", metavar="X", type=positive, help=f"a constant of {of}")
    proof = "try on text what the file does not tell, and measure what rounding costs (default: if memory allows)"
    p.add_argument("--proof", action=argparse.BooleanOptionalAction, help=proof)
    p.add_argument("--check", metavar="FILE.py:CLASS", help="run your own module (needs torch) and compare its logits")


def arguments_generate(p: argparse.ArgumentParser) -> None:
    p.add_argument("prompt", metavar="PROMPT", nargs="?", default="", help='the text to continue; "-" reads stdin')
    p.add_argument("-m", "--model", metavar="MODEL.gguf", help="default: the bundled Shakespeare")
    p.add_argument("-n", "--tokens", metavar="TOKENS", type=whole(1), default=500, help="how many (default 500)")
    p.add_argument("--temperature", metavar="T", type=setting("temperature", float), default=0.8, help="0: greedy; 0.8")
    p.add_argument("--top-k", metavar="K", type=setting("top_k", int), default=200, help="0: off; default 200")
    p.add_argument("--top-p", metavar="P", type=setting("top_p", float), default=1.0, help="1 (default): off")
    p.add_argument("--min-p", metavar="P", type=setting("min_p", float), default=0.0, help="0 (default): off")
    p.add_argument("--repeat-penalty", metavar="R", type=setting("repeat_penalty", float), default=1.0, help="1: off")
    p.add_argument("--seed", metavar="S", type=setting("seed", int), help="the same seed gives the same text")
    p.add_argument("--num-samples", metavar="N", type=whole(1), default=1, help="how many texts (default 1)")
    p.add_argument("--stop", metavar="TEXT", type=nonempty, action="append", help="ends the text; may be repeated")
    p.add_argument(
        "--on-full",
        choices=["exact", "jump", "stop"],
        default="jump",
        help="when the context is full: read its last part anew for every token as nanoGPT does (exact), keep the last "
        "half and go on (jump, the default), or stop",
    )
    p.add_argument("--unknown", choices=["error", "skip"], default="error", help="characters the vocabulary lacks")
    p.add_argument("-t", "--threads", metavar="THREADS", type=whole(1, MAX_THREADS), help="default: every processor")
    p.add_argument("--stats", action="store_true", help="speed and memory, to stderr")


def arguments_info(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", metavar="MODEL")


def arguments_bench(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", metavar="MODEL")
    p.add_argument("-p", "--prompt-tokens", metavar="N", type=whole(0), default=512, help="0: no prompt test")
    p.add_argument("-n", "--tokens", metavar="N", type=whole(0), default=128, help="0: no generation test")
    p.add_argument("-t", "--threads", metavar="THREADS", type=whole(1, MAX_THREADS), help="default: every processor")
    p.add_argument("-r", "--repeats", metavar="R", type=whole(1), default=5, help="the median of so many (default 5)")
    p.add_argument("--json", action="store_true")


def arguments_perplexity(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", metavar="MODEL")
    p.add_argument("textfile", metavar="TEXTFILE")
    p.add_argument("--windows", metavar="N", type=whole(1), help="only the first N windows of the model's context")
    p.add_argument("-c", "--context", metavar="N", type=whole(1), help="tokens per window (2048, or all it has)")
    p.add_argument("--unknown", choices=["error", "skip"], default="error", help="characters the vocabulary lacks")
    p.add_argument("-t", "--threads", metavar="THREADS", type=whole(1, MAX_THREADS), help="default: every processor")


def arguments_quantize(p: argparse.ArgumentParser) -> None:
    p.add_argument("source", metavar="IN.gguf")
    p.add_argument("output", metavar="OUT.gguf")
    p.add_argument("--type", type=type_name, required=True, help=TYPES)


def arguments_explain(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", metavar="MODEL")
    p.add_argument("-t", "--threads", metavar="THREADS", type=whole(1, MAX_THREADS), help="default: every processor")


def arguments_chat(p: argparse.ArgumentParser) -> None:
    import_module("pygpt.chat_cli").arguments(p)


COMMANDS: dict[str, tuple[Callable, Callable, str]] = {
    "convert": (run_convert, arguments_convert, "turn a trained checkpoint into a model file"),
    "generate": (run_generate, arguments_generate, "continue a text"),
    "chat": (run_chat, arguments_chat, "talk with a model that was trained for it"),
    "explain": (run_explain, arguments_explain, "what a model computes, where its bytes are, what limits its speed"),
    "info": (run_info, arguments_info, "what a model file holds, and which kernels this CPU gets"),
    "bench": (run_bench, arguments_bench, "how fast a model is here, beside the machine's limits"),
    "perplexity": (run_perplexity, arguments_perplexity, "how well a model predicts a text"),
    "quantize": (run_quantize, arguments_quantize, "write a model file in another type"),
}


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="pygpt", description="Runs GPTs that you trained from scratch, on an ordinary CPU.", allow_abbrev=False
    )
    p.add_argument("-V", "--version", action="version", version=f"pygpt {__version__}")
    commands = p.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for name, (run, arguments, help) in COMMANDS.items():
        command = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        arguments(command)
        command.set_defaults(run=run)
    return p
