"""Pictures of samples, and the report of a run."""

from typing import TYPE_CHECKING

from advect.core.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from advect.reporting.grid import image_grid as image_grid
    from advect.reporting.grid import picture as picture
    from advect.reporting.grid import save_png as save_png
    from advect.reporting.page import write_report as write_report
    from advect.reporting.scatter import scatter_plot as scatter_plot
    from advect.reporting.scatter import vector_plot as vector_plot
    from advect.reporting.series import series_plot as series_plot
else:
    __getattr__, __dir__ = lazy_imports(__name__)
