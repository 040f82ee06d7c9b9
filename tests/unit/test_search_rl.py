"""The RL strategy: masks that keep to the space, learning that beats random draws, a policy that carries over between tasks."""

from collections.abc import Sequence
from dataclasses import replace
from math import exp, inf, isfinite, log
from pathlib import Path
from random import Random
from statistics import mean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_landscapes import best, epistatic, kernel_like, matmul_like, narrow, noise, search

from wpk.core.errors import LogError
from wpk.core.result import config_key
from wpk.core.target import Target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.search.choices import Choices
from wpk.search.critic import Critic
from wpk.search.features import TASK, TOKEN, arithmetic, task_features, token_features, traffic
from wpk.search.knobs import Choice, Ordered
from wpk.search.policy import Actor, Policy, backward, earlier, initial, load_policy, one_hot, shipped_policy
from wpk.search.randomly import Randomly
from wpk.search.rl import Reinforced, RlOptions, train_policy
from wpk.search.space import Config, Space
from wpk.search.train import Lesson, TrainOptions, worth

TARGET = Target("x86_64", "test", ("avx512", "scalar"), 2, 32 << 10, 1 << 20, 8 << 20, 2)


def product(rows: int, inner: int, columns: int) -> Workload:
    shapes = (rows, inner), (inner, columns), (rows, columns)
    a, b, c = (TensorType("float32", s) for s in shapes)
    return Workload("matmul", (a, b), (c,))


# Masks


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Small spaces with random constraints over random knobs, some read only on a condition; often few configs are valid."""
    count = draw(st.integers(1, 5))
    knobs = tuple(Ordered(f"k{i}", tuple(range(draw(st.integers(1, 4)))), 0) for i in range(count))
    seeds = draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=4))

    def constraint(seed: int, a: int, b: int, c: int):  # type: ignore[no-untyped-def]
        names = [f"k{i % count}" for i in (a, b, c)]

        def holds(config: Config) -> bool:
            first = config[names[0]]
            others = config[names[1]] if first == 0 else (config[names[2]], config[names[1]])
            return noise(seed, first, others) < 0.6

        return holds

    return Space(knobs, tuple(constraint(*s) for s in seeds))


def uniform(space: Space) -> Actor:
    choices = Choices(space)
    size = len(space.knobs) * choices.width
    return Actor(choices, np.zeros(size), np.zeros((size, size)))


@settings(max_examples=80, deadline=None)
@given(spaces())
def test_masks_are_exact(space: Space) -> None:
    valid = {tuple(c.values()) for c in space.enumerate()}
    if not valid:
        return
    choices = Choices(space)
    drawn = uniform(space).sample(40, np.random.default_rng(0))
    masks = choices.masks(drawn)
    for walk, mask in zip(drawn, masks, strict=True):
        values = tuple(k.values[i] for k, i in zip(space.knobs, walk.tolist(), strict=True))
        assert values in valid, "a walk along the masks ends in a valid config"
        for k, knob in enumerate(space.knobs):
            open_values = {v for v, m in zip(knob.values, mask[k], strict=False) if m}
            assert open_values == {v[k] for v in valid if v[:k] == values[:k]}


@settings(max_examples=25, deadline=None)
@given(spaces(), st.integers(0, 5))
def test_every_valid_config_and_no_other_is_proposed(space: Space, seed: int) -> None:
    valid = sorted(map(config_key, space.enumerate()))
    if not valid:
        return
    agent = Reinforced(space, seed, options=RlOptions(rounds=1, imagined=8, pool=8))
    history = search(agent, lambda c: 1 + noise(config_key(c)), 2000)
    assert sorted(config_key(c) for c, _ in history) == valid


def test_listed_spaces_are_walked_too() -> None:
    listed = tuple({"a": i % 7, "b": i * i % 5} for i in range(0, 60, 3))
    space = Space((Ordered("a", tuple(range(7)), 0), Ordered("b", tuple(range(5)), 0)), (), (), listed)
    keys = {config_key(c) for c in listed}
    walks = uniform(space).sample(200, np.random.default_rng(1))
    assert {config_key(space.repair(Choices(space).decode(w, Random(0)), Random(0))) for w in walks.tolist()} == keys


def test_an_empty_space_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no valid config"):
        Reinforced(Space((Ordered("a", (1, 2), 1),), (lambda c: int(c["a"]) > 2,)), 0)


# The actor


def test_probabilities_sum_to_one_within_masks_and_match_the_draws() -> None:
    space, _ = narrow(3)
    choices, rng = Choices(space), np.random.default_rng(0)
    size = len(space.knobs) * choices.width
    order = earlier(len(space.knobs), choices.width)
    actor = Actor(choices, rng.normal(size=size), rng.normal(size=(size, size)) * order)
    walks = actor.sample(4000, rng)
    masks = choices.masks(walks)
    probs, logs = actor.probabilities(one_hot(walks, choices.width), masks)
    assert np.allclose(probs.sum(axis=2), 1) and (probs[~masks] == 0).all()
    assert np.allclose(np.exp(logs[masks]), probs[masks])
    drawn = np.bincount(walks[:, 0], minlength=choices.width) / len(walks)
    assert np.abs(drawn - probs[0, 0]).max() < 0.04


# Learning


@pytest.mark.parametrize("landscape", [kernel_like(), epistatic(1), narrow(3)], ids=["kernel_like", "epistatic", "narrow"])
def test_it_beats_random_cold(landscape) -> None:  # type: ignore[no-untyped-def]
    space, seconds = landscape

    def run(make, seed: int) -> float:  # type: ignore[no-untyped-def]
        return log(best(search(make(space, seed), seconds, 80)))

    gains = [run(Randomly, s) - run(Reinforced, s) for s in range(4)]
    assert mean(gains) > 0.05 and min(gains) > -0.05


def test_practice_draws_the_policy_to_what_is_fast() -> None:
    """The policy's own draws, unscreened, become better: it is the policy that learns, not only the critic."""
    space, seconds = kernel_like()
    agent = Reinforced(space, 1)
    before = _draws(agent, seconds)
    search(agent, seconds, 80)
    agent.ask(1)
    assert _draws(agent, seconds) < before - 0.3


