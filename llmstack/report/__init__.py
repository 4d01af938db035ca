"""One HTML page: what workdirs hold of training, how text was prepared, or what checkpoints answer."""

from llmstack.report.build import collect, page
from llmstack.report.compared import compared
from llmstack.report.prepared import prepared, read_prepared

__all__ = ['collect', 'compared', 'page', 'prepared', 'read_prepared']
