"""A run's workdir as one HTML page: curves, time, samples, checkpoints, configuration."""

from llmstack.report.build import collect, page

__all__ = ['collect', 'page']
