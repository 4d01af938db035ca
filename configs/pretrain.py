"""Pretraining, from text files to checkpoints.

    llmstack --config configs/pretrain.py:tiny  --workdir runs/tiny     # seconds; the README as data
    llmstack --config configs/pretrain.py:world --workdir runs/world    # `make demo`, after configs/world.py
    LLMSTACK_DATA=DIR llmstack --config configs/pretrain.py:books --workdir runs/books
    llmstack --config configs/pretrain.py:prepared --workdir runs/prepared      # after configs/prepare.py:shared

`books` reads DIR/books/classic_books-*.jsonl.zst, DIR/text/tinystories_*.gz and DIR/text/tinyshakespeare.txt.
Measured on two CPU cores: experiments/README.md.
"""

import os

from ml_collections import ConfigDict, config_dict

from configs import sizes
from llmstack.errors import BadInput


def source(files, *, weight=1.0, field='text', split_on='', holdout=0.01, holdout_by='tail'):
  """Returns one component of the mixture."""
  c = ConfigDict()
  c.files = files  # paths, globs, gs://; or one packed folder (then tokenizer.path is needed, and it has no holdout)
  c.weight = weight  # share of the training tokens, relative
  c.field = field  # of JSON lines and parquet
  c.split_on = split_on  # between documents of a .txt file; '' = one document
  c.holdout = holdout  # share that is never trained on
  c.holdout_by = holdout_by  # document | tail (the end of every document)
  return c


def get_config(size='tiny'):
  if size not in ('tiny', 'world', 'books', 'prepared'):
    raise BadInput(f'configs/pretrain.py knows no size {size!r}: choose tiny, world, books or prepared')
  data = os.environ.get('LLMSTACK_DATA', 'data')
  pick = {'tiny': 0, 'world': 1, 'books': 2, 'prepared': 2}[size]
  c = ConfigDict()
  c.task = 'pretrain'
  c.seed = 0
  c.model = sizes.model(('llama_tiny', 'llama_demo', 'llama_1m')[pick])

  c.model.length = 512 if pick == 2 else c.model.length

  c.mesh = sizes.mesh()

  c.tokenizer = ConfigDict()
  c.tokenizer.path = config_dict.placeholder(str)  # a SentencePiece .model; None trains one
  if size == 'prepared':
    c.tokenizer.path = 'runs/shared-prepared/tokenizer.model'
  c.tokenizer.kind = 'bpe'  # bpe | unigram | char
  c.tokenizer.vocab = (384, 1024, 4096)[pick]
  c.tokenizer.override = False  # take tokenizer.path although the checkpoint was trained with another one

  c.data = ConfigDict()
  c.data.folder = 'runs/rows'  # packed rows, one folder per content; shared between runs
  c.data.length = (64, 128, 512)[pick]  # T, tokens per row
  c.data.batch = (8, 16, 8)[pick]  # rows per step, all devices together
  c.data.packing = 'best_fit'  # best_fit | concat
  c.data.on_error = 'raise'  # raise | skip (counted)
  c.data.plan = config_dict.placeholder(str)  # plan.json of a preparation: weights by stage; None = the sources' own
  c.data.sources = ConfigDict()
  if size == 'tiny':
    c.data.sources.readme = source(('README.md',), holdout=0.1)
  if size == 'world':
    c.data.sources.world = source(('runs/world-text/clean.jsonl',), holdout_by='document')
  if size == 'books':
    c.data.sources.books = source((f'{data}/books/classic_books-*.jsonl.zst',), weight=0.6)
    stories = (f'{data}/text/tinystories_train_sample.txt.gz', f'{data}/text/tinystories_val.jsonl.gz')
    c.data.sources.stories = source(stories, weight=0.3, holdout=0.05, holdout_by='document')
    c.data.sources.shakespeare = source((f'{data}/text/tinyshakespeare.txt',), weight=0.1)
  if size == 'prepared':
    weights = dict(books=0.5, docs=0.25, stories=0.1, code=0.1, text=0.05)
    for name, weight in weights.items():
      c.data.sources[name] = source((f'runs/shared-prepared/shards/{name}',), weight=weight)

  c.optim = ConfigDict()
  c.optim.name = ('adamw', 'muon', 'adamw')[pick]  # adamw | lion | muon | adafactor
  c.optim.lr = (3e-3, 6e-3, 2e-3)[pick]  # peak
  c.optim.b1 = 0.9
  c.optim.b2 = 0.95
  c.optim.eps = 1e-8
  c.optim.weight_decay = 0.1  # on matmul weights and embeddings
  c.optim.clip = 1.0  # global gradient norm; inf for none
  c.optim.schedule = 'cosine'  # constant | linear | cosine | wsd
  c.optim.warmup = (5, 100, 100)[pick]  # steps
  c.optim.decay = 0  # steps at the end, wsd only
  c.optim.end = 0.1  # last learning rate / peak

  c.train = ConfigDict()
  c.train.steps = {'tiny': 20, 'world': 1700, 'books': 3000, 'prepared': 1000}[size]
  c.train.microbatches = 1
  c.train.z_loss = 1e-4  # coefficient of log(Z)^2; 0 for none
  c.train.loss_chunk = config_dict.placeholder(int)  # positions of logits alive at once, divides length; None = all
  c.train.log_every = (1, 20, 20)[pick]  # steps
  c.train.bad_steps = 3  # non-finite updates in a row that end the run
  c.train.spike_sigma = config_dict.placeholder(float)  # skip a loss or norm so far above the last ones; 6, None = off
  c.train.spike_window = 128  # steps that it is compared with
  c.train.tensorboard = True

  c.eval = ConfigDict()
  c.eval.every = (10, 850, 500)[pick]  # steps
  c.eval.rows = (64, 512, 128)[pick]  # at most, per source
  c.eval.prompts = {
    'tiny': ('llmstack is',),
    'world': ('The capital of France is', 'Do you know these?\n\nWhat is', 'One cold day', '7 + 12 ='),
    'books': ('It was a', 'Once upon a time', 'ROMEO:'),
    'prepared': ('It was a', 'Once upon a time', 'ROMEO:', '---\ntitle:', 'import '),
  }[size]
  c.eval.new_tokens = (16, 48, 64)[pick]

  c.runtime = ConfigDict()
  c.runtime.hang_s = 900.0  # without a finished step, evaluation batch or save; longer than any compilation
  c.runtime.grace_s = 120.0  # from SIGTERM to the end, at most

  c.checkpoint = ConfigDict()
  c.checkpoint.every = (10, 850, 500)[pick]  # steps
  c.checkpoint.keep = 3  # newest
  c.checkpoint.keep_every = config_dict.placeholder(int)  # steps; multiples of it are kept for good; None = off
  c.checkpoint.best = config_dict.placeholder(str)  # 'eval/nll': the step with the least is kept too; None = off
  c.checkpoint.resume_from = config_dict.placeholder(str)  # workdir to continue, state and data position
  c.checkpoint.init_from = config_dict.placeholder(str)  # workdir to take parameters from
  return c
