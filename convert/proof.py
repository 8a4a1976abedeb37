"""Shows that a model was converted right: tries on text what the checkpoint does not say, measures what rounding costs.

Each candidate is written as a model file of its own beside the output and evaluated by the engine, which is what will
run it. Losses are compared token by token: a difference counts when it is several times its own uncertainty.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from math import log

import gguf
import numpy as np

from pygpt._lib import BadArgument, BadFormat, Error
from pygpt.measure import WINDOW, losses, n_text_bytes
from pygpt.model import IdModel
from pygpt.tokenizer import Tokenizer

from . import mixtures
from .characters import unreadable
from .checkpoint import Answer, Checkpoint, Input, Options, Question, Vocabulary
from .report import Cost, Proof, Trial
from .unpickle import Stub
from .writer import DiskFull, write

TYPES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")  # whose costs are shown, beside the one that was asked for
WORK = 1e11  # multiply-adds per evaluation: about a second
TOKENS = (1024, 8192)  # per evaluation, at least and at most
FEWEST = 256  # tokens that say anything
BLOCK = 32  # neighbouring tokens whose losses are taken as one number: they are alike
TRAINED = 0.9  # of a text's entropy: what a model's loss must be below for its evidence to count
CLEAR = 3.0  # standard errors that a difference must have
LEAST = 1e-4  # nats per token that it must have: below, a little more training would turn it round
MEMORY = 150 << 20  # a file that is evaluated, beside twice the largest tensor: more is not spent unasked
CHECKED = 128  # tokens whose logits are compared with those of a user's module
LINE = 60  # characters of a text that predictions are shown after


USUAL_NAMES = (  # what constructors call it, GGUF's key
    ("n_layer", "block_count"),
    ("n_head", "attention.head_count"),
    ("n_embd", "embedding_length"),
    ("block_size", "context_length"),
    ("vocab_size", "vocab_size"),
)


@dataclass
class Text:
    """What candidates are tried on."""

    name: str  # for people
    text: str


class Prover:
    """Tries a checkpoint's questions and measures its types; one per conversion.

    wanted: True tries whatever its size, False tries nothing, None what memory allows.
    """

    def __init__(self, checkpoint: Checkpoint, options: Options, out: str, wanted: bool | None) -> None:
        self.checkpoint, self.out, self.wanted = checkpoint, out, wanted
        self.proof = Proof()
        self.text = find_text(checkpoint, options)
        self.limit = MEMORY + 2 * 4 * max(tensor.size for tensor in checkpoint.tensors.values())
        self.reference: np.ndarray | None = None  # losses of the chosen answers in float32

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What the file will hold."""
        keys = self.checkpoint.keys | self.checkpoint.vocabulary.keys
        plain = {name: value.value if isinstance(value, gguf.GGUFValue) else value for name, value in keys.items()}
        return Tokenizer.from_keys(plain)

    @cached_property
    def ids(self) -> array:
        """The text; empty if it holds too few tokens that the model knows."""
        n_tokens = int(min(max(WORK / max(1, self.checkpoint.n_params), TOKENS[0]), TOKENS[1]))
        ids = array("i", self.tokenizer.encode(self.text.text, unknown="skip")[: n_tokens + 1])
        if len(ids) > FEWEST:
            self.proof.text, self.proof.n_tokens = self.text.name, len(ids) - 1
            return ids
        self._leave_out(f"{self.text.name} holds only {len(ids)} tokens that the model knows; name a text with --text")
        return array("i")

    # ---- what the checkpoint does not say

    def settle(self) -> Checkpoint:
        """The checkpoint with an answer to each question, and a sentence about each."""
        type = next((type for type in ("f32", "q8_0") if self._fits(type)), None)
        if type is None and self.wanted is not False:
            self._leave_out(f"its weights are too many to try them beside the conversion; {self._ask()}")
        if type and not self.ids:
            type = None
        self.proof.type = type or ""
        said = []
        for question in self.checkpoint.questions:
            tried = self._try(question, type) if type else None
            answer, sentence = decide(question, tried, self.text.name, entropy(self.ids[1:]) if tried else 0.0)
            self._keep(question, tried, answer)
            said.append(sentence)
            self.checkpoint = replace(self.checkpoint, keys=self.checkpoint.keys | answer.keys)
        self.checkpoint = replace(self.checkpoint, questions=[], assumptions=said + self.checkpoint.assumptions)
        if self.reference is None and type == "f32":
            self.reference = self._losses(self.checkpoint, type)
        return self.checkpoint

    def _try(self, question: Question, type: str) -> list[np.ndarray] | None:
        """The losses under each answer; None if nothing can be said."""
        others = {key: value for q in self.checkpoint.questions for key, value in q.answers[0].keys.items()}
        tried = []
        for answer in question.answers:
            keys = others | self.checkpoint.keys | answer.keys
            found = self._losses(replace(self.checkpoint, keys=keys), type)
            if found is None:
                return None
            tried.append(found)
        return tried

    def _keep(self, question: Question, tried: list[np.ndarray] | None, answer: Answer) -> None:
        if tried is None:
            return
        best = min(tried, key=np.mean)
        for candidate, found in zip(question.answers, tried, strict=True):
            behind, error = difference(found, best)
            trial = Trial(question.topic, candidate.name, float(found.mean()), behind, error, candidate is answer)
            self.proof.trials.append(trial)
            if candidate is answer and self.proof.type == "f32":
                self.reference = found

    # ---- what rounding costs

    def measure(self, path: str, type: str) -> Proof:
        """Measures the file that was written, and what other types would cost."""
        if self.wanted is False:
            return self.proof
        if not self.wanted and os.path.getsize(path) > self.limit:
            self._leave_out(f"its loss was not measured: the file is large; {self._ask()}")
            return self.proof
        found = self._evaluate(path)
        if found is None:
            return self.proof
        self._predict(path)
        if self.reference is None:
            self.reference, self.proof.type = found, type
        else:
            self._add_costs({type: (found, os.path.getsize(path))})
        self.proof.nats = float(self.reference.mean())
        self.proof.bits = self.proof.nats * self._bits_per_nat()
        return self.proof

    def _add_costs(self, found: dict[str, tuple[np.ndarray, int]]) -> None:
        written = next(iter(found))
        plans = [self._plan(written)]
        for type in TYPES:
            if type not in found and self._plan(type) not in plans and self._fits(type):
                plans.append(self._plan(type))
                try:
                    with self._file(self.checkpoint, type) as path:
                        if path and (measured := self._evaluate(path)) is not None:
                            found[type] = measured, os.path.getsize(path)
                except BadFormat as error:  # numbers that the type cannot hold
                    self._leave_out(f"{type}: {error}")
        for type, (values, n_bytes) in sorted(found.items(), key=lambda item: -item[1][1]):
            nats, error = difference(values, self.reference)
            cost = Cost(type, nats, error, nats * self._bits_per_nat(), n_bytes, type == written)
            self.proof.costs.append(cost)

    def _bits_per_nat(self) -> float:
        """Per token to per byte."""
        return self.proof.n_tokens / max(1, n_text_bytes(self.tokenizer, self.ids[1:])) / log(2)

    def _predict(self, path: str) -> None:
        line = next((line for line in self.text.text.splitlines() if len(line.split()) > 3), self.text.text)
        line = line[:LINE].rpartition(" ")[0] or line[:LINE]
        ids = self.tokenizer.encode(line, unknown="skip")
        if not ids:
            return
        with IdModel(path) as model:
            logits = model.logits(ids[-model.info.n_ctx :])[-1].astype(np.float64)
        logits[self.tokenizer.banned_ids(len(logits))] = -np.inf
        p = np.exp(logits - logits.max())
        p /= p.sum()
        self.proof.line = line
        self.proof.predictions = [(repr(self.tokenizer.decode([int(id)])), float(p[id])) for id in np.argsort(-p)[:5]]

    # ---- the user's own module

    def check(self, spec: str, source: Input) -> str:
        """Compares the logits of a module of the user's, in float32. Runs his code."""
        from .check import check

        with self._file(self.checkpoint, "f32") as path:
            if path is None:
                raise DiskFull(f"{self.out}: the disk is full; make room for float32 weights, which --check compares")
            with IdModel(path) as model:
                n_ctx = model.info.n_ctx
            ids = self.tokenizer.encode(self.text.text, unknown="skip")[: min(n_ctx, CHECKED)]
            return check(spec, source.weights, settings_of(source.value, self.checkpoint), path, ids).sentence

    # ---- evaluating

    def _losses(self, checkpoint: Checkpoint, type: str) -> np.ndarray | None:
        with self._file(checkpoint, type) as path:
            return self._evaluate(path) if path else None

    @contextmanager
    def _file(self, checkpoint: Checkpoint, type: str) -> Iterator[str | None]:
        """The checkpoint without its vocabulary as a file that is gone afterwards; None where the disk is full."""
        keys = {name: value for name, value in checkpoint.keys.items() if "tokenizer." not in name}
        checkpoint = replace(checkpoint, keys=keys, vocabulary=Vocabulary({}, ""))
        try:
            workshop = tempfile.TemporaryDirectory(prefix=".pygpt-", dir=os.path.dirname(os.path.realpath(self.out)))
        except OSError as error:
            why = error.strerror or error
            raise Error(f"{self.out}: cannot be written: {why}; name another folder with -o") from None
        with workshop as folder:
            path: str | None = os.path.join(folder, "model.gguf")
            try:
                write(checkpoint, path, type, keep=False)
            except DiskFull:
                self._leave_out(f"the disk has no room to try {type}")
                path = None
            except Error as error:  # the file that the user knows of
                raise error.__class__(str(error).replace(path, self.out)) from None
            yield path

    def _evaluate(self, path: str) -> np.ndarray | None:
        """Nats of each token; None if there are too few."""
        if not self.ids:
            return None
        with IdModel(path) as model:
            n_ctx = min(model.info.n_ctx, WINDOW)
            return np.concatenate(list(losses(model, self.ids, n_ctx, range(0, len(self.ids) - 1, n_ctx))))

    def _fits(self, type: str) -> bool:
        """May a file of that type be evaluated?"""
        if self.wanted is not None:
            return self.wanted
        shapes = {name: tensor.shape for name, tensor in self.checkpoint.tensors.items()}
        return sum(mixtures.n_bytes(kind, shapes[name]) for name, kind in self._plan(type).items()) <= self.limit

    def _plan(self, type: str) -> dict[str, str]:
        """The type of each tensor. Narrow models get the same from several names."""
        shapes = {name: tensor.shape for name, tensor in self.checkpoint.tensors.items()}
        return {name: choice.type for name, choice in mixtures.choose(shapes, type).items()}

    def _ask(self) -> str:
        return "--proof does it all the same"

    def _leave_out(self, why: str) -> None:
        if why not in self.proof.left_out:
            self.proof.left_out.append(why)


