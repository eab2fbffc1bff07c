"""Measured times: published rows and an owner's runs as the fit reads them, and what a fit does with them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from orin.errors import OrinError
from orin.plan import Plan
from orin.predict import workloads
from orin.published.observed import observations, published_rows
from orin.soc import AGX_ORIN_64GB_SOC as SOC
from orin.virtual.fit import Observation, Prior, fit, refit, residuals
from orin.virtual.model import CostModel, EngineShape
from orin.virtual.parameters import load_parameters
from orin.virtual.predict import zoo_workload

PARAMETERS = load_parameters()


@pytest.fixture(scope="module")
def rows():
    return published_rows()


def test_published_rows_are_those_of_the_fit_and_of_one_kind_of_accelerator(rows):
    names = [row.name for row in rows]
    assert "mlperf-v3.0 resnet50 SingleStream MaxP" in names and "trtexec-8.5 resnet50 15W" in names
    assert not any("30W" in name or "50W" in name for name in names)  # published_check.csv
    table = next(row for row in rows if row.name == "trtexec-8.5 resnet50 MAXN")
    assert table.milliseconds == pytest.approx(2 * 2e3 / 2037)  # a batch of two on each of two cores
    windows = next(row for row in rows if "3d-unet SingleStream MaxP" in row.name)
    assert windows.enqueues == pytest.approx(64.6, abs=0.1) and windows.shape.workload.macs > 4e11


def test_the_shipped_parameters_explain_the_rows_that_they_were_fitted_on(rows):
    errors = np.array([row.error(PARAMETERS) for row in rows])
    assert np.sqrt(np.mean(errors**2)) < 0.025 and np.abs(errors).max() < 0.08


def made_up(parameters, batches=(1, 8, 64), clocks=((1300.5, 3199.0), (612.0, 2133.0))):
    """Exact times that parameters give a new network on the GPU."""
    work = zoo_workload("mobilenet-v2")
    found = []
    for batch in batches:
        for gpu_mhz, emc_mhz in clocks:
            at = replace(SOC.max_clocks, gpu_mhz=gpu_mhz, emc_mhz=emc_mhz)
            shape = EngineShape("mobilenet-v2", "gpu", batch, "int8", work)
            one = Observation(f"{batch}", shape, SOC, at, "mlperf-v3.0", 1.0, batch)
            found.append(replace(one, milliseconds=one.predicted_ms(parameters), sd=1e-3))
    return found


def test_a_fit_finds_the_factors_that_made_the_times():
    names = ["networks.mobilenet-v2.gpu_compute", "networks.mobilenet-v2.gpu_memory"]
    truth = PARAMETERS.with_values(names, [1.3, 0.8])
    rows = made_up(truth)
    alone = Prior((), np.zeros(0), np.zeros((0, 0)))  # the law stands as it is
    found = fit(PARAMETERS, rows, alone)
    assert [found.value(name) for name in names] == pytest.approx([1.3, 0.8], rel=0.02)
    assert np.abs(residuals(found, rows)).max() < 1.0
    shape = rows[0].shape
    before, after = (CostModel(SOC, SOC.max_clocks, "mlperf-v3.0", p).speed_sd(shape) for p in (PARAMETERS, found))
    assert after < before and found.networks["mobilenet-v2"].measured == {"gpu"}


def test_a_refit_moves_towards_a_board_s_runs_and_learns_from_them():
    slower = [replace(row, milliseconds=1.2 * row.milliseconds, sd=0.02) for row in made_up(PARAMETERS, (8,))]
    found = refit(PARAMETERS, slower)
    assert abs(slower[0].error(found)) < 0.05 < abs(slower[0].error(PARAMETERS))
    spread = np.diag(found.belief.covariance)[: len(PARAMETERS.belief.names)]
    assert np.all(spread <= np.diag(PARAMETERS.belief.covariance) * (1 + 1e-6))


def test_nothing_measured_is_nothing_to_fit():
    with pytest.raises(OrinError, match="no measured rows"):
        refit(PARAMETERS, [])


def write_run(folder, provenance="measured", batch_ms=2.0):
    """A finished Offline run of the GPU alone, batches of 8, all of one length."""
    plan = Plan(gpu_batch=8, dla_cores=0, mode="MAXN", stack="mlperf-v3.0")
    values = {
        "version": 1,
        "id": "run",
        "status": "finished",
        "provenance": provenance,
        "mode": "performance",
        "network": {"name": "resnet50"},
        "board": "jetson",
        "soc": SOC.name,
        "stack": plan.stack,
        "scenario": "offline",
        "plan": plan.as_json(),
    }
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps(values))
    lines = [f"gpu,{int(i * batch_ms * 1e6)},{int((i + 2) * batch_ms * 1e6)},8" for i in range(20)]
    (folder / "batches.csv").write_text("accelerator,begin_ns,end_ns,samples\n" + "\n".join(lines) + "\n")


def test_an_owner_s_run_is_a_measured_time(tmp_path):
    write_run(tmp_path / "one")
    (found,) = observations(tmp_path)
    assert found.milliseconds == pytest.approx(2.0) and found.samples == 8 and not found.submits
    assert found.shape.workload == workloads(Plan(dla_cores=0)).gpu
    mine = refit(PARAMETERS, [found])
    assert abs(found.error(mine)) < abs(found.error(PARAMETERS))


def test_simulated_runs_are_no_measurements(tmp_path):
    write_run(tmp_path / "one", provenance="simulated")
    with pytest.raises(OrinError, match="1 run records, none of a finished performance run on a real board"):
        observations(tmp_path)
