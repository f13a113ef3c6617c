"""How samples are drawn, and how likely a flow finds data."""

from advect.sampling.adaptive import DormandPrince as DormandPrince
from advect.sampling.diffusions import DIFFUSIONS as DIFFUSIONS
from advect.sampling.diffusions import Diffusion as Diffusion
from advect.sampling.grids import GRIDS as GRIDS
from advect.sampling.grids import t_grid as t_grid
from advect.sampling.guidance import autoguided_velocity as autoguided_velocity
from advect.sampling.guidance import guided_velocity as guided_velocity
from advect.sampling.likelihood import bits_per_dim as bits_per_dim
from advect.sampling.likelihood import dequantise as dequantise
from advect.sampling.likelihood import elementwise_log_det as elementwise_log_det
from advect.sampling.likelihood import log_prob as log_prob
from advect.sampling.likelihood import standard_normal_log_prob as standard_normal_log_prob
from advect.sampling.multistep import AdamsBashforth2 as AdamsBashforth2
from advect.sampling.multistep import DpmPlusPlus2M as DpmPlusPlus2M
from advect.sampling.ode import SOLVERS as SOLVERS
from advect.sampling.ode import Solution as Solution
from advect.sampling.ode import get_solver as get_solver
from advect.sampling.ode import integrate as integrate
from advect.sampling.ode import solve as solve
from advect.sampling.sde import LAST_STEPS as LAST_STEPS
from advect.sampling.sde import SDE_SOLVERS as SDE_SOLVERS
from advect.sampling.sde import integrate_sde as integrate_sde
from advect.sampling.solvers import OneStep as OneStep
from advect.sampling.solvers import Solver as Solver
from advect.sampling.solvers import Velocity as Velocity
