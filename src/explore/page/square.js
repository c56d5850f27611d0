// Squares that a hand draws, moves and resizes, in any units; and rectangles of one shape: `shape` is width and height in
// shares of `side`. Nothing here knows of the page.

import { clamp } from './dom.js'

/** @typedef {{x: number, y: number, side: number, shape?: number[]}} Square */

const SQUARE = [1, 1]

/** Width and height. @param {Square} square @returns {number[]} */
export const sizeOf = ({ side, shape = SQUARE }) => [side * shape[0], side * shape[1]]

/** One from the point where the pointer went down to where it is. @returns {Square} */
export const drawn = (from, to, shape = SQUARE) => {
  const side = Math.max(Math.abs(to.x - from.x) / shape[0], Math.abs(to.y - from.y) / shape[1])
  return { x: to.x < from.x ? from.x - side * shape[0] : from.x, y: to.y < from.y ? from.y - side * shape[1] : from.y, side, shape }
}

/** The opposite of a corner stays, the corner follows. */
export const resized = (square, to, least) => {
  const { x, y, shape = SQUARE } = square
  return { ...square, side: Math.max(least, (to.x - x) / shape[0], (to.y - y) / shape[1]) }
}

/** What a pointer takes hold of: its corner, its inside, or nothing of it. `reach` is the corner's. */
export const grip = (square, at, reach) => {
  if (!square) return null
  const [x, y] = [at.x - square.x, at.y - square.y], [width, height] = sizeOf(square)
  if (Math.hypot(x - width, y - height) <= reach) return 'corner'
  return x >= 0 && y >= 0 && x <= width && y <= height ? 'inside' : null
}

/** About the same middle at another size. */
export const scaled = (square, factor, least, most) => {
  const next = { ...square, side: clamp(square.side * factor, least, most) }
  const [from, to] = [sizeOf(square), sizeOf(next)]
  return { ...next, x: square.x + (from[0] - to[0]) / 2, y: square.y + (from[1] - to[1]) / 2 }
}

/** Moved as little as it takes to lie within. */
export const within = (square, width, height) => {
  const [w, h] = sizeOf(square)
  return { ...square, x: clamp(square.x, 0, Math.max(0, width - w)), y: clamp(square.y, 0, Math.max(0, height - h)) }
}
