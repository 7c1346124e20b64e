"""From joules to grams of CO2 equivalent: where an intensity comes from, and how a series of them meets the energy."""

from perjoule.measure.carbon.config import CarbonConfig as CarbonConfig
from perjoule.measure.carbon.intensity import Intensity as Intensity
