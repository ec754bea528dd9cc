// What the workers of tests load: as a user would write it, plain JavaScript.
import { threadId } from 'node:worker_threads'

export const dataset = {
  length: 10,
  get(i) {
    if (i === 7) throw new RangeError('no such picture')
    return { x: Float32Array.of(i, 2 * i), y: i, thread: threadId, even: i % 2 === 0 }
  },
}