def _draws(agent: Reinforced, seconds) -> float:  # type: ignore[no-untyped-def]
    """Mean log-seconds of the policy's draws that run."""
    walks = agent._actor.sample(200, np.random.default_rng(0)).tolist()
    times = [seconds(agent._choices.decode(w, Random(0))) for w in walks]
    return mean(log(t) for t in times if isfinite(t))


def test_without_skill_only_measurements_count() -> None:
    """On pure noise the critic stays unbelieved and the search goes on."""
    space, _ = kernel_like()
    agent = Reinforced(space, 2)
    history = search(agent, lambda c: exp(noise("pure", config_key(c))), 60)
    assert len({config_key(c) for c, _ in history}) == 60
    assert agent._critic.skill < 0.3


def test_failures_are_worth_less_by_kind() -> None:
    space = Space((Ordered("a", tuple(range(6)), 0),))
    agent = Reinforced(space, 0)
    agent.tell_failures([({"a": 2}, "timeout"), ({"a": 3}, "wrong")])
    agent.tell([({"a": 0}, 1.0), ({"a": 1}, 9.0), ({"a": 2}, inf), ({"a": 3}, inf), ({"a": 4}, inf)])
    fast, slow, timeout, wrong, unknown = agent._worth()
    assert fast == 0 > slow > timeout > wrong == unknown


def test_worth_flattens() -> None:
    assert worth(1.0, 0.7) == 0 and worth(inf, 0.7) == -0.7
    assert worth(1.01, 0.7) == pytest.approx(-log(1.01), rel=0.02)
    assert -0.7 < worth(1e6, 0.7) < worth(10, 0.7) < worth(2, 0.7) < 0


