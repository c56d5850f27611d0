// The image: what the network sees, with what is drawn over it, and what a hand does upon it.

import * as cover from './cover.js'
import { $ } from './dom.js'
import { canvasOf, frame, mapPixels, rangeOf } from './draw.js'
import { fieldHere, inputAddress, mapsHere } from './load.js'
import { isPublished } from './published.js'
import * as square from './square.js'
import { any, change, layerOf, listen, state } from './state.js'
import { sweepPixels } from './sweep.js'
import { pickUnit } from './unit.js'
import * as view from './view.js'

const FIELD = '#ff7a29'

const canvas = () => $('stage')

/** Where the shown picture lies on the stage, in CSS pixels, and how many of them its unit of length is. */
const place = () => {
  const box = canvas().getBoundingClientRect()
  const crop = state.mode === 'crop' && state.picture
  const size = crop ? view.picture() : { width: state.network.input.columns, height: state.network.input.rows }
  const k = Math.min(box.width / size.width, box.height / size.height)
  return { box, crop, ...size, k, left: (box.width - size.width * k) / 2, top: (box.height - size.height * k) / 2 }
}

let asked = false
const redraw = () => {
  if (asked) return
  asked = true
  requestAnimationFrame(() => { asked = false; draw() })
}

/** The map over the image: that under the pointer, else the chosen one where that is asked for. */
const mapOver = () => {
  const maps = mapsHere()
  const map = state.hover ?? (state.overlay ? state.map : null)
  return maps && map !== null && map < maps.head.maps ? { maps, map } : null
}

const draw = () => {
  if (!state.network) return
  const { box, crop, k, left, top, width, height } = place()
  const ratio = devicePixelRatio || 1
  const to = canvas()
  const [w, h] = [Math.round(box.width * ratio), Math.round(box.height * ratio)]
  if (!w || !h) return
  if (to.width !== w) to.width = w
  if (to.height !== h) to.height = h
  const context = to.getContext('2d')
  context.setTransform(ratio, 0, 0, ratio, 0, 0)
  context.clearRect(0, 0, box.width, box.height)
  const shown = crop ? state.picture : state.input
  if (!shown) return
  // As the program's own pictures: pixels are repeated where they are shown at least twice as large.
  context.imageSmoothingEnabled = crop || k * ratio < 2
  context.imageSmoothingQuality = 'high'
  context.drawImage(shown.bitmap, left, top, width * k, height * k)
  if (crop) return drawView(context, k, left, top, width, height)

  const over = mapOver()
  if (over) {
    context.fillStyle = 'rgb(0 0 0 / .45)'
    context.fillRect(left, top, width * k, height * k)
    context.imageSmoothingEnabled = false
    const cells = cellsOf(layerOf(state.layer))
    context.save()
    context.beginPath()
    context.rect(left, top, width * k, height * k)
    context.clip()
    context.drawImage(canvasOf(mapPixels(over.maps, over.map, rangeOf(over.maps, over.map, true), true)), left + cells.x * k, top + cells.y * k, cells.width * k, cells.height * k)
    context.restore()
  } else if (state.sweep && state.sweepOver && state.mode === 'cover') {
    context.imageSmoothingEnabled = false
    context.globalAlpha = 0.65
    context.drawImage(canvasOf(sweepPixels(state.sweep)), left, top, width * k, height * k)
    context.globalAlpha = 1
  }
  const field = state.hover === null ? fieldHere() : null
  if (field) {
    const [x0, y0, x1, y1] = field
    // The part within the image, so that a field larger than it still shows where it ends.
    const [a, b, c, d] = [Math.max(x0, 0), Math.max(y0, 0), Math.min(x1, width), Math.min(y1, height)]
    if (c > a && d > b) frame(context, left + a * k + 1, top + b * k + 1, Math.max(2, (c - a) * k - 2), Math.max(2, (d - b) * k - 2), FIELD)
  }
  if (state.cover) drawCover(context, k, left, top)
}

const drawCover = (context, k, left, top) => {
  const [x0, y0, x1, y1] = state.cover
  frame(context, left + x0 * k, top + y0 * k, (x1 - x0) * k, (y1 - y0) * k, '#fff', [5, 4])
  if (state.mode === 'cover') handle(context, left + x1 * k, top + y1 * k)
}

