"""Live carbon intensity from Electricity Maps: opt-in, HTTPS only, five seconds at most, never an error.

What is sent: the zone and the token, nothing about the run or the machine. A redirect is refused, because it would take
the token elsewhere. What is counted: the life cycle of what is *consumed* in the zone, imports included.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from perjoule.core.errors import RunFolderError
from perjoule.core.units import byte_size
from perjoule.measure.carbon.intensity import Intensity
from perjoule.measure.contract import Unavailable
from perjoule.runs.carbon_series import append_intensity

ADDRESS = "https://api.electricitymaps.com/v3/carbon-intensity/latest"
TOKEN = "ELECTRICITYMAPS_TOKEN"
TIMEOUT_S = 5.0
EVERY_S = 900.0
_ESTIMATED = "estimated by Electricity Maps, without a range"
_MOST_BYTES = 1 << 16
_MOST_G_PER_KWH = 5000.0
_SHOWN = 80
"""Letters of a foreign text that a reason shows."""
Open = Callable[[urllib.request.Request, float], IO[bytes]]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Turns a redirect into the error that its status is."""

    def redirect_request(self, *_: Any) -> None:
        return None


def open_without_redirects(request: urllib.request.Request, timeout_s: float) -> IO[bytes]:
    """Send a request; an answer that is no success, a redirect among them, is an error."""
    opened: IO[bytes] = urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout_s)
    return opened


