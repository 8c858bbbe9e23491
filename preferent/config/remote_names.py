"""The names of remote data: the addresses that are read, and those that are refused, none of which is printed.

An address stands in recipes, run directories and reports, so it must not hold a secret; and a recipe of somebody else
must not make this machine talk to itself, to its link, or to the metadata service that hands out its credentials.
"""

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

HUB = "hf://"
STORES = ("gs", "s3")
SCHEMES = (*STORES, "https")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
FIELDS = "preference_dataset, prompt_dataset and eval_dataset"
"""The fields of a recipe that may name remote data."""
LOCAL = "this machine, its link, or a metadata service"
LOCAL_HOSTS = ("localhost", "metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal")
LOCAL_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128"),
        *("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "100.100.100.200/32"),
    )
)
"""Loopback, unspecified and link-local addresses, and the metadata services that have others."""


def is_remote(name: str) -> bool:
    """Return whether a name is an address of any scheme; a hub data set is none."""
    return SCHEME.match(name) is not None and not name.startswith(HUB)


def is_local_host(host: str) -> bool:
    """Return whether a name or an address of a host means this machine, its link, or a metadata service."""
    name = host.lower().rstrip(".").partition("%")[0]
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in LOCAL_HOSTS or name.endswith(".localhost")
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in LOCAL_NETWORKS)


def require(url: str) -> None:
    """Raise `ValueError` unless remote data may have this address; the message holds no part of it but scheme and
    host."""
    scheme = url.partition("://")[0]
    if fault := _fault(url, scheme):
        raise ValueError(f"{scheme}://…: {fault}")


def _fault(url: str, scheme: str) -> str:
    """Return why an address is refused; nothing if it is read."""
    if scheme == "http":
        return "is not encrypted, so it is not read; use https://, or copy the file here and name the copy"
    if scheme not in SCHEMES:
        return "is not read; data is read from paths, gs://, s3://, https:// and hf://OWNER/NAME"
    if not url.isprintable() or re.search(r"[\s\\]", url):
        return "the address holds a space, a backslash or a control character; write it as %20 in https://"
    if re.search(r"[?#]", url):
        return (
            "the address holds ? or #: a signature or a token there would be written into the run, so it is refused; "
            "give credentials by the environment, match names by * or [ab], or copy the file here and name the copy"
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "is not an address"
    if "@" in parts.netloc:
        return "the address holds a name or a password; give credentials by the environment"
    return _bucket_fault(parts) if scheme in STORES else _host_fault(parts, host)


def _bucket_fault(parts: SplitResult) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", parts.netloc):
        return f"is not the address of a bucket; write {parts.scheme}://BUCKET/PATH"
    if not parts.path.strip("/"):
        return f"names a bucket; name the files in it, as {parts.scheme}://BUCKET/*.jsonl"
    return ""


def _host_fault(parts: SplitResult, host: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", host):
        return "is not the address of a host; write https://HOST/PATH"
    if is_local_host(host):
        return f"{host} is {LOCAL}, from which no data is read; copy the file here and name the copy"
    if re.search(r"[*\[]", parts.path):
        return "a web server cannot be searched for * or [; name each file"
    return ""
