"""What is minimised."""

from advect.objectives.base import Objective as Objective
from advect.objectives.flow_matching import FlowMatching as FlowMatching