# ---- deciding


def difference(values: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """(mean, standard error of the mean) of values - others, two series over the same tokens."""
    by_token = values - others
    n = max(2, len(by_token) // BLOCK)
    means = np.array([part.mean() for part in np.array_split(by_token, n)])
    return float(by_token.mean()), float(means.std(ddof=1) / np.sqrt(n))


def entropy(ids: array) -> float:
    """Nats per token that their frequencies alone would cost."""
    p = np.unique(ids, return_counts=True)[1] / len(ids)
    return float(-(p * np.log(p)).sum())


def decide(
    question: Question, tried: list[np.ndarray] | None, text: str, entropy: float = np.inf
) -> tuple[Answer, str]:
    """The answer that is taken, and the sentence that says why. The first stands unless another is clearly better.

    entropy: of the text. A model that is hardly below it has learned nothing yet that could speak for an answer.
    """
    first = question.answers[0]
    if tried is None:
        if not question.has_default:
            raise BadArgument(
                f"{question.topic} is not in the checkpoint, and no text was at hand to find it out: "
                f"name it with {question.option}"
            )
        return first, f"{_is(question, first)}, {question.why}; not tried on text ({question.option} decides)."
    best = min(tried, key=np.mean)
    behind = {answer.name: difference(found, best) for answer, found in zip(question.answers, tried, strict=True)}
    is_trained = best.mean() < TRAINED * entropy
    in_question = [a for a in question.answers if not (is_trained and _is_clear(*behind[a.name]))]
    taken = first if first in in_question else in_question[0]
    if len(in_question) == 1:
        others = [name for name in behind if name != taken.name]
        nearest = min(others, key=lambda name: behind[name][0]) if others else ""
        margin = f": {behind[nearest][0]:.2g} nats per token better than {nearest} on {text}" if others else ""
        return taken, f"{_is(question, taken)}{margin}."
    names = " and ".join(a.name for a in in_question)
    if not question.has_default:
        raise BadArgument(
            f"{question.topic} is not in the checkpoint, and {text} does not tell {names} apart: "
            f"name it with {question.option}"
        )
    why = question.why if taken is first else "the better of them"
    unclear = f"{text} does not tell {names} apart"
    if not is_trained:
        unclear = f"the model predicts {text} hardly better than frequencies of tokens would"
    return taken, f"{_is(question, taken)}, {why}; UNCLEAR: {unclear} ({question.option} decides)."


def _is(question: Question, answer: Answer) -> str:
    return f"{question.topic[0].upper()}{question.topic[1:]} is {answer.name}"


def _is_clear(behind: float, error: float) -> bool:
    return behind > max(CLEAR * error, LEAST)


# ---- texts


def find_text(checkpoint: Checkpoint, options: Options) -> Text:
    """The user's, the one that the model was trained on, or the one that ships."""
    path = options.text or checkpoint.vocabulary.sample
    if path:
        return Text(os.path.basename(path), read_end(path))
    shipped = resources.files("pygpt").joinpath("data", "english.txt")
    return Text("pygpt's English sample", shipped.read_text(encoding="utf-8"))


def read_end(path: str, wanted: int = 8 * TOKENS[1]) -> str:
    """The last tenth, which training usually leaves out, or more of it where that is short; whole lines."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            begin = min(size * 9 // 10, max(0, size - wanted))
            file.seek(begin)
            data = file.read(wanted)
    except OSError as error:
        raise unreadable(path, error) from None
    if begin and b"\n" in data:
        data = data.partition(b"\n")[2]
    text = data.decode("utf-8", "ignore")
    if not text.strip():
        raise BadFormat(f"{path}: expected text in UTF-8, found none")
    return text


def settings_of(value: object, checkpoint: Checkpoint) -> dict[str, object]:
    """What a model's constructor may want: what the checkpoint says, and the sizes by their usual names."""
    sizes = {key.partition(".")[2]: number for key, number in checkpoint.keys.items()}
    found = {ours: sizes[key] for ours, key in USUAL_NAMES if key in sizes}
    for name in ("config", "model_args"):
        part = value.get(name) if type(value) is dict else None
        part = part.state if type(part) is Stub else part
        if type(part) is dict:
            found |= {key: setting for key, setting in part.items() if type(key) is str}
    return found
