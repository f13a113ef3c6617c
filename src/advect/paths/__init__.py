"""Probability paths from noise (t = 0) to data (t = 1)."""

from typing import TYPE_CHECKING

from advect.core.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from advect.paths import convert as convert
    from advect.paths.affine import AffinePath as AffinePath
    from advect.paths.analytic import AnalyticMarginals as AnalyticMarginals
    from advect.paths.analytic import FiniteData as FiniteData
    from advect.paths.analytic import GaussianMixture as GaussianMixture
    from advect.paths.base import Path as Path
    from advect.paths.bridge import BrownianBridge as BrownianBridge
    from advect.paths.interpolant import InterpolantPath as InterpolantPath
    from advect.paths.mixture import MixturePath as MixturePath
    from advect.paths.rescheduling import ScheduleMap as ScheduleMap
    from advect.paths.rescheduling import change_schedule as change_schedule
    from advect.paths.rescheduling import schedule_map as schedule_map
    from advect.paths.schedules import Coefficients as Coefficients
    from advect.paths.schedules import CondOT as CondOT
    from advect.paths.schedules import LipmanOT as LipmanOT
    from advect.paths.schedules import Polynomial as Polynomial
    from advect.paths.schedules import Schedule as Schedule
    from advect.paths.token_laws import MarkovChain as MarkovChain
    from advect.paths.token_laws import ProductMixture as ProductMixture
    from advect.paths.token_laws import TokenLaw as TokenLaw
    from advect.paths.variance_preserving import BetaLinear as BetaLinear
    from advect.paths.variance_preserving import Cosine as Cosine
    from advect.paths.variance_preserving import Trigonometric as Trigonometric
    from advect.paths.variance_preserving import VariancePreserving as VariancePreserving
else:
    __getattr__, __dir__ = lazy_imports(__name__)
