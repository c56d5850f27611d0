// The run behind a checkpoint: its curves, its first layer, its alarms; and whether it is still being trained, in which
// case all that is shown follows the newest weights.

import * as api from './api.js'
import { PAPER, colours, lines, sheet } from './chart.js'
import { $, make, percent, short } from './dom.js'
import { announce } from './live.js'
import { titleOf } from './nets.js'
import { isPublished } from './published.js'
import { any, change, listen, state } from './state.js'

/** Milliseconds between two questions: while it is trained, while it rests, and at least. */
const OFTEN = 3000, SELDOM = 30_000, LEAST = 1000

const lane = new api.Lane()
const filtersLane = new api.Lane()
/** When the run was asked last, and when it will be. */
let asked = -Infinity, due = Infinity
let timer = 0
/** @type {{of: string, bitmap: ImageBitmap} | null} */
let filters = null

const used = () => [...new Set([state.net.checkpoint, ...(state.compared ? [state.compared.checkpoint] : [])])]

const isTraining = () => used().some(k => state.runs[k]?.training)

/** Takes up what a run has become; other weights make all that is shown of it out of date. */
const take = (checkpoint, run) => {
  const renew = net => (net?.checkpoint === checkpoint && net.version !== run.version ? { ...net, version: run.version } : net)
  const before = state.runs[checkpoint]
  if (before && before.version !== run.version) announce(`${titleOf(checkpoint)} has new weights${run.epoch === null ? '' : `, of epoch ${run.epoch}`}; what is shown of it follows.`)
  change({ runs: { ...state.runs, [checkpoint]: run }, net: renew(state.net), compared: renew(state.compared) }, { follow: true })
}

/** Asks in so many milliseconds, or sooner if that was settled before. */
const pollIn = ms => {
  const now = performance.now(), at = Math.max(now + ms, asked + LEAST)
  if (at >= due) return
  clearTimeout(timer)
  due = at
  timer = setTimeout(poll, at - now)
}

const poll = () => {
  due = Infinity
  if (document.hidden || isPublished) return
  asked = performance.now()
  lane.ask(async signal => {
    try {
      for (const checkpoint of used()) {
        take(checkpoint, await api.run(checkpoint, signal))
      }
    } catch (error) {
      // Whether the program answers at all is said where its answers are missed.
      if (signal.aborted) return
      if (!(error instanceof api.Refused)) reportError(error)
      if (error.status === 410) return
    }
    pollIn(isTraining() ? OFTEN : SELDOM)
  }, true)
}
const pollNow = () => pollIn(0)

const run = () => state.runs[state.net.checkpoint] ?? null

const finite = points => points.filter(point => point.every(Number.isFinite))

const ends = (points, zero) => {
  let low = Infinity, high = -Infinity
  for (const [, v] of points) { low = Math.min(low, v); high = Math.max(high, v) }
  return low <= high ? [zero ? 0 : low, high] : [0, 1]
}

/** Loss and error over the epochs. */
const charts = now => {
  const of = name => finite(now.curve.map(row => [row.epoch, row[name]]))
  const [train, val, top1] = [of('train_loss'), of('val_loss'), of('val_top1_error')]
  const last = now.curve.at(-1)
  const per = last ? last.step / last.epoch : 0
  const faint = per ? finite(now.losses.map(([step, loss]) => [step / per, loss])) : []
  const x = [0, Math.max(now.epochs ?? 0, ...now.curve.map(row => row.epoch), faint.at(-1)?.[0] ?? 0, 1)]
  return [
    { title: 'Loss', x, y: ends([...train, ...val, ...faint], true), xName: 'epoch', faint, lines: [{ name: 'train', colour: 'accent', dash: [], points: train }, { name: 'validation', colour: 'second', dash: [5, 3], points: val }] },
    { title: 'Top-1 error on the validation images', x, y: [0, Math.max(...top1.map(([, v]) => v), 0.01)], xName: 'epoch', format: v => `${Math.round(v * 1000) / 10}%`, lines: [{ name: 'validation', colour: 'second', dash: [5, 3], points: top1 }] },
  ]
}

/** What is shown of a run that is being trained. */
const FOLLOWS = {
  newest: 'Being trained now: the page follows its newest weights. ',
  best: 'Being trained now: the page shows its best weights so far. ',
  none: 'Being trained now: the page stays with the weights that were named. ',
}

const wordsOf = now => {
  const last = now.curve.at(-1)
  if (!last) return now.epochs === null ? 'This checkpoint is no run, so nothing is known of its training.' : 'The first epoch is not over yet.'
  return `After epoch ${last.epoch}: loss ${short(last.train_loss)} on the training images, ${short(last.val_loss)} on the validation images; top-1 error ${percent(last.val_top1_error)}.`
}

