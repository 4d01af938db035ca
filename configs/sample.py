"""Text from a checkpoint.

llmstack --config configs/sample.py --workdir runs/world --config.prompt='The capital of France is'
llmstack --config configs/sample.py --workdir runs/world --config.interactive=True     # streams
"""

from ml_collections import ConfigDict, config_dict

from configs import sizes


def get_config():
  c = ConfigDict()
  c.task = 'sample'
  c.seed = 0
  c.step = config_dict.placeholder(int)  # None takes the newest
  c.prompt = 'Once upon a time'
  c.chat = config_dict.placeholder(str)  # None continues the prompt; llmstack | chatml | ...: a user's message
  c.interactive = False  # read prompts from standard input and stream the answers
  c.samples = 1  # completions of the prompt
  c.new_tokens = config_dict.placeholder(int)  # at most; None fills model.length
  c.temperature = 0.8  # 0 = greedy
  c.top_k = config_dict.placeholder(int)  # None keeps all
  c.top_p = 1.0
  c.min_p = 0.0
  c.stop = ()  # strings that end a completion, besides EOS
  c.mesh = sizes.mesh()
  return c
