import { GPT, Llama, loadPretrained, savePretrained } from 'tilegrad'
import type { Part } from './part.ts'
import { hostileNumbers, hostileValues } from './random.ts'

// Mutated config.json beside sound and mutated weights: each gives a model or a typed error.

const sizes = { vocabSize: 7, blockSize: 6, numLayers: 2, numHeads: 2, embedDim: 8 }

export const configs: Part = {
  name: 'configs',
  about: 'mutated config.json for loadPretrained: a model or a typed error',
  inputs: [3000, 120],
  async run({ random, count, attempt }) {
    const models = [new GPT(sizes), new Llama({ ...sizes, numKvHeads: 1 })]
    const sound = [await savePretrained(models[0]), await savePretrained(models[1])]
    for (const model of models) model.dispose()
    const known = sound.flatMap(({ config }) => Object.keys(config))
    const more = [
      'rope_scaling',
      'rope_theta',
      'head_dim',
      'sliding_window',
      'n_inner',
      'tie_word_embeddings',
      '__proto__',
    ]
    for (let i = 0; i < count; i++) {
      const { config, weights } = structuredClone(random.one(sound))
      for (let n = 1 + random.below(3); n > 0; n--) {
        const key = random.one([...known, ...more])
        const value = random.chance(0.6) ? random.one(hostileNumbers) : hostileValues(random)
        if (random.chance(0.15)) delete config[key]
        else
          Object.defineProperty(config, key, { value, enumerable: true, configurable: true, writable: true })
      }
      if (random.chance(0.2))
        for (let n = 0; n < 4; n++) weights[random.below(weights.length)] ^= 1 << random.below(8)
      await attempt(
        () => JSON.stringify(config),
        () => loadPretrained(config, weights).dispose(),
      )
    }
  },
}
