"""Do milepost's own trackers keep the contract that others are held to, and does the contract notice who does not?"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from milepost.companion.keeper import RecordKeeper
from milepost.core.config import ExperimentConfig
from milepost.runs.layout import RunLayout
from milepost.testing import Points, TrackerContract
from milepost.trackers.mlflow import MlflowTracker
from milepost.trackers.tensorboard import TensorboardTracker
from milepost.trackers.wandb import WandbTracker
from tests.unit.trackers import wandb_file


class TestTensorboard(TrackerContract):
    def make_tracker(self, tmp_path: Path) -> TensorboardTracker:
        return TensorboardTracker()

    def read_back(self, tmp_path: Path) -> Points:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        folder = tmp_path / "guest"
        if not folder.exists():
            return {}
        shown = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        shown.Reload()
        return {tag: [(p.step, p.value) for p in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tables take seconds to be made: once is enough."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


class TestMlflow(TrackerContract):
    pytestmark = pytest.mark.filterwarnings(
        # MLflow asks SQLAlchemy for what SQLAlchemy 2.1 begins to take back.
        "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"
    )

    @pytest.fixture(autouse=True)
    def _databases(self, empty_database: Path) -> Iterator[None]:
        self.empty = empty_database
        yield
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        for engine in list(SqlAlchemyStore._engine_map.values()):
            engine.dispose()

    def _uri(self, tmp_path: Path) -> str:
        database = tmp_path / "mlflow.db"
        if not database.exists():
            shutil.copy(self.empty, database)
        return f"sqlite:///{database}"

    def make_tracker(self, tmp_path: Path) -> MlflowTracker:
        return MlflowTracker(self._uri(tmp_path), lambda notice: None)

    def read_back(self, tmp_path: Path) -> Points:
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=self._uri(tmp_path))
        experiments = [one.experiment_id for one in client.search_experiments()]
        runs = client.search_runs(experiments)
        if not runs:
            return {}
        (run,) = runs
        return {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }


@pytest.mark.slow
class TestWandb(TrackerContract):
    safe_after_flush = False

    @pytest.fixture(autouse=True)
    def _no_login(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        yield
        import wandb

        wandb.teardown()

    def make_tracker(self, tmp_path: Path) -> WandbTracker:
        return WandbTracker()

    def read_back(self, tmp_path: Path) -> Points:
        """As W&B shows it: of rows with the same number the last one counts."""
        rows: dict[int, dict[str, Any]] = {}
        for path in sorted((tmp_path / "guest").rglob("*.wandb")):
            rows |= {row["_step"]: row for row in wandb_file.rows(path)}
        points = defaultdict(list)
        for row in rows.values():
            for name, value in row.items():
                if isinstance(value, (int, float)) and "trainer/global_step" in row:
                    points[name].append((row["trainer/global_step"], value))
        return points


class TestRecordKeeper(TrackerContract):
    def make_tracker(self, tmp_path: Path) -> RecordKeeper:
        layout = RunLayout.from_config(ExperimentConfig(root=str(tmp_path)), "contract_20260101-000000")
        layout.experiment.mkdir(parents=True, exist_ok=True)
        return RecordKeeper(layout, lambda text: None)

    test_it_has_a_name_and_the_four_methods = None  # its name is the one that is kept for it
