"""Flows as scikit-learn estimators."""

from advect.sklearn.imputer import FlowImputer as FlowImputer
from advect.sklearn.model import FlowModel as FlowModel
