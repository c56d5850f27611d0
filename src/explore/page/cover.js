// The covered square: its controls, and its changes by key. Drawing it by hand is the stage's affair.

import { $, clamp, press } from './dom.js'
import { FILLS } from './link.js'
import * as square from './square.js'
import { any, change, listen, state } from './state.js'

const size = () => state.network.input

/** The cover as a square (a link may have any box: then its longer side). */
export const current = () => {
  if (!state.cover) return null
  const [x0, y0, x1, y1] = state.cover
  return { x: x0, y: y0, side: Math.max(x1 - x0, y1 - y0) }
}

export const show = (chosen, how = { follow: true }) => {
  const { rows, columns } = size()
  const side = Math.max(1, Math.round(chosen.side))
  // Some of it stays upon the image, lest it be lost.
  const x = clamp(Math.round(chosen.x), 1 - side, columns - 1)
  const y = clamp(Math.round(chosen.y), 1 - side, rows - 1)
  change({ cover: [x, y, x + side, y + side] }, how)
}

/** The side a cover begins with: a quarter of the image. */
export const usual = () => Math.max(1, Math.round(Math.min(size().rows, size().columns) / 4))

/** A cover about a point, of the present size. */
export const centre = (x, y, how) => {
  const side = current()?.side ?? usual()
  show({ x: x - side / 2, y: y - side / 2, side }, how)
}

export const begin = () => {
  const { rows, columns } = size()
  change({ mode: 'cover' })
  if (!state.cover) centre(columns / 2, rows / 2)
}

export const remove = () => change({ cover: null })

/** The key: a cover is put on, and taken away again. */
export const toggle = () => {
  if (!state.image) return
  if (state.mode === 'cover' && state.cover) {
    change({ cover: null, mode: 'look' })
  } else {
    begin()
    $('stage').focus({ preventScroll: true })
  }
}

/** Moved by shares of a sixteenth of the image, or by single pixels. */
export const move = (dx, dy, finely) => {
  const now = current()
  if (!now) return begin()
  const step = finely ? 1 : Math.max(1, Math.round(size().columns / 16))
  show({ ...now, x: now.x + dx * step, y: now.y + dy * step })
}

export const resize = factor => {
  const now = current()
  if (!now) return begin()
  const { rows, columns } = size()
  const next = square.scaled(now, factor, 1, 2 * Math.max(rows, columns))
  // At least one pixel more or less, however small it is.
  if (Math.round(next.side) === now.side) next.side += factor > 1 ? 1 : -1
  show(next)
}

export const startCover = () => {
  $('cover-remove').addEventListener('click', remove)
  $('cover-smaller').addEventListener('click', () => resize(1 / 1.25))
  $('cover-larger').addEventListener('click', () => resize(1.25))
  for (const fill of FILLS) $(`fill-${fill}`).addEventListener('click', () => change({ fill }))
  listen(changed => {
    if (any(changed, 'cover', 'fill', 'network', 'mode')) render()
  })
}

const render = () => {
  const now = current()
  $('cover-size').textContent = now ? `${state.cover[2] - state.cover[0]} × ${state.cover[3] - state.cover[1]} pixels` : 'Drag a square on the image'
  $('cover-remove').disabled = !now
  for (const fill of FILLS) press($(`fill-${fill}`), state.fill === fill)
}
