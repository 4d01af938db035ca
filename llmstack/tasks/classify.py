"""Labelled documents -> a classifier, and how far its scores can be trusted."""

import json
import os

from llmstack import metrics
from llmstack.data import sources
from llmstack.errors import BadInput
from llmstack.tasks import start


def labelled(config):
  """Returns (texts list[str], labels list[int]). Raises: BadInput where a label is missing or another text's."""
  source = sources.Source(tuple(config.files), field=config.field)
  texts, rows = [d.text for d in sources.documents(source)], list(sources.objects(source))
  if config.labels:
    owners, rows = rows, list(sources.objects(sources.Source(tuple(config.labels), field=config.label)))
    if len(rows) != len(owners):
      raise BadInput(
        f'files has {len(owners)} documents and labels has {len(rows)} lines: give one line each, in order'
      )
    for (there, owner), (where, row) in zip(owners, rows):
      if owner.get('id') != row.get('id'):
        raise BadInput(f'{where} has id {row.get("id")!r} and {there} {owner.get("id")!r}: bring them into one order')
  labels = []
  for where, row in rows:
    if config.label not in row:
      raise BadInput(f'{where} has no field {config.label!r}, only {sorted(row)}: set label')
    label = row[config.label]
    if config.positive is None and label not in (0, 1):
      raise BadInput(f'{where}: {config.label} is {label!r}: use 0 and 1, or set positive to the label that is 1')
    labels.append(int(label) if config.positive is None else int(label == config.positive))
  return texts, labels


def show(found, classes):
  """Returns the report as lines."""
  share = found['positive'] / found['documents']
  yield f'{found["documents"]:,} documents, {share:.1%} of them {classes[1]}; out of fold:'
  for name in ('auc', 'log_loss', 'base_log_loss', 'brier', 'calibration_error'):
    yield f'{name.replace("_", " "):24}{found[name]:>10.4f}'
  yield f'\n{"score":12}{"documents":>12}{"mean score":>12}{classes[1]:>12}'
  for low, high, n, mean, share in found['bins']:
    yield f'{low:.1f} to {high:.1f}  {n:>12,}{mean:>12.3f}{share:>12.3f}'
  yield f'\n{"score from":12}{"documents":>12}{"precision":>12}{"recall":>12}'
  for cut, precision, recall, n in found['cuts']:
    yield f'{cut:<12.1f}{n:>12,}{"" if precision is None else format(precision, ".3f"):>12}{recall:>12.3f}'


def run(config, workdir):
  """Writes classifier.npz, calibration.json and calibration.png, and prints the calibration."""
  from llmstack.prepare import classify  # here, so that nothing else needs pyarrow

  if not config.train.l2 > 0 or not 0 < config.report.precision <= 1 or len(config.classes) != 2:
    raise BadInput(
      f'train.l2 = {config.train.l2}, report.precision = {config.report.precision}, classes = {config.classes}: use a '
      'positive number, a share from above 0 to 1, and two names'
    )
  texts, labels = labelled(config)
  how = dict(
    buckets=config.features.buckets, ngrams=config.features.ngrams, l2=config.train.l2, balance=config.train.balance
  )
  found = classify.report(texts, labels, config.report.folds, precision=config.report.precision, **how)
  threshold = found['threshold']
  made = classify.train(texts, labels, classes=config.classes, threshold=0.5 if threshold is None else threshold, **how)
  os.makedirs(workdir, exist_ok=True)
  made.save(os.path.join(workdir, 'classifier.npz'))
  metrics.write(os.path.join(workdir, 'calibration.json'), json.dumps(found, indent=2))
  print('\n'.join(show(found, config.classes)))
  wanted = f'precision {config.report.precision}'
  print(
    f'\nno score has {wanted}: the threshold is 0.5'
    if threshold is None
    else f'\nfrom a score of {threshold:.3f}, {wanted}; recall {found["recall"]:.3f}'
  )
  title = f'Out of fold: AUC {found["auc"]:.3f}, calibration error {found["calibration_error"]:.3f}'
  start.say(metrics.plot_calibration(found['bins'], os.path.join(workdir, 'calibration.png'), title=title))
