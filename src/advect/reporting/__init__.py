"""Reports of runs, and sample grids during training."""

from typing import TYPE_CHECKING

from advect.core.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from advect.reporting.page import write_report as write_report
else:
    __getattr__, __dir__ = lazy_imports(__name__)
