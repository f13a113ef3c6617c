"""What is minimised."""

from advect.objectives.base import Objective as Objective
from advect.objectives.flow_matching import FlowMatching as FlowMatching
from advect.objectives.flow_matching import rectified_flow as rectified_flow
from advect.objectives.joint import VelocityAndScore as VelocityAndScore
from advect.objectives.joint import score_head as score_head
from advect.objectives.joint import velocity_head as velocity_head
from advect.objectives.marginal import MarginalMatching as MarginalMatching
from advect.objectives.score_matching import ScoreMatching as ScoreMatching
