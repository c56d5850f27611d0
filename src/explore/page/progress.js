// What the server computes in the background: asked for again until it is complete, each answer into the state.

import { Lane, Refused, withoutVersion } from './api.js'
import { change, fail, state } from './state.js'

/** Whether nothing more will come of what the server searches the data for. @param {{done: number, total: number, failed: string | null}} answer */
export const isComplete = ({ done, total, failed }) => done >= total || !!failed

/** Whether an answer has more to show than what stands there of the weights before. */
export const saysMore = (answer, before) => answer.done !== 0 || isComplete(answer)
  || !before || before.of === answer.of || withoutVersion(before.of) !== withoutVersion(answer.of)

export class Progress {
  /**
   * @param {string} field of the state that takes the answers, each with its address as `of`
   * @param {(address: string, signal: AbortSignal) => Promise<any>} ask
   * @param {(answer: any) => boolean} isComplete
   * @param {number} every milliseconds between two questions
   */
  constructor(field, ask, isComplete, every) {
    Object.assign(this, { field, ask, isComplete, every, lane: new Lane(), timer: 0, of: null })
  }

  /** Asks for what is at an address, and no more for what was asked before; null asks for nothing. @param {string | null} of */
  want(of) {
    if (of === this.of) return
    this.of = of
    clearTimeout(this.timer)
    this.lane.stop()
    fail(this.field, null)
    const here = state[this.field]
    if (of && !(here?.of === of && this.isComplete(here))) this.next()
  }

  next() {
    const later = ms => { this.timer = setTimeout(() => this.next(), ms) }
    if (document.hidden) return later(1000)
    const { of, field } = this
    this.lane.ask(async signal => {
      try {
        const answer = { ...(await this.ask(of, signal)), of }
        if (saysMore(answer, state[field])) change({ [field]: answer })
        fail(field, null)
        if (!this.isComplete(answer)) later(this.every)
      } catch (error) {
        if (signal.aborted) return
        fail(field, error)
        if (!(error instanceof Refused)) reportError(error)
        // Away or busy, perhaps for a moment; a refusal stays one.
        else if (error.status === 0 || error.status === 503) later(5000)
      }
    })
  }
}
