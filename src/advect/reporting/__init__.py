"""Pictures of samples, and the report of a run."""

from advect.reporting.grid import image_grid as image_grid
from advect.reporting.grid import picture as picture
from advect.reporting.grid import save_png as save_png
from advect.reporting.page import write_report as write_report
from advect.reporting.scatter import scatter_plot as scatter_plot
from advect.reporting.scatter import vector_plot as vector_plot
from advect.reporting.series import series_plot as series_plot