/** The curves as one picture, on paper. */
export const curvesPicture = () => {
  const now = run()
  if (!now?.curve.length) return null
  const [width, height] = [560, 220], canvas = document.createElement('canvas')
  const context = sheet(canvas, width, 2 * height, 1)
  context.fillStyle = PAPER.paper
  context.fillRect(0, 0, width, 2 * height)
  for (const chart of charts(now)) {
    lines(context, { ...chart, width, height: height - 10 }, PAPER)
    context.translate(0, height)
  }
  return canvas
}
export const curvesCaption = () => [`Training of ${titleOf(state.net.checkpoint)}`, `${wordsOf(run())} Faint: the loss of single steps.`]

const draw = () => {
  const now = run()
  if (!state.training || !now) return
  const any = now.curve.length > 0 || now.losses.length > 0
  $('run-charts').hidden = !any
  if (!any) return
  charts(now).forEach((chart, i) => {
    const canvas = $(i ? 'run-error-curve' : 'run-loss-curve')
    const width = canvas.clientWidth, height = canvas.clientHeight
    if (!width) return
    lines(sheet(canvas, width, height), { ...chart, width, height }, colours())
    canvas.setAttribute('aria-label', `${chart.title} over the epochs. ${wordsOf(now)}`)
  })
}

/** The picture of the first layer's filters, if it is of the present network. */
export const filtersHere = () => (filters?.of === api.filtersAt(state.net) ? $('filters') : null)

const showFilters = (found, error = '') => {
  filters = found
  $('filters-error').textContent = error
  const canvas = $('filters')
  canvas.hidden = !filters
  if (!filters) return
  canvas.width = filters.bitmap.width
  canvas.height = filters.bitmap.height
  canvas.getContext('2d').drawImage(filters.bitmap, 0, 0)
}

const wantFilters = () => {
  const of = api.filtersAt(state.net)
  if (!state.training || filters?.of === of || filtersLane.busy && filtersLane.of === of) return
  // Those of the last weights stay until the new ones have answered, another network's do not.
  if (api.withoutVersion(filtersLane.of ?? '') !== api.withoutVersion(of)) showFilters(null)
  filtersLane.of = of
  filtersLane.ask(async signal => {
    try {
      showFilters({ of, bitmap: await api.bitmap(of, signal) })
    } catch (error) {
      if (!signal.aborted && !error.isOutdated) showFilters(null, error.message)
    }
  })
}

const render = () => {
  const now = run()
  $('open-run').hidden = !now
  if (!now) return
  const { alarms } = now
  const epochs = now.epoch === null ? '' : `${now.epoch}${now.epochs ? `/${now.epochs}` : ''}`
  $('run-state').textContent = now.training ? `Training ${epochs}` : 'Training'
  $('open-run').classList.toggle('going', now.training)
  $('alarm-count').textContent = alarms.length ? `${alarms.length}` : ''
  $('alarm-count').hidden = !alarms.length
  $('open-run').setAttribute('aria-label', `${now.training ? `Being trained, epoch ${epochs || 1}` : 'Training'}${alarms.length ? `, ${alarms.length} alarm${alarms.length > 1 ? 's' : ''}` : ''}`)
  if (!state.training) return
  $('run-words').textContent = `${now.training ? FOLLOWS[now.follows] : ''}${wordsOf(now)}`
  $('alarms-none').hidden = alarms.length > 0 || now.epochs === null
  $('alarms-title').hidden = now.epochs === null
  $('alarms').replaceChildren(...alarms.map(({ epoch, step, name, text }) => make('li', { 'data-alarm': name }, make('b', {}, `Epoch ${epoch}`), ' ', make('span', { class: 'quiet' }, `step ${step}, ${name}`), ' ', text)))
  draw()
  wantFilters()
}

export const toggleTraining = () => { if (run()) change({ training: !state.training }) }

export const startTraining = () => {
  $('open-run').addEventListener('click', toggleTraining)
  $('run-close').addEventListener('click', () => $('run').close())
  $('run').addEventListener('click', event => { if (event.target === $('run')) $('run').close() })
  $('run').addEventListener('close', () => change({ training: false }))
  new ResizeObserver(draw).observe($('run-charts'))
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw)
  document.addEventListener('visibilitychange', pollNow)
  addEventListener('focus', pollNow)
  api.whenOutdated(pollNow)
  listen(changed => {
    if (changed.has('training')) {
      if (state.training && !$('run').open) $('run').showModal()
      if (!state.training && $('run').open) $('run').close()
    }
    if (any(changed, 'network', 'runs', 'net', 'training')) render()
    // What is known of another network may be some time old.
    if (changed.has('network')) pollNow()
  })
}
