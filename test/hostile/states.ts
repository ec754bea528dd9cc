import { getRngState, hostRandom, manualSeed, type RngState, rand, scope, setRngState } from 'tilegrad'
import type { Part } from './part.ts'
import { hostileNumbers, hostileValues } from './random.ts'

// Mutated states of the random generator: each is taken and draws numbers, or is refused and changes nothing.

export const states: Part = {
  name: 'random states',
  about: 'mutated states for setRngState: taken, or refused with nothing changed',
  inputs: [5000, 300],
  async run({ random, count, attempt }) {
    for (let i = 0; i < count; i++) {
      manualSeed(i)
      const state = structuredClone(getRngState()) as unknown as Record<string, unknown>
      const host = state.host as Record<string, unknown>
      const target = random.chance(0.4) ? host : state
      const key = random.one([...Object.keys(target), '__proto__', 'more'])
      const list = target[key]
      if (Array.isArray(list) && random.chance(0.7))
        list[random.below(list.length + 2)] = random.chance(0.7)
          ? random.one(hostileNumbers)
          : hostileValues(random)
      else if (random.chance(0.2)) delete target[key]
      else
        Object.defineProperty(target, key, {
          value: hostileValues(random),
          enumerable: true,
          configurable: true,
          writable: true,
        })
      const given = random.chance(0.05) ? hostileValues(random) : state
      const before = JSON.stringify(getRngState())
      await attempt(
        () => JSON.stringify(given),
        () => {
          try {
            setRngState(given as RngState)
          } catch (error) {
            if (JSON.stringify(getRngState()) !== before) throw new Error(`refused, and changed: ${error}`)
            throw error
          }
          for (let n = 0; n < 3; n++) {
            const value = hostRandom()
            if (!(value >= 0 && value < 1)) throw new Error(`hostRandom gave ${value}`)
          }
          scope(() => {
            for (const value of rand([5]).dataSync())
              if (!(value >= 0 && value < 1)) throw new Error(`rand gave ${value}`)
          })
        },
      )
    }
    manualSeed(0)
  },
}
