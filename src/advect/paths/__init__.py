"""Probability paths from noise (t = 0) to data (t = 1)."""

from advect.paths.affine import AffinePath as AffinePath
from advect.paths.schedules import Coefficients as Coefficients
from advect.paths.schedules import CondOT as CondOT
from advect.paths.schedules import Schedule as Schedule