def fetch(zone: str, opener: Open = open_without_redirects, address: str = ADDRESS) -> Intensity | Unavailable:
    """Return the present intensity of a zone, or why there is none. Does not raise.

    Args:
        zone: such as ``DE`` or ``US-CAL-CISO``.
        opener: sends a request and returns the answer's body; for tests.
        address: the service.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        return Unavailable("Electricity Maps needs a token", f"set the environment variable {TOKEN}")
    if not (token.isascii() and token.isprintable()):  # an error about it would show it
        return Unavailable(f"{TOKEN} has characters that no token has", f"set {TOKEN} anew")
    if not address.startswith("https://"):
        return Unavailable(f"{address} is not HTTPS; the token is not sent")
    query = urllib.parse.urlencode({"zone": zone})
    try:
        request = urllib.request.Request(f"{address}?{query}", headers={"auth-token": token})
        with opener(request, TIMEOUT_S) as answer:
            content = answer.read(_MOST_BYTES)
            if getattr(answer, "length", None):  # reading a part of an answer does not mind its early end
                raise _Unusable("the answer was cut off" if len(content) < _MOST_BYTES else "the answer is too long")
        g_per_kwh, body = _parse(content)
    except urllib.error.HTTPError as error:
        error.close()
        wrong_token = error.code in {401, 403}
        return Unavailable(
            f"Electricity Maps answered {error.code} for zone {zone}", f"check {TOKEN} and its zones" * wrong_token
        )
    except _Unusable as error:
        return Unavailable(f"Electricity Maps gave no intensity of zone {zone}: {error}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Unavailable(f"Electricity Maps could not be asked about zone {zone}: {_reason(error)}")
    if not 0 <= g_per_kwh <= _MOST_G_PER_KWH:
        shown = "NaN" if math.isnan(g_per_kwh) else f"{g_per_kwh:g}"
        return Unavailable(f"Electricity Maps says {shown} g/kWh for zone {zone}, which no grid has")
    return Intensity(
        g_per_kwh=g_per_kwh,
        low=None,
        high=None,
        location=zone,
        year=None,
        source="Electricity Maps",
        kind=f"{_kind(body)}, consumption",
        why=_why(body, zone),
    )


class _Unusable(Exception):
    """An answer came, but no intensity can be taken from it."""


def _parse(answer: bytes) -> tuple[float, dict[str, Any]]:
    """Return the intensity in an answer, and all of it.

    Raises:
        _Unusable: if there is none.
    """
    try:
        body = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"the answer is not JSON ({byte_size(len(answer))})") from error
    if not isinstance(body, dict):
        raise _Unusable("the answer is not a JSON object")
    if "carbonIntensity" not in body:
        said = body.get("error") or body.get("message")
        raise _Unusable(f"it says {str(said)[:_SHOWN]!r}" if said else "the answer has no carbonIntensity")
    found = body["carbonIntensity"]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise _Unusable(f"carbonIntensity is {json.dumps(found)[:_SHOWN]}, not a number")
    try:
        return float(found), body
    except OverflowError:
        return math.inf, body


def _reason(error: Exception) -> str:
    """Return what went wrong with a connection, in one line."""
    if isinstance(error, http.client.IncompleteRead):
        return "the answer was cut off"
    cause = getattr(error, "reason", None) or error
    text = " ".join(str(getattr(cause, "strerror", None) or cause).split())
    return text if isinstance(cause, str) else f"{type(cause).__name__}: {text}".rstrip(": ")


def _why(body: dict[str, Any], zone: str) -> str:
    """Return why there is no range, and which zone the answer names if that is another one."""
    told = str(body.get("zone") or zone)[:_SHOWN]
    other = f"; the answer names zone {told}" if told.upper() != zone.upper() else ""
    return (_ESTIMATED if body.get("isEstimated") else "published without a range") + other


def _kind(body: dict[str, Any]) -> str:
    return "direct" if body.get("emissionFactorType") == "direct" else "life cycle"


def fetch_in_time(
    zone: str, fetcher: Callable[[str], Intensity | Unavailable] = fetch, timeout_s: float = TIMEOUT_S + 1
) -> Intensity | Unavailable:
    """Return what ``fetcher`` returns, or that it took too long; a connection's time-out leaves out the name server.

    Args:
        zone: as for :func:`fetch`.
        fetcher: asks the service.
        timeout_s: how long to wait.
    """
    found: list[Intensity | Unavailable] = []

    def ask() -> None:
        try:
            found.append(fetcher(zone))
        except Exception as error:  # the carbon intensity never ends a training run
            found.append(Unavailable(f"Electricity Maps could not be asked about zone {zone}: {_reason(error)}"))

    thread = threading.Thread(target=ask, name="perjoule-carbon", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return found[0] if found else Unavailable(f"Electricity Maps did not answer within {timeout_s:g} s")


class Poller:
    """Fetches the intensity now and then into the run folder, from a thread of its own; training never waits for it.

    Args:
        run: the run folder.
        fetch: returns the present intensity; takes a few seconds at most.
        begins_with: the first entry of the series, fetched already.
        every_s: seconds between two fetches.
    """

    def __init__(
        self,
        run: Path,
        fetch: Callable[[], Intensity | Unavailable],
        begins_with: Intensity | Unavailable,
        every_s: float = EVERY_S,
    ) -> None:
        self._run, self._fetch, self._every_s = run, fetch, every_s
        self._stopped = threading.Event()
        self._write(begins_with)
        self._thread = threading.Thread(target=self._poll, name="perjoule-carbon", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop fetching. Waits for nothing: a fetch that is under way is not written any more."""
        self._stopped.set()

    def _poll(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                found = self._fetch()
            except Exception as error:  # the carbon intensity never ends a training run
                found = Unavailable(f"{type(error).__name__}: {error}")
            if not self._stopped.is_set():
                self._write(found)

    def _write(self, found: Intensity | Unavailable) -> None:
        line: dict[str, Any] = {"t_wall_s": round(time.time(), 3)}
        if isinstance(found, Unavailable):
            line["unavailable"] = found.reason
        else:
            estimated = found.why.startswith(_ESTIMATED)
            line |= {"g_per_kwh": found.g_per_kwh, "zone": found.location, "kind": found.kind, "estimated": estimated}
        try:
            append_intensity(self._run, line)
        except RunFolderError:
            self._stopped.set()  # a full disk stops the training soon enough, with a better message
