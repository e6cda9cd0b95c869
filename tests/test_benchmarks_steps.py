"""The benchmark of steps in quick mode: the ways agree, and figures are those of the turns; none passes or fails."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import steps
from benchmarks.measuring import Options


def test_every_way_forms_the_same_clipped_sum_and_the_figures_add_up(tmp_path: Path) -> None:
    result = steps.measure(Options(scratch=tmp_path, quick=True))
    (case,) = result["cases"]
    assert max(case["largest_disagreement"].values()) < 1e-4
    assert (case["users"], case["parameters"]) == (12, 384 * 4 + 4 + 20 + (12 + 29) * 4 + 4 + 5 + 29)
    for way in ("private_step", "shipped", "opacus", "ghost", "functorch"):
        ratio = case["ratio"][way]
        assert ratio["repeats"] == 2
        assert 0.2 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert case["peak_mib"].keys() == {"shipped"}
    assert [table.row_count for table in steps.tables(result)] == [1, 1]


def test_the_plain_arm_is_the_gradient_that_the_private_one_clips() -> None:
    """With every gradient under the clip, the clipped sum is the plain gradient: same users, same rows."""
    work = steps.Work(steps.Case("small", 8, 2, 4))
    work.plain()
    plain_D = np.concatenate([one.grad.numpy().ravel() for one in work.model.parameters()])
    hooks = steps.GradientHooks(work.model)
    unclipped_D = steps.clipped_sum(work.model, work.features, work.chosen, 1e6)
    hooks.cleanup()
    np.testing.assert_allclose(unclipped_D, plain_D, atol=1e-4)
    assert np.abs(work.shipped() - plain_D).max() > 0.1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no high-water mark to reset")
def test_peak_memory_sees_an_allocation_of_known_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(steps.Work, "plain", lambda _: np.ones(8 * 2**20))  # 64 MiB, touched, and let go
    steps.peak('["small", 8, 2, 4, "plain"]')
    assert 60 < float(capsys.readouterr().out) < 140
