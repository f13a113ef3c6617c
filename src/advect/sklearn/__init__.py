"""Flows as scikit-learn estimators."""

from advect.sklearn.model import FlowModel as FlowModel
