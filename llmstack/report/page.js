// Draws the curves of training runs; draw.js comes before. The view lives in the address's hash, so
// that a link shows what its sender saw: #x=tokens&log=1&logx=1&smooth=0.8&acc=1&off=run/train&off=..&from=..&to=..&step=500.
const runs = data.runs
const single = runs.length === 1
const view = { x: 'step', log: false, logx: false, smooth: 0.6, acc: false, off: new Set(), from: null, to: null, step: null, all: false }
const charts = []
let cursor = null // x of the crosshair, in units of the x axis

// ---------------------------------------------------------------- nodes and words
const exactClock = (s) => {
  const t = Math.round(s)
  const two = (n) => String(n).padStart(2, '0')
  return `${Math.floor(t / 3600)}:${two(Math.floor(t / 60) % 60)}:${two(t % 60)}`
}
const ago = (s) => (s < 5400 ? `${Math.max(1, Math.round(s / 60))} min` : s < 129600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`)
const sources = [...new Set(runs.flatMap((r) => Object.keys(r.eval)))]
const lastFinite = (list) => last(list.filter((v) => v !== null))

// ---------------------------------------------------------------- axes
const AXES = {
  step: { name: 'step', say: (v) => `step ${whole(v)}` },
  tokens: { name: 'tokens seen', say: (v) => `${short(v)} tokens` },
  time: { name: 'training time', say: exactClock, steps: [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400] },
}

// A step of a run in units of the x axis; between logged steps by interpolation.
function place(run, step) {
  if (view.x === 'step') return step
  const s = run.at.step, v = run.at[view.x]
  let a = 0, b = s.length - 1
  if (step <= s[0]) return v[0] * (step / s[0])
  if (step >= s[b]) return v[b]
  while (b - a > 1) { const m = (a + b) >> 1; if (s[m] <= step) a = m; else b = m }
  return v[a] + ((v[b] - v[a]) * (step - s[a])) / (s[b] - s[a])
}

const timeTick = (v, hi) => (hi < 180 ? `${Number(v.toPrecision(3))} s` : hi < 10800 ? `${Number((v / 60).toPrecision(3))} min` : hi < 259200 ? `${Number((v / 3600).toPrecision(3))} h` : `${Number((v / 86400).toPrecision(3))} d`)

// Exponential average over both sides, so that a smoothed curve does not lag. It looks no further ahead than it can
// look back: a steep start keeps its height. A gap stays a gap.
function smooth(values, w) {
  const reach = Math.ceil(Math.log(1e-3) / Math.log(w))
  return values.map((v, i) => {
    if (v === null) return null
    let sum = v, weight = 1, f = w
    for (let k = 1; k <= Math.min(i, reach); k++, f *= w) {
      for (const x of [values[i - k], values[i + k]]) if (x !== null && x !== undefined) { sum += f * x; weight += f }
    }
    return sum / weight
  })
}

// ---------------------------------------------------------------- marks of the sources
const SHAPES = ['circle', 'square', 'triangle', 'diamond', 'cross', 'bar']
function shape(kind, x, y, r, cls) {
  const d = {
    square: `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    triangle: `M${x} ${y - 1.25 * r}l${1.2 * r} ${2.2 * r}h${-2.4 * r}z`,
    diamond: `M${x} ${y - 1.35 * r}l${1.35 * r} ${1.35 * r}l${-1.35 * r} ${1.35 * r}l${-1.35 * r} ${-1.35 * r}z`,
    cross: `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}`,
    bar: `M${x - r} ${y}h${2 * r}`,
  }[kind]
  return d ? svg('path', { d, class: cls }) : svg('circle', { cx: x, cy: y, r, class: cls })
}
const dash = (s) => (s.look.includes('dash') ? s.look.split(' ')[1] : '')
const mark = (name) => SHAPES[sources.indexOf(name) % SHAPES.length]
const key = (s) => {
  const node = svg('svg', { width: 22, height: 12, class: `key ${s.look.split(' ')[0]}`, 'aria-hidden': 'true' })
  node.append(svg('path', { d: 'M1 6H21', class: `${s.mark ? 'held-line' : 'main'} ${dash(s)}` }))
  if (s.mark) node.append(shape(s.mark, 11, 6, 3.2, 'mark'))
  return node
}

// ---------------------------------------------------------------- the series
const trainKey = (run) => (online(run) ? 'reward' : 'nll' in run.train ? 'nll' : 'loss')
const online = (run) => 'reward' in run.train // it learns from rewards: its loss says nothing, and its reward everything
const heroSeries = (rewards) => () => {
  const out = []
  runs.forEach((run, i) => {
    if (online(run) !== rewards) return
    const name = view.acc && !rewards ? 'accuracy' : trainKey(run)
    if (run.train[name]) out.push({ id: `${run.name}/train`, run, part: 'train', label: single ? 'train' : `${run.name} · train`, look: look(i), smooth: true, ...run.train[name] })
    Object.entries(run.eval).forEach(([source, columns], j) => {
      const c = columns[rewards ? 'reward' : view.acc ? 'accuracy' : 'nll']
      if (!c || !c.v.some((v) => v !== null)) return
      out.push({ id: `${run.name}/${source}`, run, part: source, label: single ? source : `${run.name} · ${partName(run, source)}`, look: single ? look(j + 1) : look(i), mark: mark(source), ...c })
    })
  })
  return out
}
const partName = (run, part) => (part !== 'train' && Object.keys(run.eval).length === 1 ? 'held out' : part)
const off = (s) => view.off.has(s.run.name) || view.off.has(s.id)

