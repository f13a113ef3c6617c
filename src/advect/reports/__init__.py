"""Pictures of samples, and the report of a run."""

from advect.reports.grid import image_grid as image_grid
from advect.reports.grid import picture as picture
from advect.reports.grid import save_png as save_png
from advect.reports.html import write_report as write_report
from advect.reports.scatter import scatter_plot as scatter_plot
from advect.reports.series import series_plot as series_plot
from advect.reports.vectors import vector_plot as vector_plot
