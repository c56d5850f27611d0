// Squares that a hand draws, moves and resizes, in any units. Nothing here knows of the page.

import { clamp } from './dom.js'

/** A square from the point where the pointer went down to where it is. @returns {{x: number, y: number, side: number}} */
export const drawn = (from, to) => {
  const side = Math.max(Math.abs(to.x - from.x), Math.abs(to.y - from.y))
  return { x: to.x < from.x ? from.x - side : from.x, y: to.y < from.y ? from.y - side : from.y, side }
}

/** The opposite of a corner stays, the corner follows. */
export const resized = (square, to, least) => {
  const side = Math.max(least, to.x - square.x, to.y - square.y)
  return { ...square, side }
}

/** What a pointer takes hold of: its corner, its inside, or nothing of it. `reach` is the corner's. */
export const grip = (square, at, reach) => {
  if (!square) return null
  const [x, y] = [at.x - square.x, at.y - square.y]
  if (Math.hypot(x - square.side, y - square.side) <= reach) return 'corner'
  return x >= 0 && y >= 0 && x <= square.side && y <= square.side ? 'inside' : null
}

/** The square about its middle at another size. */
export const scaled = (square, factor, least, most) => {
  const side = clamp(square.side * factor, least, most)
  return { x: square.x + (square.side - side) / 2, y: square.y + (square.side - side) / 2, side }
}

/** Moved as little as it takes to lie within. */
export const within = (square, width, height) => ({
  ...square,
  x: clamp(square.x, 0, Math.max(0, width - square.side)),
  y: clamp(square.y, 0, Math.max(0, height - square.side)),
})