const SMALL = [
  ['grad_norm', 'Gradient norm', 'before clipping', { ref: 'clip' }],
  ['update_norm', 'Update norm', '', {}],
  ['param_norm', 'Parameter norm', '', {}],
  ['update_ratio', 'Update / weights', '', {}],
  ['lr', 'Learning rate', '', { plain: true, zero: true }],
  ['tokens_per_s', 'Throughput', 'tokens / s', { plain: true, zero: true }],
  ['mfu', 'Model FLOPs utilisation', 'of peak', { plain: true, zero: true, percent: true }],
  ['input_share', 'Waiting for input', 'share of time', { plain: true, zero: true, percent: true }],
]
const share = { plain: true, zero: true, percent: true }
// What is said of learning from rewards, beside the reward itself: [columns that share a panel], title, unit, options.
const ONLINE = [
  [['kl'], 'KL to the reference', 'nats per completion', { plain: true, zero: true }],
  [['entropy'], 'Entropy', 'nats per token', { plain: true, zero: true }],
  [['length'], 'Length', 'tokens', { plain: true, zero: true }],
  [['ended', 'eos_rate'], 'EOS rate', 'of completions', share],
  [['clip_low', 'clip_high', 'value_clip'], 'Clipped', 'of tokens', share],
  [['old_kl'], 'KL to the sampler', 'nats per token', { plain: true }],
  [['ratio'], 'Ratio to the sampler', 'mean', { plain: true }],
  [['gate'], 'Sampler and learner', '|Δ log-prob|', {}],
  [['reward_std'], 'Spread of rewards', 'std', { plain: true, zero: true }],
  [['agreement'], 'Agreement with gold', 'of pairs', share],
  [['same'], 'Groups of one reward', 'of groups', share],
  [['dropped'], 'Groups left out', 'count', { plain: true, zero: true }],
  [['failed'], 'Rewards that failed', 'completions', { plain: true, zero: true }],
  [['value'], 'Value', 'mean', { plain: true }],
  [['value_error'], 'Error of the value', '', { plain: true, zero: true }],
  [['kl_beta'], 'Weight of the KL', '', { plain: true, zero: true }],
  [['loss'], 'Loss of the policy', '', { plain: true }],
]
const WORDS = { clip_low: 'below', clip_high: 'above', value_clip: 'value' }
const KNOWN = new Set([...SMALL.map((s) => s[0]), ...ONLINE.flatMap((s) => s[0]), 'nll', 'accuracy', 'seconds', 'eval_s', 'save_s'])
function column(run, name) {
  if (name !== 'update_ratio') return run.train[name]
  const u = run.train.update_norm, p = run.train.param_norm
  return u && p && u.v.length === p.v.length ? { s: u.s, v: u.v.map((x, i) => (x === null || !p.v[i] ? null : x / p.v[i])) } : undefined
}
const smallSeries = (name) => () => runs.flatMap((run, i) => {
  const c = column(run, name)
  return c ? [{ id: `${run.name}/${name}`, run, label: run.name, look: look(i), smooth: !['lr', 'param_norm'].includes(name), ...c }] : []
})

