"""Evaluation of trained flows: samples against held-out data, in feature space."""

from typing import TYPE_CHECKING

from advect.core.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from advect.evaluation.evaluator import Evaluator as Evaluator
    from advect.evaluation.feature_network import FeatureNetwork as FeatureNetwork
    from advect.evaluation.features import FeatureSpace as FeatureSpace
    from advect.evaluation.protocol import EvalConfig as EvalConfig
    from advect.evaluation.workspace import ReferenceCache as ReferenceCache
else:
    __getattr__, __dir__ = lazy_imports(__name__)
