// A held unit stays while images change or the camera runs; its best of the session are kept.

import * as api from './api.js'
import { frameOf } from './camera.js'
import { $, button, make, press, short } from './dom.js'
import { canvasOf, valueOf } from './draw.js'
import { heldMapsHere, inputAddress } from './load.js'
import { any, change, fail, listen, state } from './state.js'
import { pictures } from './unit.js'

const KEPT = 6

/**
 * Strongest first; `frame` is the picture itself where it came from the camera, of which the server keeps but the last few.
 * @type {{of: string, value: number, time: number, camera: boolean, frame: Blob | null, thumb: HTMLCanvasElement, shown: any}[]}
 */
let best = []
let bestOf = ''

const nameOf = held => `${held.layer}, map ${held.map}, y ${held.y}, x ${held.x}`

export const toggleHold = () => {
  if (state.held) change({ held: null })
  else if (state.image && state.unit) change({ held: { layer: state.layer, map: state.map, y: state.unit[0], x: state.unit[1] } })
}

/** The held unit's activation now; the projection's own where that unit is the chosen one. */
const value = () => {
  const { held, unit } = state
  if (!held) return null
  if (held.layer === state.layer && held.map === state.map && unit?.[0] === held.y && unit?.[1] === held.x) {
    const exact = pictures().find(p => p.current && p.kind === 'trained' && p.picture.head)
    if (exact) return exact.picture.head.activation
  }
  const maps = heldMapsHere()
  return maps ? valueOf(maps, held.map, held.y, held.x) : null
}

const thumb = () => {
  const { bitmap } = state.input
  const canvas = canvasOf(new ImageData(96, 96))
  const context = canvas.getContext('2d')
  context.imageSmoothingQuality = 'high'
  context.drawImage(bitmap, 0, 0, 96, 96)
  return canvas
}

const entry = (of, value, time) => ({ of, value, time, camera: state.camera, frame: frameOf(state.image), thumb: thumb(), shown: { image: state.image, view: state.view, cover: state.cover, fill: state.fill } })

/** Takes up an image once both its pixels and the unit's value are here. */
const note = now => {
  // Other weights give other values.
  const key = [nameOf(state.held), state.net.checkpoint, state.net.version].join(' ')
  if (key !== bestOf) {
    bestOf = key
    best = []
  }
  const of = inputAddress()
  if (now === null || !(now > 0) || state.input?.of !== of) return
  // Frames of one moment look alike: of those the strongest stands for all.
  const time = performance.now()
  const known = best.find(entry => entry.of === of)
  const moment = state.camera ? best.find(entry => entry.camera && time - entry.time < 1500) : null
  if (known) known.value = now
  else if (moment) {
    if (now <= moment.value) return
    best.splice(best.indexOf(moment), 1, entry(of, now, moment.time))
  }
  else {
    if (best.length === KEPT && now <= best.at(-1).value) return
    best.push(entry(of, now, time))
  }
  best.sort((a, b) => b.value - a.value)
  best.length = Math.min(best.length, KEPT)
}

const visit = async entry => {
  const { held } = state
  if (entry.frame) {
    try {
      const { id } = await api.upload(entry.frame)
      entry.shown = { ...entry.shown, image: id }
      entry.of = api.inputAt({ ...entry.shown, net: state.net })
    } catch (error) {
      return fail('held', error)
    }
    if (state.held !== held) return
  }
  change({ ...entry.shown, info: null, layer: held.layer, map: held.map, unit: [held.y, held.x] }, { push: true })
}

const render = () => {
  const { held } = state
  press($('hold'), !!held)
  $('hold').textContent = held ? 'Release' : 'Hold'
  $('held').hidden = !held
  if (!held) return
  const now = value()
  note(now)
  $('held-name').textContent = nameOf(held)
  $('held-error').textContent = state.errors.held ?? ''
  const most = Math.max(best[0]?.value ?? 0, now ?? 0)
  // Under a running camera the value of the last image stays until the next one's is here.
  if (now !== null || !state.camera) {
    $('held-value').textContent = now === null ? '' : short(now)
    $('held-value').dataset.value = now ?? ''
  }
  $('held-best').textContent = most > 0 ? `best ${short(most)}` : ''
  $('held-fill').style.width = `${most > 0 && now > 0 ? now / most * 100 : 0}%`
  const key = best.map(entry => `${entry.of} ${entry.value}`).join(' ')
  const list = $('held-list')
  if (list.dataset.key === key) return
  list.dataset.key = key
  list.replaceChildren(...best.map((entry, i) => {
    const go = button('', { class: 'best', 'data-best': i, 'aria-label': `Best ${i + 1} of the session: ${short(entry.value)} in ${entry.shown.image}. Go there.`, title: entry.shown.image, onclick: () => visit(entry) })
    go.append(entry.thumb, make('span', {}, short(entry.value)))
    return make('li', {}, go)
  }))
}

export const startHold = () => {
  $('hold').addEventListener('click', toggleHold)
  $('held-go').addEventListener('click', () => change({ layer: state.held.layer, map: state.held.map, unit: [state.held.y, state.held.x] }, { push: true }))
  listen(changed => {
    if (any(changed, 'network', 'net', 'held', 'image', 'view', 'cover', 'fill', 'layer', 'map', 'unit', 'maps', 'heldMaps', 'pictures', 'input', 'errors')) render()
  })
}
