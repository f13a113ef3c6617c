"""Diagnosis of a machine, data or a run."""

from advect.doctor.examine import examine_data as examine_data
from advect.doctor.examine import examine_machine as examine_machine
from advect.doctor.examine import examine_run as examine_run
from advect.doctor.report import Finding as Finding