const handle = (context, x, y) => {
  context.fillStyle = '#fff'
  context.strokeStyle = '#000'
  context.lineWidth = 1
  context.beginPath()
  context.arc(x, y, 6, 0, 2 * Math.PI)
  context.fill()
  context.stroke()
}

const drawView = (context, k, left, top, width, height) => {
  if (!state.view) return
  const now = view.current()
  const [x, y] = [left + now.x * k, top + now.y * k], [w, h] = square.sizeOf(now).map(v => v * k)
  // What the network is not shown steps back.
  context.fillStyle = 'rgb(0 0 0 / .5)'
  context.beginPath()
  context.rect(left, top, width * k, height * k)
  context.rect(x, y, w, h)
  context.fill('evenodd')
  frame(context, x, y, w, h, '#fff')
  handle(context, x + w, y + h)
}

/** Where a map's units lie on the input: each as large as the stride, about the middle of its receptive field. */
const cellsOf = ({ rows, columns, field, stride, offset }) => {
  const { input } = state.network
  if (rows === 1 && columns === 1) return { x: 0, y: 0, width: input.columns, height: input.rows }
  const [x, y] = [0, 1].map(i => offset[i] + (field[i] - stride[i]) / 2)
  return { x, y, width: columns * stride[0], height: rows * stride[1] }
}

/** The unit of the chosen map whose field's middle is next to a point of the image. */
const unitAt = at => {
  const layer = layerOf(state.layer)
  if (!layer || state.map === null) return null
  const cells = cellsOf(layer)
  const within = (share, count) => Math.min(Math.max(Math.floor(share * count), 0), count - 1)
  return [within((at.y - cells.y) / cells.height, layer.rows), within((at.x - cells.x) / cells.width, layer.columns)]
}

/** @type {{grip: string | null, from: any, start: any, moved: boolean} | null} */
let drag = null

const point = event => {
  const { box, left, top, k } = place()
  return { x: (event.clientX - box.left - left) / k, y: (event.clientY - box.top - top) / k }
}

const down = event => {
  if (event.button !== 0 || !state.image || drag) return
  if (state.mode === 'look') return
  const at = point(event)
  const { k, crop } = place()
  if (state.mode === 'crop' && !crop) return
  const now = state.mode === 'cover' ? cover.current() : state.view ? view.current() : null
  drag = { grip: square.grip(now, at, (event.pointerType === 'touch' ? 22 : 11) / k), from: at, start: now, moved: false }
  canvas().setPointerCapture(event.pointerId)
  event.preventDefault()
  canvas().focus({ preventScroll: true })
}

const moved = event => {
  if (!drag) {
    if (state.mode === 'look' && event.pointerType === 'mouse' && event.buttons & 1 && state.image) {
      pickUnit(state.map, unitAt(point(event)), { follow: true })
    }
    return
  }
  const at = point(event)
  const { k, width, height } = place()
  if (!drag.moved && Math.hypot(at.x - drag.from.x, at.y - drag.from.y) * k < 4) return
  drag.moved = true
  const show = state.mode === 'cover' ? cover.show : view.show
  const by = { x: at.x - drag.from.x, y: at.y - drag.from.y }
  const how = { follow: true }
  if (drag.grip === 'corner') show(square.resized(drag.start, at, state.mode === 'cover' ? 1 : 0.05), how)
  else if (drag.grip === 'inside') show({ ...drag.start, x: drag.start.x + by.x, y: drag.start.y + by.y }, how)
  else {
    const next = state.mode === 'cover' ? square.drawn(drag.from, at) : view.drawn(drag.from, at)
    if (state.mode === 'cover') show(next, how)
    else if (next.side >= 0.05) show(square.within(next, width, height), how)
  }
}

const up = event => {
  if (!drag) return
  const { moved: wasMoved, grip } = drag
  drag = null
  if (wasMoved || event.type === 'pointercancel') return
  // A tap: the square comes to the finger.
  const at = point(event)
  if (state.mode === 'cover' && grip !== 'corner') cover.centre(at.x, at.y)
  else if (state.mode === 'crop' && grip === null) {
    const now = view.current()
    const about = { ...now, side: state.view ? now.side : 0.5 }
    const [w, h] = square.sizeOf(about)
    view.show({ ...about, x: at.x - w / 2, y: at.y - h / 2 }, { follow: true })
  }
}

