"""RUN/report.html: what a run did, for a person who did not watch it. Reads a run's files and nothing else."""

from minillm_ray.report.comparison import write_comparison_report
from minillm_ray.report.page import write_report

__all__ = ["write_comparison_report", "write_report"]
