"""The promises of SECURITY.md: every one has a test that can break it."""

import ast
import json
import re
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from conftest import quiet_recipe

from preferent import files
from preferent.commands import plan
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Message, Prompt
from preferent.errors import DataError, PlatformError
from preferent.models import language_models, saving
from preferent.models.world import World
from preferent.pipelines.launchers import child_process

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "tests/models/test_hostile_folders.py"
REMOTE = "tests/data/test_remote"
PROMISES = {
    "It reads no pickles": [
        "tests/test_security.py::test_no_module_can_read_a_pickle",
        f"{HOSTILE}::test_a_broken_model_is_refused_in_one_sentence",
        f"{HOSTILE}::test_a_broken_adapter_is_refused_in_one_sentence",
    ],
    "It runs no code from a model repository": ["tests/test_security.py::test_the_code_of_a_model_is_not_run"],
    "It runs the Python functions that a recipe names": [
        "tests/rewards/test_scoring.py::test_a_function_is_looked_for_in_the_current_directory_first_and_nothing_else_is",
        "tests/rewards/test_reward_sources.py::test_modules_beside_a_recipe_are_not_imported",
    ],
    "Nothing else in a recipe, a run, a data file, or the folder": [
        "tests/test_security.py::test_a_stage_imports_nothing_from_the_working_folder",
        "tests/test_security.py::test_python_is_started_with_a_safe_path",
        "tests/rewards/test_reward_sources.py::test_modules_beside_a_recipe_are_not_imported",
    ],
    "A model's chat template": ["tests/test_security.py::test_a_template_reaches_no_python"],
    "A broken or hostile model folder": [f"{HOSTILE}::test_a_broken_model_is_refused_in_one_sentence"],
    "It reaches the network": [
        "tests/test_security.py::test_what_is_on_this_machine_is_read_without_network",
        f"{HOSTILE}::test_the_base_of_an_adapter_that_is_fetched_is_told",
        "tests/config/test_recipe.py::test_the_three_fields_of_data_may_be_remote_and_no_others",
        f"{REMOTE}_files.py::test_outside_of_the_block_no_address_is_read",
        "tests/test_security.py::test_remote_data_is_reached_in_one_place",
        "tests/models/test_quantization.py::test_where_kernels_is_installed_nothing_is_fetched",
        "tests/kubeflow/test_object_store.py::test_stages_are_kept_whole_and_another_machine_goes_on",
    ],
    "Remote data is read once": [
        f"{REMOTE}_files.py::test_the_stage_copies_once_and_counts_with_size_and_digest",
        f"{REMOTE}_files.py::test_a_finished_stage_needs_no_network_and_is_not_read_again",
        f"{REMOTE}_files.py::test_what_was_copied_before_an_interruption_is_not_read_again",
        f"{REMOTE}_files.py::test_a_file_that_is_too_large_is_refused",
        f"{REMOTE}_files.py::test_a_file_that_changes_while_it_is_read_is_refused",
        f"{REMOTE}_files.py::test_archives_are_copied_as_they_are_and_refused_as_here",
        f"{REMOTE}_stores.py::test_the_client_unpacks_nothing",
    ],
    "An address of remote data holds no secret": [
        "tests/config/test_remote_names.py::test_what_is_refused",
        "tests/config/test_recipe.py::test_the_secret_in_a_remote_address_is_not_printed",
        f"{REMOTE}_files.py::test_the_secret_in_an_address_on_the_command_line_is_not_printed",
        f"{REMOTE}_files.py::test_no_error_tells_a_signature",
        f"{REMOTE}_stores.py::test_the_stage_reads_a_bucket_once",
        f"{REMOTE}_stores.py::test_a_redirect_is_followed_where_it_may_lead",
    ],
    "Remote data is read by `https` alone": [
        "tests/config/test_remote_names.py::test_what_is_refused",
        "tests/config/test_remote_names.py::test_this_machine_its_link_and_metadata_services_are_refused",
        f"{REMOTE}_files.py::test_no_socket_is_made_for_this_machine_or_its_link",
        f"{REMOTE}_files.py::test_a_redirect_to_an_address_that_is_not_read",
        f"{REMOTE}_stores.py::test_a_redirect_is_not_followed_elsewhere",
        f"{REMOTE}_stores.py::test_a_name_that_leads_to_this_machine_or_its_link_is_not_connected_to",
    ],
    "Processes that compute together": [
        "tests/distributed/test_rank_processes.py::test_the_meeting_place_is_of_this_user_alone_and_gone_afterwards",
        "tests/distributed/test_rank_processes.py::test_a_run_with_two_processes_listens_on_loopback_only",
        "tests/kubeflow/test_train_job.py::test_the_pods_of_a_job_alone_reach_its_pods",
    ],
    "With `--launcher ray` it joins": [
        "tests/ray_cluster/test_ray_launcher.py::test_an_address_without_a_token_is_refused",
        "tests/ray_cluster/test_ray_launcher.py::test_a_cluster_of_this_machine_listens_on_loopback_alone",
    ],
    "`report.html` shows": ["tests/report/test_report_page.py::test_sixty_hostile_texts_everywhere"],
    "`preferent env` prints": ["tests/runs/test_environment.py::test_nothing_private_and_nothing_heavy"],
}
"""How each promise begins, and the tests that hold it."""

