"""The live source: what is sent, what is believed, and that nothing it does reaches the training."""

import http.client
import io
import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import IO

import pytest

from perjoule.measure.carbon import CarbonConfig, Intensity
from perjoule.measure.carbon.electricity_maps import TOKEN, Poller, fetch, fetch_in_time, open_without_redirects
from perjoule.measure.contract import Unavailable
from perjoule.runs.carbon_series import CARBON, read_carbon_series

ANSWER = {"zone": "DE", "carbonIntensity": 302, "emissionFactorType": "lifecycle", "isEstimated": False}


def answering(body: object) -> Callable[[urllib.request.Request, float], IO[bytes]]:
    return lambda request, timeout_s: io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())


def failing(error: Exception) -> Callable[[urllib.request.Request, float], IO[bytes]]:
    def fail(request: urllib.request.Request, timeout_s: float) -> IO[bytes]:
        raise error

    return fail


def http_error(code: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("https://x", code, "no", Message(), io.BytesIO(b"{}"))


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "secret")


def test_an_answer_becomes_an_intensity_of_consumption() -> None:
    found = fetch("DE", answering(ANSWER))
    assert isinstance(found, Intensity)
    assert (found.g_per_kwh, found.location, found.kind) == (302.0, "DE", "life cycle, consumption")
    assert found.year is None and found.low is None and found.why == "published without a range"


def test_an_estimated_or_direct_value_says_so() -> None:
    found = fetch("DE", answering(ANSWER | {"isEstimated": True, "emissionFactorType": "direct"}))
    assert isinstance(found, Intensity)
    assert found.kind == "direct, consumption" and found.why.startswith("estimated")


def test_only_the_zone_and_the_token_are_sent_over_https() -> None:
    seen: list[tuple[urllib.request.Request, float]] = []

    def opener(request: urllib.request.Request, timeout_s: float) -> IO[bytes]:
        seen.append((request, timeout_s))
        return io.BytesIO(json.dumps(ANSWER).encode())

    fetch("US-CAL-CISO", opener)
    ((request, timeout_s),) = seen
    assert request.full_url == "https://api.electricitymaps.com/v3/carbon-intensity/latest?zone=US-CAL-CISO"
    assert dict(request.header_items()) == {"Auth-token": "secret"} and request.data is None
    assert timeout_s == 5.0


def test_a_token_is_never_sent_without_tls() -> None:
    found = fetch("DE", answering(ANSWER), address="http://api.electricitymaps.com/v3")
    assert isinstance(found, Unavailable) and "is not HTTPS" in found.reason


def test_without_a_token_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN)
    found = fetch("DE", failing(AssertionError("asked")))
    assert isinstance(found, Unavailable)
    assert (found.reason, found.remedy) == (
        "Electricity Maps needs a token",
        "set the environment variable ELECTRICITYMAPS_TOKEN",
    )


@pytest.mark.parametrize(
    ("opener", "reason"),
    [
        (failing(http_error(401)), "Electricity Maps answered 401 for zone DE"),
        (failing(http_error(500)), "Electricity Maps answered 500 for zone DE"),
        (failing(urllib.error.URLError("no route")), "could not be asked about zone DE: no route"),
        (failing(TimeoutError("timed out")), "could not be asked about zone DE: TimeoutError: timed out"),
        (failing(ssl.SSLCertVerificationError(1, "certificate has expired")), "SSLCertVerificationError"),
        (failing(urllib.error.URLError(OSError(113, "No route to host"))), "OSError: No route to host"),
        (failing(http.client.BadStatusLine("hello there")), "could not be asked about zone DE: BadStatusLine: hello"),
        (failing(http.client.IncompleteRead(b"{", 500)), "could not be asked about zone DE: the answer was cut off"),
        (failing(http.client.HTTPException("got more than 100 headers")), "got more than 100 headers"),
        (failing(http.client.LineTooLong("header line")), "when reading header line"),
        (failing(UnicodeError("label too long")), "UnicodeError: label too long"),
        (answering(b"<html>"), "gave no intensity of zone DE: the answer is not JSON (6 B)"),
        (answering(b""), "the answer is not JSON (0 B)"),
        (answering(b"\xff\xfe{"), "the answer is not JSON (3 B)"),
        (answering(b"[" * 60000), "the answer is not JSON"),
        (answering({"zone": "DE"}), "gave no intensity of zone DE: the answer has no carbonIntensity"),
        (answering({"error": "Zone parameter invalid"}), "it says 'Zone parameter invalid'"),
        (answering([1]), "the answer is not a JSON object"),
        (answering({"carbonIntensity": None}), "carbonIntensity is null, not a number"),
        (answering({"carbonIntensity": True}), "carbonIntensity is true, not a number"),
        (answering({"carbonIntensity": "302"}), 'carbonIntensity is "302", not a number'),
        (answering(b'{"carbonIntensity": 1' + b"0" * 400 + b"}"), "says inf g/kWh for zone DE, which no grid has"),
        (answering({"carbonIntensity": -3}), "says -3 g/kWh for zone DE, which no grid has"),
        (answering({"carbonIntensity": float("nan")}), "says NaN g/kWh for zone DE, which no grid has"),
    ],
)
def test_what_goes_wrong_is_a_reason_and_no_error(
    opener: Callable[[urllib.request.Request, float], IO[bytes]], reason: str
) -> None:
    found = fetch("DE", opener)
    assert isinstance(found, Unavailable)
    assert reason in found.reason and "secret" not in found.reason + found.remedy


