"""Remote data from servers on this machine: moto's S3, and a web server with a certificate of its own.

Skipped where the packages are missing: pip install 'preferent[remote]' 'moto[s3,server]'. Real buckets are not tried.
"""

import asyncio
import contextlib
import datetime
import ipaddress
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from conftest import quiet_recipe

from preferent import files
from preferent.config import remote_names, stage_graph
from preferent.config.recipe import dump
from preferent.data import prepare
from preferent.data.formats import row_sources
from preferent.errors import PlatformError, UsageError
from preferent.pipelines import executor
from preferent.runs import interruption, remote_files
from preferent.runs.digests import Digests
from preferent.runs.directory import DataDirectory

INSTALL = "needs pip install 'preferent[remote]' 'moto[s3,server]'"
aiohttp = pytest.importorskip("aiohttp", reason=INSTALL)
s3fs = pytest.importorskip("s3fs", reason=INSTALL)
gcsfs = pytest.importorskip("gcsfs", reason=INSTALL)
pytest.importorskip("moto.server", reason=INSTALL)
ROOT = Path(__file__).resolve().parent.parent.parent
PAIRS = [{"input_text": f"a {n}", "candidate_0": " b", "candidate_1": " c", "choice": n % 2} for n in range(40)]
ROWS = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()


@pytest.fixture(autouse=True)
def fresh():
    for system in (s3fs.S3FileSystem, gcsfs.GCSFileSystem, remote_system("https")):
        system.clear_instance_cache()


def remote_system(scheme):
    import fsspec

    return fsspec.get_filesystem_class(scheme)


def read(url):
    with remote_files.copied([url]) as copies:
        return [row for file in row_sources.expand([url]) for _, row in row_sources.rows(file)], copies


def refusal(url, kind=PlatformError):
    with pytest.raises(kind) as error:
        read(url)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def server():
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(server, monkeypatch):
    """A client of a store that has a bucket with two files of rows."""
    import boto3

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "SECRET"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    lines = ROWS.splitlines(keepends=True)
    client.put_object(Bucket="bucket", Key="rows/b.jsonl", Body=b"".join(lines[20:]))
    client.put_object(Bucket="bucket", Key="rows/a.jsonl", Body=b"".join(lines[:20]))
    return client


def test_the_stage_reads_a_bucket_once(s3, tmp_path, monkeypatch):
    recipe, out = quiet_recipe(preference_dataset="s3://bucket/rows/*.jsonl"), tmp_path / "data"
    prepare.main(recipe, {}, out)
    copies = files.read_json(DataDirectory(out).counts)["remote"]
    assert [copy["url"] for copy in copies] == ["s3://bucket/rows/a.jsonl", "s3://bucket/rows/b.jsonl"]
    assert b"".join((DataDirectory(out).remote / copy["file"]).read_bytes() for copy in copies) == ROWS
    head = s3.head_object(Bucket="bucket", Key="rows/a.jsonl")
    assert copies[0]["version"]["ETag"] == head["ETag"]
    for path in out.rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes(), path
    monkeypatch.setattr(remote_files, "file_system", None)
    prepare.main(recipe, {}, out)


def test_a_run_whose_data_are_done_needs_no_bucket(s3, tmp_path, monkeypatch, capfd):
    recipe = quiet_recipe(preference_dataset="s3://bucket/rows/*.jsonl")
    files.write_atomic(tmp_path / "recipe.yaml", dump(recipe))
    task = stage_graph.build(recipe)[0]

    def worked():
        return executor._perform(task, recipe, {}, tmp_path, "1/1 data", lambda task: None, Digests.read(tmp_path))

    assert worked()
    assert capfd.readouterr().err.count("reading s3://bucket/rows/") == 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert not worked()


