"""Remote data through fsspec's memory, which is an address in these tests alone; stores are in test_remote_stores."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from conftest import quiet_recipe

from preferent import files
from preferent.cli.main import main
from preferent.commands import plan
from preferent.config import remote_names
from preferent.data import prepare
from preferent.data.formats import row_reader, row_sources
from preferent.errors import DataError, Interrupted, PlatformError, UsageError
from preferent.pipelines import executor
from preferent.report import page
from preferent.runs import interruption, ownership, remote_files
from preferent.runs.digests import Digests
from preferent.runs.directory import DataDirectory, RunDirectory

PAIRS = [{"input_text": f"a {n}", "candidate_0": " b", "candidate_1": " c", "choice": n % 2} for n in range(40)]


class Memory:
    """What is in the memory, and which of it is opened; nothing can be reached while it is `offline`."""

    def __init__(self):
        self.system, self.opened, self.offline = fsspec.filesystem("memory"), [], False

    def put(self, name, rows):
        data = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
        self.system.pipe_file(name, data)
        return f"memory://{name}"

    def invalidate_cache(self):
        assert not self.offline

    def open(self, url, mode):
        assert not self.offline
        self.opened.append(url)
        return self.system.open(url, mode)

    def info(self, url):
        assert not self.offline
        return self.system.info(url)

    def glob(self, path, detail):
        assert not self.offline
        found = self.system.glob(path, detail=detail)
        return dict(reversed(found.items()))


@pytest.fixture
def memory(monkeypatch):
    memory = Memory()
    monkeypatch.setattr(remote_names, "STORES", (*remote_names.STORES, "memory"))
    monkeypatch.setattr(remote_names, "SCHEMES", (*remote_names.SCHEMES, "memory"))
    monkeypatch.setattr(remote_files, "file_system", lambda url: memory)
    yield memory
    memory.system.rm("/", recursive=True)


def of(*names, **values):
    return quiet_recipe(preference_dataset=list(names), **values)


def test_rows_are_read_under_their_addresses(memory):
    rows = memory.put("bucket/rows.jsonl", b'{"input_text": "a"}\n{"input_text": 3}\n')
    table = memory.put("bucket/rows.csv", b"input_text\nb\n")
    with remote_files.copied([rows, table]):
        reading = row_reader.read_rows([rows, table], "prompt", "auto")
    assert [record.source for record in reading.records] == [f"{rows}:1", f"{table}:2"]
    assert [str(row).partition(": ")[0] for row in reading.dropped] == [f"{rows}:2"]
    assert memory.opened == [rows, table]


def test_a_glob_is_sorted_and_holds_no_folder(memory):
    names = [memory.put(f"bucket/dir/{name}.jsonl", [{"input_text": name}]) for name in ("c", "a", "b")]
    memory.put("bucket/dir/d.jsonl/inner.txt", b"")
    memory.put("bucket/dir/e.txt", b"")
    with remote_files.copied(["memory://bucket/dir/*.jsonl", "memory://bucket/dir/[ab].*"]) as copies:
        assert row_sources.expand(["memory://bucket/dir/*.jsonl"]) == sorted(names)
        assert row_sources.expand(["memory://bucket/dir/[ab].*", names[0]]) == [names[1], names[2], names[0]]
    assert [copy["url"] for copy in copies] == sorted(names)
    with pytest.raises(PlatformError, match=r"memory://bucket/none\*: no such file or bucket"):
        remote_files.copied(["memory://bucket/none*"]).__enter__()


def test_outside_of_the_block_no_address_is_read(memory):
    rows = memory.put("bucket/rows.jsonl", [{"input_text": "a"}])
    with remote_files.copied([rows]):
        other = "gs://bucket/other.jsonl"
        with pytest.raises(UsageError, match=f"{other}: is remote, and is not read here"):
            row_sources.expand([other])
    for read in (lambda: row_sources.expand([rows]), lambda: list(row_sources.rows(rows))):
        with pytest.raises(UsageError, match="`data check`, `data convert` and, in a recipe, preference_dataset"):
            read()
    with pytest.raises(UsageError, match="is not encrypted"):
        row_sources.expand(["http://host/a"])
    assert row_sources.local_files([rows, "hf://owner/name"]) == []


def test_the_stage_copies_once_and_counts_with_size_and_digest(memory, tmp_path):
    first, second = memory.put("bucket/a.jsonl", PAIRS[:20]), memory.put("bucket/b.jsonl", [*PAIRS[20:], {"a": 1}])
    local = tmp_path / "prompts.jsonl"
    files.write_jsonl(local, [{"input_text": f"a {n}"} for n in range(40)])
    asked = of("memory://bucket/*.jsonl", prompt_dataset=str(local), data={"max_dropped": 0.5})
    out = tmp_path / "run/data"
    prepare.main(asked, {}, out)
    assert memory.opened == [first, second]
    counts, folder = files.read_json(out / "counts.json"), DataDirectory(out)
    assert counts["preference"]["files"] == ["memory://bucket/*.jsonl"]
    assert [copy["url"] for copy in counts["remote"]] == [first, second]
    for copy in counts["remote"]:
        path = folder.remote / copy["file"]
        assert path.read_bytes() == memory.system.cat_file(copy["url"])
        assert (copy["size"], copy["sha256"]) == (path.stat().st_size, files.sha256(path))
        assert copy["version"]["created"]
    (dropped,) = files.read_jsonl(folder.dropped)
    assert (dropped["file"], dropped["line"]) == (second, 21)
    stage = files.read_sealed(out / "stage.json")
    assert list(stage["inputs"]) == ["prompt_dataset.0"]
    assert stage["fields"]["preference_dataset"] == ["memory://bucket/*.jsonl"]


def test_a_finished_stage_needs_no_network_and_is_not_read_again(memory, tmp_path):
    rows = memory.put("bucket/a.jsonl", PAIRS)
    asked, out = of(rows), tmp_path / "run/data"
    prepare.main(asked, {}, out)
    memory.put("bucket/a.jsonl", PAIRS[:30])
    memory.offline = True
    prepare.main(asked, {}, out)
    task = executor.stage_graph.build(asked)[0]
    assert executor.finished(task, asked, tmp_path / "run", {}, Digests.read(tmp_path / "run"))
    for path in DataDirectory(out).remote.iterdir():
        path.unlink()
    assert executor.finished(task, asked, tmp_path / "run", {}, Digests.read(tmp_path / "run"))
    assert memory.opened == [rows]


def test_another_run_takes_the_copies_without_their_bytes(memory, tmp_path):
    asked = of(memory.put("bucket/a.jsonl", PAIRS))
    prepare.main(asked, {}, tmp_path / "old/data")
    executor._take(tmp_path / "old/data", tmp_path / "new/data")
    (copy,) = files.read_json(tmp_path / "new/data/counts.json")["remote"]
    paths = [tmp_path / run / "data/remote" / copy["file"] for run in ("old", "new")]
    assert paths[0].samefile(paths[1])
    assert not (tmp_path / "old/data/counts.json").samefile(tmp_path / "new/data/counts.json")


def test_plan_and_report_show_what_was_read(memory, tmp_path):
    asked = of(memory.put("bucket/a.jsonl", PAIRS), large_model_reference="owner/name")
    assert "40 rows (gcpc), 40 kept" in plan.describe(asked, [], tmp_path / "run")
    prepare.main(asked, {}, tmp_path / "run/data")
    (copy,) = files.read_json(tmp_path / "run/data/counts.json")["remote"]
    shown = dict(page._counts(RunDirectory(tmp_path / "run")))["remote"]
    assert shown == [("memory://bucket/a.jsonl", f"{copy['size']:,} bytes, SHA-256 {copy['sha256'][:16]}…")]
    assert memory.opened == ["memory://bucket/a.jsonl"] * 2


def test_what_was_copied_before_an_interruption_is_not_read_again(memory, tmp_path, monkeypatch):
    names = [memory.put(f"bucket/{name}.jsonl", PAIRS[start : start + 20]) for name, start in (("a", 0), ("b", 20))]
    asked, out = of("memory://bucket/*.jsonl"), tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_divide", lambda *words: (_ for _ in ()).throw(Interrupted("stopped", 2)))
        with pytest.raises(Interrupted):
            prepare.main(asked, {}, out)
    memory.put("bucket/c.jsonl", PAIRS[:1])
    copies = files.read_sealed(DataDirectory(out).remote_index)["files"]
    damaged = DataDirectory(out).remote / copies[1]["file"]
    damaged.write_bytes(damaged.read_bytes().replace(b" b", b" d"))
    prepare.main(asked, {}, out)
    assert memory.opened == [*names, names[1]], "what is whole is not read again; what is damaged is"
    assert [copy["url"] for copy in files.read_json(out / "counts.json")["remote"]] == names
    assert b" d" not in damaged.read_bytes()


def test_a_stop_between_two_blocks_leaves_no_part_of_a_file(memory, tmp_path, monkeypatch):
    rows, out = memory.put("bucket/a.jsonl", PAIRS), tmp_path / "data"
    monkeypatch.setattr(remote_files, "BLOCK", 100)
    stop = interruption.Stop(2)
    monkeypatch.setattr(interruption, "stop", lambda: stop)
    with pytest.raises(Interrupted):
        prepare.main(of(rows), {}, out)
    assert list(DataDirectory(out).remote.iterdir()) == []


def test_an_unfinished_stage_starts_afresh_with_other_files(memory, tmp_path):
    good, out = memory.put("bucket/a.jsonl", PAIRS), tmp_path / "data"
    with pytest.raises(PlatformError, match="memory://bucket/none: no such file or bucket; check the name"):
        prepare.main(of(good, "memory://bucket/none"), {}, out)
    note = DataDirectory(out).remote / "note-of-mine.txt"
    note.write_text("mine")
    prepare.main(of(good), {}, out)
    assert note.read_text() == "mine"
    with pytest.raises(UsageError, match="preference_dataset: was"):
        prepare.main(of("memory://bucket/*.jsonl"), {}, out)


def test_the_stage_owns_its_copies_and_nothing_else(memory, tmp_path):
    url = memory.put("bucket/ü-rows.jsonl", PAIRS)
    prepare.main(of(url), {}, tmp_path / "data")
    folder = DataDirectory(tmp_path / "data").remote
    (folder / "notes.txt").write_text("mine")
    (folder / f".{remote_files._name(url)}.tmp-1").write_text("a part")
    ownership.sweep(tmp_path / "data", ownership.owned("data"))
    ownership.remove(tmp_path / "data", ownership.owned("data"))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("change", ["content", "size", "gone"])
def test_a_file_that_changes_while_it_is_read_is_refused(memory, tmp_path, monkeypatch, change):
    rows, out = memory.put("bucket/a.jsonl", PAIRS), tmp_path / "data"
    really = memory.open

    def changing(url, mode):
        stream = really(url, mode)
        whole = memory.system.cat_file(url)
        if change == "gone":
            memory.system.rm(url)
        else:
            memory.put("bucket/a.jsonl", whole + (b"\n" if change == "size" else b""))
        return stream

    monkeypatch.setattr(memory, "open", changing)
    expected = "no such file" if change == "gone" else "changed while it was read; run the same command again"
    with pytest.raises(PlatformError, match=f"{rows}: {expected}"):
        prepare.main(of(rows), {}, out)
    assert list(DataDirectory(out).remote.iterdir()) == []


def test_a_file_that_is_cut_off_is_refused(memory, monkeypatch):
    rows = memory.put("bucket/a.jsonl", PAIRS)
    really = memory.info
    monkeypatch.setattr(memory, "info", lambda url: really(url) | {"size": 10**6})
    with pytest.raises(PlatformError, match="changed while it was read"):
        remote_files.copied([rows]).__enter__()


@pytest.mark.parametrize("is_told", [True, False])
def test_a_file_that_is_too_large_is_refused(memory, monkeypatch, is_told):
    """Before it is read where its size is told, else while it is read."""
    rows = memory.put("bucket/a.jsonl", PAIRS)
    monkeypatch.setattr(remote_files, "LARGEST", 999)
    really = memory.info
    monkeypatch.setattr(memory, "info", lambda url: really(url) | ({} if is_told else {"size": None}))
    with pytest.raises(PlatformError, match=r"larger than 999 bytes, the most that is read of a remote file; split it"):
        remote_files.copied([rows]).__enter__()
    assert bool(memory.opened) != is_told


def test_a_file_of_unknown_size_is_read(memory, monkeypatch):
    rows = memory.put("bucket/a.jsonl", PAIRS)
    really = memory.info
    monkeypatch.setattr(memory, "info", lambda url: really(url) | {"size": None})
    with remote_files.copied([rows]) as (copy,):
        assert copy["size"] == len(memory.system.cat_file(rows))


def test_archives_are_copied_as_they_are_and_refused_as_here(memory):
    archive = memory.put("bucket/rows.jsonl", b"PK\x03\x04 and so on")
    with remote_files.copied([archive]), pytest.raises(DataError, match=f"{archive}: is a zip archive"):
        list(row_sources.rows(archive))


def test_a_folder_is_refused(memory):
    memory.put("bucket/dir/a.jsonl", PAIRS)
    with pytest.raises(
        UsageError, match=r"memory://bucket/dir: is a folder; name the files in it, for example memory:"
    ):
        remote_files.copied(["memory://bucket/dir"]).__enter__()


def test_a_name_with_control_characters_is_refused(memory):
    memory.put("bucket/a\x1b[2J.jsonl", PAIRS)
    with pytest.raises(DataError, match="matches a file whose name holds a control character") as error:
        remote_files.copied(["memory://bucket/*"]).__enter__()
    assert "\x1b" not in str(error.value)


class ClientResponseError(Exception):
    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class NoCredentialsError(Exception):
    pass


class FileExpired(OSError):
    pass


def wrapped(cause):
    error = FileNotFoundError("https://host/a")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError("a"), "no such file or bucket; check the name"),
        (wrapped(ClientResponseError(404, "Not Found")), "no such file or bucket"),
        (PermissionError("a"), "access is denied, or there are no credentials; they come from the environment alone"),
        (NoCredentialsError("Unable to locate credentials"), "access is denied, or there are no credentials"),
        (OSError("Forbidden: https://host"), "access is denied"),
        (wrapped(ClientResponseError(403, "Forbidden")), "access is denied"),
        (wrapped(ClientResponseError(401, "Unauthorized")), "access is denied"),
        (wrapped(ClientResponseError(500, "Oops")), "cannot be read: ClientResponseError Oops"),
        (wrapped(ConnectionRefusedError(111, "Connection refused")), r"cannot be reached \(\[Errno 111\]"),
        (TimeoutError(), r"cannot be reached \(TimeoutError\); check the network"),
        (FileExpired("precondition"), "changed while it was read"),
        (wrapped(PlatformError("redirects to an address")), "redirects to an address"),
        (ImportError("Please install gcsfs"), r"needs a missing package: pip install 'preferent\[remote\]'"),
        (RuntimeError("a\nb  c"), "cannot be read: RuntimeError a b c"),
    ],
)
def test_errors_are_one_sentence(memory, monkeypatch, error, expected):
    def fail(url):
        raise error

    monkeypatch.setattr(memory, "info", fail)
    with pytest.raises(PlatformError, match=rf"\Amemory://bucket/a: {expected}") as raised:
        remote_files.copied(["memory://bucket/a"]).__enter__()
    assert raised.value.exit_code == 3
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("url", "package"), [("gs://b/a", "gcsfs"), ("s3://b/a", "s3fs"), ("https://h/a", "aiohttp")])
def test_a_missing_package_is_named_by_the_extra(monkeypatch, url, package):
    for name in (package, "fsspec.implementations.http"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url.partition(":")[0], raising=False)
    with pytest.raises(PlatformError, match=rf"\A{url}: needs a missing package: pip install 'preferent\[remote\]'\Z"):
        remote_files.copied([url]).__enter__()


def test_no_error_tells_a_signature(memory, monkeypatch):
    """A redirect may lead to a signed address, which the packages print."""

    def fail(url):
        raise ClientResponseError(500, "500, url='https://me:SECRET@host/a?X-Amz-Signature=SECRET' and #SECRET")

    monkeypatch.setattr(memory, "info", fail)
    with pytest.raises(PlatformError, match=r"url='https://host/a' and$") as raised:
        remote_files.copied(["memory://bucket/a"]).__enter__()
    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize("verb", [["check"], ["convert", "--out", "rows.jsonl"]])
def test_the_secret_in_an_address_on_the_command_line_is_not_printed(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["preferent", "data", *verb, "https://host/a?X-Amz-Signature=SECRET"])
    with pytest.raises(SystemExit) as error:
        main()
    printed = capsys.readouterr()
    assert error.value.code == 2
    assert printed.err.startswith("preferent: https://…: the address holds ? or #")
    assert "SECRET" not in printed.err + printed.out


@pytest.mark.parametrize(
    "place", ["127.0.0.1", "::1", "169.254.169.254", "fe80::1%eth0", "::ffff:127.0.0.1", "0.0.0.0"]
)
def test_no_socket_is_made_for_this_machine_or_its_link(place):
    address = socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, 443)
    with pytest.raises(PlatformError, match=r"is this machine, its link, or a metadata service; no data is read from"):
        remote_files._socket(address)
    with remote_files._socket((*address[:4], ("192.0.2.1", 443))) as made:
        assert made.family == socket.AF_INET


@pytest.mark.parametrize(
    "target", ["http://host/b", "//169.254.169.254/b", "https://localhost/b", "https://a:SECRET@host/b", "ftp://host/b"]
)
def test_a_redirect_to_an_address_that_is_not_read(target):
    for location in (target, "/b?sig=SECRET"):
        response = SimpleNamespace(url="https://host/a", headers={"Location": location})
        answer = SimpleNamespace(response=response, url=SimpleNamespace(host="host"))
        if location == target:
            with pytest.raises(PlatformError, match="host: redirects to an address that is not read") as error:
                asyncio.run(remote_files._check_redirect(None, None, answer))
            assert "SECRET" not in str(error.value)
        else:
            asyncio.run(remote_files._check_redirect(None, None, answer))


def test_fsspec_is_imported_only_where_remote_data_is_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"input_text": "a"}) + "\n")
    code = f"""
import sys
sys.argv = ["preferent", "data", "check", {str(tmp_path / "rows.jsonl")!r}]
from preferent.cli.main import main
main()
assert not {{"fsspec", "aiohttp", "s3fs", "gcsfs"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
