"""Which addresses of remote data are read, and that a refusal tells none of its secret."""

import re

import pytest

from preferent.config import remote_names

SECRET = "SECRET"


def refusal(url):
    with pytest.raises(ValueError) as error:
        remote_names.require(url)
    assert SECRET not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "gs://bucket/dir/*.jsonl",
        "s3://my-bucket.name/a b/part-[0-9].jsonl.gz".replace(" ", "_"),
        "https://example.com/data/rows.jsonl",
        "https://example.com:8443/a@b.csv",
        "https://192.168.1.7/a",
        "https://[2001:db8::1]/a",
    ],
)
def test_what_is_read(url):
    assert remote_names.is_remote(url)
    remote_names.require(url)


def test_what_is_not_remote():
    for name in ("data/rows.jsonl", "/data/*.jsonl", "hf://owner/name", "C:/rows", "gs:/bucket/a", "-", "a b://c"):
        assert not remote_names.is_remote(name)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host/a", "http://…: is not encrypted, so it is not read; use https://"),
        (f"http://me:{SECRET}@host/a", "not encrypted"),
        ("ftp://host/a", "ftp://…: is not read; data is read from paths, gs://, s3://, https:// and hf://OWNER/NAME"),
        ("file:///etc/passwd", "is not read"),
        ("memory://bucket/a", "is not read"),
        ("GS://bucket/a", "is not read"),
        (f"https://me:{SECRET}@host/a", "holds a name or a password; give credentials by the environment"),
        (f"https://{SECRET}@host/a", "holds a name or a password"),
        (f"https://me:{SECRET}/b@host/a", "is not an address"),
        (f"s3://key:{SECRET}@bucket/a", "holds a name or a password"),
        (f"s3://key:{SECRET}/b@bucket/a", "is not an address"),
        (f"https://host/a?X-Amz-Signature={SECRET}", "holds ? or #"),
        (f"https://host/a#{SECRET}", "holds ? or #"),
        (f"gs://bucket/a?token={SECRET}", "holds ? or #"),
        ("s3://bucket/part-?.jsonl", r"match names by * or [ab]"),
        ("https://host\\@169.254.169.254/a", "holds a space, a backslash or a control character"),
        ("https://host/a b", "holds a space"),
        ("https://host/\x1b[2J", "control character"),
        ("gs://bucket", "names a bucket; name the files in it, as gs://BUCKET/*.jsonl"),
        ("gs://bucket/", "names a bucket"),
        ("s3:///a", "is not the address of a bucket"),
        ("https:///a", "is not the address of a host"),
        ("https://h%6Fst/a", "is not the address of a host"),
        ("https://host:port/a", "is not an address"),
        ("https://host/dir/*.jsonl", "a web server cannot be searched for * or [; name each file"),
        ("https://host/dir/[ab].jsonl", "cannot be searched"),
    ],
)
def test_what_is_refused(url, expected):
    assert expected in refusal(url)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.8.8.8", "localhost", "LOCALHOST.", "app.localhost", "[::1]", "0.0.0.0", "[::]"),
        *("169.254.169.254", "169.254.1.1", "[fe80::1]", "[::ffff:169.254.169.254]", "[::ffff:127.0.0.1]"),
        *("metadata.google.internal", "Metadata", "metadata.google.internal.", "[fd00:ec2::254]", "100.100.100.200"),
    ],
)
def test_this_machine_its_link_and_metadata_services_are_refused(host):
    message = refusal(f"https://{host}/computeMetadata/v1/")
    assert re.search(r"is this machine, its link, or a metadata service, from which no data is read", message)


def test_other_hosts_are_none_of_these():
    for host in ("example.com", "10.0.0.1", "2001:db8::1", "metadata.example.com", "localhost.example.com", "8.8.8.8"):
        assert not remote_names.is_local_host(host)