def test_check_and_convert_read_a_bucket(s3, tmp_path):
    words = [sys.executable, "-m", "preferent", "data"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    names = ["s3://bucket/rows/a.jsonl", "s3://bucket/rows/b.jsonl"]
    done = subprocess.run([*words, "check", *names], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout.count("20 usable")) == (0, 2), done.stderr
    assert f"{names[0]}: preference (gcpc), 20 rows, 20 usable" in done.stdout
    out = ["--out", str(tmp_path / "trl.jsonl"), "--to", "trl"]
    done = subprocess.run(
        [*words, "convert", "s3://bucket/rows/*.jsonl", *out], capture_output=True, text=True, env=environment
    )
    assert "40 of 40 rows written" in done.stdout, done.stderr
    signed = "s3://bucket/rows/a.jsonl?X-Amz-Signature=SECRET"
    for verb in (["check", signed], ["convert", signed, *out]):
        done = subprocess.run([*words, *verb], capture_output=True, text=True, env=environment)
        assert done.returncode == 2 and "SECRET" not in done.stdout + done.stderr


def test_what_a_bucket_does_not_hold(s3):
    assert refusal("s3://bucket/none.jsonl") == "s3://bucket/none.jsonl: no such file or bucket; check the name"
    assert refusal("s3://bucket/none/*.jsonl") == "s3://bucket/none/*.jsonl: no such file or bucket; check the name"
    assert refusal("s3://other-bucket/a").startswith("s3://other-bucket/a: no such file or bucket")
    assert refusal("s3://bucket/rows", UsageError).startswith("s3://bucket/rows: is a folder; name the files in it")


def test_an_object_that_is_written_while_it_is_read(s3, monkeypatch):
    monkeypatch.setattr(remote_files, "BLOCK", 100)

    def stop():
        s3.put_object(Bucket="bucket", Key="rows/a.jsonl", Body=ROWS)
        return interruption.Stop()

    monkeypatch.setattr(interruption, "stop", stop)
    assert refusal("s3://bucket/rows/a.jsonl").startswith("s3://bucket/rows/a.jsonl: changed while it was read")


def test_a_key_that_may_not_read(s3, monkeypatch):
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
    for url in ("s3://bucket/rows/a.jsonl", "s3://bucket/rows/*.jsonl"):
        message = refusal(url)
        assert f"{url}: access is denied, or there are no credentials; they come from the environment" in message
        assert "SECRET" not in message


def test_no_credentials(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "access is denied, or there are no credentials" in refusal("s3://bucket/rows/a.jsonl")


def test_a_store_that_cannot_be_reached(s3, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert "s3://bucket/rows/a.jsonl: cannot be reached" in refusal("s3://bucket/rows/a.jsonl")


class CloudStorage(BaseHTTPRequestHandler):
    """As much of the JSON API of Google Cloud Storage as reading needs; the generation moves on while `is_written`."""

    is_written = False
    generation = 1

    def do_GET(self):
        path, _, query = self.path.partition("?")
        name = urllib.parse.unquote(path.rpartition("/o/")[2])
        known = {"name": name, "bucket": "bucket", "size": str(len(ROWS)), "generation": str(self.generation)}
        CloudStorage.generation += self.is_written
        if path.startswith("/download/"):
            self.answer(200, ROWS)
        elif path == "/storage/v1/b/bucket/o":
            (prefix,) = urllib.parse.parse_qs(query).get("prefix", [""])
            items = [known | {"name": name} for name in ("rows/b.jsonl", "rows/a.jsonl") if name.startswith(prefix)]
            self.answer(403 if "denied" in prefix else 200, json.dumps({"items": items}).encode())
        elif name in ("rows/a.jsonl", "rows/b.jsonl"):
            self.answer(200, json.dumps(known).encode())
        else:
            self.answer(403 if "denied" in name else 404, b"{}")

    def answer(self, status, body):
        with contextlib.suppress(BrokenPipeError):  # gcsfs asks twice at once, and listens to one answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture
def gs(monkeypatch):
    """A server in the shape of Google's; a real bucket answers more."""
    monkeypatch.setattr(CloudStorage, "is_written", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), CloudStorage) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


def test_a_bucket_of_google_cloud_storage(gs, monkeypatch):
    rows, (copy,) = read("gs://bucket/rows/a.jsonl")
    assert (rows, copy["version"]["generation"]) == (PAIRS, str(CloudStorage.generation))
    names = ["gs://bucket/rows/a.jsonl", "gs://bucket/rows/b.jsonl"]
    assert [copy["url"] for copy in read("gs://bucket/rows/*.jsonl")[1]] == names
    assert "no such file or bucket" in refusal("gs://bucket/none.jsonl")
    assert "access is denied" in refusal("gs://bucket/denied.jsonl")
    monkeypatch.setattr(CloudStorage, "is_written", True)
    assert "changed while it was read" in refusal("gs://bucket/rows/a.jsonl")


class Site(BaseHTTPRequestHandler):
    """Files, one that changes with each look, and redirects."""

    redirects: ClassVar[dict[str, str]] = {}
    looked: ClassVar[list[str]] = []

    def do_GET(self):
        self.looked.append(self.path)
        path = self.path.partition("?")[0]
        if path in self.redirects:
            self.send_response(302)
            self.send_header("Location", self.redirects[path])
            self.end_headers()
            return
        status = {"/none.jsonl": 404, "/denied.jsonl": 403, "/broken.jsonl": 500}.get(path, 200)
        self.send_response(status)
        body = ROWS if status == 200 else b""
        self.send_header("Content-Length", str(len(body) + (10 if path == "/cut.jsonl" else 0)))
        self.send_header("ETag", f'"{len(self.looked) if path == "/changing.jsonl" else "same"}"')
        self.send_header("Last-Modified", "Sat, 01 Aug 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


def certificate(folder):
    """Write a key and a certificate for 127.0.0.1 and rows.example; return the file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test of preferent")])
    now = datetime.datetime.now(datetime.UTC)
    hosts = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("rows.example")]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = folder / "certificate.pem"
    path.write_bytes(key.private_bytes(*form) + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The address of a web server that the machine trusts; loopback is allowed, as it is nowhere else."""
    path = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    loopback = ipaddress.ip_network("127.0.0.0/8")
    others = tuple(network for network in remote_names.LOCAL_NETWORKS if network != loopback)
    monkeypatch.setattr(remote_names, "LOCAL_NETWORKS", others)
    Site.redirects, Site.looked = {}, []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_file_of_a_web_server(site):
    rows, (copy,) = read(f"{site}/rows.jsonl")
    assert (rows, copy["size"]) == (PAIRS, len(ROWS))
    assert copy["version"] == {"ETag": '"same"', "Last-Modified": "Sat, 01 Aug 2026 00:00:00 GMT"}


def test_what_a_web_server_answers(site):
    assert "no such file or bucket" in refusal(f"{site}/none.jsonl")
    assert "access is denied" in refusal(f"{site}/denied.jsonl")
    assert "cannot be read: ClientResponseError 500" in refusal(f"{site}/broken.jsonl")
    assert "changed while it was read" in refusal(f"{site}/changing.jsonl")
    assert "cannot be reached" in refusal(f"{site}/cut.jsonl")


def test_a_certificate_that_nobody_trusts(site, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    assert f"{site}/rows.jsonl: cannot be reached" in refusal(f"{site}/rows.jsonl")
    assert Site.looked == []


def test_a_redirect_is_followed_where_it_may_lead(site):
    Site.redirects = {"/a": "/b?X-Amz-Signature=SECRET", "/c": f"{site}/denied.jsonl?token=SECRET"}
    rows, (copy,) = read(f"{site}/a")
    assert rows == PAIRS
    assert "SECRET" not in str(copy)
    message = refusal(f"{site}/c")
    assert "access is denied" in message and "SECRET" not in message


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://127.0.0.1:1/rows.jsonl?sig=SECRET", "is not encrypted"),
        ("https://169.254.169.254/latest/meta-data/", "169.254.169.254 is this machine, its link, or a metadata"),
        ("https://metadata.google.internal/computeMetadata/v1/", "is this machine, its link, or a metadata service"),
        ("https://localhost:1/rows.jsonl", "is this machine, its link, or a metadata service"),
        ("https://[::ffff:169.254.169.254]/", "is this machine, its link, or a metadata service"),
        ("https://me:SECRET@127.0.0.1/rows.jsonl", "holds a name or a password"),
        ("file:///etc/passwd", "is not read"),
    ],
)
def test_a_redirect_is_not_followed_elsewhere(site, target, expected):
    Site.redirects = {"/a.jsonl": target}
    message = refusal(f"{site}/a.jsonl")
    assert f"{site}/a.jsonl: 127.0.0.1: redirects to an address that is not read" in message
    assert expected in message and "SECRET" not in message


@pytest.mark.parametrize("place", ["127.0.0.1", "169.254.169.254", "fe80::1", "::1"])
def test_a_name_that_leads_to_this_machine_or_its_link_is_not_connected_to(monkeypatch, place):
    family = socket.AF_INET6 if ":" in place else socket.AF_INET

    def resolved(host, port, *words, **options):
        assert host == "rows.example"
        return [(family, socket.SOCK_STREAM, 6, "", (place, port, 0, 0) if ":" in place else (place, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    message = refusal("https://rows.example/rows.jsonl")
    assert message.startswith(f"https://rows.example/rows.jsonl: the name leads to {place}, which is this machine")


def test_the_client_unpacks_nothing():
    async def facts():
        client = await remote_files._client(loop=None)
        async with client:
            return client.auto_decompress, client.headers["Accept-Encoding"], client.timeout.total

    assert asyncio.run(facts()) == (False, "identity", None)