def test_an_answer_that_names_another_zone_says_so() -> None:
    found = fetch("US-CAL-CISO", answering(ANSWER))
    assert isinstance(found, Intensity)
    assert (found.location, found.why) == ("US-CAL-CISO", "published without a range; the answer names zone DE")


@pytest.mark.parametrize("token", ["sec\nret", "secret…", "sec\x01ret"])
def test_a_token_that_no_header_can_hold_is_named_and_not_shown(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, token)
    found = fetch("DE", failing(AssertionError("asked")))
    assert isinstance(found, Unavailable)
    assert found.reason == "ELECTRICITYMAPS_TOKEN has characters that no token has"


def test_an_error_in_the_thread_that_asks_is_its_own_reason(capfd: pytest.CaptureFixture[str]) -> None:
    def broken(zone: str) -> Unavailable:
        raise http.client.BadStatusLine("x")

    begun_s = time.monotonic()
    found = fetch_in_time("DE", broken, timeout_s=30)
    assert isinstance(found, Unavailable) and found.reason.endswith("about zone DE: BadStatusLine: x")
    assert time.monotonic() - begun_s < 10 and capfd.readouterr().err == ""


def test_a_cut_off_answer_is_told_from_one_that_is_no_json() -> None:
    class Cut(io.BytesIO):
        length = 480

    found = fetch("DE", lambda request, timeout_s: Cut(b'{"carbonIntensity":3'))
    assert isinstance(found, Unavailable) and found.reason.endswith("zone DE: the answer was cut off")
    found = fetch("DE", lambda request, timeout_s: Cut(b" " * 70000))
    assert isinstance(found, Unavailable) and found.reason.endswith("zone DE: the answer is too long")


def test_a_wrong_token_has_a_remedy() -> None:
    found = fetch("DE", failing(http_error(403)))
    assert isinstance(found, Unavailable) and found.remedy == "check ELECTRICITYMAPS_TOKEN and its zones"


class _Redirect(BaseHTTPRequestHandler):
    paths: list[str]

    def do_GET(self) -> None:
        self.paths.append(self.path)
        self.send_response(302)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


def test_a_redirect_is_refused_so_that_the_token_stays_here() -> None:
    _Redirect.paths = []
    with HTTPServer(("127.0.0.1", 0), _Redirect) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        there = urllib.request.Request(f"http://127.0.0.1:{server.server_port}/first")
        found = fetch("DE", lambda request, timeout_s: open_without_redirects(there, timeout_s))
        server.shutdown()
        thread.join(5)
    assert isinstance(found, Unavailable) and "answered 302" in found.reason
    assert _Redirect.paths == ["/first"]


def test_a_start_does_not_wait_for_a_silent_service() -> None:
    release = threading.Event()

    def silent(zone: str) -> Unavailable:
        release.wait(10)
        return Unavailable(zone)

    found = fetch_in_time("DE", silent, timeout_s=0.05)
    release.set()
    assert isinstance(found, Unavailable) and found.reason == "Electricity Maps did not answer within 0.05 s"


def test_a_live_config_begins_with_what_it_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN)
    config = CarbonConfig(source="electricity_maps", zone="DE")
    found = config.resolve()
    poller = config.follow(tmp_path, found)
    assert isinstance(found, Unavailable) and poller is not None
    poller.stop()
    assert read_carbon_series(tmp_path).failures == ("Electricity Maps needs a token",)


def _wait_until(done: Callable[[], bool]) -> None:
    for _ in range(500):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened in five seconds")


def test_a_poller_writes_values_and_failures_until_it_is_stopped(tmp_path: Path) -> None:
    first = fetch("DE", answering(ANSWER))
    answers = iter(
        [fetch("DE", answering(ANSWER | {"carbonIntensity": 310, "isEstimated": True})), Unavailable("down")]
    )

    def next_answer() -> Intensity | Unavailable:
        return next(answers)  # ends with StopIteration, which must not end the poller

    poller = Poller(tmp_path, next_answer, first, every_s=0.01)
    _wait_until(lambda: len(read_carbon_series(tmp_path).failures) >= 3)
    poller.stop()
    series = read_carbon_series(tmp_path)
    assert series.g_per_kwh.tolist() == [302, 310] and series.zone == "DE" and series.num_estimated == 1
    assert series.failures[0] == "down" and series.failures[1].startswith("StopIteration")
    size = (tmp_path / CARBON).stat().st_size
    time.sleep(0.05)
    assert (tmp_path / CARBON).stat().st_size <= size + 200, "at most what was under way is written after the stop"


def test_a_folder_that_is_gone_ends_the_poller_and_nothing_else(tmp_path: Path) -> None:
    calls: list[int] = []

    def count() -> Unavailable:
        calls.append(1)
        return Unavailable("x")

    Poller(tmp_path / "gone", count, Unavailable("x"), every_s=0.001)
    time.sleep(0.05)
    assert not calls
