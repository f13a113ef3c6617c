"""Numbers that compare sets of samples; nothing here knows of flows or runs."""

from advect.metrics.columns import association_error as association_error
from advect.metrics.columns import associations as associations
from advect.metrics.columns import column_gaps as column_gaps
from advect.metrics.frechet import GaussianFit as GaussianFit
from advect.metrics.frechet import frechet_distance as frechet_distance
from advect.metrics.kernels import energy_distance as energy_distance
from advect.metrics.kernels import median_distance as median_distance
from advect.metrics.kernels import rbf_mmd as rbf_mmd
from advect.metrics.marginals import correlation_error as correlation_error
from advect.metrics.marginals import kolmogorov_smirnov as kolmogorov_smirnov
from advect.metrics.marginals import mean_r2 as mean_r2
from advect.metrics.marginals import variance_r2 as variance_r2
from advect.metrics.marginals import zero_share as zero_share
from advect.metrics.neighbours import Neighbours as Neighbours
from advect.metrics.neighbours import nearest_neighbours as nearest_neighbours
from advect.metrics.samples import check_samples as check_samples
from advect.metrics.wasserstein import sliced_wasserstein as sliced_wasserstein
from advect.metrics.wasserstein import wasserstein as wasserstein
from advect.metrics.within import within as within
