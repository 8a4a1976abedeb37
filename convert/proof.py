"""Shows that a model was converted right: tries on text what the checkpoint does not say, measures what rounding costs.

Each candidate is written as a model file of its own beside the output and evaluated by the engine, which is what will
run it. Losses are compared token by token: a difference counts when it is several times its own uncertainty.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from math import log

import gguf
import numpy as np

from pygpt._lib import BadFormat, Error, ModelInfo, Unsupported
from pygpt.measure import WINDOW, NotNumbers, losses, n_text_bytes, nats
from pygpt.model import IdModel
from pygpt.tokenizer import Tokenizer

from . import mixtures
from .checkpoint import Answer, Checkpoint, Input, Options, Question, Vocabulary
from .evidence import FACTORS, ONE, at_best_temperature, decide, difference, entropy, loss_curve
from .report import Cost, Proof, Trial
from .sample_text import Text, find_text
from .unpickle import Stub
from .writer import DiskFull, write

TYPES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")  # whose costs are shown, beside the one that was asked for
REFERENCES = ("f32", "f16", "q8_0")  # what answers are tried in, and costs are beside: the first that memory allows
WORK = 1e11  # multiply-adds per evaluation: about a second
TOKENS = (1024, 8192)  # per evaluation, at least and at most
TRIAL_TOKENS = (1024, 32768)  # where answers are compared, which may differ by little
FEWEST = 256  # tokens that say anything
MEMORY = 150 << 20  # a file that is evaluated, beside twice the largest tensor: more is not spent unasked
CACHE = 64 << 20  # for keys and values
CHECKED = 128  # tokens whose logits are compared with those of a user's module
LINE = 60  # characters of a text that predictions are shown after

Loss = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of logits [n, n_vocab] and the ids [n] that followed

USUAL_NAMES = (  # what constructors call it, GGUF's key
    ("n_layer", "block_count"),
    ("n_head", "attention.head_count"),
    ("n_embd", "embedding_length"),
    ("n_kv_head", "attention.head_count_kv"),
    ("block_size", "context_length"),
    ("sequence_len", "context_length"),
    ("vocab_size", "vocab_size"),
)


class Prover:
    """Tries a checkpoint's questions and measures its types; one per conversion.

    wanted: True tries whatever its size, False tries nothing, None what memory allows. tell: hears what is going on.
    """

    def __init__(
        self, checkpoint: Checkpoint, options: Options, out: str, wanted: bool | None, tell: Callable[[str], None]
    ) -> None:
        self.checkpoint, self.out, self.wanted, self.tell = checkpoint, out, wanted, tell
        self.proof = Proof()
        self.text = find_text(checkpoint, options) if wanted is not False else Text("no text", "")
        self.limit = MEMORY + 2 * 4 * max(tensor.size for tensor in checkpoint.tensors.values())
        self.reference: np.ndarray | None = None  # losses of the chosen answers, in one of REFERENCES

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What the file will hold."""
        keys = self.checkpoint.keys | self.checkpoint.vocabulary.keys
        plain = {name: value.value if isinstance(value, gguf.GGUFValue) else value for name, value in keys.items()}
        return Tokenizer.from_keys(plain)

    @cached_property
    def ids(self) -> array:
        """Of the text, for what types cost; empty if it holds too few tokens that the model knows."""
        ids = self.trial_ids[: self._affordable(TOKENS) + 1]
        self.proof.n_tokens = max(0, len(ids) - 1)
        return ids

    def _affordable(self, limits: tuple[int, int]) -> int:
        return int(min(max(WORK / max(1, self.checkpoint.n_params), limits[0]), limits[1]))

    @cached_property
    def trial_ids(self) -> array:
        """Of the text, for comparing answers: those above and more."""
        n_tokens = self._affordable(TRIAL_TOKENS)
        try:
            ids = array("i", self.tokenizer.encode(self.text.text, unknown="skip")[: n_tokens + 1])
        except Error as error:  # of a model file without a vocabulary, or with one that is not known here
            self._leave_out(f"it is not tried on text: {error}")
            return array("i")
        if len(ids) > FEWEST:
            self.proof.text = self.text.name
            return ids
        self._leave_out(f"{self.text.name} holds only {len(ids)} tokens that the model knows; name a text with --text")
        return array("i")

    # ---- what the checkpoint does not say

    def settle(self) -> Checkpoint:
        """The checkpoint with an answer to each question, and a sentence about each."""
        type = next((type for type in REFERENCES if self._fits(type)), None)
        if type is None and self.wanted is not False:
            self._leave_out(f"its weights are too many to try them beside the conversion; {self._ask()}")
        if type and not self.ids:
            type = None
        said = []
        for question in self.checkpoint.questions:
            curves = self._try(question, type) if type else None
            tried = [at_best_temperature(curve) for curve in curves] if curves else None
            plain = entropy(self.trial_ids[1:], self.tokenizer.n_vocab) if tried else 0.0
            answer, sentence = decide(question, tried, self.text.name, plain, self.text.was_trained_on)
            if curves and tried:
                self._show(question, tried, answer)
                self.proof.tried_in, self.proof.n_tried = type or "", len(self.trial_ids) - 1
                self.reference = curves[question.answers.index(answer)][ONE, : self.proof.n_tokens]
            said.append(sentence)
            self.checkpoint = replace(self.checkpoint, keys=self.checkpoint.keys | answer.keys)
        self.checkpoint = replace(self.checkpoint, questions=[], assumptions=said + self.checkpoint.assumptions)
        if self.reference is None and type:
            self.tell(f"reading a text in {type}")
            self.reference = self._measured(self.checkpoint, type)
        if self.reference is not None:
            self.proof.type = type or ""
        return self.checkpoint

    def _try(self, question: Question, type: str) -> list[np.ndarray] | None:
        """The loss curves under each answer; None if nothing can be said."""
        others = {key: value for q in self.checkpoint.questions for key, value in q.answers[0].keys.items()}
        curves = []
        for answer in question.answers:
            self.tell(f"trying {question.topic}: {answer.name}")
            keys = others | self.checkpoint.keys | answer.keys
            try:
                found = self._losses(replace(self.checkpoint, keys=keys), type, self.trial_ids, loss_curve)
            except NotNumbers:  # so it is not this one
                found = np.full((len(FACTORS), len(self.trial_ids) - 1), np.inf)
            except (BadFormat, Unsupported) as error:
                self._leave_out(f"{question.topic}: {error}")
                found = None
            if found is None:
                return None
            curves.append(found)
        return curves if any(np.isfinite(found).all() for found in curves) else None

    def _show(self, question: Question, tried: list[np.ndarray], answer: Answer) -> None:
        best = min(tried, key=np.mean)
        for candidate, found in zip(question.answers, tried, strict=True):
            behind, error = difference(found, best)
            trial = Trial(question.topic, candidate.name, float(found.mean()), behind, error, candidate is answer)
            self.proof.trials.append(trial)

    # ---- what rounding costs

    def measure(self, path: str, type: str) -> Proof:
        """Measures the file that was written, and what other types would cost."""
        if self.wanted is False:
            return self.proof
        found = self._measured_file(path, type)
        if found is not None:
            self._predict(path)
            if self.reference is None:
                self.reference, self.proof.type = found, type
            else:
                self._add_costs(type, found, os.path.getsize(path) - self._n_bytes(type))
        elif self.reference is not None:
            self._add_costs(type, None, os.path.getsize(path) - self._n_bytes(type))
        if self.reference is not None:
            self.proof.nats = float(self.reference.mean())
            self.proof.bits = self.proof.nats * self._bits_per_nat()
            self.proof.nats_of_frequencies = entropy(self.ids[1:], self.tokenizer.n_vocab)
        return self.proof

    def _measured_file(self, path: str, type: str) -> np.ndarray | None:
        """The losses of what was written, unless that takes too much memory."""
        if not self.wanted and os.path.getsize(path) > self.limit:
            self._leave_out(f"the loss of what was written: the file is large; {self._ask()}")
            return None
        self.tell(f"reading a text in {type}")
        try:
            return self._evaluate(path, self.ids)
        except (BadFormat, Unsupported) as error:
            self._leave_out(f"the loss of what was written: {error}")
            return None

    def _add_costs(self, written: str, values: np.ndarray | None, n_others: int) -> None:
        """values: the losses of what was written, if they are known; n_others: bytes of a file beside its tensors."""
        found, plans = {} if values is None else {written: values}, [self._plan(written)]
        for type in TYPES:
            if type not in found and self._plan(type) not in plans and self._fits(type):
                plans.append(self._plan(type))
                self.tell(f"reading a text in {type}")
                if (measured := self._measured(self.checkpoint, type)) is not None:
                    found[type] = measured
        for type in sorted(found, key=self._n_bytes, reverse=True):
            nats, error = difference(found[type], self.reference)
            bits, n_bytes = nats * self._bits_per_nat(), n_others + self._n_bytes(type)
            self.proof.costs.append(Cost(type, nats, error, bits, n_bytes, type == written))

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
        likeliest = [int(id) for id in np.argsort(-p)[:5] if p[id] > 0]
        self.proof.line = line
        self.proof.predictions = [(repr(self.tokenizer.decode([id])), float(p[id])) for id in likeliest]

    # ---- the user's own module

    def check(self, spec: str, source: Input) -> str:
        """Compares the logits of a module of the user's, in float32. Runs his code."""
        from .check import check

        self.tell(f"running {spec}")
        with self._file(self.checkpoint, "f32") as path:
            if path is None:
                raise DiskFull(f"{self.out}: the disk is full; make room for float32 weights, which --check compares")
            with IdModel(path) as model:
                n_ctx = model.info.n_ctx
            n = min(n_ctx, CHECKED)
            text = self.ids[:n] if self.wanted is not False else ()
            ids = list(text) or [i % self.tokenizer.n_vocab for i in range(n)]
            return check(spec, source.weights, settings_of(source.value, self.checkpoint), path, ids).sentence

    # ---- evaluating

    def _measured(self, checkpoint: Checkpoint, type: str) -> np.ndarray | None:
        """The losses in a type; what it cannot hold or compute is said."""
        try:
            return self._losses(checkpoint, type, self.ids)
        except (BadFormat, Unsupported) as error:
            self._leave_out(f"{type}: {error}")
            return None

    def _losses(self, checkpoint: Checkpoint, type: str, ids: array, loss: Loss = nats) -> np.ndarray | None:
        with self._file(checkpoint, type) as path:
            try:
                return self._evaluate(path, ids, loss) if path else None
            except Error as error:  # the file that the user knows of
                raise error.__class__(str(error).replace(path or "", self.out)) from None

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

    def _evaluate(self, path: str, ids: array, loss: Loss = nats) -> np.ndarray | None:
        """The loss of each token; None if there are too few."""
        if not ids:
            return None
        with IdModel(path) as model:
            n_ctx = window(model.info)
            begins = range(0, len(ids) - 1, n_ctx)
            return np.concatenate(list(losses(model, ids, n_ctx, begins, loss)), axis=-1)

    def _fits(self, type: str) -> bool:
        """May a file of that type be evaluated?"""
        if self.wanted is not None:
            return self.wanted
        return self._n_bytes(type) <= self.limit

    def _n_bytes(self, type: str) -> int:
        """Of all tensors in a type."""
        tensors = self.checkpoint.tensors
        return sum(mixtures.n_bytes(kind, tensors[name].shape) for name, kind in self._plan(type).items())

    def _plan(self, type: str) -> dict[str, str]:
        """The type of each tensor. Narrow models get the same from several names."""
        shapes = {name: tensor.shape for name, tensor in self.checkpoint.tensors.items()}
        return {name: choice.type for name, choice in mixtures.choose(shapes, type).items()}

    def _ask(self) -> str:
        return "--proof does it all the same"

    def _leave_out(self, why: str) -> None:
        if why not in self.proof.left_out:
            self.proof.left_out.append(why)


def window(info: ModelInfo) -> int:
    """How many tokens are read together: as many as perplexity takes, unless their keys and values take much memory."""
    n_bytes = 8 * info.n_layer * info.n_head_kv * (info.n_embd // max(1, info.n_head))  # of a token
    return min(info.n_ctx, WINDOW, max(FEWEST, CACHE // max(1, n_bytes)))


def settings_of(value: object, checkpoint: Checkpoint) -> dict[str, object]:
    """What a model's constructor may want: what the checkpoint says, and the sizes by their usual names."""
    sizes = {key.partition(".")[2]: number for key, number in checkpoint.keys.items()}
    found = {ours: sizes[key] for ours, key in USUAL_NAMES if key in sizes} | dict(checkpoint.settings)
    for name in ("config", "model_args"):
        part = value.get(name) if type(value) is dict else None
        part = part.state if type(part) is Stub else part
        if type(part) is dict:
            found |= {key: setting for key, setting in part.items() if type(key) is str}
    return found
