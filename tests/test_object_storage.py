"""The same is asked of a folder and of objects behind each kind of URL; then what networks and servers do wrong."""

import gc
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest

from pipeline import object_storage
from pipeline.errors import InputError, explain
from pipeline.format.manifest import Manifest
from pipeline.object_errors import told
from pipeline.object_storage import ObjectStorage
from pipeline.storage import Storage, Url, storage_of
from tests.services import servers
from tests.services.faulty_proxy import Faults, FaultyProxy
from tests.services.fixtures import GoogleBucket, S3Server, WebFolder

BYTES = bytes(range(256)) * 40
READ = ("folder", "s3", "azure", "web", "google")
WRITTEN = READ[:3]


@pytest.fixture
def place(request: pytest.FixtureRequest) -> tuple[Storage, Callable[[str, bytes], None]]:
    """A storage without objects, and what puts one there."""
    if request.param == "folder":
        folder = storage_of(request.getfixturevalue("tmp_path") / "place")
        return folder, folder.put
    if request.param == "web":
        web: WebFolder = request.getfixturevalue("web")
        return storage_of(web.url), lambda name, content: void(web.path.joinpath(name).write_bytes(content))
    if request.param == "google":
        bucket: GoogleBucket = request.getfixturevalue("google")
        return storage_of(bucket.url / "below"), lambda name, content: bucket.put(f"below/{name}", content)
    storage = storage_of(request.getfixturevalue(request.param) / "below/it")
    return storage, storage.put


Place = tuple[Storage, Callable[[str, bytes], None]]


def void(result: object) -> None:
    """Nothing, whatever was returned."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for long."""
    monkeypatch.setattr(object_storage, "FIRST_SEC", 0.0)
    monkeypatch.setattr(object_storage, "RETRIES", 1)
    monkeypatch.setattr(object_storage, "PAUSE_SEC", 0.01)


@pytest.mark.parametrize("place", READ, indirect=True)
def test_objects_are_read_in_ranges_and_whole(place: Place) -> None:
    storage, put = place
    put("a b+é%41.bin", BYTES)
    put("empty", b"")
    name, size = "a b+é%41.bin", len(BYTES)
    assert storage.stat(name).size == size
    assert storage.stat("empty").size == 0
    for offset, count in (
        (0, 1),
        (10, 300),
        (size - 5, 5),
        (size - 5, 50),
        (0, size),
        (size, 1),
        (size + 9, 9),
        (3, 0),
    ):
        assert bytes(storage.read(name, offset, count)) == BYTES[offset : offset + count]
    assert np.frombuffer(storage.read(name, 256, 4), np.uint8).tolist() == [0, 1, 2, 3]
    assert bytes(storage.read("empty", 0, 5)) == storage.read_all("empty") == b""
    assert storage.read_all(name, size) == storage.open(name).read() == bytes(storage.map(name)) == BYTES
    with pytest.raises(ValueError, match="it has 10,240 bytes"):
        storage.read_all(name, size - 1)


@pytest.mark.parametrize("place", READ, indirect=True)
def test_a_missing_object_is_told_of_by_its_name(place: Place) -> None:
    storage, _ = place
    for ask in (storage.stat, storage.read_all, lambda name: storage.read(name, 0, 1)):
        with pytest.raises(FileNotFoundError) as raised:
            ask("missing")
        assert raised.value.filename == f"{storage.location}/missing"


@pytest.mark.parametrize("place", READ, indirect=True)
def test_what_replaces_an_object_has_another_etag(place: Place) -> None:
    storage, put = place
    put("a", b"one")
    before = storage.stat("a")
    assert storage.stat("a") == before
    put("a", b"second")
    storage.close()
    assert storage.stat("a").etag not in (before.etag, "")
    assert bytes(storage.read("a", 0, 9)) == b"second"


@pytest.mark.parametrize("place", READ, indirect=True)
def test_a_copy_of_a_storage_reads(place: Place) -> None:
    storage, put = place
    put("a", b"content")
    assert bytes(storage.read("a", 0, 7)) == b"content"
    copy: Storage = pickle.loads(pickle.dumps(storage))
    storage.close()
    assert bytes(copy.read("a", 3, 4)) == b"tent"
    assert bytes(storage.read("a", 3, 4)) == b"tent"


