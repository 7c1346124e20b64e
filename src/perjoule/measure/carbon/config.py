"""Where the electricity of a run is from: a place that the user names, or a figure that they give. Never a guess."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from perjoule.config import Config
from perjoule.core.errors import ConfigError
from perjoule.measure.carbon import table
from perjoule.measure.carbon.intensity import Intensity
from perjoule.measure.carbon.places import canonical
from perjoule.measure.contract import Unavailable

if TYPE_CHECKING:
    from perjoule.measure.carbon.electricity_maps import Poller

NO_LOCATION = "no location given: carbon.location=… or carbon.intensity_g_per_kwh=…"


class CarbonConfig(Config):
    """How energy becomes carbon, water and money."""

    location: str | None = None
    """ISO 3166 code or name of a country (``DEU``, ``DE``, ``Germany``), or a code with a region (``USA-california``,
    ``CAN-quebec``). It is never looked up from the network address; None: carbon is not computed."""
    intensity_g_per_kwh: float | None = Field(default=None, ge=0)
    """Grams of CO2 equivalent per kWh, of a contract or a grid that you know better; it overrides the source."""
    source: Literal["table", "codecarbon", "electricity_maps"] = "table"
    """The table that comes with perjoule, those of an installed CodeCarbon, or the live service of Electricity Maps
    (asked over HTTPS with the token in ELECTRICITYMAPS_TOKEN, at the start and every quarter of an hour)."""
    zone: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9-]{2,20}$",
        json_schema_extra={"accepted": "2 to 20 letters, digits and dashes"},
    )
    """Zone of Electricity Maps, such as ``DE`` or ``US-CAL-CISO``."""
    pue: float = Field(default=1.0, ge=1)
    """Power usage effectiveness: energy of the data centre over energy of its computers; shown beside every figure."""
    water_l_per_kwh: float | None = Field(default=None, ge=0)
    """Litres of water per kWh; None: water is not computed."""
    price_per_kwh: float | None = Field(default=None, ge=0)
    """Price of a kWh in ``currency``; None: cost is not computed."""
    currency: str = Field(default="", max_length=8)
    """Such as ``EUR``; needed with a price."""

    @field_validator("location")
    @classmethod
    def _is_a_place(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must be a place such as DEU or USA-california, or null")
        return None if value is None else canonical(value)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.price_per_kwh is not None and not self.currency:
            raise ValueError("a price needs its currency, such as carbon.currency=EUR")
        if self.intensity_g_per_kwh is not None:
            return self
        if self.source == "electricity_maps" and self.zone is None:
            raise ValueError("source electricity_maps needs a zone, such as carbon.zone=DE or carbon.zone=US-CAL-CISO")
        if self.source == "table" and self.location is not None:
            try:
                table.look_up(self.location)
            except ConfigError as error:
                raise ValueError(f"location {error}") from error
        return self

    def resolve(self) -> Intensity | Unavailable:
        """Return the intensity that a run begins with, or why there is none. Only Electricity Maps asks the network.

        Raises:
            ConfigError: if the place is not in CodeCarbon's tables.
            MissingExtra: if these are asked for and CodeCarbon is not installed.
        """
        if self.intensity_g_per_kwh is not None:
            place, why = self.location or "", "given without a range"
            return Intensity(self.intensity_g_per_kwh, None, None, place, None, "given by the user", "as given", why)
        if self.source == "electricity_maps":
            from perjoule.measure.carbon.electricity_maps import fetch_in_time

            return fetch_in_time(self.zone or "")
        if self.location is None:
            return Unavailable(NO_LOCATION)
        if self.source == "codecarbon":
            from perjoule.measure.carbon.codecarbon_tables import look_up

            return look_up(self.location)
        return table.look_up(self.location)

    def facts(self, resolved: Intensity | Unavailable) -> dict[str, Any]:
        """Return what the manifest says of a segment: the intensity with its source, the factors, or the reason."""
        factors = self.model_dump(include={"pue", "water_l_per_kwh", "price_per_kwh", "currency"})
        if isinstance(resolved, Unavailable):
            return {"unavailable": resolved.reason, **factors}
        return {**resolved.facts(), **factors}

    @property
    def is_live(self) -> bool:
        """Return whether the intensity changes while the run trains, so that a poller has work to do."""
        return self.source == "electricity_maps" and self.intensity_g_per_kwh is None

    def follow(self, run: Path, begins_with: Intensity | Unavailable) -> Poller | None:
        """Start to fetch the intensity into the run folder; None if it does not change. Stop it with ``.stop()``.

        Args:
            run: the run folder.
            begins_with: what :meth:`resolve` returned; the first line of the series.
        """
        if not self.is_live:
            return None
        from perjoule.measure.carbon.electricity_maps import Poller, fetch

        zone = self.zone or ""
        return Poller(run, lambda: fetch(zone), begins_with)
