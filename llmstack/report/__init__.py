"""What a workdir holds as one HTML page: training runs, or how their text was prepared."""

from llmstack.report.build import collect, page
from llmstack.report.prepared import prepared, read_prepared

__all__ = ['collect', 'page', 'prepared', 'read_prepared']