const part = (name) => name.replace(/^reward\//, '')
// Lines of one panel that belong to one run: told apart by colour where there is one run, by dashes where there are more.
const among = (i, j) => (single ? look(j) : `r${i % 6} ${j ? `dash${1 + ((j - 1) % 3)}` : ''}`)
const said = (run, word) => (single ? word : `${run.name} · ${word}`)
const panelSeries = (names) => () => runs.flatMap((run, i) => {
  if (!online(run)) return []
  const has = names.filter((name) => run.train[name])
  return has.map((name, j) => ({ id: `${run.name}/${name}`, run, label: has.length > 1 ? said(run, WORDS[name] || part(name)) : run.name, look: among(i, j), smooth: true, ...run.train[name] }))
})
const isPart = (name) => name.startsWith('reward/')
const parts = (run) => ['reward', ...Object.keys(run.train).filter(isPart)]
const partsSeries = () => runs.flatMap((run, i) => (online(run) ? parts(run).map((name, j) => {
  const weight = run.weights[part(name)]
  const word = name === 'reward' ? 'all together' : weight === 0 ? `${part(name)}, only watched` : weight === undefined || weight === 1 ? part(name) : `${part(name)} × ${significant(weight)}`
  return { id: `${run.name}/part/${name}`, run, label: said(run, word), look: among(i, j), smooth: true, ...run.train[name] }
}) : []))
const goldSeries = () => runs.flatMap((run, i) => (run.gold && run.train[run.gold] ? [
  { id: `${run.name}/against/reward`, run, label: said(run, 'reward, which it learns from'), look: among(i, 0), smooth: true, ...run.train.reward },
  { id: `${run.name}/against/gold`, run, label: said(run, `${part(run.gold)}, which counts`), look: among(i, Math.max(1, parts(run).indexOf(run.gold))), smooth: true, right: true, ...run.train[run.gold] },
] : []))
const heldSeries = () => runs.flatMap((run, i) => Object.entries(run.eval).flatMap(([source, columns]) => Object.keys(columns).filter(isPart).map((name) => {
  const bounds = columns[`low/${part(name)}`] ? { lo: columns[`low/${part(name)}`].v, hi: columns[`high/${part(name)}`].v } : {}
  return { id: `${run.name}/${source}/${name}`, run, label: said(run, Object.keys(run.eval).length > 1 ? `${source}: ${part(name)}` : part(name)), look: among(i, Math.max(1, parts(run).indexOf(name))), mark: mark(source), ...columns[name], ...bounds }
})))

// ---------------------------------------------------------------- one chart
// Series with `right` are measured on an axis of their own; `keys` names the lines below the title.
function chart(parent, { title, unit, series, height, hero, zero, plain, ref, keys, percent: share }) {
  const readout = el('span', { class: 'readout', 'aria-hidden': 'true' })
  const heading = el('h3', {}, title(), el('span', { class: 'unit' }, unit()))
  const plot = svg('svg', { class: 'plot', role: 'img', tabindex: 0 })
  const tip = hero ? el('div', { class: 'tip', hidden: '' }) : null
  const names = keys ? el('div', { class: 'lines', 'aria-hidden': 'true' }) : null
  const figure = el('figure', {}, el('figcaption', {}, heading, readout), names, plot, tip)
  parent.append(figure)
  const id = `clip${charts.length}`
  let lines = [], X = null, Y = null, inverse = null, box = null, range = null, over = null

  function draw() {
    const W = Math.max(260, figure.clientWidth), wide = W > 640
    const H = hero ? Math.max(260, Math.min(430, W * 0.46)) : height
    const log = view.log && !plain
    heading.firstChild.textContent = title()
    heading.lastChild.textContent = unit()
    lines = series().filter((s) => !off(s)).map((s) => {
      const x = s.s.map((k) => place(s.run, k))
      const y = s.smooth && view.smooth ? smooth(s.v, view.smooth) : s.v
      return { ...s, x, y }
    })
    const logx = view.logx
    let x0 = Infinity, x1 = -Infinity
    // All charts share one x range, so that the crosshair is at one moment in all of them.
    for (const run of runs) if (!view.off.has(run.name)) for (const k of [run.at.step[0], last(run.at.step)]) { const x = place(run, k); x0 = Math.min(x0, x); x1 = Math.max(x1, x) }
    if (!logx) x0 = Math.min(0, x0)
    if (view.from !== null) [x0, x1] = [view.from, view.to]
    if (!(x1 > x0)) [x0, x1] = x0 < Infinity ? [logx ? x0 / 2 : 0, x0 * 2 || 1] : [logx ? 1 : 0, 10]
    range = [x0, x1]
    if (names) names.replaceChildren(...lines.map((s) => el('span', { class: s.look }, key(s), s.label, s.right ? ' (axis on the right)' : null)))
    const extent = (some) => {
      let y0 = Infinity, y1 = -Infinity
      const see = (v) => { if (v !== null && v !== undefined && (!log || v > 0)) { y0 = Math.min(y0, v); y1 = Math.max(y1, v) } }
      for (const s of some) s.x.forEach((x, i) => { if (x >= x0 && x <= x1) { see(s.v[i]); see(s.y[i]); if (s.lo) { see(s.lo[i]); see(s.hi[i]) } } })
      if (y0 > y1) [y0, y1] = log ? [0.1, 1] : [0, 1]
      if (zero) y0 = Math.min(0, y0)
      if (y1 - y0 <= 1e-9 * Math.max(Math.abs(y0), Math.abs(y1))) [y0, y1] = log ? [y0 / 1.5, y1 * 1.5] : [y0 - (Math.abs(y0) * 0.1 || 1), y1 + (Math.abs(y1) * 0.1 || 1)]
      if (log) { const f = (y1 / y0) ** 0.04; y0 /= f; y1 *= f } else { const f = (y1 - y0) * 0.05; y1 += f; if (!zero) y0 -= f }
      return [y0, y1]
    }
    const [y0, y1] = extent(lines.filter((s) => !s.right))
    const right = lines.filter((s) => s.right)
    const refs = ref ? [...new Map(runs.filter((r) => !view.off.has(r.name) && r[ref]).map((r) => [r[ref], r])).keys()] : []
    const labels = hero && wide
    box = { l: 46, r: labels ? 24 + 6.6 * Math.max(4, ...lines.map((s) => Math.min(26, s.label.length))) : right.length ? 46 : 10, t: 10, b: hero ? 38 : 24 }
    const w = W - box.l - box.r, h = H - box.t - box.b
    const lx = logx ? Math.log : (v) => v, ly = log ? Math.log : (v) => v
    X = (v) => box.l + (w * (lx(v) - lx(x0))) / (lx(x1) - lx(x0))
    const axis = (lo, hi) => (v) => box.t + h - (h * (ly(v) - ly(lo))) / (ly(hi) - ly(lo))
    Y = axis(y0, y1)
    const [z0, z1] = extent(right)
    for (const s of lines) s.Y = s.right ? axis(z0, z1) : Y
    inverse = (px) => { const t = lx(x0) + ((lx(x1) - lx(x0)) * (px - box.l)) / w; return logx ? Math.exp(t) : t }

    const edge = view.from === null ? 5 : 0 // room for half a mark at the last step
    plot.replaceChildren()
    plot.setAttribute('viewBox', `0 0 ${W} ${H}`)
    plot.append(svg('defs', {}, svg('clipPath', { id }, svg('rect', { x: box.l - edge, y: box.t - 5, width: w + 2 * edge, height: h + 6 }))))
    const say = (t) => (share ? `${Number((100 * t).toPrecision(3))} %` : Math.abs(t) >= 10000 ? short(t) : significant(t, 4))
    for (const t of ticks(y0, y1, hero ? 6 : 4, log)) {
      plot.append(svg('line', { class: 'grid', x1: box.l, x2: box.l + w, y1: Y(t), y2: Y(t) }))
      plot.append(svg('text', { x: box.l - 7, y: Y(t) + 4, 'text-anchor': 'end' }, say(t)))
    }
    if (right.length) for (const t of ticks(z0, z1, 4, log)) plot.append(svg('text', { class: `right ${right.length > 1 ? '' : right[0].look}`, x: box.l + w + 7, y: right[0].Y(t) + 4 }, say(t)))
    const xt = ticks(x0, x1, Math.max(3, Math.min(8, Math.floor(w / 90))), logx, AXES[view.x].steps)
    for (const t of xt) {
      plot.append(svg('line', { class: 'axis', x1: X(t), x2: X(t), y1: box.t + h, y2: box.t + h + 4 }))
      plot.append(svg('text', { x: X(t), y: box.t + h + 17, 'text-anchor': 'middle' }, view.x === 'time' ? timeTick(t, x1) : short(t)))
    }
    plot.append(svg('line', { class: 'axis', x1: box.l, x2: box.l + w, y1: box.t + h, y2: box.t + h }))
    if (hero) plot.append(svg('text', { x: box.l + w / 2, y: H - 3, 'text-anchor': 'middle' }, AXES[view.x].name + (logx ? ', log scale' : '')))
    const inside = svg('g', { 'clip-path': `url(#${id})` })
    for (const v of refs) if (v < y1 && v > y0) inside.append(svg('line', { class: 'ref', x1: box.l, x2: box.l + w, y1: Y(v), y2: Y(v) }, svg('title', {}, `clipped at ${v}`)))
    const path = (xs, ys, Y) => {
      let d = '', pen = 'M'
      xs.forEach((x, i) => {
        const y = ys[i]
        if (y === null || (log && y <= 0) || (logx && x <= 0)) { pen = 'M'; return }
        d += `${pen}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`
        pen = 'L'
      })
      return d
    }
    // A point between two gaps is a line of no length: it needs a dot of its own.
    const alone = (s) => s.x.filter((x, i) => s.y[i] !== null && (s.y[i - 1] ?? null) === null && (s.y[i + 1] ?? null) === null).length
    for (const s of lines) {
      const g = svg('g', { class: s.look.split(' ')[0], 'data-id': s.id }) // marks have no dashes
      if (s.lo) {
        const keep = s.x.map((_, i) => i).filter((i) => s.lo[i] !== null && (!log || s.lo[i] > 0))
        const up = keep.map((i) => `${X(s.x[i]).toFixed(1)} ${s.Y(s.hi[i]).toFixed(1)}`), down = keep.map((i) => `${X(s.x[i]).toFixed(1)} ${s.Y(s.lo[i]).toFixed(1)}`).reverse()
        if (keep.length) g.append(svg('path', { class: 'band', d: `M${up.concat(down).join('L')}Z` }))
      } else if (s.y !== s.v) g.append(svg('path', { class: 'raw', d: path(s.x, s.v, s.Y) }))
      g.append(svg('path', { class: `${s.mark ? 'held-line' : 'main'} ${dash(s)}`, d: path(s.x, s.y, s.Y), 'data-points': s.y.filter((v) => v !== null).length }))
      if (s.mark) { if (s.x.length <= 60) s.x.forEach((x, i) => { if (s.y[i] !== null && (!log || s.y[i] > 0)) g.append(shape(s.mark, X(x), s.Y(s.y[i]), 3.1, 'mark')) }) }
      else if (alone(s)) s.x.forEach((x, i) => { if (s.y[i] !== null && (!log || s.y[i] > 0)) g.append(svg('circle', { class: 'dot', cx: X(x), cy: s.Y(s.y[i]), r: 3 })) })
      inside.append(g)
    }
    for (const run of runs) {
      if (view.off.has(run.name)) continue
      for (const e of run.events) {
        const x = place(run, e.step)
        if (x < x0 || x > x1) continue
        const says = svg('title', {}, `${run.name}, step ${whole(e.step)}: ${e.what}`)
        if (e.kind === 'resumed') inside.append(svg('line', { class: `resumed ${look(runs.indexOf(run))}`, x1: X(x), x2: X(x), y1: box.t, y2: box.t + h }, says))
        else if (e.kind === 'alarm') inside.append(svg('g', { class: 'alarm', 'data-alarm': e.step }, svg('path', { d: `M${X(x)} ${box.t}V${box.t + h}` }), svg('path', { class: 'bad', d: `M${X(x) - 5} ${box.t - 4}h10l-5 9z` }), says))
        else inside.append(svg('path', { class: 'bad', d: `M${X(x)} ${box.t + h - 9}l5 9h-10z`, 'data-event': e.step }, says))
      }
    }
    plot.append(inside)
    if (labels) endLabels(W, h, log)
    over = svg('g', {})
    plot.append(over)
    plot.setAttribute('aria-label', describe())
    if (cursor !== null) hover()
  }

  // The name of a line beside its end, pushed apart where ends are close.
  function endLabels(W, h, log) {
    const ends = lines.map((s) => {
      let i = s.x.length - 1
      while (i >= 0 && (s.y[i] === null || s.x[i] > range[1] || (log && s.y[i] <= 0))) i--
      if (i < 0) return null
      let [x, y] = [X(s.x[i]), s.Y(s.y[i])]
      const next = s.y[i + 1]
      if (next !== undefined && next !== null && !(log && next <= 0)) { // it goes on: beside the frame
        const [x2, y2] = [X(s.x[i + 1]), s.Y(next)]
        y += ((y2 - y) * (X(range[1]) - x)) / (x2 - x)
        x = X(range[1])
      } else if (s.x[i] < range[0]) return null
      const text = svg('text', { class: `end ${s.look}` }, s.label)
      plot.append(text)
      // Near the frame, all names stand in one column beside it.
      const column = x > box.l + 0.8 * (W - box.l - box.r)
      return { text, from: x, x: column ? W - box.r + 9 : x + 9, y, want: y, width: text.getComputedTextLength() }
    }).filter(Boolean).sort((a, b) => a.want - b.want)
    const clash = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width
    for (let pass = 0; pass < 60; pass++) for (let j = 1; j < ends.length; j++) for (let i = 0; i < j; i++) {
      const gap = 15 - (ends[j].y - ends[i].y)
      if (gap > 0 && clash(ends[i], ends[j])) { ends[j].y += gap / 2; ends[i].y -= gap / 2 }
    }
    for (const e of ends) {
      const y = Math.max(box.t + 4, Math.min(box.t + h + 2, e.y))
      if (e.x - e.from > 20) plot.insertBefore(svg('path', { class: 'leader', d: `M${e.from + 5} ${e.want}L${e.x - 4} ${y}` }), e.text)
      e.text.setAttribute('x', e.x)
      e.text.setAttribute('y', y + 4)
    }
  }

  function describe() {
    const of = lines.map((s) => {
      const i = s.v.findIndex((v) => v !== null)
      return i < 0 ? `${s.label}: no finite value` : `${s.label} from ${significant(s.v[i])} at step ${whole(s.s[i])} to ${significant(lastFinite(s.v))} at step ${whole(last(s.s))}`
    })
    return `${title()}, ${unit() || 'no unit'}, over ${AXES[view.x].name}. ${of.join('; ') || 'Nothing shown'}. Arrow keys move the crosshair.`
  }

  const nearest = (s, x) => {
    let a = 0, b = s.x.length - 1
    while (b - a > 1) { const m = (a + b) >> 1; if (s.x[m] <= x) a = m; else b = m }
    const i = Math.abs(s.x[b] - x) < Math.abs(s.x[a] - x) ? b : a
    return X(x) > X(last(s.x)) + 20 || X(x) < X(s.x[0]) - 20 ? -1 : i // neither before it began nor after its end
  }

  function hover() {
    over.replaceChildren()
    readout.replaceChildren()
    if (tip) tip.hidden = true
    if (cursor === null || cursor < range[0] || cursor > range[1]) return ''
    const px = X(cursor)
    over.append(svg('line', { class: 'cross', x1: px, x2: px, y1: box.t, y2: box.t + parseFloat(plot.getAttribute('viewBox').split(' ')[3]) - box.t - box.b }))
    const show = (v) => (v === null ? 'none' : share ? percent(v) : hero ? v.toPrecision(4) : significant(v, Math.abs(v) < 0.01 ? 2 : 3))
    const rows = []
    for (const s of lines) {
      const i = nearest(s, cursor)
      if (i < 0 || s.y[i] === null) continue
      const y = s.Y(s.y[i])
      if (s.x[i] >= range[0] && s.x[i] <= range[1]) over.append(svg('g', { class: s.look }, svg('circle', { class: 'dot', cx: X(s.x[i]), cy: y, r: 4 })))
      rows.push({ s, i })
      readout.append(el('span', { class: s.look }, show(s.y[i])))
    }
    if (!hero) return rows.map(({ s, i }) => `${s.label} ${show(s.y[i])}`).join(', ')
    readout.replaceChildren()
    const near = runs.filter((r) => !view.off.has(r.name)).flatMap((r) => r.events.filter((e) => Math.abs(X(place(r, e.step)) - px) < 6).map((e) => `${r.name}, step ${whole(e.step)}: ${e.what}`))
    tip.replaceChildren(
      el('b', {}, AXES[view.x].say(cursor)),
      el('table', {}, ...rows.map(({ s, i }) => el('tr', { class: s.look },
        el('td', {}, key(s)), el('td', {}, s.label),
        el('td', { class: 'num' }, el('strong', {}, show(s.y[i]))),
        el('td', {}, s.lo && s.lo[i] !== null ? `${show(s.lo[i])} to ${show(s.hi[i])}` : s.y !== s.v && s.v[i] !== null ? `logged ${show(s.v[i])}` : s.mark ? `step ${whole(s.s[i])}` : '')))),
      ...near.slice(0, 3).map((t) => el('div', { class: 'bad-text' }, t)),
    )
    tip.hidden = false
    const scale = figure.clientWidth / Number(plot.getAttribute('viewBox').split(' ')[2])
    const left = px * scale, room = figure.clientWidth - left
    tip.style.left = room > tip.offsetWidth + 24 ? `${left + 14}px` : `${Math.max(0, left - tip.offsetWidth - 14)}px`
    tip.style.top = `${figure.firstChild.offsetHeight + 14}px`
    return `${AXES[view.x].say(cursor)}: ${rows.map(({ s, i }) => `${s.label} ${show(s.y[i])}`).join(', ')}${near.length ? `. ${near.join('. ')}` : ''}`
  }

  const at = (event) => {
    const r = plot.getBoundingClientRect()
    const px = ((event.clientX - r.left) * Number(plot.getAttribute('viewBox').split(' ')[2])) / r.width
    return Math.max(range[0], Math.min(range[1], inverse(px)))
  }
  let drag = null
  plot.addEventListener('mousedown', (event) => event.preventDefault()) // the focus ring is for keys
  plot.addEventListener('pointermove', (event) => {
    cross(at(event))
    if (drag !== null) {
      const [a, b] = [drag, cursor].sort((p, q) => p - q)
      over.append(svg('rect', { class: 'select', x: X(a), width: X(b) - X(a), y: box.t, height: Number(plot.getAttribute('viewBox').split(' ')[3]) - box.t - box.b }))
    }
  })
  plot.addEventListener('pointerdown', (event) => {
    if (event.pointerType === 'mouse' && event.button === 0) { drag = at(event); plot.setPointerCapture(event.pointerId) } else cross(at(event))
  })
  plot.addEventListener('pointerup', (event) => {
    if (drag === null) return
    const [a, b] = [drag, at(event)].sort((p, q) => p - q)
    drag = null
    if (X(b) - X(a) > 8 && b - a > 1e-6 * b) change({ from: a, to: b })
  })
  plot.addEventListener('pointerleave', (event) => { if (drag === null && event.pointerType === 'mouse') cross(null) })
  plot.addEventListener('dblclick', () => change({ from: null, to: null }))
  plot.addEventListener('blur', () => cross(null))
  plot.addEventListener('keydown', (event) => {
    const longest = lines.reduce((a, s) => (s.x.length > (a ? a.x.length : 0) ? s : a), null)
    if (!longest) return
    const inRange = longest.x.filter((x) => x >= range[0] && x <= range[1])
    let i = cursor === null ? -1 : inRange.reduce((a, x, j) => (Math.abs(x - cursor) < Math.abs(inRange[a] - cursor) ? j : a), 0)
    const by = event.shiftKey ? 10 : 1
    if (event.key === 'ArrowRight') i = Math.min(inRange.length - 1, i + by)
    else if (event.key === 'ArrowLeft') i = Math.max(0, i < 0 ? inRange.length - 1 : i - by)
    else if (event.key === 'Home') i = 0
    else if (event.key === 'End') i = inRange.length - 1
    else if (event.key === 'Escape') { cross(null); change({ from: null, to: null }); return } else return
    event.preventDefault()
    cross(inRange[i])
    $('live').textContent = hover()
  })
  charts.push({ draw, hover, figure })
}
function cross(x) { cursor = x; for (const c of charts) c.hover() }

// ---------------------------------------------------------------- the view, its controls and its address
const press = (node, on) => node.setAttribute('aria-pressed', String(on))
const controls = []
function control(node, sync) { controls.push(() => sync(node)); return node }

function toolbar() {
  const xs = [['step', 'steps'], ['tokens', 'tokens'], ['time', 'time']].map(([k, word]) => control(el('button', { type: 'button', onclick: () => change({ x: k, from: null, to: null }) }, word), (n) => press(n, view.x === k)))
  const toggle = (k, word, more) => control(el('button', { type: 'button', ...more, onclick: () => change({ [k]: !view[k], ...(k === 'logx' ? { from: null, to: null } : {}) }) }, word), (n) => press(n, view[k]))
  const out = el('output', {})
  const slider = control(el('input', { type: 'range', min: 0, max: 0.98, step: 0.02, 'aria-label': 'smoothing', oninput: (e) => change({ smooth: Number(e.target.value) }) }), (n) => { n.value = view.smooth; out.textContent = view.smooth.toFixed(2) })
  const reset = control(el('button', { type: 'button', onclick: () => change({ from: null, to: null }) }, 'reset zoom'), (n) => { n.hidden = view.from === null })
  const accuracy = runs.some((r) => r.train.accuracy) ? toggle('acc', 'accuracy', { title: 'accuracy in place of loss' }) : null
  $('controls').append(el('span', { class: 'segment', role: 'group', 'aria-label': 'x axis' }, el('span', {}, ...xs)), el('span', { class: 'segment' }, el('span', {}, toggle('log', 'log y'), toggle('logx', 'log x'))), el('label', {}, 'smoothing', slider, out), ...(accuracy ? [accuracy] : []), reset)
}

function legend() {
  const flip = (id) => () => { const set = new Set(view.off); if (!set.delete(id)) set.add(id); change({ off: set }) }
  const root = el('div', { class: 'legend' })
  const all = [...heroSeries(true)(), ...heroSeries(false)()]
  runs.forEach((run, i) => {
    const chips = all.filter((s) => s.run === run).map((s) => control(el('button', { type: 'button', class: `chip ${s.look}`, 'data-toggle': s.id, onclick: flip(s.id) }, key(s), single && s.part !== 'train' ? `held out: ${s.part}` : partName(run, s.part)), (n) => press(n, !off(s))))
    const name = single ? null : control(el('button', { type: 'button', class: `chip name ${look(i)}`, 'data-toggle': run.name, onclick: flip(run.name) }, el('span', { class: 'swatch' }), run.name), (n) => press(n, !view.off.has(run.name)))
    root.append(el('span', { class: 'group', role: 'group', 'aria-label': run.name }, name, ...chips))
  })
  return root
}

function change(next) {
  Object.assign(view, next)
  if (view.off.size && runs.every((r) => view.off.has(r.name))) view.off = new Set()
  refresh()
  const h = new URLSearchParams()
  if (view.x !== 'step') h.set('x', view.x)
  for (const k of ['log', 'logx', 'acc', 'all']) if (view[k]) h.set(k, '1')
  if (view.smooth !== 0.6) h.set('smooth', view.smooth)
  for (const id of view.off) h.append('off', id)
  if (view.from !== null) { h.set('from', Number(view.from.toPrecision(6))); h.set('to', Number(view.to.toPrecision(6))) }
  if (view.step !== null) h.set('step', view.step)
  history.replaceState(null, '', `#${h}`)
}
function fromHash() {
  const h = new URLSearchParams(location.hash.slice(1))
  const num = (k) => (h.has(k) && Number.isFinite(Number(h.get(k))) ? Number(h.get(k)) : null)
  view.x = Object.hasOwn(AXES, h.get('x') || '') ? h.get('x') : 'step'
  for (const k of ['log', 'logx', 'acc', 'all']) view[k] = h.get(k) === '1'
  view.smooth = Math.max(0, Math.min(0.98, num('smooth') ?? 0.6))
  const ids = new Set(runs.flatMap((r) => [r.name, `${r.name}/train`, ...Object.keys(r.eval).map((s) => `${r.name}/${s}`)]))
  view.off = new Set(h.getAll('off').filter((id) => ids.has(id)))
  view.from = num('from')
  view.to = num('to')
  if (!(view.to - view.from > 1e-6 * Math.abs(view.to)) || (view.logx && !(view.from > 0))) view.from = view.to = null
  view.step = num('step')
}
function refresh() {
  for (const sync of controls) sync()
  for (const c of charts) c.draw()
  drawSamples()
}

// ---------------------------------------------------------------- the runs
const STATES = { done: '✓ done', diverged: '✕ diverged', running: '● running', stopped: '◼ stopped' }
function best(c, highest) {
  let b = null
  c.v.forEach((v, i) => { if (v !== null && (b === null || (highest ? v > c.v[b] : v < c.v[b]))) b = i })
  return b
}
function cards() {
  runs.forEach((run, i) => {
    const figure = (name, value, more) => el('div', {}, el('dt', {}, name), el('dd', {}, value), el('dd', { class: 'more' }, more))
    const spent = Object.values(run.spent).filter((v) => v !== null).reduce((a, b) => a + b, 0)
    const verified = run.checkpoints.filter((c) => c.state === 'verified').length
    const train = run.train[trainKey(run)]
    const learns = online(run)
    // The last column: accuracy, or the reward that counts, where that is another one.
    const more = learns ? (run.gold && run.gold !== 'reward' ? run.gold : null) : 'accuracy'
    const say = (v) => (v === undefined ? '' : learns ? v.toFixed(3) : percent(v))
    const held = Object.entries(run.eval).map(([name, c]) => [name, c, learns ? c.reward : c.nll]).filter(([, , c]) => c && lastFinite(c.v) !== undefined).map(([name, c, main]) => {
      const b = best(main, learns)
      return el('tr', {}, el('td', {}, name), el('td', { class: 'num' }, el('strong', {}, lastFinite(main.v).toFixed(3))), el('td', { class: 'num' }, `${main.v[b].toFixed(3)} at ${main.s[b] < 1e5 ? whole(main.s[b]) : short(main.s[b])}`),
        more ? el('td', { class: 'num' }, c[more] ? say(lastFinite(c[more].v)) : '') : null)
    })
    const what = { stopped: `no process is writing it${run.writer ? `: ${run.writer}` : ''} · `, running: `${run.writer} · `, diverged: 'loss or gradients stayed non-finite · ', done: '' }[run.state]
    $('runs').append(el('article', { class: `card ${look(i)}` },
      el('header', {}, el('h3', {}, run.name), el('span', { class: `badge ${run.state}` }, STATES[run.state])),
      el('p', { class: 'note' }, `${run.of === null ? many(run.step, 'step') : `step ${whole(run.step)} of ${whole(run.of)}`} · ${what}last row ${date(run.last)}`),
      el('div', { class: 'track', 'aria-hidden': 'true' }, (() => { const d = el('div', {}); d.style.width = `${run.of ? Math.min(100, (100 * run.step) / run.of) : 100}%`; return d })()),
      el('dl', { class: 'figures' },
        train && lastFinite(train.v) !== undefined ? figure(learns ? 'reward' : 'train loss', lastFinite(train.v).toFixed(3), 'last batch') : null,
        learns && run.train.kl && lastFinite(run.train.kl.v) !== undefined ? figure('KL', significant(lastFinite(run.train.kl.v), 3), 'nats a completion') : null,
        learns && run.train.length ? figure('length', significant(lastFinite(run.train.length.v), 3), 'tokens') : null,
        figure('tokens', short(last(run.at.tokens)), 'seen'),
        run.tokens_per_s === null ? null : figure('tokens / s', short(run.tokens_per_s), 'median'),
        run.mfu === null ? null : figure('MFU', percent(run.mfu), 'median'),
        run.first_step_s === null ? null : figure('first step', `${run.first_step_s.toFixed(1)} s`, 'after start'),
        figure('time', clock(spent), run.spent.eval === null ? 'in training' : 'in all'),
        figure('updates', whole(run.step - run.skipped), `${whole(run.skipped)} skipped`),
        run.checkpoints.length ? figure('checkpoints', String(run.checkpoints.length), verified === run.checkpoints.length ? 'all verified' : `${verified} verified`) : null),
      held.length ? el('div', { class: 'wide' }, el('table', { class: 'held' }, el('tr', {}, el('th', { scope: 'col' }, 'held out'), el('th', { scope: 'col', class: 'num' }, learns ? 'reward' : 'loss'), el('th', { scope: 'col', class: 'num' }, 'best'), more ? el('th', { scope: 'col', class: 'num' }, part(more)) : null), ...held)) : null))
  })
}

// ---------------------------------------------------------------- alarms, and rewards that failed
const alarmed = runs.flatMap((run) => run.events.filter((e) => e.kind === 'alarm').map((e) => [run, e]))
function alarms() {
  const at = (run, step) => el('button', { type: 'button', title: 'show it in the curves', onclick: () => { cross(place(run, step)); charts[0].figure.scrollIntoView({ block: 'nearest' }) } }, said(run, `step ${whole(step)}`))
  const failed = runs.flatMap((run) => run.failures.map((f) => [run, f]))
  if (alarmed.length) $('hero').append(el('section', { class: 'alarms', 'aria-label': 'Alarms' }, el('h3', {}, many(alarmed.length, 'alarm')), el('ul', {}, ...alarmed.map(([run, e]) => el('li', {}, at(run, e.step), e.what)))))
  if (failed.length) $('hero').append(el('section', { class: 'alarms failed', 'aria-label': 'Rewards that failed' }, el('h3', {}, 'Rewards that failed'), el('ul', {}, ...failed.map(([run, [name, rows, steps, first, until, why]]) => el('li', {},
    el('b', {}, said(run, name)), ` ${many(rows, 'completion')} in ${many(steps, 'step')}, from ${whole(first)} to ${whole(until)}, without weight: ${why}`)))))
}

// ---------------------------------------------------------------- where the time went
const PARTS = [['train', 'training steps'], ['first', 'first step, with compilation'], ['input', 'waiting for input'], ['eval', 'evaluation and samples'], ['save', 'saving'], ['other', 'stopped between starts']]
function timeBars() {
  const root = $('time')
  runs.forEach((run, i) => {
    const total = Object.values(run.spent).filter((v) => v !== null).reduce((a, b) => a + b, 0)
    const parts = PARTS.filter(([k]) => run.spent[k] !== null && (k !== 'other' || run.spent.other > 0.005 * total))
    const bar = el('div', { class: 'bar', 'aria-hidden': 'true' }, ...parts.map(([k, word]) => { const d = el('div', { class: `s-${k}`, title: `${word}: ${clock(run.spent[k])}` }); d.style.flex = `${run.spent[k] / total} 0 0`; return d }))
    const untimed = ['eval', 'save'].filter((k) => run.spent[k] === null)
    root.append(el('h3', { class: look(i) }, el('span', { class: 'swatch' }), `${run.name} `, el('span', { class: 'note' }, exactClock(total))), bar,
      el('div', { class: 'split' }, ...parts.map(([k, word]) => el('span', {}, el('i', { class: `s-${k}` }), `${word} `, el('strong', {}, clock(run.spent[k])), ` ${percent(run.spent[k] / total)}`)),
        untimed.length ? el('span', {}, el('i', { class: 's-none' }), `${untimed.map((k) => ({ eval: 'evaluation', save: 'saving' })[k]).join(' and ')}: not timed by this run`) : null))
  })
}

// ---------------------------------------------------------------- samples
const prompts = [...new Set(runs.flatMap((r) => Object.keys(r.samples)))] // those of several runs first
  .map((p) => [p, runs.filter((r) => r.samples[p]).length > 1]).sort((a, b) => b[1] - a[1]).map(([p]) => p)
const sampleSteps = [...new Set(runs.flatMap((r) => Object.values(r.samples).flat().map(([s]) => s)))].sort((a, b) => a - b)
let sampleBox = null
function samples() {
  if (!prompts.length) { $('samples').append(el('p', { class: 'note' }, 'No samples were logged: eval.prompts of the configuration asks for them.')); return }
  const out = el('output', {})
  const slider = control(el('input', { type: 'range', min: 0, max: sampleSteps.length - 1, step: 1, 'aria-label': 'step of the samples', oninput: (e) => change({ step: sampleSteps[Number(e.target.value)], all: false }) }), (n) => {
    const i = view.step === null ? sampleSteps.length - 1 : Math.max(0, sampleSteps.findLastIndex((s) => s <= view.step))
    n.value = i
    n.setAttribute('aria-valuetext', `step ${sampleSteps[i]}`)
    n.disabled = view.all
    out.textContent = view.all ? many(sampleSteps.length, 'step') : `step ${whole(sampleSteps[i])}`
  })
  sampleBox = el('div', { class: 'prompts' })
  const thinned = runs.filter((r) => r.samples_logged > Math.max(0, ...Object.values(r.samples).map((t) => t.length)))
  $('samples').append(el('div', { class: 'step' }, slider, out, control(el('button', { type: 'button', onclick: () => change({ all: !view.all }) }, 'every step'), (n) => press(n, view.all))),
    thinned.length ? el('p', { class: 'note' }, thinned.map((r) => `${r.name}: ${Math.max(...Object.values(r.samples).map((t) => t.length))} of ${r.samples_logged} logged steps, evenly spaced`).join('; ')) : '', sampleBox)
}
function drawSamples() {
  if (!sampleBox) return
  const upTo = view.all ? Infinity : view.step ?? last(sampleSteps)
  sampleBox.replaceChildren(...prompts.map((prompt) => el('div', { class: `prompt ${view.all || runs.filter((r) => r.samples[prompt]).length > 1 ? 'full' : ''}` }, el('h3', {}, prompt || '(empty prompt)'), el('div', { class: 'texts' }, ...runs.flatMap((run, i) => {
    const texts = run.samples[prompt] || []
    const shown = view.all ? texts : texts.filter(([s]) => s <= upTo).slice(-1)
    return shown.map(([s, text, reward]) => el('article', { class: `text ${look(i)}` }, el('header', {}, single ? null : el('b', {}, `${run.name} `), `step ${whole(s)}`, reward === undefined ? null : el('span', { class: 'rated' }, reward === null ? 'no reward' : `reward ${significant(reward, 3)}`)), el('p', {}, el('mark', {}, prompt), reward === undefined ? '' : '\n', text.replace(/\s+$/, '') || (text ? ' (white space only)' : ' (nothing)'))))
  })))))
}

// ---------------------------------------------------------------- checkpoints
const VERDICT = { verified: ['✓', 'verified'], 'no manifest': ['?', 'unverified'], 'set aside': ['✕', 'corrupt'], corrupt: ['✕', 'corrupt'] }
function checkpoints() {
  const root = $('checkpoints')
  if (!runs.some((r) => r.checkpoints.length)) { root.append(el('p', { class: 'note' }, single ? 'This workdir has no checkpoints.' : 'These workdirs have no checkpoints.')); return }
  const all = runs.flatMap((r) => r.checkpoints)
  const whys = all.some((c) => c.why), times = all.some((c) => c.time !== null), scores = all.some((c) => Object.keys(c.metrics).length)
  const head = (word, cls) => el('th', { scope: 'col', class: cls }, word)
  const rows = runs.flatMap((run, i) => run.checkpoints.slice().sort((a, b) => b.step - a.step).map((c) => {
    const [word, ...detail] = c.state.split(': ')
    const [sign, badge] = VERDICT[word] || ['?', 'unverified']
    return el('tr', { class: look(i) }, single ? null : el('td', {}, el('span', { class: 'swatch' }), run.name), el('td', { class: 'num' }, whole(c.step)),
      el('td', {}, el('span', { class: `badge ${badge}` }, `${sign} ${word}`), detail.length ? el('div', { class: 'note' }, detail.join(': ')) : null),
      whys ? el('td', {}, c.why) : null, scores ? el('td', {}, Object.entries(c.metrics).map(([k, v]) => `${k} ${significant(v)}`).join(', ')) : null,
      el('td', { class: 'num' }, bytes(c.bytes)), times ? el('td', {}, c.time === null ? '' : date(c.time)) : null)
  }))
  root.append(el('p', { class: 'note' }, `Verified: every file was read when this page was made, ${date(data.made)}, and has the size and the hash that its manifest states.`),
    el('div', { class: 'wide' }, el('table', {}, el('thead', {}, el('tr', {}, single ? null : head('run'), head('step', 'num'), head('state'), whys ? head('kept as') : null, scores ? head('metrics') : null, head('size', 'num'), times ? head('saved') : null)), el('tbody', {}, ...rows))))
}

// ---------------------------------------------------------------- configuration
const value = (v) => (typeof v === 'string' ? v || '""' : JSON.stringify(v).replaceAll('","', '", "'))
function configuration() {
  const root = $('config')
  if (!single) {
    if (!data.differ.length) root.append(el('p', {}, `All ${data.keys} settings are the same.`))
    else {
      root.append(el('p', { class: 'note' }, `${data.differ.length} of ${data.keys} settings differ.`),
        el('div', { class: 'wide' }, el('table', {}, el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, 'setting'), ...runs.map((r, i) => el('th', { scope: 'col', class: look(i) }, el('span', { class: 'swatch' }), r.name)))),
          el('tbody', {}, ...data.differ.map(([k, ...vs]) => el('tr', {}, el('th', { scope: 'row', class: 'mono' }, k), ...vs.map((v) => el('td', { class: `mono ${v.length ? '' : 'absent'}` }, v.length ? value(v[0]) : 'absent'))))))))
    }
  }
  for (const run of runs) root.append(el('details', {}, el('summary', {}, single ? 'The whole configuration' : `The whole configuration of ${run.name}`), el('p', { class: 'mono note' }, run.path), el('pre', { class: 'mono', tabindex: 0 }, JSON.stringify(run.config, null, 2))))
}

