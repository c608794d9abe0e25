"""What went wrong in object storage, as an `OSError` of one line: what happened, and what to do.

The client's own messages are never passed on: they hold signed addresses, the server's answer and many lines.
"""

import re
from errno import EACCES, ECONNREFUSED, EINVAL, EIO, ENODEV, ENOENT, ENOSPC, EREMOTEIO, EROFS, ETIMEDOUT
from urllib.parse import urlsplit

KEYS = {
    "s3": "look at AWS_PROFILE, AWS_ACCESS_KEY_ID or the role of this machine",
    "gs": "look at GOOGLE_APPLICATION_CREDENTIALS, gcloud auth application-default login or the role of this machine",
    "az": "look at AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or the identity of this machine",
    "http": "fgbg reads what is public",
    "https": "fgbg reads what is public",
}
"""Where the credentials of each kind of storage come from."""
PASSING = (ConnectionError, TimeoutError)
"""What may be otherwise a moment later."""
_UNKNOWN_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired")

_OF_MACHINES = ("/latest/api/token", "/latest/meta-data/", "/computeMetadata/v1/", "/metadata/identity/oauth2/")
"""Where a machine of each cloud asks for the credentials of its own role: what is asked for last."""


def place_of(url: str) -> str:
    """The bucket, container or server of an object, as messages call it."""
    parts = urlsplit(url)
    names = parts.path.split("/")
    if parts.scheme == "az":
        return f"container {parts.netloc}/{names[1] if len(names) > 1 else ''}"
    return f"{'server' if parts.scheme in ('http', 'https') else 'bucket'} {parts.netloc}"


def status_of(error: BaseException) -> int:
    """The HTTP status that an error of the client tells of; 0 where there is none."""
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else 0


def is_past_end(error: BaseException) -> bool:
    """Whether an object ends before the range that was asked for."""
    return status_of(error) == 416 or "StartTooLarge" in str(error)


def told(error: BaseException, url: str) -> OSError:
    """An error of the client as an `OSError` whose `filename` is `url`. No key, token or signature is in it."""
    text, place, status = str(error), place_of(url), status_of(error)
    found = re.search(r"<Code>(\w{1,60})</Code>", text)
    code = found[1] if found else ""
    if code in ("NoSuchBucket", "ContainerNotFound") or "bucket does not exist" in text:
        # No FileNotFoundError: whoever looks whether an object is there is to be told of it.
        return OSError(ENODEV, f"there is no {place}: check the URL and the endpoint", url)
    if any(path in text for path in _OF_MACHINES) or re.search("Missing (SecretAccessKey|AccessKeyId)", text):
        return PermissionError(EACCES, f"no credentials for the {place}: {KEYS[urlsplit(url).scheme]}", url)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(ENOENT, "there is no such object: check the URL", url)
    if code == "RequestTimeTooSkewed":
        why = f"the clock of this machine differs from that of the {place} by too much: set it"
        return PermissionError(EACCES, why, url)
    if status in (401, 403) or type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError"):
        return PermissionError(EACCES, f"{_refused(place, status, code)}: {KEYS[urlsplit(url).scheme]}", url)
    if status in (301, 307, 400) and (code in ("PermanentRedirect", "TemporaryRedirect") or "region" in text):
        return OSError(EINVAL, f"the {place} lies in another region: set AWS_REGION to it", url)
    if status == 507 or code in ("QuotaExceeded", "InsufficientStorage"):
        return OSError(ENOSPC, f"the {place} takes no more data: remove some, or ask for a higher quota", url)
    if status >= 500 or status in (408, 429):
        why = f"the {place} answers {f'{status} {code}'.strip()}, however often it is asked"
        return ConnectionError(EREMOTEIO, f"{why}: wait, then run the same command again", url)
    if status:
        return OSError(EIO, f"the {place} answers {f'{status} {code}'.strip()}: check the URL and the endpoint", url)
    return _unanswered(error, text, place, url)


def _refused(place: str, status: int, code: str) -> str:
    if code in _UNKNOWN_KEYS:
        return f"the {place} does not take these credentials ({code})"
    return f"the {place} refuses it ({code or status or 'no credentials'})"


def _unanswered(error: BaseException, text: str, place: str, url: str) -> OSError:
    """What has no answer of a server."""
    if "dns error" in text or "lookup address" in text:
        why = f"no machine has the name of the endpoint of the {place}"
        return ConnectionError(ECONNREFUSED, f"{why}: check the URL, the endpoint and the network", url)
    if "ConnectionRefused" in text:
        why = f"nothing answers at the endpoint of the {place}"
        return ConnectionError(ECONNREFUSED, f"{why}: check the URL, the endpoint and the network", url)
    if "certificate" in text:
        how = "set SSL_CERT_FILE or AWS_CA_BUNDLE to the certificates of your site"
        return OSError(EIO, f"the certificate of the {place} is not trusted: {how}", url)
    if "BadScheme" in text:
        return OSError(EINVAL, f"the endpoint of the {place} is http://, and not allowed: give one of https://", url)
    if "TimedOut" in text or "kind: Timeout" in text or "operation timed out" in text:
        return TimeoutError(ETIMEDOUT, f"the {place} does not answer in time: check the network, then try again", url)
    if "HTTP error" in text or "kind: " in text or "error decoding response body" in text:
        return ConnectionError(EREMOTEIO, f"the connection to the {place} breaks off: check the network", url)
    if type(error).__name__ == "InvalidPathError":
        why = f"the {place} has an object whose name no file could have, such as a//b or a/../b: rename it"
        return OSError(EINVAL, why, url)
    if isinstance(error, ValueError):
        return OSError(EINVAL, "object storage takes no such name", url)
    return OSError(EIO, f"the {place} cannot be used ({type(error).__name__}): check the URL and the endpoint", url)


def read_only(url: str) -> OSError:
    """Of writing to a web server, or listing it."""
    return OSError(EROFS, "a web server is only read from: give a folder, or an s3://, gs:// or az:// URL", url)