@pytest.mark.parametrize("place", WRITTEN, indirect=True)
def test_objects_are_written_listed_and_removed(place: Place, tmp_path: Path) -> None:
    storage, _ = place
    storage.put("sets/b", b"1")
    storage.put("sets/a", b"2")
    storage.put("sets-2", b"3")
    assert storage.names() == ["sets-2", "sets/a", "sets/b"]
    assert storage.names("sets/") == ["sets/a", "sets/b"]
    assert storage.names("sets/b") == ["sets/b"]
    assert storage.names("sets") == ["sets-2", "sets/a", "sets/b"]
    assert storage.names("no") == []
    for _ in range(2):
        storage.remove("sets/a")
    assert storage.names("sets/") == ["sets/b"]
    large = tmp_path / "large"
    large.write_bytes(Random(0).randbytes((2 * object_storage.PART_BYTES) + 5))
    storage.put("large", large)
    assert storage.read_all("large") == large.read_bytes()
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        storage.put("large", tmp_path / "nothing-here")


def try_to_create(url: str, content: bytes) -> bool:
    """For a process of its own."""
    return storage_of(url).create("claims/one", content)


@pytest.mark.parametrize("place", WRITTEN, indirect=True)
def test_one_of_many_creates_an_object(place: Place) -> None:
    storage, _ = place
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: storage.create("claims/one", b"%d" % number), range(8)))
    assert sum(made) == 1
    assert storage.read_all("claims/one") == b"%d" % made.index(True)


def test_one_of_many_processes_creates_an_object(s3: Url) -> None:
    program = "import sys; from tests.test_object_storage import try_to_create as t; print(t(*sys.argv[1:2], b'%s'))"
    programs = [[sys.executable, "-c", program % number, s3.text] for number in range(8)]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE) for words in programs]
    made = [process.communicate()[0].strip() for process in processes]
    assert sorted(made) == [b"False"] * 7 + [b"True"]
    assert storage_of(s3).read_all("claims/one") == b"%d" % made.index(b"True")


