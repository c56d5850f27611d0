// The part of the stored picture that the network is shown (crop and zoom): of the shape of its input,
// the larger side of it in shares of the picture's shorter one.

import { wantPicture } from './load.js'
import * as square from './square.js'
import { change, state } from './state.js'

const LEAST = 0.05

/** Width and height of the input in shares of its larger side. */
const shape = () => {
  const { rows, columns } = state.network.input
  return [columns / Math.max(rows, columns), rows / Math.max(rows, columns)]
}

/** One drawn from point to point. */
export const drawn = (from, to) => square.drawn(from, to, shape())

/** The stored picture's sides in shares of the shorter one. */
export const picture = () => {
  const { bitmap } = state.picture
  const shorter = Math.min(bitmap.width, bitmap.height)
  return { width: bitmap.width / shorter, height: bitmap.height / shorter }
}

/** The part as it is; where none was chosen, the largest in the middle, from which choosing begins. */
export const current = () => {
  if (state.view) return { x: state.view[0], y: state.view[1], side: state.view[2], shape: shape() }
  const { width, height } = picture()
  const [w, h] = shape()
  return { x: (width - w) / 2, y: (height - h) / 2, side: 1, shape: [w, h] }
}

export const show = (chosen, how = {}) => {
  const { width, height } = picture()
  const side = Math.min(1, Math.max(LEAST, chosen.side))
  const inside = square.within({ ...chosen, side, shape: shape() }, width, height)
  // Rounded as the link and the requests are, so that the same part has one name.
  const round = v => Math.floor(v * 1e4) / 1e4
  change({ view: [round(inside.x), round(inside.y), round(inside.side)] }, how)
}

export const zoom = async factor => {
  if (!state.image) return
  await wantPicture()
  if (state.picture) show(square.scaled(current(), factor, LEAST, 1), { follow: true })
}

export const move = async (x, y) => {
  if (!state.image) return
  await wantPicture()
  if (!state.picture) return
  const from = current()
  show({ ...from, x: from.x + x, y: from.y + y }, { follow: true })
}

export const reset = () => change({ view: null })