const keys = event => {
  if (event.altKey || event.ctrlKey || event.metaKey || state.mode === 'look') return
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0]
  if (!dx && !dy) return
  event.preventDefault()
  event.stopPropagation()
  if (state.mode === 'cover') cover.move(dx, dy, event.shiftKey)
  else view.move(dx * (event.shiftKey ? 0.005 : 0.04), dy * (event.shiftKey ? 0.005 : 0.04))
}

const MODES = { look: isPublished ? "The frame is the chosen unit's receptive field." : 'Click the image to choose the unit of this map at that place.', cover: 'Drag a square: it is filled, and all else follows. Arrow keys move it, + and − change its size.', crop: 'Drag a frame: the network is shown this part alone. Arrow keys move it, + and − zoom.' }

const renderMode = () => {
  for (const mode of Object.keys(MODES)) {
    $(`mode-${mode}`).setAttribute('aria-pressed', String(state.mode === mode))
    const panel = document.getElementById(`${mode}-panel`)
    if (panel) panel.hidden = state.mode !== mode
  }
  canvas().dataset.mode = state.mode
  canvas().setAttribute('aria-label', `The image as the network sees it. ${MODES[state.mode]}`)
  $('mode-hint').textContent = MODES[state.mode]
}

const renderCaption = () => {
  const { image, info, network } = state
  const own = image?.startsWith('upload/') ?? false
  $('image-name').textContent = !image ? 'no image yet' : !own ? image : state.camera ? 'camera' : 'your picture'
  $('image-name').dataset.shown = image ?? ''
  $('image-class').textContent = info ? network.data_classes?.[info.class] ?? '' : ''
  $('image-file').textContent = own ? image : info?.name ?? ''
  $('image-file').title = info?.name ?? ''
  const of = inputAddress()
  $('stage').setAttribute('aria-busy', String(!!of && state.mode !== 'crop' && state.input?.of !== of))
  $('image-error').textContent = state.errors.input ?? ''
  $('view-state').textContent = state.view ? `${Math.round(state.view[2] * 100)}% of the shorter side` : "The network's own preparation"
  $('view-reset').disabled = !state.view
  $('stage-empty').hidden = !!image
  document.body.classList.toggle('no-image', !image)
}

export const startStage = () => {
  const to = canvas()
  to.addEventListener('pointerdown', down)
  to.addEventListener('pointermove', moved)
  to.addEventListener('pointerup', up)
  to.addEventListener('pointercancel', up)
  to.addEventListener('keydown', keys)
  to.addEventListener('click', event => {
    if (state.mode !== 'look' || !state.image) return
    pickUnit(state.map, unitAt(point(event)), { push: true, click: true })
  })
  to.addEventListener('wheel', event => {
    if (state.mode !== 'crop') return
    event.preventDefault()
    view.zoom(event.deltaY > 0 ? 1.06 : 1 / 1.06)
  }, { passive: false })
  for (const mode of ['look', 'cover', 'crop']) {
    $(`mode-${mode}`).addEventListener('click', () => {
      if (mode === 'cover' && state.image) cover.begin()
      else change({ mode })
      // The arrow keys are then the square's.
      if (mode !== 'look') to.focus({ preventScroll: true })
    })
  }
  $('view-in').addEventListener('click', () => view.zoom(1 / 1.25))
  $('view-out').addEventListener('click', () => view.zoom(1.25))
  $('view-reset').addEventListener('click', view.reset)
  new ResizeObserver(redraw).observe(to)
  listen(changed => {
    if (changed.has('network')) {
      const { rows, columns } = state.network.input
      to.style.aspectRatio = `${columns} / ${rows}`
    }
    if (any(changed, 'mode', 'network')) renderMode()
    if (any(changed, 'network', 'net', 'image', 'info', 'camera', 'view', 'cover', 'fill', 'input', 'errors', 'mode')) renderCaption()
    if (any(changed, 'network', 'input', 'picture', 'mode', 'view', 'cover', 'unit', 'layer', 'map', 'maps', 'hover', 'overlay', 'ownScale', 'pictures', 'top', 'sweep', 'sweepOver')) redraw()
  })
}
