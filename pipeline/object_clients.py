"""Clients of object storage: where each kind of it has its endpoint and its credentials from.

Environment variables, files and roles are those of each cloud's own tools, see docs/storage.md.
"""

import configparser
import importlib
import importlib.machinery
import importlib.util
import json
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import InputError, MachineError
from pipeline.installation import install_hint

CONNECT_SEC = 5.0
RETRY_SEC = 60.0
FILE_KEYS = timedelta(minutes=5)
"""After which keys are read from the file again: tools that sign in replace them there."""
_AWS_FILES = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}

_VARIABLES = ("AWS_", "AZURE_", "GOOGLE_")

_imported_by = 0


def obstore() -> Any:
    """The library obstore of this process. Raises `MachineError` if it is not installed.

    Its threads do not live on in a forked process, where each of its calls would wait for ever, and it has no way to
    start them anew. A forked process therefore loads another copy of it, from memory: one under another name has
    threads of its own.
    """
    global _imported_by
    if _imported_by and _imported_by != os.getpid():
        _load_copy()
    try:
        module = importlib.import_module("obstore")
        importlib.import_module("obstore.store")
    except ImportError:
        raise MachineError(f"obstore is missing, which reads object storage: {install_hint('cloud')}") from None
    _imported_by = os.getpid()
    return module


def _load_copy() -> None:
    package = Path(sys.modules["obstore"].__path__[0])
    library = next(package.glob("_obstore.*so"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        _UNLOADED.append(sys.modules.pop(name))
    descriptor = os.memfd_create(library.name)
    try:
        with open(descriptor, "wb", closefd=False) as copy:
            copy.write(library.read_bytes())
        name, path = "obstore._obstore", f"/proc/{os.getpid()}/fd/{descriptor}"
        loader = importlib.machinery.ExtensionFileLoader(name, path)
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        assert spec
        sys.modules[name] = importlib.util.module_from_spec(spec)
        loader.exec_module(sys.modules[name])
    finally:
        os.close(descriptor)


_UNLOADED: list[ModuleType] = []


def client_of(url: str, *, wait_sec: float, retries: int) -> Any:
    """An obstore store of the objects below `url`. Raises `MachineError` for settings that cannot be used."""
    parts = urlsplit(url)
    _unset_blank_variables()
    store = obstore().store
    path = parts.path.strip("/")
    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=CONNECT_SEC),
        "read_timeout": timedelta(seconds=wait_sec),
        "timeout": timedelta(days=30),
    }
    common: dict[str, Any] = {
        "client_options": options,
        "retry_config": {
            "max_retries": retries,
            "retry_timeout": timedelta(seconds=RETRY_SEC),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
        },
    }
    if parts.scheme in ("http", "https"):
        options["allow_http"] = parts.scheme == "http"
        return store.HTTPStore(url, **common)
    if parts.scheme == "az":
        container, _, path = path.partition("/")
        if not container:
            raise InputError(f"{url} names no container: expected az://account/container/path")
        settings = _azure(parts.netloc)
        _require_address(settings.get("endpoint", ""))
        options["allow_http"] = str(settings.get("endpoint", "")).startswith("http://") or "use_emulator" in settings
        return store.AzureStore(container, prefix=path or None, config=settings, **common)
    settings = _s3(options) if parts.scheme == "s3" else _google()
    provider = settings.pop("credential_provider", None)
    endpoint = settings.get("endpoint" if parts.scheme == "s3" else "base_url", "")
    _require_address(endpoint)
    options["allow_http"] = endpoint.startswith("http://")
    kind = store.S3Store if parts.scheme == "s3" else store.GCSStore
    return kind(parts.netloc, prefix=path or None, config=settings, credential_provider=provider, **common)


def _unset_blank_variables() -> None:
    """To the clouds' own tools a variable that is set to nothing is not set; obstore takes it for a value."""
    for name in [name for name, value in os.environ.items() if name.startswith(_VARIABLES) and not value.strip()]:
        del os.environ[name]


def _require_address(endpoint: str) -> None:
    """Raise `MachineError` for what is no address; obstore panics. It may hold a password: it is not told."""
    if endpoint and not re.match(r"https?://[^/\s]", endpoint):
        raise MachineError("the endpoint of the storage is no address: expected it as https://storage.example.com")


def _said(*names: str) -> str:
    """The first of some environment variables that is set."""
    return next((value for name in names if (value := os.environ.get(name))), "")


def _yes(*names: str) -> bool:
    return _said(*names).lower() in ("1", "true", "yes", "on")


