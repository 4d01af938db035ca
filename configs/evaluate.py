"""What a trained model scores: bits per byte of text, multiple choice, answers, and how often it beats another.

    llmstack --config configs/evaluate.py:world --workdir runs/world            # held-out text beside gzip, zstd and xz
    LLMSTACK_DATA=DIR llmstack --config configs/evaluate.py:shared --workdir runs/books --config.limit=200

`shared` asks DIR/evals: ARC, PIQA, HellaSwag, COPA, OpenBookQA, Social IQa, CommonsenseQA, WinoGrande, BoolQ, BLiMP,
LAMBADA. Writes evaluation.json.
"""

import os

from ml_collections import ConfigDict, config_dict

from configs import sizes
from llmstack.errors import BadInput

JOINS = {  # file: what stands between the query and a choice
  'arc_easy_a': '\nAnswer: ', 'arc_challenge_a': '\nAnswer: ', 'piqa_a': 'Answer: ', 'boolq_a': '\nAnswer: ',
  'hellaswag_val1000': ' ', 'copa': ' ', 'openbookqa_a': ' ', 'siqa_a': ' ', 'commonsense_qa_a': ' ',
  'winogrande_a': ' ', 'lambada_openai_a': ' ', 'blimp_a': ' ',
}  # fmt: skip


def text(files, *, field='text', split_on='', holdout=0.0, holdout_by='document'):
  """Returns text to be predicted: of what training held out, or all of it where holdout is 0."""
  c = ConfigDict()
  c.files, c.field, c.split_on, c.holdout, c.holdout_by = files, field, split_on, holdout, holdout_by
  return c


def choices(files, join=' '):
  """Returns questions that are answered by the likelier continuation."""
  c = ConfigDict()
  c.files = files  # .jsonl; the format is known by its fields, see llmstack/data/questions.py
  c.join = join  # between query and choice
  return c


def prompts(files, *, extract='first_line', new_tokens=64):
  """Returns prompts that are answered by generation."""
  c = ConfigDict()
  c.files = files  # .jsonl with prompt + answer, question + answer or input + target
  c.extract = extract  # first_line | number (the last) | a regular expression, of which the first group counts
  c.new_tokens = new_tokens  # at most
  return c


def get_config(size='world'):
  if size not in ('world', 'shared'):
    raise BadInput(f'configs/evaluate.py knows no size {size!r}: choose world or shared')
  data = os.environ.get('LLMSTACK_DATA', 'data')
  c = ConfigDict()
  c.task = 'evaluate'
  c.seed = 0  # of the bootstrap and of sampling
  c.step = config_dict.placeholder(int)  # None takes the newest
  c.batch = 64  # sequences scored or decoded together
  c.limit = config_dict.placeholder(int)  # lines per file, evenly spaced; None = all

  c.text = ConfigDict()
  c.text.window = config_dict.placeholder(int)  # tokens read at once; None = model.length
  c.text.stride = config_dict.placeholder(int)  # tokens scored per window, the rest is context; None = half of it
  c.text.megabytes = 1.0  # of each source, at most
  c.text.sources = ConfigDict()

  c.questions = ConfigDict()
  c.questions.sources = ConfigDict()

  c.prompts = ConfigDict()
  c.prompts.chat = config_dict.placeholder(str)  # template, as in configs/sample.py; None continues the prompt
  c.prompts.temperature = 0.0  # 0 = greedy
  c.prompts.against = config_dict.placeholder(str)  # workdir that answers the same prompts: a win rate is computed
  c.prompts.scorer = 'match'  # match: an answer that is right beats one that is not; or workdir of a reward model
  c.prompts.sources = ConfigDict()

  if size == 'world':
    c.text.sources.world = text(('runs/world-text/clean.jsonl',), holdout=0.01)
  if size == 'shared':
    c.text.sources.shakespeare = text((f'{data}/text/tinyshakespeare.txt',), holdout=0.01, holdout_by='tail')
    c.text.sources.wikitext = text((f'{data}/text/wikitext2_valid.txt.gz',))
    for name, join in JOINS.items():
      c.questions.sources[name] = choices((f'{data}/evals/{name}.jsonl*',), join)
    c.prompts.sources.objects = prompts((f'{data}/evals/bbh/object_counting.jsonl.gz',), extract='number', new_tokens=8)

  c.mesh = sizes.mesh()
  return c
