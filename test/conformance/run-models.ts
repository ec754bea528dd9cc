import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { autocast, type Backend, cat, data, fullLike, scope, type Tensor, withBackend } from '@tilegrad/core'
import { type GPT, type Llama, loadPretrained, type PretrainedConfig } from '@tilegrad/nn'
import { difference, HALF_INPUTS, type Half, type Tolerance } from './compare.ts'
import { readJson, Tensors } from './manifest.ts'
import { failed, type Outcome, PASSED, type Report } from './report.ts'

/** float32 on both sides: what a few layers make of roundings of 6e-8. */
const LOGITS: Tolerance = { rtol: 0, atol: 1e-4 }
const LOSS: Tolerance = { rtol: 1e-5, atol: 0 }
/** Sums over all tokens; `cancels` only raises what is allowed where gradients exceed 1. */
const GRADIENT: Tolerance = { rtol: 1e-3, atol: 1e-4 }
const PROMPT = 8
/** Hugging Face's generate hides tokens of a prompt that are the pad token. */
const PAD = 0

/** The folders of a directory that hold a checkpoint and what it computes. */
export const modelsIn = (dir: string): string[] =>
  readdirSync(dir)
    .filter((name) => existsSync(join(dir, name, 'golden.safetensors')))
    .sort()

/** Loads each checkpoint and compares logits, loss, gradients and greedy tokens with those of `golden.safetensors`. */
export async function runModels(
  dir: string,
  backend: Backend,
  only: RegExp,
  report: Report,
  half?: Half,
): Promise<void> {
  for (const name of modelsIn(dir)) {
    const checks = Object.entries(CHECKS).filter(
      // Of tokens that are nearly as likely, 16 bits may choose another.
      ([what]) => only.test(`${name}.${what}`) && !(half && what === 'generated'),
    )
    if (checks.length === 0) continue
    const file = (path: string): string => join(dir, name, path)
    const golden = new Tensors(file('golden.safetensors'), backend)
    for (const [what, check] of checks) {
      let outcome: Outcome
      try {
        const config = readJson(file('config.json')) as PretrainedConfig
        const model = withBackend(backend, () =>
          loadPretrained(config, readFileSync(file('model.safetensors'))),
        )
        try {
          const why = await check(model.eval(), golden, backend, half)
          outcome = why === null ? PASSED : failed(why)
        } finally {
          model.dispose()
        }
      } catch (error) {
        outcome = failed(String(error))
      }
      report.add(`${name}.${what}`, outcome)
    }
  }
}

type Check = (
  model: GPT | Llama,
  golden: Tensors,
  backend: Backend,
  half: Half | undefined,
) => Promise<string | null>

/** What is computed in float32, or in 16 bits where `autocast` says so. */
const within = <T>(half: Half | undefined, fn: () => T): T => (half ? autocast(half, fn) : fn())

const CHECKS: Readonly<Record<string, Check>> = {
  async logits(model, golden, _, half) {
    const logits = scope(() => within(half, () => model.forward(golden.load('input_ids')).logits))
    const allowed = half ? HALF_INPUTS[half] : LOGITS
    return difference(await data(logits), golden.values('logits'), logits.shape, allowed)
  },

  async 'loss and gradients'(model, golden, _, half) {
    const loss = scope(() => {
      const ids = golden.load('input_ids')
      const [, t] = ids.shape
      const targets = cat([ids.narrow(1, 1, t - 1), fullLike(ids.narrow(1, 0, 1), -100)], 1)
      const { loss } = within(half, () => model.forward(ids, targets))
      loss.backward()
      return loss.detach()
    })
    const why = difference(await data(loss), golden.values('loss'), [1], half ? HALF_INPUTS[half] : LOSS)
    if (why) return `loss: ${why}`
    const own = new Map(model.namedParameters())
    const names = golden.names('grad.')
    if (names.length === 0) return 'the fixture has no gradients'
    for (const name of names) {
      const short = name.replace(/^transformer\./, '')
      const grad = own.get(short)?.grad
      if (!grad) return `${name} has no gradient`
      // GPT-2's weights, but not embeddings, are stored (in, out).
      const stored = /^h\.\d+\.(attn|mlp)\..*weight$/.test(short) ? grad.T : grad
      const wrong = difference(
        await data(stored),
        golden.values(`grad.${name}`),
        stored.shape,
        half ? HALF_INPUTS[half] : GRADIENT,
      )
      if (wrong) return `gradient of ${name}: ${wrong}`
    }
    return null
  },

  async generated(model, golden, backend) {
    const want = golden.values('generated')
    const generate = (useCache: boolean): Promise<Tensor> => {
      const prompt = golden.load('generated').narrow(1, 0, PROMPT)
      const maxNewTokens = want.length - PROMPT
      const options = { maxNewTokens, temperature: 0, useCache, keyMask: prompt.ne(PAD) }
      return withBackend(backend, () => model.generate(prompt, options)).tensor()
    }
    for (const useCache of [true, false]) {
      const tokens = await generate(useCache)
      const why = difference(await data(tokens), want, tokens.shape, { rtol: 0, atol: 0 })
      if (why) return `${useCache ? 'with' : 'without'} caches: ${why}`
    }
    return null
  },
}
