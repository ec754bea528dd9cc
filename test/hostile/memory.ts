import {
  AdamW,
  type Backend,
  clipGradNorm,
  createCpuBackend,
  defaultBackend,
  GPT,
  manualSeed,
  memory,
  OutOfMemoryError,
  randint,
  scope,
  setDefaultBackend,
} from 'tilegrad'
import type { Part } from './part.ts'

// Allocations of a training step that fail: an OutOfMemoryError, no tensor left behind, and the next step works.

export const outOfMemory: Part = {
  name: 'out of memory',
  about: 'an allocation of a training step fails: a typed error, nothing left, the next step works',
  inputs: [400, 40],
  async run({ random, count, attempt, fail }) {
    const outer = defaultBackend()
    const real = createCpuBackend({ threads: 1 })
    let left = Number.POSITIVE_INFINITY
    const failing: Backend = {
      ...real,
      alloc(bytes, dtype) {
        if (--left <= 0) throw new OutOfMemoryError(bytes, 0, 0)
        return real.alloc(bytes, dtype)
      },
    }
    setDefaultBackend(failing)
    try {
      manualSeed(1)
      const model = new GPT({
        vocabSize: 11,
        blockSize: 8,
        numLayers: 2,
        numHeads: 2,
        embedDim: 16,
        dropout: 0.1,
      })
      const optimizer = new AdamW(model.parameters(), { lr: 1e-3 })
      const tokens = randint(0, 11, [4, 9])
      const step = (): number => {
        try {
          return scope(() => {
            const { loss } = model.forward(tokens.narrow(1, 0, 8), tokens.narrow(1, 1, 8))
            loss.backward()
            clipGradNorm(model.parameters(), 1)
            optimizer.step()
            return loss.dataSync()[0]
          })
        } finally {
          optimizer.zeroGrad()
        }
      }
      // How many there are in a step, when compiled and with the optimiser's state in place.
      step()
      left = 1e9
      step()
      const allocations = 1e9 - left
      if (allocations < 20) fail('a step of a GPT', `has ${allocations} allocations only`)
      for (let i = 0; i < count; i++) {
        const at = 1 + random.below(allocations)
        const before = memory().bytes
        await attempt(
          () => `allocation ${at} of ${allocations}`,
          () => {
            left = at
            try {
              step()
              throw new Error('the step did not fail')
            } catch (error) {
              if (!(error instanceof OutOfMemoryError)) throw error
            } finally {
              left = Number.POSITIVE_INFINITY
            }
            const loss = step()
            if (!Number.isFinite(loss)) throw new Error(`the next step's loss is ${loss}`)
            if (memory().bytes !== before) throw new Error(`${memory().bytes - before} bytes are left`)
          },
        )
      }
      model.dispose()
      tokens.dispose()
    } finally {
      setDefaultBackend(outer)
      real.close()
    }
  },
}