MARK = 'open({mark!r}, "a").write(__name__ + "\\n")\nraise ImportError("from the working folder")\n'


def test_every_promise_has_a_test_that_is_there() -> None:
    items = re.findall(r"^- (.+)", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert len(items) == len(PROMISES)
    assert all(item.startswith(promise) for item, promise in zip(items, PROMISES, strict=True))
    for place in (place for places in PROMISES.values() for place in places):
        path, name = place.split("::")
        assert f"def {name}(" in (ROOT / path).read_text(), place


def test_no_module_can_read_a_pickle() -> None:
    readers = ("pickle", "joblib", "dill", "shelve", "marshal", "cloudpickle")
    for path in (ROOT / "preferent").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in readers for name in names), path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("torch.load", "np.load", "yaml.load", "eval", "exec"), path


@pytest.mark.parametrize("model_type", ["llama", "nonsense"])
def test_the_code_of_a_model_is_not_run(tiny: Path, tmp_path: Path, model_type: str) -> None:
    folder, mark = Path(shutil.copytree(tiny, tmp_path / "model")), tmp_path / "mark"
    places = {"AutoConfig": "code.Configuration", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": "code.T"}
    for name in ("config.json", "tokenizer_config.json"):
        values = files.read_json(folder / name) | {"auto_map": places}
        files.write_json(folder / name, values | ({"model_type": model_type} if name == "config.json" else {}))
    (folder / "code.py").write_text(MARK.format(mark=str(mark)))
    if model_type == "llama":
        language_models.load_policy(folder, World.of(quiet_recipe()))
    else:
        with pytest.raises(PlatformError, match="trust_remote_code"):
            language_models.load_policy(folder, World.of(quiet_recipe()))
    assert not mark.exists()


def test_a_stage_imports_nothing_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    monkeypatch.chdir(tmp_path)
    for name in ("yaml", "numpy", "torch", "pydantic", "rich", "safetensors", "scipy", "sitecustomize"):
        Path(f"{name}.py").write_text(MARK.format(mark=str(mark)))
    row = {"input_text": "a", "candidate_0": "b", "candidate_1": "c", "choice": 0}
    Path("rows.jsonl").write_text("".join(json.dumps(row | {"input_text": f"a {n}"}) + "\n" for n in range(40)))
    Path("recipe.yaml").write_text("large_model_reference: model\npreference_dataset: rows.jsonl\n")
    words = ["data", "prepare", "--recipe", "recipe.yaml", "--out", "out"]
    assert child_process.run_verb(words) is None
    assert Path("out/DONE").exists() and not mark.exists()
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    assert child_process.run_here([sys.executable, "-m", "preferent", *words]) != 0
    assert mark.exists(), "without PYTHONSAFEPATH they are imported"


def test_python_is_started_with_a_safe_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONSAFEPATH is in the environment, which every process further down inherits."""
    starts = {path for path in (ROOT / "preferent").rglob("*.py") if "[sys.executable" in path.read_text()}
    job = ROOT / "preferent/kubeflow/pipeline_job.py"
    assert starts == {Path(child_process.__file__), job}
    assert "environment = os.environ | child_process.SAFE" in job.read_text()
    environments: list[Any] = []
    monkeypatch.setattr(child_process, "run_here", lambda argv, cwd=None, env=None: environments.append(env) or 0)
    child_process.run_verb(["env"])
    assert environments[0]["PYTHONSAFEPATH"] == "1"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['os'].system('true') }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_reaches_no_python(tiny: Path, tmp_path: Path, template: str) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises((DataError, TypeError)):  # there is nothing to include from: jinja2 says so by a TypeError
        Tokenizer.load(folder).text(Prompt(messages=(Message("user", "hello"),)), None)


def test_remote_data_is_reached_in_one_place() -> None:
    """No other module imports fsspec or the packages of the stores."""
    for path in (ROOT / "preferent").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            reaches = {"fsspec", "aiohttp", "s3fs", "gcsfs", "boto3"} & {name.split(".")[0] for name in names}
            assert not reaches or path.stem == "remote_files", path


def test_what_is_on_this_machine_is_read_without_network(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_run: Callable[..., Path]
) -> None:
    def asked(*words: Any, **options: Any) -> NoReturn:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, asked)
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    world = World.of(quiet_recipe())
    saving.save(language_models.load_policy(tiny, world, lora_dim=2), tmp_path / "run/policy/model", {}, "# test\n")
    language_models.load_policy(tmp_path / "run/policy/model", world)
    language_models.load_scorer(tiny, world, 2, seed=1)
    rows = [{"input_text": f"a {n}", "candidate_0": "b", "candidate_1": "c", "choice": 0} for n in range(40)]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe = quiet_recipe(large_model_reference="owner/name", preference_dataset=str(tmp_path / "rows.jsonl"))
    said = plan.describe(recipe, [], tmp_path / "new")
    assert "whether owner/name is available on the hub; there is no such folder here" in said
