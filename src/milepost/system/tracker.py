"""How does an experiment begin, and who keeps the one that is live?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from milepost.core.config import ExperimentConfig, is_disabled
from milepost.core.errors import ConflictError, InvalidCallError
from milepost.core.saying import follow_debug_mode, logger, say
from milepost.run import DisabledRun, Run
from milepost.runs.endings import in_notebook
from milepost.system.launch import launch
from milepost.system.request import make_request

if TYPE_CHECKING:
    from milepost.runs.store import RunReader, Store

__all__ = ["ExperimentTracker"]


class ExperimentTracker:
    """Life cycle of experiments: at most one is live at a time; several trackers may live in one process."""

    def __init__(self, config: ExperimentConfig | None = None) -> None:
        self.config = config or ExperimentConfig()
        self._run: Run | DisabledRun | None = None
        follow_debug_mode()
        logger.debug("settings: %s", self.config)

    def start_experiment(
        self,
        name: str,
        description: str = "",
        hyperparameters: Any = None,
        model_config: Any = None,
        dataset_info: Any = None,
        tags: Iterable[str] | None = None,
        *,
        resume: str = "never",
        group: str | None = None,
        force: bool = False,
    ) -> Run | DisabledRun:
        """Begin a new run, or go on with an earlier one.

        Args:
            name: May be a template over the hyperparameters: ``"bert-lr{learning_rate}"``.
            description: One or more sentences.
            hyperparameters: A mapping, a dataclass or an argparse namespace; so are the next two.
            model_config: What the model is.
            dataset_info: What it is trained on.
            tags: Short words.
            resume: ``"never"``; ``"auto"``: go on with the unfinished run of the same identity, if there is one;
                ``"must"``: and raise if there is none; or the id of a run.
            group: Ties experiments together; instead of the configuration's.
            force: Go on although the hyperparameters differ from the earlier attempt's.

        Raises:
            ConflictError: An experiment of this tracker is live, or another process still works on the run, or the
                hyperparameters differ under an explicit key.
            InvalidInputError: A value cannot be meant.
            NotFoundError: ``resume`` names nothing.
        """
        self.make_room()
        request = make_request(
            name,
            description,
            hyperparameters,
            model_config,
            dataset_info,
            tags,
            group=group or self.config.group,
            resume=resume,
            force=force,
        )
        self._run = DisabledRun() if is_disabled() else launch(self.config, request)
        logger.debug("started: %r", self._run)
        return self._run

    def make_room(self) -> None:
        """End the live run in a notebook, refuse elsewhere."""
        live = self._run
        if live is None or live.ended:
            return
        if not in_notebook():
            raise ConflictError(
                f"the experiment {live.id} is still live in this system",
                cure="call end_experiment() first, or make a second ExperimentTrackingSystem",
            )
        live.end()
        say(f"{live.id} is ended as completed, because this cell starts another run")

    @property
    def run(self) -> Run | DisabledRun:
        """The live run.

        Raises:
            InvalidCallError: None was started.
        """
        if self._run is None:
            raise InvalidCallError("no experiment was started", cure="call start_experiment(name=...) first")
        return self._run

    @property
    def has_run(self) -> bool:
        """Whether an experiment was started, live or ended."""
        return self._run is not None

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None, epoch: float | None = None) -> None:
        """As :meth:`milepost.Run.log`."""
        self.run.log(metrics, step, epoch)

    def end_experiment(
        self, final_metrics: Mapping[str, Any] | None = None, status: str | None = None, reason: str = ""
    ) -> None:
        """As :meth:`milepost.Run.end`."""
        self.run.end(final_metrics, status=status, reason=reason)

    def list_experiments(self) -> list[RunReader]:
        """All experiments of these folders, the newest first."""
        return self._store().runs()

    def get_experiment(self, experiment_id: str) -> RunReader:
        """One experiment by id, by name (its newest run), or by the unique beginning of an id.

        Raises:
            NotFoundError: There is none.
        """
        return self._store()[experiment_id]

    def _store(self) -> Store:
        from milepost.runs.store import open as open_store

        return open_store(self.config.experiment_dir)