@pytest.mark.usefixtures("s3")
def test_all_reads_succeed_through_faults(s3: Url, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage_of(s3).put("a", content := Random(1).randbytes(1 << 20))
    monkeypatch.setattr(object_storage, "READ_SEC", 0.3)
    monkeypatch.setattr(object_storage, "PAUSE_SEC", 0.05)
    faults = Faults(unavailable=0.03, reset=0.02, short=0.02, cut=0.02, stall=0.01)
    with FaultyProxy(s3_server.port, faults) as proxy, ThreadPoolExecutor(16) as pool:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        storage = storage_of(s3)
        places = [Random(number).randrange(len(content)) for number in range(600)]
        read = pool.map(lambda place: bytes(storage.read("a", place, 5000)), places)
        assert all(part == content[place : place + 5000] for part, place in zip(read, places, strict=True))
        assert all(proxy.counts[fault] for fault in ("unavailable", "reset", "short", "cut", "stall"))
        storage.close()


@pytest.mark.usefixtures("impatient")
def test_a_short_answer_is_never_taken_for_the_end(
    s3: Url, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage_of(s3).put("a", BYTES)
    monkeypatch.setattr(object_storage, "PATIENCE_SEC", 0.0)
    with FaultyProxy(s3_server.port, Faults(cut=1)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        storage = storage_of(s3)
        asks: list[Callable[[], object]] = [lambda: storage.read("a", 100, 1000), lambda: storage.read_all("a")]
        for ask in asks:
            with pytest.raises(ConnectionError) as raised:
                ask()
            assert raised.value.filename == f"{s3}/a"
        storage.close()


def test_a_forked_process_reads(s3: Url) -> None:
    storage = storage_of(s3)
    storage.put("a", BYTES)
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        signal.alarm(30)
        try:
            os.write(writer, storage.read("a", 1, 9))
            with pytest.raises(FileNotFoundError):
                storage_of(s3).stat("missing")
            if not (second := os.fork()):  # and so does a process that this one forks
                os.write(writer, storage_of(s3).read("a", 2, 9))
                os._exit(0)
            os._exit(os.waitpid(second, 0)[1])
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == BYTES[1:10] + BYTES[2:11]
    assert os.waitpid(process, 0)[1] == 0
    assert storage.read("a", 0, 3) == BYTES[:3]


def message(ask: Callable[[], object], kind: type[OSError]) -> str:
    """The one line of an error."""
    with pytest.raises(kind) as raised:
        ask()
    line = explain(raised.value)
    assert "\n" not in line
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    return line


def asked(storage: Storage) -> list[Callable[[], object]]:
    """All that can be asked."""
    reads: list[Callable[[], object]] = [lambda: storage.stat("a"), lambda: storage.read("a", 0, 1)]
    return [*reads, lambda: storage.read_all("a"), lambda: storage.put("a", b""), lambda: storage.create("a", b""),
            lambda: storage.names()]  # fmt: skip


def test_revoked_keys_end_in_a_line_that_names_the_bucket(s3_server: S3Server, s3: Url) -> None:
    key, secret = "REVOKEDREVOKEDREVOKE", "revoked+secret/of+tests"
    s3_server.administer("user", "create", "--uid=revoked", "--display-name=revoked", f"--access-key={key}",
                         f"--secret-key={secret}")  # fmt: skip
    bucket = s3_server.new_bucket(key, secret)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        storage = storage_of(bucket)
        storage.put("a", b"1")
        s3_server.administer("user", "rm", "--uid=revoked", "--purge-data")
        for ask in asked(storage):
            line = message(ask, PermissionError)
            assert line.startswith(f"the bucket {bucket.name} ")
            assert key not in line
            assert secret not in line
            assert "ignature=" not in line


def test_a_wrong_clock_is_told_from_wrong_keys() -> None:
    refusal = PermissionError("status code: 403 Forbidden: <Error><Code>RequestTimeTooSkewed</Code></Error>")
    assert str(told(refusal, "s3://bucket/a").strerror).startswith("the clock of this machine differs from that of the")


@pytest.mark.usefixtures("s3", "impatient")
def test_a_wrong_url_or_endpoint_ends_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = storage_of("s3://no-such-bucket/below")
    for ask in [*asked(storage), lambda: storage.remove("a"), lambda: Manifest.load(storage)]:
        assert message(ask, OSError).startswith("there is no bucket no-such-bucket: check the URL")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{servers.free_port()}")
    for ask in asked(storage_of("s3://bucket")):
        assert message(ask, ConnectionError).startswith("nothing answers at the endpoint of the bucket bucket: ")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://no-such-host.invalid")
    for ask in asked(storage_of("s3://bucket")):
        assert message(ask, ConnectionError).startswith("no machine has the name of the endpoint of the bucket bucket")


@pytest.mark.usefixtures("no_cloud", "impatient")
def test_without_credentials_it_is_said_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{servers.free_port()}")
    for ask in asked(storage_of("s3://bucket")):
        line = (
            "no credentials for the bucket bucket: look at AWS_PROFILE, AWS_ACCESS_KEY_ID or the role of this machine"
        )
        assert message(ask, PermissionError).startswith(line)


@pytest.mark.usefixtures("no_cloud", "impatient")
def test_half_of_a_key_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    for ask in asked(storage_of("s3://bucket")):
        assert message(ask, PermissionError).startswith("no credentials for the bucket bucket: look at ")


@pytest.mark.usefixtures("no_cloud")
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST", "AZURE_STORAGE_ENDPOINT"])
def test_an_endpoint_that_is_no_address_is_refused_without_its_secret(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "ftp://user:SECRET@host")
    url = {"AWS": "s3://bucket", "STO": "gs://bucket", "AZU": "az://account/container"}[variable[:3]]
    with pytest.raises(InputError, match=r"^the endpoint of the storage is no address: expected .*\.com$"):
        storage_of(url).stat("a")


def test_a_blank_variable_is_as_if_it_were_not_set(s3: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    storage_of(s3).put("a", b"content")
    for variable in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(variable, "")
    assert storage_of(s3).read_all("a") == b"content"


def test_keys_are_taken_from_a_profile(s3: Url, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    storage_of(s3).put("a", b"1")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    keys = f"aws_access_key_id = {servers.S3_KEY}\naws_secret_access_key = {servers.S3_SECRET}\n"
    (tmp_path / "aws-credentials").write_text(f"[tests]\n{keys}")
    (tmp_path / "aws-config").write_text(
        f"[profile tests]\nendpoint_url = {endpoint}\nregion = us-east-1\n"
        f"[profile program]\nendpoint_url = {endpoint}\ncredential_process = cat {tmp_path}/keys\n"
    )
    (tmp_path / "keys").write_text(
        f'{{"Version": 1, "AccessKeyId": "{servers.S3_KEY}", "SecretAccessKey": "{servers.S3_SECRET}"}}'
    )
    monkeypatch.setenv("AWS_PROFILE", "tests")
    assert storage_of(s3).read("a", 0, 1) == b"1"
    monkeypatch.setenv("AWS_PROFILE", "no-such")
    with pytest.raises(InputError, match=r"AWS_PROFILE is no-such, which ~/.aws/config and ~/.aws/credentials do not"):
        storage_of(s3).read("a", 0, 1)
    monkeypatch.setenv("AWS_PROFILE", "program")
    pytest.importorskip("boto3")
    assert storage_of(s3).read("a", 0, 1) == b"1"
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(InputError, match=r"profile program of ~/.aws/config takes a role, .*: pip install boto3"):
        storage_of(s3).read("a", 0, 1)


def test_azure_takes_a_connection_string(azure: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    storage_of(azure).put("a", b"1")
    endpoint = os.environ["AZURE_STORAGE_ENDPOINT"]
    text = f"AccountName={servers.AZURE_ACCOUNT};AccountKey={servers.AZURE_KEY};BlobEndpoint={endpoint}"
    for name in ("AZURE_STORAGE_ENDPOINT", "AZURE_STORAGE_ACCOUNT_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"DefaultEndpointsProtocol=http;{text};")
    assert storage_of(azure).read("a", 0, 1) == b"1"
    with pytest.raises(InputError, match="is of another account than az://other"):
        storage_of("az://other/container").stat("a")
    with pytest.raises(InputError, match="az://devstoreaccount1 names no container"):
        storage_of("az://devstoreaccount1").stat("a")
    for ask in asked(storage_of(azure.parent / "no-such")):
        assert message(ask, OSError).startswith("there is no container devstoreaccount1/no-such: check")


def test_web_servers_that_lack_something(web: WebFolder) -> None:
    (web.path / "a").write_bytes(BYTES)
    (web.path / "empty").write_bytes(b"")
    headless = storage_of(web.at("without-head"))
    assert headless.stat("a") == storage_of(web.url).stat("a")
    assert headless.stat("empty").size == 0
    assert headless.read("a", 5, 9) == BYTES[5:14]
    whole = storage_of(web.at("without-ranges"))
    assert whole.read_all("a") == BYTES
    assert "sends no parts of files" in message(lambda: whole.read("a", 5, 9), OSError)
    forbidden = storage_of(web.at("forbidden"))
    assert "refuses it (403): fgbg reads what is public" in message(lambda: forbidden.stat("a"), PermissionError)
    writes: list[Callable[[], object]] = [lambda: headless.put("b", b""), lambda: headless.create("b", b"")]
    for write in (*writes, lambda: headless.remove("a"), headless.names):
        assert message(write, OSError).startswith("a web server is only read from")


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def least_descriptors() -> int:
    """The same, once connections that were closed are gone: the fewest of half a second."""
    gc.collect()
    counts = [descriptors()]
    for _ in range(25):
        signal.sigtimedwait([], 0.02)
        counts.append(descriptors())
    return min(counts)


def test_connections_end_with_close(s3: Url) -> None:
    storage = storage_of(s3)
    storage.put("a", BYTES)
    storage.read("a", 0, 1)
    storage.close()
    before = least_descriptors()
    storage.put("a", BYTES)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda place: storage.read("a", place, 9), range(64)))
    assert descriptors() > before
    storage.close()
    gc.collect()
    for _ in range(100):
        if descriptors() <= before:
            break
        signal.sigtimedwait([], 0.02)
    assert descriptors() <= before


def test_without_obstore_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(InputError, match=r"obstore is missing, which reads object storage: pip install .*\[cloud\]"):
        ObjectStorage(Url("s3://bucket")).stat("a")
