"""The policy of the RL strategy, in two forms.

:class:`Actor` is a policy on one space: a softmax for each knob, whose logits are linear in the values chosen so far,

    logit(value j of knob k | choices) = bias[j] + Σ over earlier knobs' chosen values i of pair[i, j]

so that it is updated in a fraction of a millisecond. :class:`Policy` is what carries over between tasks: a network that looks
at a task and at each value of each knob (:mod:`wpk.search.features`) and gives the numbers an Actor, and the critic's prior,
start from; ``pair[i, j]`` is an inner product of what it says of i and of j. It knows values only by their features, so it
applies to any space. Without a trained one all numbers are zero: a uniform policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wpk.core.errors import LogError, StorageError
from wpk.search.choices import Bools, Choices, Ints
from wpk.search.features import TASK, TOKEN, Array

#: Version of the file's form; changes with the features.
SCHEMA = 1
#: Widths of the hidden layers and of the inner products.
HIDDEN, RANK = 48, 8
#: What the network says of a value, by head: bias of the actor, of the critic, and both sides of their pairs.
_HEADS = {"actor": 1, "critic": 1, "actor_a": RANK, "actor_b": RANK, "critic_a": RANK, "critic_b": RANK}

Parameters = dict[str, Array]


@dataclass(frozen=True)
class Tables:
    """Numbers for one space, over its D = K·V values: biases (D,) and pairs (D, D), of the actor and of the critic."""

    actor: Array
    actor_pairs: Array
    critic: Array
    critic_pairs: Array


@dataclass
class Actor:
    """A policy on one space: ``bias`` (D,), ``pairs`` (D, D), zero unless the row's knob comes before the column's."""

    choices: Choices
    bias: Array
    pairs: Array

    def sample(self, count: int, rng: np.random.Generator, heat: float = 1.0) -> Ints:
        """(count, K) walks; ``heat`` flattens the choice where above 1."""
        choices, width = self.choices, self.choices.width
        knobs = len(choices.knobs)
        walks = np.zeros((count, knobs), np.int32)
        logits = np.tile(self.bias.reshape(knobs, width), (count, 1, 1))
        pairs = self.pairs.reshape(knobs, width, knobs, width)
        state = choices.start(count)
        for k in range(knobs):
            size = len(choices.knobs[k].values)
            noisy = logits[:, k, :size] / heat + rng.gumbel(size=(count, size))
            chosen = np.argmax(np.where(choices.mask(state, k), noisy, -np.inf), axis=1).astype(np.int32)
            choices.follow(state, k, chosen)
            walks[:, k] = chosen
            logits[:, k + 1 :] += pairs[k, chosen, k + 1 :]
        return walks

    def probabilities(self, hot: Array, masks: Bools) -> tuple[Array, Array]:
        """Of one-hot walks (N, D) and their masks (N, K, V): the probabilities of all values and their logarithms, (N, K, V)."""
        logits = np.where(masks, (self.bias + hot @ self.pairs).reshape(masks.shape), -np.inf)
        logits -= logits.max(axis=2, keepdims=True)
        probs = np.exp(logits)
        total = probs.sum(axis=2, keepdims=True)
        logs = np.where(masks, logits - np.log(total), 0.0)
        return np.asarray(probs / total), np.asarray(logs)


def one_hot(walks: Ints, width: int) -> Array:
    """(N, K·V) of (N, K)."""
    hot = np.zeros((*walks.shape, width))
    np.put_along_axis(hot, walks[:, :, None], 1.0, axis=2)
    return hot.reshape(len(walks), -1)


def earlier(knobs: int, width: int) -> Array:
    """(D, D) mask of pairs: 1 where the row's knob comes before the column's."""
    return np.asarray(np.kron(np.triu(np.ones((knobs, knobs)), 1), np.ones((width, width))), np.float64)


@dataclass(frozen=True)
class Policy:
    """A trained network: two hidden layers, then the heads. See the module."""

    parameters: Mapping[str, Array]

    def tables(self, task: Array, tokens: Array) -> Tables:
        """Numbers for the space whose values look like ``tokens`` (K, V, TOKEN), on a task (TASK,)."""
        heads = self.forward(task, tokens.reshape(-1, TOKEN))[-1]
        mask = earlier(*tokens.shape[:2])
        actor, critic = (heads[f"{who}_a"] @ heads[f"{who}_b"].T * mask / RANK for who in ("actor", "critic"))
        return Tables(heads["actor"][:, 0], actor, heads["critic"][:, 0], critic)

    def forward(self, task: Array, tokens: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
        """Input, hidden layers and heads of tokens (D, TOKEN): what the gradient needs."""
        p = self.parameters
        inputs = np.concatenate([np.tile(task, (len(tokens), 1)), tokens], axis=1)
        one = np.tanh(inputs @ p["w1"] + p["b1"])
        two = np.tanh(one @ p["w2"] + p["b2"])
        return inputs, one, two, {name: two @ p[f"w_{name}"] for name in _HEADS}

    def save(self, path: Path) -> None:
        """Write an .npz file of float32. Raises StorageError."""
        arrays = {k: v.astype(np.float32) for k, v in sorted(self.parameters.items())}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, schema=np.array(SCHEMA), **arrays)
        except OSError as error:
            raise StorageError(f"cannot write the policy {path}: {error.strerror or error}") from error


def load_policy(path: Path) -> Policy:
    """Read what :meth:`Policy.save` wrote. Raises LogError when it is unreadable, of another schema or of other widths."""
    try:
        with np.load(path, allow_pickle=False) as data:
            schema = int(data["schema"])
            arrays = {k: data[k].astype(np.float64) for k in data.files if k != "schema"}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise LogError(f"cannot read the policy {path}: {error}") from error
    wanted = {k: v.shape for k, v in initial(np.random.default_rng(0)).items()}
    if schema != SCHEMA or {k: v.shape for k, v in arrays.items()} != wanted:
        raise LogError(f"{path}: the policy is of another version of wpk; train it anew")
    return Policy(arrays)


@cache
def shipped_policy() -> Policy | None:
    """The policy that comes with wpk; None where there is none.

    It was trained by :func:`wpk.search.train.train_policy`, seed 0, on the recorded spaces of the tests and on the logs from
    which the shipped ones were distilled (about 400 tasks of nine models on Zen 5). A comparison of strategies on those spaces
    must not use it: there, policies are trained with the compared task left out.
    """
    path = Path(str(files("wpk.configs"))) / "policy" / "policy.npz"
    return load_policy(path) if path.exists() else None


def initial(rng: np.random.Generator) -> Parameters:
    """Parameters to begin training with: small heads, so that the policy begins nearly uniform."""
    sizes = {"w1": (TASK + TOKEN, HIDDEN), "w2": (HIDDEN, HIDDEN)}
    found = {name: rng.normal(size=size) / size[0] ** 0.5 for name, size in sizes.items()}
    heads = {f"w_{name}": rng.normal(size=(HIDDEN, n)) * 0.3 / HIDDEN**0.5 for name, n in _HEADS.items()}
    return {**found, "b1": np.zeros(HIDDEN), "b2": np.zeros(HIDDEN), **heads}


def backward(
    policy: Policy, layers: tuple[Array, Array, Array, dict[str, Array]], heads: Mapping[str, Array]
) -> Parameters:
    """The gradient of the parameters from that of the heads, {name: (D, width of the head)}."""
    p, (inputs, one, two, _) = policy.parameters, layers
    found = {f"w_{name}": two.T @ grad for name, grad in heads.items()}
    d_two = sum((grad @ p[f"w_{name}"].T for name, grad in heads.items()), np.zeros_like(two)) * (1 - two**2)
    d_one = d_two @ p["w2"].T * (1 - one**2)
    return {
        **found, "w2": one.T @ d_two, "b2": d_two.sum(0), "w1": inputs.T @ d_one, "b1": d_one.sum(0)
    }  # fmt: skip


@dataclass
class Adam:
    """Kingma and Ba's steps (2015), on named arrays that change in place."""

    rate: float
    beta1: float = 0.9
    beta2: float = 0.99
    steps: int = 0

    def __post_init__(self) -> None:
        self._first: Parameters = {}
        self._second: Parameters = {}

    def step(self, parameters: Parameters, gradient: Mapping[str, NDArray[np.float64]]) -> None:
        """Go up the gradient."""
        self.steps += 1
        for name, g in gradient.items():
            m = self._first[name] = self.beta1 * self._first.get(name, 0.0) + (1 - self.beta1) * g
            v = self._second[name] = self.beta2 * self._second.get(name, 0.0) + (1 - self.beta2) * g * g
            scale = self.rate / (1 - self.beta1**self.steps)
            parameters[name] += scale * m / (np.sqrt(v / (1 - self.beta2**self.steps)) + 1e-8)
