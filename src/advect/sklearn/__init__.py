"""Flows as scikit-learn estimators."""

from advect.sklearn.imputer import FlowImputer as FlowImputer
from advect.sklearn.model import FlowModel as FlowModel
from advect.sklearn.posterior import FlowPosterior as FlowPosterior
from advect.sklearn.regressor import FlowRegressor as FlowRegressor
from advect.sklearn.simulate import from_simulator as from_simulator
