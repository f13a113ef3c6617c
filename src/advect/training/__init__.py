"""The engine: loop, checkpoints, average of the weights."""

from advect.training.adamw import AdamW as AdamW
from advect.training.checkpoint import find_checkpoint as find_checkpoint
from advect.training.checkpoint import verify_checkpoint as verify_checkpoint
from advect.training.checkpoint import write_checkpoint as write_checkpoint
from advect.training.ema import Ema as Ema
from advect.training.hook import Hook as Hook
from advect.training.limits import Limits as Limits
from advect.training.loader import Loader as Loader
from advect.training.muon import Muon as Muon
from advect.training.muon import hidden_matrices as hidden_matrices
from advect.training.scale import LossScale as LossScale
from advect.training.schedule import LearningRate as LearningRate
from advect.training.state import TrainState as TrainState
from advect.training.state import named_params as named_params
from advect.training.trainer import Trainer as Trainer
