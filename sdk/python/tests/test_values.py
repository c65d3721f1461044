"""What needs no daemon."""

import sys
from datetime import timedelta
from pathlib import Path

import pytest

import queztl
from queztl import errors, models, parse_size
from queztl._wire import Address, path

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))


def test_the_asynchronous_client_is_the_blocking_one_with_await() -> None:
    import make_async

    made = make_async.convert((make_async.PACKAGE / "client.py").read_text())
    assert (make_async.PACKAGE / "aio.py").read_text() == made, "run python tools/make_async.py"


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), ("2GB", 2 << 30), ("8 GiB", 8 << 30), ("100", 100), (7, 7)])
def test_sizes_are_read_as_people_write_them(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "1X", "-1M", "1.5G"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


def test_problems_become_errors_of_their_kind() -> None:
    document = {"code": "invalid", "status": 422, "detail": "spec.vcpus: 0", "fields": [{"field": "spec.vcpus", "message": "0"}]}
    error = errors.problem(document)
    assert isinstance(error, queztl.Invalid)
    assert (str(error), error.fields[0].field) == ("spec.vcpus: 0", "spec.vcpus")
    assert type(errors.problem({"code": "of a later version"})) is queztl.Problem


def test_times_are_read_whatever_their_precision() -> None:
    for text in ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.1Z", "2026-01-02T03:04:05.123456789Z"):
        read = models.time(text)
        assert read is not None and (read.year, read.second, read.utcoffset()) == (2026, 5, timedelta())


def test_addresses_and_paths_lead_where_they_should() -> None:
    assert Address.parse("unix:/run/q.sock").socket == "/run/q.sock"
    assert Address.parse("https://host:1/").websocket == "wss://host:1"
    with pytest.raises(ValueError, match="is no address"):
        Address.parse("ftp://host")
    assert path("vms", "../images") == "/v1/vms/..%2Fimages"


def test_a_missing_daemon_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    client = queztl.Client(f"unix:{tmp_path}/none.sock")
    with pytest.raises(queztl.Unreachable, match="queztl-hv daemon"):
        client.vms()
