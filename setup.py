"""llmstack: the whole life of a language model in JAX.

Nothing here asks for a TPU or CUDA wheel: `jax` installs its CPU build, and the extras `tpu` and
`cuda` are the only way to another one.
"""

from setuptools import find_packages, setup

JAX = 'jax>=0.10.2,<0.13'

setup(
  name='llmstack',
  version='0.1.0',
  description='The whole life of a language model in JAX: one alphabet, one linear, one step.',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=find_packages(include=['llmstack', 'llmstack.*']),
  package_data={'llmstack.report': ['*.html', '*.css', '*.js'], 'llmstack.serve': ['*.html', '*.css', '*.js']},
  install_requires=[
    JAX,
    'flax>=0.12.8,<0.14',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8,<0.13',
    'grain>=0.2.18',
    'sentencepiece>=0.2.1',
    'ml-collections>=1.1.0',
    'absl-py',
    'numpy>=2',
    'fsspec',
    'zstandard',
    'pyarrow',
    'tensorboardX>=2.6.5',
  ],
  extras_require={
    'plot': ['matplotlib>=3.10'],
    'data': [
      'daft>=0.7.26,<0.8',
      'scipy',
      'fastwarc>=2,<3',
      'resiliparse>=2,<3',
      'ftfy',
      'rapidfuzz',
      'tokenizers',
    ],
    'ray': ['daft[ray]>=0.7.26,<0.8'],
    'hf': ['huggingface_hub', 'jinja2'],
    'rewards': ['math-verify[antlr4_13_2]>=0.9'],
    's3': ['s3fs'],
    'gcs': ['gcsfs'],
    'tpu': ['jax[tpu]>=0.10.2,<0.13'],
    'cuda': ['jax[cuda13]>=0.10.2,<0.13'],
    'dev': ['jinja2', 'setuptools>=77', 'pytest>=9', 'pytest-xdist', 'ruff', 'matplotlib>=3.10'],
  },
  entry_points={'console_scripts': ['llmstack = llmstack.main:cli']},
)
