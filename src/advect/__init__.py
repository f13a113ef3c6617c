"""Train, sample and measure flow-matching and score-based generative models on one's own data.

Time runs from noise at t = 0 to data at t = 1; see ``advect.core.types``. Names are loaded when first used,
so ``import advect`` does not wait for PyTorch.
"""

from typing import TYPE_CHECKING

from advect.core.lazy_imports import lazy_imports

__version__ = "0.1.0"

if TYPE_CHECKING:
    from advect import couplings as couplings
    from advect import data as data
    from advect import evaluation as evaluation
    from advect import losses as losses
    from advect import masks as masks
    from advect import metrics as metrics
    from advect import networks as networks
    from advect import paths as paths
    from advect import reporting as reporting
    from advect import solvers as solvers
    from advect import sources as sources
    from advect import times as times
    from advect import training as training
    from advect import weights as weights
    from advect.core.errors import UserError as UserError
    from advect.model.flow import Flow as Flow
    from advect.model.hub import from_pretrained as from_pretrained
    from advect.model.load import load as load
    from advect.sklearn import FlowImputer as FlowImputer
    from advect.sklearn import FlowModel as FlowModel
    from advect.sklearn import FlowPosterior as FlowPosterior
    from advect.sklearn import FlowRegressor as FlowRegressor
    from advect.sklearn import from_simulator as from_simulator
else:
    __getattr__, __dir__ = lazy_imports(__name__)
