"""How samples are drawn."""

from advect.sampling.guidance import guided_velocity as guided_velocity
from advect.sampling.ode import get_solver as get_solver
from advect.sampling.ode import integrate as integrate
from advect.sampling.solvers import SOLVERS as SOLVERS
from advect.sampling.solvers import Solver as Solver
from advect.sampling.solvers import Velocity as Velocity
