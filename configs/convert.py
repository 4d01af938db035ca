"""A llama2.c checkpoint as a llmstack checkpoint, ready for configs/sample.py or init_from.

    llmstack --config configs/convert.py --workdir runs/stories260K \
      --config.weights=stories260K.bin --config.tokenizer=tok512.model
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.task = 'convert'
  c.weights = ''  # a llama2.c version-0 .bin
  c.tokenizer = ''  # its SentencePiece .model
  return c
