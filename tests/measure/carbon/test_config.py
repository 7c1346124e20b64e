"""Where an intensity comes from, and what is said when it comes from nowhere."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from perjoule.config import Config, resolve
from perjoule.core.errors import ConfigError
from perjoule.measure.carbon import CarbonConfig, Intensity
from perjoule.measure.carbon.places import canonical, countries, country_name
from perjoule.measure.carbon.table import look_up, read_table
from perjoule.measure.contract import Unavailable


class Recipe(Config):
    carbon: CarbonConfig = CarbonConfig()


def resolved(**fields: object) -> Intensity:
    found = CarbonConfig(**fields).resolve()
    assert isinstance(found, Intensity)
    return found


def test_without_a_location_there_is_no_carbon_and_no_default_country() -> None:
    found = CarbonConfig().resolve()
    assert isinstance(found, Unavailable)
    assert found.reason == "no location given: carbon.location=… or carbon.intensity_g_per_kwh=…"
    assert CarbonConfig().facts(found)["unavailable"] == found.reason


def test_a_country_has_its_intensity_with_year_source_and_range() -> None:
    found = resolved(location="DEU")
    assert (found.g_per_kwh, found.location, found.year) == (380.9, "DEU", 2023)
    assert found.low is not None and found.high is not None and found.low < found.g_per_kwh < found.high
    assert "Our World in Data" in found.source and found.kind == "life cycle, production"


def test_a_region_may_be_written_in_any_case() -> None:
    assert resolved(location="usa-California") == resolved(location="USA-california")
    assert resolved(location="USA-california").g_per_kwh == pytest.approx(394.769 * 0.45359237, abs=0.05)


def test_a_source_without_a_range_says_so_instead_of_a_number() -> None:
    found = resolved(location="USA-texas")
    assert (found.low, found.high) == (None, None)
    assert found.why == "the source publishes no range"


def test_quebec_counts_the_life_cycle_of_its_hydropower() -> None:
    found = resolved(location="CAN-quebec")
    assert 20 < found.g_per_kwh < 35, "CodeCarbon's 4 g/kWh count coal, oil and gas only"
    assert "Canada Energy Regulator" in found.source


def test_a_given_intensity_overrides_the_table() -> None:
    found = resolved(location="DEU", intensity_g_per_kwh=12.5)
    assert (found.g_per_kwh, found.source, found.year, found.low) == (12.5, "given by the user", None, None)


@pytest.mark.parametrize(
    ("location", "near"),
    [
        ("Germny", "DEU (Germany)"),
        ("USA-califrnia", "USA-california"),
        ("us-New Yorc", "USA-new-york"),
        ("California", "USA-california"),
        ("England", "GBR (United Kingdom)"),
        ("Korea", "KOR (South Korea)"),
        ("Deutschlan", "DEU (Germany)"),
    ],
)
def test_an_unknown_place_names_the_nearest(location: str, near: str) -> None:
    with pytest.raises(ConfigError, match="is not in the table: did you mean") as caught:
        look_up(location)
    assert near in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("CH", "CHE"),
        ("uk", "GBR"),
        ("EL", "GRC"),
        ("IN", "IND"),
        ("Germany", "DEU"),
        ("Deutschland", "DEU"),
        ("great britain", "GBR"),
        ("United States of America", "USA"),
        ("Viet Nam", "VNM"),
        ("Österreich", "AUT"),
        ("Turkiye", "TUR"),
        ("us-california", "USA-california"),
        ("ca-quebec", "CAN-quebec"),
        (" fra ", "FRA"),
    ],
)
def test_codes_of_two_letters_and_names_mean_the_country(written: str, code: str) -> None:
    found = look_up(written)
    assert found.location == code and resolved(location=written) == found
    given = resolved(location=written, intensity_g_per_kwh=100)
    assert given.location.lower() == code.lower()


@pytest.mark.parametrize("location", ["EU", "XX", "QQQ", "DEUU", "RU", "RUS", "Russia", "North Korea", "GL", "Mars"])
def test_a_place_that_is_not_there_is_never_taken_for_another(location: str) -> None:
    with pytest.raises(ConfigError, match="is not in the table") as caught:
        look_up(location)
    assert "did you mean" not in str(caught.value)


def test_every_country_has_its_two_codes_and_no_name_means_two_countries() -> None:
    found = countries()
    assert len(found) == len({alpha2 for alpha2, _ in found.values()}) == 249
    assert {code for code in read_table() if "-" not in code} <= found.keys()
    assert all(canonical(name) == code == canonical(alpha2) for code, (alpha2, name) in found.items())
    assert country_name("CHE") == "Switzerland" and country_name("XXX") is None
    with pytest.raises(ConfigError, match=r"'RU' \(RUS, Russia\) is not in the table"):
        look_up("RU")


def test_an_unknown_place_in_a_recipe_is_a_mistake_before_training() -> None:
    with pytest.raises(ConfigError, match="carbon: location 'Kebekk' is not in the table"):
        resolve.load(Recipe, None, ["carbon.location=Kebekk"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"location": " "}, "must be a place such as DEU or USA-california, or null"),
        ({"price_per_kwh": 0.3}, "a price needs its currency, such as carbon.currency=EUR"),
        ({"source": "electricity_maps"}, "source electricity_maps needs a zone, such as carbon.zone=DE"),
        ({"pue": 0.9}, "greater than or equal to 1"),
        ({"source": "electricity_maps", "zone": "DE&x=1"}, "should match pattern"),
    ],
)
def test_a_mistake_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CarbonConfig(**fields)


def test_the_facts_hold_the_intensity_and_the_factors() -> None:
    config = CarbonConfig(location="FRA", pue=1.2, water_l_per_kwh=1.8, price_per_kwh=0.25, currency="EUR")
    facts = config.facts(config.resolve())
    assert facts["g_per_kwh"] == 56.0 and facts["location"] == "FRA" and facts["year"] == 2023
    assert (facts["pue"], facts["water_l_per_kwh"], facts["price_per_kwh"], facts["currency"]) == (
        1.2,
        1.8,
        0.25,
        "EUR",
    )


def test_only_a_live_source_is_followed(tmp_path: Path) -> None:
    config = CarbonConfig(location="DEU")
    assert config.follow(tmp_path, config.resolve()) is None
    assert not CarbonConfig(source="electricity_maps", zone="DE", intensity_g_per_kwh=10).is_live


def test_every_row_of_the_table_is_dated_sourced_and_plausible() -> None:
    table = read_table()
    regions = [key for key in table if "-" in key]
    assert len(table) - len(regions) >= 60 and len(regions) >= 40
    for name, entry in table.values():
        assert name and entry.source and entry.year in {2022, 2023}
        assert 0 < entry.g_per_kwh < 1000
        assert (entry.low is None) == (entry.high is None)
        if entry.low is not None and entry.high is not None:
            assert 0 < entry.low <= entry.g_per_kwh <= entry.high < 1100