// ---------------------------------------------------------------- all of it
function start() {
  $('title').textContent = new Intl.ListFormat('en-GB').format(runs.map((r) => r.name))
  cards()
  fromHash()
  toolbar()
  $('hero').append(legend())
  if (runs.some(online)) {
    chart($('hero'), { hero: true, series: heroSeries(true), plain: true, title: () => 'Reward', unit: () => 'mean over completions, training batch and held out' })
    alarms()
  }
  if (!runs.every(online)) chart($('hero'), { hero: true, series: heroSeries(false), title: () => (view.acc ? 'Accuracy' : 'Loss'), unit: () => (view.acc ? 'of next tokens, training batch and held out' : 'nats per token, training batch and held out') })
  const panels = [
    [goldSeries, 'Reward against what counts', '', { plain: true }],
    [partsSeries, 'Reward and its parts', 'mean over completions', { plain: true }],
    [heldSeries, 'Held out, by part', 'bands: 95 % interval', { plain: true }],
  ].filter(([series]) => series().length > 1)
  for (const [series, title, unit, options] of panels) chart($('panels'), { title: () => title, unit: () => unit, series, height: 250, keys: true, ...options })
  for (const [names, title, unit, options] of ONLINE) {
    const series = panelSeries(names)
    if (series().length) chart($('small'), { title: () => title, unit: () => unit, series, height: 170, keys: series().length > new Set(series().map((s) => s.run)).size, ...options })
  }
  const missing = []
  const extra = [...new Set(runs.flatMap((r) => Object.keys(r.train)))].filter((k) => !KNOWN.has(k) && !isPart(k) && !['reward', 'gold'].includes(k)).map((k) => [k, k.replaceAll('_', ' '), '', {}])
  for (const [name, title, unit, options] of [...SMALL, ...extra]) {
    const series = smallSeries(name)
    const has = series()
    const without = runs.filter((run) => !has.some((s) => s.run === run)).map((run) => run.name)
    if (without.length) missing.push(title.toLowerCase() + (has.length ? ` (${without.join(', ')})` : ''))
    if (has.length) chart($('small'), { title: () => title, unit: () => unit, series, height: 170, ...options })
  }
  const bad = runs.reduce((n, r) => n + r.events.filter((e) => e.kind === 'bad').length, 0)
  const again = runs.reduce((n, r) => n + r.events.filter((e) => e.kind === 'resumed').length, 0)
  $('hint').textContent = [
    'Drag across a chart to zoom, double-click to go back; on a chart, the arrow keys move the crosshair.',
    missing.length ? `Not logged: ${missing.join(', ')}.` : '',
    bad ? `Red triangles on the axis are updates that were not finite: ${bad}.` : '',
    alarmed.length ? `Red lines are alarms: ${alarmed.length}.` : '',
    again ? `Dotted vertical lines are restarts: ${again}.` : '',
    runs.some((r) => Object.values(r.train).some((c) => c.lo)) ? 'Long curves are drawn as the mean of each bucket, within the band from its least to its greatest value.' : '',
  ].filter(Boolean).join(' ')
  if (!data.comparable && runs.filter((r) => !online(r)).length > 1) $('hero').prepend(el('p', { class: 'warning' }, 'These runs do not share a tokenizer or the text it was trained on, so their nats per token measure different things: compare shapes, not heights.'))
  timeBars()
  samples()
  checkpoints()
  configuration()
  refresh()
  addEventListener('hashchange', () => { fromHash(); refresh() })
  let width = $('hero').clientWidth
  const redraw = () => { const w = $('hero').clientWidth; if (w !== width) { width = w; for (const c of charts) c.draw() } }
  new ResizeObserver(() => requestAnimationFrame(redraw)).observe($('hero'))
  document.documentElement.dataset.ready = String(charts.length)
}
start()
