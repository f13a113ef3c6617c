"""Posterior sampling: x given a measurement of it, by a flow that was trained without."""

from advect.solvers.posterior.base import Denoiser as Denoiser
from advect.solvers.posterior.base import GuidedMethod as GuidedMethod
from advect.solvers.posterior.base import LocalDenoiser as LocalDenoiser
from advect.solvers.posterior.base import Observation as Observation
from advect.solvers.posterior.base import PosteriorMethod as PosteriorMethod
from advect.solvers.posterior.base import Reward as Reward
from advect.solvers.posterior.base import conjugate_gradients as conjugate_gradients
from advect.solvers.posterior.base import denoiser_of as denoiser_of
from advect.solvers.posterior.base import get_posterior as get_posterior
from advect.solvers.posterior.base import posterior_sample as posterior_sample
from advect.solvers.posterior.measurements import Blur as Blur
from advect.solvers.posterior.measurements import ColumnSums as ColumnSums
from advect.solvers.posterior.measurements import Differentiable as Differentiable
from advect.solvers.posterior.measurements import Downsample as Downsample
from advect.solvers.posterior.measurements import Linear as Linear
from advect.solvers.posterior.measurements import LinearMeasurement as LinearMeasurement
from advect.solvers.posterior.measurements import Masked as Masked
from advect.solvers.posterior.measurements import Measurement as Measurement
from advect.solvers.posterior.measurements import Through as Through
from advect.solvers.posterior.measurements import as_measurement as as_measurement