def _s3(options: dict[str, Any]) -> dict[str, Any]:
    profile, files = _said("AWS_PROFILE", "AWS_DEFAULT_PROFILE"), _aws_files()
    found = files.get(profile or "default", {})
    if profile and not found:
        raise MachineError(f"AWS_PROFILE is {profile}, which ~/.aws/config and ~/.aws/credentials do not have")
    if bundle := _said("AWS_CA_BUNDLE") or found.get("ca_bundle", ""):
        options["root_certificate"] = Path(bundle).read_bytes()
    settings: dict[str, Any] = {}
    if endpoint := _said("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") or found.get("endpoint_url", ""):
        settings["endpoint"] = endpoint
    if region := _said("AWS_REGION", "AWS_DEFAULT_REGION") or found.get("region", ""):
        settings["region"] = region
    if _yes("AWS_SKIP_SIGNATURE", "AWS_NO_SIGN_REQUEST"):
        settings["skip_signature"] = True
    elif found and not _said("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        if "aws_access_key_id" in found:
            settings["credential_provider"] = lambda: _file_keys(profile or "default")
        elif set(found) & {"role_arn", "sso_session", "sso_start_url", "credential_process", "web_identity_token_file"}:
            settings["credential_provider"] = _boto3_keys(profile or "default")
    return settings


def _aws_files() -> dict[str, dict[str, str]]:
    """The profiles of AWS's two files, each with its settings."""
    profiles: dict[str, dict[str, str]] = {}
    for variable, usual in _AWS_FILES.items():
        path = Path(_said(variable) or usual).expanduser()
        parser = configparser.RawConfigParser(default_section="", strict=False)
        try:
            parser.read(path, "utf-8")
        except (configparser.Error, ValueError):
            expected = "expected [profile], and below it key = value"
            raise MachineError(f"{path} is not as AWS's tools write it: {expected}") from None
        for section in parser.sections():
            profiles.setdefault(section.removeprefix("profile "), {}).update(parser[section])
    return profiles


def _file_keys(profile: str) -> dict[str, Any]:
    found = _aws_files().get(profile, {})
    return {
        "access_key_id": found.get("aws_access_key_id", ""),
        "secret_access_key": found.get("aws_secret_access_key", ""),
        "token": found.get("aws_session_token"),
        "expires_at": datetime.now(UTC) + FILE_KEYS,
    }


def _boto3_keys(profile: str) -> Any:
    try:
        boto3 = importlib.import_module("boto3")
        provider = importlib.import_module("obstore.auth.boto3").Boto3CredentialProvider
    except ImportError:
        how = "pip install boto3, or put keys into the environment"
        raise MachineError(f"profile {profile} of ~/.aws/config takes a role, a sign-in or a program: {how}") from None
    return provider(boto3.Session(profile_name=profile))


def _google() -> dict[str, Any]:
    if emulator := _said("STORAGE_EMULATOR_HOST"):
        return {"base_url": emulator if "://" in emulator else f"http://{emulator}", "skip_signature": True}
    settings: dict[str, Any] = {}
    if base := _said("GOOGLE_BASE_URL"):
        settings["base_url"] = base
    path = _said("GOOGLE_APPLICATION_CREDENTIALS") or "~/.config/gcloud/application_default_credentials.json"
    try:
        kind = json.loads(Path(path).expanduser().read_bytes())["type"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = ""  # obstore tells of a file that it cannot read
    if kind not in ("", "service_account", "authorized_user"):
        try:
            settings["credential_provider"] = importlib.import_module("obstore.auth.google").GoogleCredentialProvider()
        except ImportError:
            how = "pip install google-auth requests"
            raise MachineError(f"{path} holds credentials of the kind {kind}, which google-auth reads: {how}") from None
    return settings


def _azure(account: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"account_name": account}
    fields = (field.partition("=") for field in _said("AZURE_STORAGE_CONNECTION_STRING").split(";"))
    connection = {name: value for name, _, value in fields if value}
    if connection.get("AccountName", account) != account:
        raise MachineError(f"AZURE_STORAGE_CONNECTION_STRING is of another account than az://{account}")
    if key := _said("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY") or connection.get("AccountKey", ""):
        settings["account_key"] = key
    if signature := connection.get("SharedAccessSignature", ""):
        settings["sas_key"] = signature
    if endpoint := _said("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT") or connection.get("BlobEndpoint", ""):
        settings["endpoint"] = endpoint
    if _yes("AZURE_STORAGE_USE_EMULATOR"):
        settings["use_emulator"] = True
    return settings
