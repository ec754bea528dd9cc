import {
  AdamW,
  attentionKinds,
  type Compiled,
  clipGradNorm,
  compile,
  createCpuBackend,
  dropout,
  GPT,
  type GPTConfig,
  manualSeed,
  noGrad,
  randint,
  randn,
  scope,
  type Tensor,
  withBackend,
} from 'tilegrad'
import { afterAll, describe, expect, it } from 'vitest'

// Values that a compiled step computes again rather than keeps: less memory, the same results.

const cpu = createCpuBackend({ threads: 2 })
afterAll(() => cpu.close())

type Step = (x: Tensor) => Tensor

interface Run {
  losses: number[]
  /** The most bytes of the engine's memory in the last step, beyond those before the first. */
  bytes: number
  recomputed: number
  text: string
}

/** Trains a GPT for some steps: as it is, or compiled. */
function train(config: Partial<GPTConfig>, options: { fuse: boolean } | null, steps = 8): Run {
  return withBackend(cpu, () => {
    manualSeed(5)
    const { liveBytes } = cpu.stats()
    const sizes = { vocabSize: 13, blockSize: 32, numLayers: 3, numHeads: 2, embedDim: 64 }
    const model = new GPT({ ...sizes, ...config })
    const parameters = model.parameters()
    const optimizer = new AdamW(parameters, { lr: 1e-3 })
    const step: Step = (x) => {
      const { loss } = model.forward(x, x)
      loss.backward()
      clipGradNorm(parameters, 1)
      optimizer.step()
      optimizer.zeroGrad()
      return loss
    }
    const compiled = options && (compile(step, options) as Compiled<[Tensor], Tensor>)
    const losses = Array.from({ length: steps }, () =>
      scope(() => {
        const x = randint(0, 13, [8, 32])
        cpu.resetPeak()
        return (compiled ?? step)(x).itemSync()
      }),
    )
    const bytes = cpu.stats().peakBytes - liveBytes
    const recomputed = compiled?.plans.at(-1)?.recomputed ?? 0
    const text = String(compiled)
    compiled?.dispose()
    for (const p of parameters) p.dispose()
    return { losses, bytes, recomputed, text }
  })
}

describe('a compiled step that computes again', () => {
  it('takes less than 0.8 of the memory that it takes as it is', () => {
    const [eager, compiled] = [train({}, null), train({}, { fuse: true })]
    expect(compiled.bytes).toBeLessThan(0.8 * eager.bytes)
    // An activation beside its gradient, a norm before the product that needs it.
    expect(compiled.text).toMatch(/linear\+linear\.grad\+linear again\(/)
    expect(compiled.text).toMatch(/ = layer_norm again\(/)
    expect(compiled.text).toContain(`${compiled.recomputed} computed again)`)
  })

  const settings: Record<string, Partial<GPTConfig>> = {
    ...Object.fromEntries(attentionKinds.map((attention) => [attention, { attention }])),
    dropout: { dropout: 0.2 },
    checkpointing: { gradientCheckpointing: true, dropout: 0.1 },
    'untied weights, rotary positions, no biases': { tieWeights: false, rope: true, bias: false },
    'another activation': { activation: 'silu' },
  }
  it.each(Object.entries(settings))('gives the same: %s', (_, config) => {
    const eager = train(config, null)
    const exact = train(config, { fuse: false })
    expect(exact.losses).toEqual(eager.losses)
    const fused = train(config, { fuse: true })
    // What checkpointing recomputes is not kept in the first place.
    if (!config.gradientCheckpointing) expect(Math.min(exact.recomputed, fused.recomputed)).toBeGreaterThan(0)
    for (const [i, loss] of fused.losses.entries()) expect(loss).toBeCloseTo(eager.losses[i] as number, 4)
  })
})

/** Losses where a product needs a value at once, and its gradient much later, with other products between. */
function between(value: (x: Tensor) => Tensor, wrap: (step: Step) => Step): number[] {
  manualSeed(2)
  const [v, u] = [1, 2].map(() => {
    const t = randn([256, 256]).mul(0.05).detach()
    t.requiresGrad = true
    return t
  }) as [Tensor, Tensor]
  const step = wrap((x) => {
    let y = value(x).matmul(v)
    for (let i = 0; i < 6; i++) y = y.matmul(u).tanh()
    const loss = y.square().mean()
    loss.backward()
    for (const t of [v, u]) {
      noGrad(() => t.sub_((t.grad as Tensor).mul(0.1)))
      t.grad?.dispose()
      t.grad = null
    }
    return loss
  })
  return Array.from({ length: 8 }, () => scope(() => step(randn([256, 256])).itemSync()))
}

describe('a value that is computed again', () => {
  it.each<[string, RegExp, (x: Tensor) => Tensor]>([
    ['of an operator', /exp again\(/, (x) => x.exp()],
    ['of a draw, which is that of its call', /dropout again\(/, (x) => dropout(x, 0.5)],
    ['of a whole kernel', /softmax again\(/, (x) => x.softmax(-1)],
  ])('has the same bits: %s', (_, op, value) => {
    withBackend(cpu, () => {
      let text = ''
      const compiled = between(value, (step) => {
        const made = compile(step, { fuse: false })
        return (x) => {
          const result = made(x)
          text = String(made)
          return result
        }
      })
      expect(compiled).toEqual(between(value, (step) => step))
      expect(text).toMatch(op)
    })
  })

  it('is kept where what it was computed of has changed since', () => {
    withBackend(cpu, () => {
      for (const [changes, again] of [
        [false, true],
        [true, false],
      ]) {
        let text = ''
        const step = (wrap: (step: Step) => Step): number[] => {
          manualSeed(4)
          const v = randn([256, 256]).mul(0.05).detach()
          v.requiresGrad = true
          const run = wrap((x) => {
            const h = x.matmul(x)
            let y = h.cos().matmul(v)
            if (changes) h.mul_(2)
            for (let i = 0; i < 6; i++) y = y.matmul(v).tanh()
            const loss = y.square().mean()
            loss.backward()
            const sum = loss.add((v.grad as Tensor).sum()).add(h.sum())
            v.grad = null
            return sum
          })
          return Array.from({ length: 5 }, () => scope(() => run(randn([256, 256])).itemSync()))
        }
        const compiled = step((fn) => {
          const made = compile(fn, { fuse: false })
          return (x) => {
            const result = made(x)
            text = String(made)
            return result
          }
        })
        expect(compiled).toEqual(step((fn) => fn))
        expect(text.includes('cos again(')).toBe(again)
      }
    })
  })
})
