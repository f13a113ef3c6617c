"""What is minimised."""

from typing import TYPE_CHECKING

from advect.core.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from advect.losses.base import Loss as Loss
    from advect.losses.discrete_flow_matching import DiscreteFlowMatching as DiscreteFlowMatching
    from advect.losses.flow_map import Consistency as Consistency
    from advect.losses.flow_map import Eulerian as Eulerian
    from advect.losses.flow_map import ImprovedMeanFlow as ImprovedMeanFlow
    from advect.losses.flow_map import Lagrangian as Lagrangian
    from advect.losses.flow_map import MeanFlow as MeanFlow
    from advect.losses.flow_map import Progressive as Progressive
    from advect.losses.flow_map import Shortcut as Shortcut
    from advect.losses.flow_matching import FlowMatching as FlowMatching
    from advect.losses.flow_matching import rectified_flow as rectified_flow
    from advect.losses.interpolant import StochasticInterpolantLoss as StochasticInterpolantLoss
    from advect.losses.interpolant import score_head as score_head
    from advect.losses.interpolant import velocity_head as velocity_head
    from advect.losses.marginal import MarginalMatching as MarginalMatching
    from advect.losses.score_matching import ScoreMatching as ScoreMatching
    from advect.losses.variational import PosteriorHead as PosteriorHead
    from advect.losses.variational import VariationalFlowMatching as VariationalFlowMatching
else:
    __getattr__, __dir__ = lazy_imports(__name__)
