// Numbers become pixels. Nothing here knows of the page.

// The anchors of viridis that the program's own pictures are drawn with.
const ANCHORS = [[68, 1, 84], [70, 50, 127], [54, 92, 141], [39, 127, 143], [31, 162, 136], [74, 194, 110], [160, 219, 57], [254, 232, 37]]

/** Viridis at `place`, 0 to 1. @returns {number[]} */
export const viridis = place => {
  const at = Math.min(Math.max(place, 0), 1) * (ANCHORS.length - 1)
  const i = Math.min(Math.floor(at), ANCHORS.length - 2)
  return ANCHORS[i].map((v, c) => Math.round(v + (ANCHORS[i + 1][c] - v) * (at - i)))
}

/** Below zero: greys, so that the sign is seen even without colours. */
const below = place => Array(3).fill(Math.round(50 + 190 * Math.min(place, 1)))

/** A value of a map as a colour, `high` being the end of the scale. */
export const colour = (value, high) => {
  if (!(high > 0)) return ANCHORS[0]
  return value < 0 ? below(-value / high) : viridis(value / high)
}

// Written by bytes, so that the order of bytes in a word is the machine's own affair.
const words = new Uint32Array(1)
const bytes = new Uint8Array(words.buffer)
const word = ([r, g, b], alpha = 255) => {
  bytes.set([r, g, b, alpha])
  return words[0]
}

/** A table from i8 + 128 to pixels, where `high` (of 127) is the end of the scale. */
const table = (high, alpha) => Uint32Array.from({ length: 256 }, (_, i) =>
  word(colour(i - 128, high), alpha ? Math.round(235 * Math.min(Math.max((i - 128) / high, 0), 1) ** 0.6) : 255))

const tables = new Map()
const tableOf = (high, alpha) => {
  const key = `${high} ${alpha}`
  if (tables.size > 1000) tables.clear()
  if (!tables.has(key)) tables.set(key, table(high, alpha))
  return tables.get(key)
}

/**
 * One map as pixels, `range` being the end of the scale. `alpha` is for a map over an image: what does not fire is let
 * through.
 * @param {{head: any, values: Int8Array}} maps
 */
export const mapPixels = (maps, map, range, alpha = false) => {
  const { rows, columns } = maps.head
  const values = maps.values.subarray(map * rows * columns, (map + 1) * rows * columns)
  const high = maps.head.scales[map] ? 127 * range / maps.head.scales[map] : 127
  const image = new ImageData(columns, rows)
  const pixels = new Uint32Array(image.data.buffer)
  const colours = tableOf(high, alpha)
  for (let i = 0; i < values.length; i++) pixels[i] = colours[values[i] + 128]
  return image
}

/** The largest magnitude of a layer's maps. */
export const scaleOfLayer = maps => (maps.scale ??= maps.head.scales.reduce((most, scale) => Math.max(most, scale), 0))

/** The value of a unit as far as the maps tell; exact where it is the map's peak. */
export const valueOf = (maps, map, y, x) => {
  const { rows, columns, scales, peaks } = maps.head
  const [value, row, column] = peaks[map]
  if (row === y && column === x) return value
  return maps.values[(map * rows + y) * columns + x] / 127 * scales[map]
}

/** Whether anything lies below zero: so in a layer before its relu. */
export const isSigned = maps => (maps.signed ??= maps.values.some(v => v < 0))

/** The end of a map's scale, as the page prints ranges. */
export const rangeOf = (maps, map, own) => (own ? maps.head.scales[map] : scaleOfLayer(maps))

const fround = Math.fround

/** A value of a projection as a byte, exactly as the program's own pictures have it; `scale` and `gain` f32. */
export const projectionByte = (x, scale, gain) => {
  if (Number.isNaN(x) || scale === 0) return 128
  const share = fround((gain === 1 ? x : fround(x * gain)) / scale)
  const t = fround(127 * (share < -1 ? -1 : share > 1 ? 1 : share))
  // Halves away from zero, which Math.round does not do below it.
  const away = t < 0 ? -Math.floor(-t + 0.5) : Math.floor(t + 0.5)
  return Number.isNaN(away) ? 128 : 128 + away
}

/**
 * A projection as pixels, cut to `box` (x0, y0, x1, y1; x1 and y1 excluded): grey where that is outside.
 * @param {{head: any, values: Float32Array}} projection
 */
export const projectionPixels = (projection, scale, gain, box) => {
  const { rows, columns, channels } = projection.head
  const [x0, y0, x1, y1] = box ?? [0, 0, columns, rows]
  const image = new ImageData(Math.max(1, x1 - x0), Math.max(1, y1 - y0))
  const out = image.data.fill(128)
  const s = fround(scale), g = fround(gain), { values } = projection
  for (let i = 3; i < out.length; i += 4) out[i] = 255
  for (let y = Math.max(y0, 0); y < Math.min(y1, rows); y++) {
    for (let x = Math.max(x0, 0); x < Math.min(x1, columns); x++) {
      const from = (y * columns + x) * channels
      const to = ((y - y0) * image.width + x - x0) * 4
      if (channels === 1) out.fill(projectionByte(values[from], s, g), to, to + 3)
      else for (let c = 0; c < 3; c++) out[to + c] = projectionByte(values[from + c], s, g)
    }
  }
  return image
}

/** Puts pixels on a canvas that takes their size. */
export const put = (canvas, image) => {
  if (canvas.width !== image.width) canvas.width = image.width
  if (canvas.height !== image.height) canvas.height = image.height
  canvas.getContext('2d').putImageData(image, 0, 0)
}

/** Pixels as a canvas of their own, to be drawn from. */
export const canvasOf = image => {
  const canvas = document.createElement('canvas')
  put(canvas, image)
  return canvas
}

/** A box in two lines, light within dark, to be seen on any picture. */
export const frame = (context, x, y, width, height, inner, dash = []) => {
  context.save()
  context.setLineDash([])
  context.lineWidth = 4
  context.strokeStyle = 'rgb(0 0 0 / .55)'
  context.strokeRect(x, y, width, height)
  context.setLineDash(dash)
  context.lineWidth = 2
  context.strokeStyle = inner
  context.strokeRect(x, y, width, height)
  context.restore()
}
