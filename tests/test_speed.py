"""The benchmark: every contestant that is installed measures what it should, and the check would notice if not."""

import numpy as np
import pytest

from experiments import speed


@pytest.mark.parametrize("circuit", speed.WORKLOADS.values())
def test_every_contestant_agrees_with_exact_states(circuit):
    ansatz, x, theta = speed.workload(circuit, groups=200)
    exact = speed.exact_means(ansatz, x)
    contestants, _ = speed.all_contestants(circuit, ansatz, x)
    assert len(contestants) >= 5
    for contestant in contestants:
        for shots in (1, 1000):
            if contestant.groups == speed.GROUPS or shots == 1000:
                means = contestant.measure(theta[: min(contestant.groups, 200)], shots)
                speed.check(contestant.name, means, exact, shots)


@pytest.mark.parametrize("shots", [1, 10, 100, 1000])
def test_the_check_refuses_what_is_wrong(shots):
    _, x, _ = speed.workload("graph", groups=speed.CHECKED)
    exact = x / 2.0
    draw = np.random.default_rng(0)
    right = 2 * draw.binomial(shots, (1 + exact) / 2) / shots - 1
    speed.check("right", right, exact, shots)
    wrong = {
        "bits in the other order": right[:, ::-1],
        "other signs": -right,
        "no noise": exact,
        "no signal": right * 0,
    }
    wrong["twice the shots"] = 2 * draw.binomial(2 * shots, (1 + exact) / 2) / (2 * shots) - 1
    for name, means in wrong.items():
        with pytest.raises(ValueError, match=f"{name} is wrong at {shots} shots"):
            speed.check(name, means, exact, shots)
