"""TensorBoard, Weights & Biases and MLflow behind the few methods of a `Tracker`; each is imported when it is used."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_EXPERIMENT = "hushclick"


class TensorboardTracker:
    """An event file: `tensorboard --logdir RUN/trackers/tensorboard`."""

    _writer: Any

    def begin(self, folder: Path, name: str, params: Mapping[str, str]) -> None:
        """Opens the file, with the configuration as a table of text."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))
        lines = ["| key | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in params.items())]
        self._writer.add_text("configuration", "\n".join([f"{name}\n", *lines]), 0)
        self._writer.flush()

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        """Adds one point to each curve, on the disk at once."""
        for key, value in figures.items():
            self._writer.add_scalar(key, value, number)
        self._writer.flush()

    def finish(self, number: int, figures: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Adds the final figures, each as a curve of one point, and closes the file."""
        for key, value in figures.items():
            self._writer.add_scalar(key, value, number)
        for key, text in texts.items():
            self._writer.add_text(key, text, number)
        self._writer.close()


class WandbTracker:
    """An offline run, for which neither an account nor a network is needed: `wandb sync` sends it, if it ever should.

    No output of the terminal, no code, no state of git and nothing of the machine is recorded.
    """

    _run: Any

    def begin(self, folder: Path, name: str, params: Mapping[str, str]) -> None:
        """Starts the run."""
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=_EXPERIMENT,
            name=name,
            id=folder.name,
            dir=str(folder),
            mode="offline",
            config=dict(params),
            settings=settings,
            reinit="create_new",
        )

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        """Logs the figures as one step."""
        self._run.log(dict(figures), step=number)

    def finish(self, number: int, figures: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Writes the final figures into the summary, and ends the run."""
        self._run.summary.update({**figures, **texts, "rounds": number})
        self._run.finish()


class MlflowTracker:
    """A SQLite store: `mlflow ui --backend-store-uri sqlite:///RUN/trackers/mlflow/START/mlflow.db`."""

    _client: Any
    _run: str

    def begin(self, folder: Path, name: str, params: Mapping[str, str]) -> None:
        """Makes the store, an experiment and a run in it."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        folder.mkdir(parents=True, exist_ok=True)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of SQLAlchemy, on how MLflow calls it
            self._client = MlflowClient(tracking_uri=f"sqlite:///{(folder / 'mlflow.db').resolve()}")
            experiment = self._client.create_experiment(
                _EXPERIMENT, artifact_location=(folder / "artifacts").resolve().as_uri()
            )
            self._run = self._client.create_run(experiment, run_name=name).info.run_id
            self._client.log_batch(self._run, params=[Param(key, value) for key, value in params.items()])

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        """Logs the figures at one step."""
        self._log(number, figures)

    def finish(self, number: int, figures: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Logs the final figures, tags the run with the sentences, and ends it."""
        self._log(number, figures)
        for key, text in texts.items():
            self._client.set_tag(self._run, key, text)
        self._client.set_terminated(self._run)

    def _log(self, number: int, figures: Mapping[str, float]) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(key, value, now, number) for key, value in figures.items()])