def test_expected_gain_falls_as_the_search_goes_on() -> None:
    space, seconds = narrow(3)
    agent = Reinforced(space, 0)
    assert agent.expected_gain() == inf
    search(agent, seconds, 24)
    early = agent.expected_gain()
    again = agent.expected_gain()
    search(agent, seconds, 150)
    assert early == again and 0 <= agent.expected_gain() < early / 3


def test_asking_for_the_gain_changes_no_proposal() -> None:
    space, seconds = kernel_like()
    one, two = Reinforced(space, 3), Reinforced(space, 3)
    for _ in range(5):
        asked = one.ask(8)
        assert asked == two.ask(8)
        for agent in (one, two):
            agent.tell([(c, seconds(c)) for c in asked])
        two.expected_gain()


def test_a_screen_orders_proposals() -> None:
    """A cost model that knows the answer finds fast configs at once; one that lies does not lock the search in."""
    space, seconds = kernel_like()

    def run(sign: float, seed: int) -> float:
        def screen(configs: Sequence[Config]) -> list[float]:
            return [sign * min(seconds(c), 1.0) for c in configs]

        return log(best(search(Reinforced(space, seed, screen=screen), seconds, 16)))

    assert mean(run(1, s) for s in range(3)) < mean(run(-1, s) for s in range(3)) - 0.1


# The critic


def test_the_critic_ranks_what_it_has_not_seen() -> None:
    space, seconds = narrow(4)
    rng, choices = Random(0), Choices(space)
    configs = list({config_key(c): c for c in (space.sample(rng) for _ in range(200))}.values())
    walks, values = choices.encode(configs), np.array([-log(seconds(c)) for c in configs])
    critic, half = Critic(space.knobs, choices.width), len(configs) // 2
    critic.fit(walks[:half], values[:half], np.zeros(half), steps=20)
    found, deviation = critic.predict(walks[half:], np.zeros(len(configs) - half))
    assert np.corrcoef(found, values[half:])[0, 1] > 0.6 and critic.skill > 0.3
    assert (deviation > 0).all() and np.abs(found - values[half:]).mean() < 2 * deviation.mean()


def test_an_opinion_is_believed_until_disproved() -> None:
    space = Space(tuple(Ordered(f"k{i}", tuple(range(8)), 0) for i in range(3)))
    choices, rng = Choices(space), np.random.default_rng(0)
    walks = uniform(space).sample(40, rng)
    truth = walks.sum(axis=1) / 10.0
    few, many = Critic(space.knobs, choices.width), Critic(space.knobs, choices.width)
    few.fit(walks[:3], truth[:3], truth[:3])
    assert np.corrcoef(few.predict(walks, truth)[0], truth)[0, 1] > 0.9
    many.fit(walks, truth, -truth, steps=20)
    assert np.corrcoef(many.predict(walks, -truth)[0], truth)[0, 1] > 0.8


# Features and the trained policy


def test_features_are_finite_and_of_order_one() -> None:
    space, _ = kernel_like()
    for workload in (product(1, 4096, 1000), Workload("softmax", (), ()), None):
        found = task_features(workload, TARGET)
        assert found.shape == (TASK,) and np.isfinite(found).all() and np.abs(found).max() < 6
    tokens = token_features(space, 16)
    assert tokens.shape == (len(space.knobs), 16, TOKEN) and np.abs(tokens).max() < 6
    assert not tokens[0, 3:].any(), "past a knob's values there is nothing"
    assert arithmetic(product(2, 3, 5)) == 2 * 2 * 3 * 5 and traffic(product(2, 3, 5)) == 4 * (6 + 15 + 10)


