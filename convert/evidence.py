"""Decides by losses which of several answers a checkpoint was trained with, or that they do not tell.

Losses are of the same tokens under each answer: their differences are far less noisy than they are themselves. Each
answer is taken at the temperature that suits it: a model that ought to be more sure of itself, as most that were not
trained to the end, would gain from whatever sharpens its logits, right or wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pygpt._lib import BadArgument

from .checkpoint import Answer, Question

BLOCK = 32  # neighbouring tokens whose losses are taken as one number: they are alike
CLEAR = 3.0  # standard errors that a difference must have
# Nats per token that it must have too, for a model whose loss is below so much of the text's entropy: of less, a little
# more training might turn it round. Of a model above them all nothing is clear.
LEAST = ((0.7, 1e-4), (0.9, 0.05))
UNSEEN = 0.05  # and at least this on a text that the model was not trained on, where a wrong answer may do better

FACTORS = 1.12 ** np.arange(-9, 8)  # of all logits, one over the temperature: 0.36 to 2.2
ONE = 9  # the place of 1 in them


def loss_curve(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Nats of each of targets [n] under logits [n, n_vocab] times each of FACTORS: float64 [n_factors, n]."""
    z = logits - logits.max(axis=1, keepdims=True)
    chosen = z[np.arange(len(targets)), targets]
    ones, scaled = np.ones(z.shape[1], np.float32), np.empty_like(z)
    totals = np.empty((len(FACTORS), len(targets)))
    for factor, total in zip(FACTORS, totals, strict=True):
        np.exp(np.multiply(z, np.float32(factor), out=scaled), out=scaled)
        total[:] = scaled @ ones
    return np.log(totals) - FACTORS[:, None] * chosen


def at_best_temperature(curve: np.ndarray) -> np.ndarray:
    """The losses [n] under the factor that makes their mean least; between FACTORS a cubic joins four."""
    if not np.isfinite(curve).all():
        return curve[ONE]
    i = int(np.clip(curve.mean(axis=1).argmin(), 1, len(FACTORS) - 3))
    near, places = curve[i - 1 : i + 3], np.arange(-1, 3)
    weights = np.vander(np.linspace(-1, 2, 601), 4) @ np.linalg.inv(np.vander(places, 4))
    return weights[(weights @ near.mean(axis=1)).argmin()] @ near


def difference(values: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """(mean, standard error of the mean) of values - others, two series over the same tokens."""
    by_token = values - others
    if not np.isfinite(by_token).all():
        return np.inf, 0.0
    n = max(2, len(by_token) // BLOCK)
    means = np.array([part.mean() for part in np.array_split(by_token, n)])
    return float(by_token.mean()), float(means.std(ddof=1) / np.sqrt(n))


def entropy(ids: Sequence[int], n_vocab: int) -> float:
    """Nats per token that frequencies would cost that are counted on the other tokens of the text.

    What tokens seen once would take (Good and Turing's estimate of the unseen) is shared by the ids not seen.
    """
    counts = np.unique(ids, return_counts=True)[1]
    n, n_once = counts.sum(), int((counts == 1).sum())
    known = counts[counts > 1]
    nats = -(known * np.log((known - 1) / (n - 1))).sum()
    if n_once:
        nats -= n_once * np.log(n_once / n / max(1, n_vocab - len(counts) + 1))
    return float(nats / n)


def decide(
    question: Question,
    tried: list[np.ndarray] | None,
    text: str,
    entropy: float = np.inf,
    was_trained_on: bool = True,
) -> tuple[Answer, str]:
    """The answer that is taken, and the sentence that says why. The first stands unless another is clearly better.

    tried: the losses under each answer; None if there are none. entropy: of the text, in nats per token: a model that
    is hardly below it has learned nothing yet that could speak for an answer. Raises BadArgument, which names the
    option, where there is no default and nothing decides.
    """
    first = question.answers[0]
    if tried is None:
        if not question.has_default:
            raise undecided(question, "it was not tried on text")
        option = question.option_between(question.answers)
        return first, f"{_is(question, first)}, {question.why}; not tried on text ({option} decides)."
    best = min(tried, key=np.mean)
    behind = {answer.name: difference(found, best) for answer, found in zip(question.answers, tried, strict=True)}
    least = next((least for part, least in LEAST if best.mean() < part * entropy), np.inf)
    if not was_trained_on:
        least = max(least, UNSEEN)
    is_out = {name: gap == np.inf or gap > max(CLEAR * error, least) for name, (gap, error) in behind.items()}
    left = [answer for answer in question.answers if not is_out[answer.name]]
    if len(left) == 1:
        return left[0], f"{_is(question, left[0])}{_margin(left[0], behind, text)}."
    unclear = f"{text} does not tell {' and '.join(answer.name for answer in left)} apart"
    if least == np.inf:
        unclear = f"the model predicts {text} hardly better than frequencies of tokens would"
    if not question.has_default:
        raise undecided(question, unclear)
    taken = left[0]
    why = question.why if taken is first else "the likeliest of them"
    decides = f"{question.option_between(left)} decides" + (
        "" if was_trained_on else ", its training text by --text may"
    )
    return taken, f"{_is(question, taken)}, {why}; UNCLEAR: {unclear} ({decides})."


def undecided(question: Question, why: str) -> BadArgument:
    return BadArgument(f"{question.topic} is not in the checkpoint, and {why}: name it with {question.option}")


def _margin(taken: Answer, behind: dict[str, tuple[float, float]], text: str) -> str:
    others = [name for name in behind if name != taken.name]
    if not others:
        return ""
    nearest = min(others, key=lambda name: behind[name][0])
    return f": {behind[nearest][0]:.2g} nats per token better than {nearest} on {text}"


def _is(question: Question, answer: Answer) -> str:
    return f"{question.topic[0].upper()}{question.topic[1:]} is {answer.name}"
