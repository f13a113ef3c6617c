"""Training loop, optimisers, averages of the weights."""

from advect.checkpoint.manifest import find_checkpoint as find_checkpoint
from advect.checkpoint.manifest import verify_checkpoint as verify_checkpoint
from advect.checkpoint.manifest import write_checkpoint as write_checkpoint
from advect.training.ema import EMA as EMA
from advect.training.guards import StopCriteria as StopCriteria
from advect.training.learning_rate import ConstantRate as ConstantRate
from advect.training.learning_rate import CosineDecay as CosineDecay
from advect.training.learning_rate import LearningRate as LearningRate
from advect.training.learning_rate import RateSchedule as RateSchedule
from advect.training.loader import Loader as Loader
from advect.training.optim import AdamW as AdamW
from advect.training.optim import LossScaler as LossScaler
from advect.training.optim import Muon as Muon
from advect.training.optim import Optimizer as Optimizer
from advect.training.optim import hidden_matrices as hidden_matrices
from advect.training.state import TrainState as TrainState
from advect.training.state import named_params as named_params
from advect.training.trainer import Callback as Callback
from advect.training.trainer import Trainer as Trainer
