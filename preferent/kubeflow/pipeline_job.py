"""`PipelineJob`: a compiled pipeline with its parameters, run here, on Kubeflow Pipelines, or on Vertex AI."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import yaml

from preferent import files
from preferent.config import remote_names
from preferent.errors import PlatformError, PreferentError, UsageError
from preferent.kubeflow import local_execution, parameters
from preferent.kubeflow.local_execution import TaskDetail
from preferent.pipelines.launchers import child_process
from preferent.runs import interruption

PATIENCE_SECONDS = 5.0
"""How long a job that is told to stop may take."""
PAUSE_SECONDS = 0.2


class PipelineState(Enum):
    """The state of a job, with the names of `google.cloud.aiplatform`."""

    PIPELINE_STATE_PENDING = "pending"
    PIPELINE_STATE_RUNNING = "running"
    PIPELINE_STATE_SUCCEEDED = "succeeded"
    PIPELINE_STATE_FAILED = "failed"
    PIPELINE_STATE_CANCELLED = "cancelled"


class PipelineJob:
    """A pipeline and its parameters; `run` executes it, and the same job again goes on where the last one stopped.

    `template_path` is a compiled pipeline, `pipeline_func` one that is compiled first; `pipeline_root` the folder (or
    bucket) of runs and artifacts. Without `host` it runs on this machine; `host` is the address of Kubeflow Pipelines;
    `where="vertex"` hands it to `google.cloud.aiplatform`, which must be installed. Parameters of the pipeline that
    are optional and not set are passed as empty texts, since kfp cannot pass on what is not there. The run directory
    is called like the job where the pipeline has a parameter `model_display_name` that is not set.
    """

    def __init__(
        self,
        display_name: str,
        template_path: str | Path | None = None,
        pipeline_root: str | Path = "runs",
        parameter_values: Mapping[str, Any] | None = None,
        pipeline_func: Any = None,
        host: str | None = None,
        where: Literal["here", "vertex"] = "here",
        **vertex: Any,
    ) -> None:
        if (template_path is None) == (pipeline_func is None):
            raise UsageError("PipelineJob: name either template_path or pipeline_func")
        if vertex and where != "vertex":
            vertex.pop("enable_caching", None)  # always off: its key does not see the content of files
            vertex = {key: value for key, value in vertex.items() if key not in ("project", "location", "credentials")}
            if vertex:
                raise UsageError(f"PipelineJob: {', '.join(sorted(vertex))}: has a meaning on Vertex AI only")
        self.display_name, self.host, self.where, self.vertex = display_name, host, where, vertex
        self.pipeline_root = str(pipeline_root)
        self._folder = self._root() / f"{_plain(display_name)}-job"
        self.template_path = self._compiled(pipeline_func) if pipeline_func is not None else Path(str(template_path))
        self.parameter_values = self._filled(dict(parameter_values or {}))
        self._process: subprocess.Popen[bytes] | None = None
        self._remote: Any = None
        self._state = PipelineState.PIPELINE_STATE_PENDING

    @property
    def log(self) -> Path:
        """The file that has everything which the tasks of a job on this machine print."""
        return self._folder / "log.txt"

    @property
    def state(self) -> PipelineState:
        """The state of the job."""
        if self._process is not None and self._state is PipelineState.PIPELINE_STATE_RUNNING:
            code = self._process.poll()
            if code is not None:
                ended = PipelineState.PIPELINE_STATE_SUCCEEDED if code == 0 else PipelineState.PIPELINE_STATE_FAILED
                self._state = ended
        return self._state

    @property
    def task_details(self) -> list[TaskDetail]:
        """The tasks that have begun, with their artifacts: `details.outputs["judgments"].artifacts[0].uri`."""
        if self._remote is not None:
            return list(self._remote.task_details)
        return local_execution.task_details(self._said(), self._root())

    @property
    def outputs(self) -> dict[str, Any]:
        """The output parameters of the pipeline, once it has succeeded."""
        path = self._folder / "outcome.json"
        return dict(files.read_json(path)) if path.exists() else {}

    def run(self, service_account: str | None = None) -> None:
        """Execute the pipeline and wait for its end."""
        self.submit(service_account)
        self.wait()

    def submit(self, service_account: str | None = None) -> None:
        """Start the pipeline and return at once."""
        if self.where == "vertex":
            self._remote = self._on_vertex(service_account)
        elif self.host is not None:
            self._remote = self._on_kubeflow(service_account)
        else:
            self._start()
        self._state = PipelineState.PIPELINE_STATE_RUNNING

    def wait(self) -> None:
        """Wait for the end of the job and print a line for each task; raise `PreferentError` if it failed.

        SIGINT (Ctrl-C) and SIGTERM stop the job within five seconds, also one that a script started in the background;
        what is done is kept.
        """
        if self._remote is not None:
            self._state = PipelineState.PIPELINE_STATE_FAILED  # unless the next line returns
            self._remote.wait()
            self._state = PipelineState.PIPELINE_STATE_SUCCEEDED
            return
        if self._process is None:
            raise UsageError("PipelineJob: is not running; call run() or submit() first")
        with interruption.heeded(_leave):
            try:
                self._follow(self._process)
            except (KeyboardInterrupt, SystemExit):
                self._stop(self._process)
                print(f"{self.display_name}: stopped; the same job goes on from here", file=sys.stderr)
                raise
        if self.state is not PipelineState.PIPELINE_STATE_SUCCEEDED:
            raise self._failure()

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        """Print each task when it begins and when it has ended, until the process ends."""
        shown, began, running = 0, dict[str, float](), True
        while running:
            running = process.poll() is None
            seen = list(local_execution.events(self._said()))
            for name, status in seen[shown:]:
                seconds = time.monotonic() - began.setdefault(name, time.monotonic())
                ended = status != "RUNNING"
                print(f"{name}: {f'{status.lower()} after {seconds:.0f} s' if ended else 'running'}; {self.log}")
            shown = len(seen)
            if running:
                time.sleep(PAUSE_SECONDS)

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        """Tell all processes of the job to stop, and end those that do not; at a second signal end them at once."""
        self._state = PipelineState.PIPELINE_STATE_CANCELLED
        for number, seconds in ((signal.SIGINT, PATIENCE_SECONDS - 1), (signal.SIGKILL, 1.0)):
            try:
                os.killpg(process.pid, number)
                process.wait(seconds)
                return
            except ProcessLookupError:
                return
            except (subprocess.TimeoutExpired, KeyboardInterrupt, SystemExit):
                continue

    def _root(self) -> Path:
        """Return the folder of logs and artifacts here, which is that of the runs where these lie here."""
        return Path("runs" if "://" in self.pipeline_root else self.pipeline_root).absolute()

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "outcome.json").unlink(missing_ok=True)
        root = self._root()
        job = {"root": str(root), "pipeline": str(self.template_path), "parameters": self.parameter_values}
        files.write_json(self._folder / "job.json", job)
        argv = [sys.executable, "-m", "preferent.kubeflow.local_execution", str(self._folder)]
        environment = os.environ | child_process.SAFE | {"PYTHONWARNINGS": "ignore"}
        if "://" in self.pipeline_root:
            environment[parameters.ROOT] = self.pipeline_root
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )

    def _said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _failure(self) -> PreferentError:
        """Return the message of the task that failed, and where the rest is."""
        lines = [line.strip() for line in self._said().splitlines() if line.strip().startswith("preferent: ")]
        failed = [task.task_name for task in self.task_details if task.state not in ("SUCCESS", "RUNNING")]
        reason = lines[-1].removeprefix("preferent: ") if lines else "see its log"
        return PreferentError(
            f"{self.display_name}: {', '.join(failed) or 'the pipeline'} failed: {reason}\n{self.log} has everything "
            f"that was printed. What is done is kept; the same job goes on from here"
        )

    def _compiled(self, pipeline: Any) -> Path:
        from kfp import compiler

        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "pipeline.yaml"
        compiler.Compiler().compile(pipeline_func=pipeline, package_path=str(path))
        return path

    def _filled(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters with an empty text for each optional one that has no value and no default."""
        if not self.template_path.is_file():
            raise PlatformError(
                f"{self.template_path}: no such file; compile the pipeline first, or name pipeline_func"
            )
        specification = next(yaml.safe_load_all(self.template_path.read_text()))
        known = specification["root"].get("inputDefinitions", {}).get("parameters", {})
        if unknown := sorted(values.keys() - known.keys()):
            raise UsageError(
                f"parameter_values: {', '.join(unknown)}: unknown; the parameters are {', '.join(sorted(known))}"
            )
        if missing := sorted(key for key, of in known.items() if not of.get("isOptional") and key not in values):
            raise UsageError(f"parameter_values: {', '.join(missing)}: is missing; the pipeline needs it")
        for key, text in values.items():
            for name in str(text).split(",") if key.endswith("_dataset") else ():
                if remote_names.is_remote(name.strip()):
                    _require(key, name.strip())
        if "model_display_name" in known and not values.get("model_display_name"):
            values["model_display_name"] = _plain(self.display_name)
        empty = {key: "" for key, of in known.items() if of.get("isOptional") and "defaultValue" not in of}
        return empty | {key: value for key, value in values.items() if value is not None}

    def _on_kubeflow(self, service_account: str | None) -> Any:
        """Start the job on Kubeflow Pipelines; return an object that waits for it."""
        import kfp

        client = kfp.Client(host=self.host)
        started = client.create_run_from_pipeline_package(
            str(self.template_path),
            arguments=self.parameter_values,
            run_name=self.display_name,
            pipeline_root=self.pipeline_root,
            enable_caching=False,
            service_account=service_account,
        )
        return _KubeflowRun(client, started.run_id)

    def _on_vertex(self, service_account: str | None) -> Any:
        """Hand the job to Vertex AI; return its own job."""
        try:
            from google.cloud import aiplatform
        except ImportError:
            raise PlatformError(
                'PipelineJob: where="vertex" needs a missing package: pip install google-cloud-aiplatform'
            ) from None
        settings: dict[str, Any] = {"enable_caching": False} | self.vertex
        job = aiplatform.PipelineJob(
            display_name=self.display_name,
            template_path=str(self.template_path),
            pipeline_root=self.pipeline_root,
            parameter_values=self.parameter_values,
            **settings,
        )
        job.submit(service_account=service_account)
        return job


class _KubeflowRun:
    """A run on Kubeflow Pipelines."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def wait(self) -> None:
        ended = self._client.wait_for_run_completion(self.run_id, timeout=10**9)
        if ended.state != "SUCCEEDED":
            raise PreferentError(f"the run {self.run_id} ended with state {ended.state}; its page on Kubeflow says why")

    @property
    def task_details(self) -> list[TaskDetail]:
        details = self._client.get_run(self.run_id).run_details
        return [TaskDetail(task.display_name, task.state) for task in details.task_details] if details else []


def _leave(number: int) -> None:
    """Leave as Python does at Ctrl-C; at another signal with its exit code."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "job"


def _require(key: str, name: str) -> None:
    """Refuse an address that holds a secret, before it is written anywhere."""
    try:
        remote_names.require(name)
    except ValueError as error:
        raise UsageError(f"parameter_values: {key}: {error}") from None
