"""Flows as scikit-learn estimators."""

from advect.estimator.model import FlowModel as FlowModel
