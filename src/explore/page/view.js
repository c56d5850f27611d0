// The part of the stored picture that the network is shown (crop and zoom): a square in shares of the shorter side.

import { wantPicture } from './load.js'
import * as square from './square.js'
import { change, state } from './state.js'

const LEAST = 0.05

/** The stored picture's sides in shares of the shorter one. */
export const picture = () => {
  const { bitmap } = state.picture
  const shorter = Math.min(bitmap.width, bitmap.height)
  return { width: bitmap.width / shorter, height: bitmap.height / shorter }
}

/** The square as it is; where none was chosen, the largest in the middle, from which choosing begins. */
export const current = () => {
  if (state.view) return { x: state.view[0], y: state.view[1], side: state.view[2] }
  const { width, height } = picture()
  return { x: (width - 1) / 2, y: (height - 1) / 2, side: 1 }
}

export const show = (chosen, how = {}) => {
  const { width, height } = picture()
  const side = Math.min(1, Math.max(LEAST, chosen.side))
  const inside = square.within({ ...chosen, side }, width, height)
  // Rounded as the link and the requests are, so that the same square has one name.
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
