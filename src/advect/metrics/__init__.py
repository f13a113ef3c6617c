"""Numbers that compare sets of samples; nothing here knows of flows or runs."""

from advect.metrics.frechet import GaussianFit as GaussianFit
from advect.metrics.frechet import frechet_distance as frechet_distance
from advect.metrics.neighbours import Neighbours as Neighbours
from advect.metrics.neighbours import nearest_neighbours as nearest_neighbours
from advect.metrics.samples import check_samples as check_samples
