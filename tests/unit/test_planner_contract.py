"""The contract: decisions from samples."""

import numpy as np
import pytest

from wpk.core.errors import ModelError
from wpk.core.result import Measurement
from wpk.planner.contract import OURS, compare, decide


def noisy(seconds: float, spread: float, seed: int, n: int = 25) -> Measurement:
    rng = np.random.default_rng(seed)
    return Measurement(tuple(float(seconds * (1 + spread * abs(v))) for v in rng.standard_normal(n)))


def test_a_clear_win_is_ours() -> None:
    verdict = decide(
        {OURS: noisy(1.0, 0.02, 0), "onnxruntime": noisy(1.5, 0.02, 1), "onednn": noisy(1.2, 0.02, 2)}
    )
    assert verdict.winner == OURS and "of onednn's time" in verdict.reason
    assert dict(verdict.times)["onnxruntime"] == pytest.approx(1.5, rel=0.05)


def test_a_tie_and_a_loss_are_the_librarys() -> None:
    tie = decide({OURS: noisy(1.0, 0.1, 0), "onnxruntime": noisy(1.0, 0.1, 1)})
    loss = decide({OURS: noisy(1.3, 0.02, 0), "onnxruntime": noisy(1.0, 0.02, 1)})
    assert tie.winner == loss.winner == "onnxruntime" and "no win beyond noise" in tie.reason


def test_drift_of_the_machine_does_not_decide() -> None:
    """Every round is slower than the one before; in each, ours takes 97% of the library's time."""
    drift = [1 + 0.1 * i for i in range(15)]
    ours = Measurement(tuple(0.97 * d for d in drift))
    assert decide({OURS: ours, "onnxruntime": Measurement(tuple(drift))}).winner == OURS


def test_wrong_plans_do_not_compete() -> None:
    wrong = Measurement(failure="wrong", detail="relative error 3.00e-01, allowed 1.0e-05")
    right = Measurement((1.0,) * 11)
    assert decide({OURS: wrong, "onnxruntime": right}).winner == "onnxruntime"
    alone = decide({OURS: right, "onnxruntime": wrong})
    assert alone.winner == OURS and dict(alone.times)["onnxruntime"] == wrong.detail
    with pytest.raises(ModelError, match="no plan of the model is right: tuned: relative error"):
        decide({OURS: wrong})


def test_a_plan_equal_to_a_librarys_leaves_that() -> None:
    assert (
        decide({"onnxruntime": Measurement((2.0,) * 11), "onednn": Measurement((1.0,) * 11)}).winner
        == "onednn"
    )


def test_the_same_measurements_decide_the_same() -> None:
    measured = {OURS: noisy(1.0, 0.3, 0), "onnxruntime": noisy(1.05, 0.3, 1)}
    assert decide(measured) == decide(dict(measured))


def test_what_else_runs_on_the_machine_does_not_decide() -> None:
    """Half of the samples of both are disturbed, by up to five times."""
    rng = np.random.default_rng(0)
    disturbed = [rng.choice([1.0, 2.0, 5.0], 60, p=[0.5, 0.3, 0.2]) for _ in range(2)]
    ours = Measurement(tuple(0.8 * disturbed[0] * (1 + 0.01 * rng.random(60))))
    theirs = Measurement(tuple(disturbed[1] * (1 + 0.01 * rng.random(60))))
    assert decide({OURS: ours, "onnxruntime": theirs}).winner == OURS


def test_the_interval_holds_the_ratio_and_narrows() -> None:
    few, many = (compare(noisy(0.9, 0.1, 0, n).samples, noisy(1, 0.1, 1, n).samples) for n in (11, 301))
    assert many[1] <= many[0] <= many[2] and abs(many[0] - 0.9) < 0.03
    assert many[2] - many[1] < few[2] - few[1]