def test_the_gradient_is_that_of_the_network() -> None:
    rng = np.random.default_rng(0)
    policy = Policy(initial(rng))
    task, tokens = rng.normal(size=TASK), rng.normal(size=(5, TOKEN))
    layers = policy.forward(task, tokens)
    target = {name: rng.normal(size=head.shape) for name, head in layers[-1].items()}
    gradient = backward(policy, layers, target)

    def value() -> float:
        return float(sum((h * target[n]).sum() for n, h in policy.forward(task, tokens)[-1].items()))

    for name, parameter in policy.parameters.items():
        place = tuple(rng.integers(0, n) for n in parameter.shape)
        kept, step = parameter[place], 1e-5
        parameter[place] = kept + step
        up = value()
        parameter[place] = kept - step
        slope = (up - value()) / (2 * step)
        parameter[place] = kept
        assert gradient[name][place] == pytest.approx(slope, rel=1e-4, abs=1e-6), name


def lessons(sizes: Sequence[tuple[int, int, int]], each: int = 120) -> list[Lesson]:
    found = []
    for i, size in enumerate(sizes):
        space, seconds = matmul_like(*size)
        rng = Random(i)
        results = {config_key(c): (c, seconds(c)) for c in (space.sample(rng) for _ in range(each))}
        found.append(Lesson(space, product(*size), TARGET, tuple(results.values())))
    return found


OPTIONS = TrainOptions(steps=700, batch=48)
KNOWN = [(64, 64, 64), (256, 64, 512), (32, 512, 128), (512, 256, 32), (128, 1024, 256), (1024, 32, 64)]


def test_what_was_learned_carries_over_to_a_task_held_out() -> None:
    policy = train_policy(lessons(KNOWN), 0, OPTIONS)
    size = (200, 300, 400)
    space, seconds = matmul_like(*size)
    optimum = min(seconds(c) for c in space.enumerate())

    def run(seed: int, known: Policy | None, trials: int) -> float:
        agent = Reinforced(space, seed, (), None, product(*size), TARGET, known)
        return best(search(agent, seconds, trials)) / optimum

    warm, cold = (mean(run(s, p, 16) for s in range(4)) for p in (policy, None))
    assert warm < 1.1 and warm < cold - 0.1


def test_training_is_reproducible_and_survives_a_file(tmp_path: Path) -> None:
    few = replace(OPTIONS, steps=20)
    policy = train_policy(lessons(KNOWN[:2]), 3, few)
    policy.save(tmp_path / "policy.npz")
    train_policy(lessons(KNOWN[:2]), 3, few).save(tmp_path / "again.npz")
    train_policy(lessons(KNOWN[:2]), 4, few).save(tmp_path / "other.npz")
    one, two, three = ((tmp_path / f"{n}.npz") for n in ("policy", "again", "other"))
    read = [load_policy(p).parameters for p in (one, two, three)]
    assert all((read[0][k] == read[1][k]).all() for k in read[0])
    assert any((read[0][k] != read[2][k]).any() for k in read[0])
    assert one.stat().st_size < 500_000
    space, _ = matmul_like(*KNOWN[0])
    tables = [p.tables(task_features(None, None), token_features(space, 8)).actor for p in (policy, load_policy(one))]
    assert np.allclose(*tables, atol=1e-4)


def test_a_damaged_policy_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.npz"
    with pytest.raises(LogError, match="cannot read"):
        load_policy(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(LogError, match="cannot read"):
        load_policy(path)
    Policy({**initial(np.random.default_rng(0)), "w2": np.zeros((2, 2))}).save(path)
    with pytest.raises(LogError, match="train it anew"):
        load_policy(path)


def test_nothing_to_learn_from_is_an_error() -> None:
    space = Space((Choice("a", ("x", "y"), "x"),))
    with pytest.raises(ValueError, match="two measured configs"):
        train_policy([Lesson(space, product(1, 1, 1), TARGET, (({"a": "x"}, 1.0), ({"a": "y"}, inf)))])


def test_the_shipped_policy_is_small_and_fits_this_version() -> None:
    policy = shipped_policy()
    assert policy is not None
    assert sum(v.size for v in policy.parameters.values()) * 4 < 500_000
    space, _ = kernel_like()
    tables = policy.tables(task_features(product(64, 64, 64), TARGET), token_features(space, 16))
    assert all(np.isfinite(t).all() for t in (tables.actor, tables.actor_pairs, tables.critic, tables.critic_pairs))
