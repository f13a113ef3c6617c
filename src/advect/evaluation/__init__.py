"""How good a trained flow is: quality against cost, fidelity to the class asked for, memorisation."""

from advect.evaluation.class_accuracy import Fidelity as Fidelity
from advect.evaluation.class_accuracy import SeenShares as SeenShares
from advect.evaluation.class_accuracy import measure_fidelity as measure_fidelity
from advect.evaluation.class_accuracy import measure_shares as measure_shares
from advect.evaluation.feature_network import FeatureNetwork as FeatureNetwork
from advect.evaluation.features import Features as Features
from advect.evaluation.memorisation import Memorisation as Memorisation
from advect.evaluation.memorisation import measure_memorisation as measure_memorisation
from advect.evaluation.scores import measure_feature_marginals as measure_feature_marginals
from advect.evaluation.study import Quality as Quality
from advect.evaluation.study import draw_trajectories as draw_trajectories
from advect.evaluation.study import measure_quality as measure_quality
from advect.evaluation.study import study as study
from advect.evaluation.subsampling import Flow as Flow
from advect.evaluation.subsampling import conditions_like as conditions_like
from advect.evaluation.workspace import ReferenceCache as ReferenceCache
