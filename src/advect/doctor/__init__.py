"""What is wrong with a machine, with data or with a run, and what to try: figures first, then a verdict on them."""

from advect.doctor.examine import examine_data as examine_data
from advect.doctor.examine import examine_machine as examine_machine
from advect.doctor.examine import examine_run as examine_run
from advect.doctor.report import Finding as Finding
