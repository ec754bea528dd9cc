import {
  AdamW,
  attentionKinds,
  clipGradNorm,
  compile,
  createCpuBackend,
  decayGroups,
  full,
  GPT,
  type GPTConfig,
  manualSeed,
  memory,
  noGrad,
  type Optimizer,
  ones,
  RandomGenerator,
  rand,
  randint,
  SGD,
  schedule,
  scope,
  type Tensor,
  withBackend,
} from 'tilegrad'
import { afterAll, describe, expect, it } from 'vitest'
import { collected } from '../packages/core/test/support/collected.ts'

// Compiled training beside the same training without: bit for bit where nothing is fused.

const cpu = createCpuBackend({ threads: 2 })
afterAll(() => cpu.close())

interface Setting {
  config?: Partial<GPTConfig>
  steps?: number
  /** Micro-batches that are summed up in one step. */
  parts?: number
  optimizer?: (model: GPT) => Optimizer<{ lr: number }>
  /** Where state is saved and loaded into a new model, in the middle. */
  resumeAt?: number
  /** The optimiser's part stays outside. */
  outside?: boolean
}

type Wrap = <A extends readonly unknown[], R>(fn: (...args: A) => R) => (...args: A) => R

const sizes: GPTConfig = {
  vocabSize: 13,
  blockSize: 12,
  numLayers: 2,
  numHeads: 2,
  embedDim: 16,
  dropout: 0.1,
}

function losses(setting: Setting, wrap: Wrap): number[] {
  const { config, steps = 200, parts = 1, resumeAt = -1, outside = false } = setting
  manualSeed(5)
  const make = () => {
    const model = new GPT({ ...sizes, ...config })
    const optimizer =
      setting.optimizer?.(model) ?? new AdamW(decayGroups(model, 0.1), { lr: 1e-2, betas: [0.9, 0.95] })
    const finish = (): void => {
      clipGradNorm(model.parameters(), 1)
      optimizer.step()
      optimizer.zeroGrad()
    }
    const step = wrap((x: Tensor, y: Tensor) => {
      let total: Tensor | null = null
      for (let i = 0; i < parts; i++) {
        const { loss } = model.forward(x.narrow(0, 2 * i, 2), y.narrow(0, 2 * i, 2))
        loss.div(parts).backward()
        total = total ? total.add(loss) : loss
      }
      if (!outside) finish()
      return total as Tensor
    })
    return { model, optimizer, step, finish }
  }
  let run = make()
  const rate = schedule.warmupCosine({ lr: 1e-2, warmupSteps: 5, decaySteps: steps })
  const out: number[] = []
  for (let i = 0; i < steps; i++) {
    if (i === resumeAt) {
      const next = make()
      next.model.loadStateDict(run.model.stateDict())
      next.optimizer.loadStateDict(run.optimizer.stateDict())
      run = next
    }
    run.optimizer.lr = rate(i)
    scope(() => {
      const tokens = randint(0, 13, [2 * parts, 12])
      const loss = run.step(tokens, tokens)
      if (outside) run.finish()
      out.push(loss.itemSync())
    })
  }
  return out
}

const settings: Record<string, Setting> = {
  ...Object.fromEntries(attentionKinds.map((attention) => [attention, { config: { attention } }])),
  'two layers': { config: { numLayers: 2 } },
  'micro-batches': { parts: 3 },
  checkpointing: { config: { gradientCheckpointing: true } },
  'untied weights, rotary positions, biases': { config: { tieWeights: false, rope: true, bias: true } },
  'SGD with momentum': { optimizer: (model) => new SGD(model.parameters(), { lr: 0.1, momentum: 0.9 }) },
  'saved and resumed': { resumeAt: 112 },
  'an optimiser outside': { outside: true },
}

describe.each(Object.entries(settings))('compiled training: %s', (_, setting) => {
  it('gives the same bits without fusing, and the same losses with it', () => {
    withBackend(cpu, () => {
      const eager = losses(setting, (fn) => fn)
      const replayed: number[] = []
      const exact = losses(setting, (fn) => {
        const compiled = compile(fn, { fuse: false })
        return (...args) => {
          const result = compiled(...args)
          replayed.push(compiled.plans.length)
          return result
        }
      })
      expect(exact).toEqual(eager)
      // It did not stay with recording.
      expect(replayed.at(-1)).toBeGreaterThan(0)
      const fused = losses({ ...setting, steps: 30 }, (fn) => compile(fn))
      const unfused = losses({ ...setting, steps: 30 }, (fn) => fn)
      for (const [i, loss] of fused.entries()) expect(loss).toBeCloseTo(unfused[i] as number, 4)
    })
  })
})

describe('a compiled function', () => {
  it('is recorded anew for evaluation', () => {
    withBackend(cpu, () => {
      manualSeed(1)
      const model = new GPT({ ...sizes, dropout: 0.5 })
      const forward = compile((x: Tensor) => model.forward(x).logits.sum())
      const x = randint(0, 13, [2, 12])
      for (let i = 0; i < 4; i++) forward(x)
      model.eval()
      const values = Array.from({ length: 5 }, () => forward(x).itemSync())
      expect(new Set(values).size).toBe(1)
      expect(values[0]).toBe(scope(() => model.forward(x).logits.sum().itemSync()))
      expect(forward.plans.length).toBe(2)
    })
  })

  it('finds gradients that others have put there, and adds to them', () => {
    withBackend(cpu, () => {
      const sums = (wrap: Wrap): number[] => {
        const w = ones([3], { requiresGrad: true })
        const step = wrap((x: Tensor) => {
          const loss = w.mul(x).sum()
          loss.backward()
          return loss
        })
        return Array.from({ length: 12 }, (_, i) => {
          if (i % 4 === 0) w.grad = null
          if (i % 5 === 2) w.grad = full([3], i)
          step(full([3], i + 1))
          return (w.grad as Tensor).sum().itemSync()
        })
      }
      expect(sums((fn) => compile(fn))).toEqual(sums((fn) => fn))
    })
  })

  it('tells who sets options inside', () => {
    withBackend(cpu, () => {
      const w = ones([3], { requiresGrad: true })
      const optimizer = new SGD([w], { lr: 0.1 })
      const step = compile((rate: number) => {
        const [group] = optimizer.paramGroups
        if (group) group.lr = rate * optimizer.lr
        w.square().sum().backward()
        optimizer.step()
        optimizer.zeroGrad()
      })
      const call = (): void => {
        for (let i = 0; i < 4; i++) step(0.5)
      }
      expect(call).toThrow(/setting options of SGD cannot be a part of a compiled function; do it outside/)
    })
  })

  it('sees when a weight is frozen, a hook is added, or another generator draws', () => {
    withBackend(cpu, () => {
      const run = (wrap: Wrap): number[] => {
        manualSeed(4)
        const [w, v] = [ones([3], { requiresGrad: true }), ones([3], { requiresGrad: true })]
        const step = wrap((x: Tensor) => {
          const loss = w
            .mul(v)
            .mul(x)
            .add(rand([3]))
            .square()
            .sum()
          loss.backward()
          noGrad(() => {
            for (const p of [w, v]) if (p.grad) p.sub_(p.grad.mul(0.01))
          })
          for (const p of [w, v]) p.grad = null
          return loss
        })
        return Array.from({ length: 16 }, (_, i) => {
          if (i === 6) v.requiresGrad = false
          if (i === 9) w.registerHook((g) => g.mul(2))
          const call = (): Tensor => step(full([3], 1))
          return (i % 3 === 2 ? new RandomGenerator(i).run(call) : call()).itemSync()
        })
      }
      expect(run((fn) => compile(fn, { fuse: false }))).toEqual(run((fn) => fn))
    })
  })

  it('gives results of its own, and refuses arguments that are in use otherwise', () => {
    withBackend(cpu, () => {
      const same = compile((x: Tensor) => [x, x.reshape([3, 1])])
      const kept = Array.from({ length: 5 }, (_, i) => same(full([3], i)))
      expect(kept.map(([a]) => (a as Tensor).dataSync()[0])).toEqual([0, 1, 2, 3, 4])
      expect(kept.map(([, b]) => (b as Tensor).dataSync()[0])).toEqual([0, 1, 2, 3, 4])
      const buffer = ones([3])
      const uses = compile((x: Tensor) => buffer.add(x))
      expect(() => uses(buffer.narrow(0, 0, 3))).toThrow(/shares memory with a tensor that the function uses/)
    })
  })

  it('may switch modules itself', () => {
    withBackend(cpu, () => {
      const model = new GPT({ ...sizes, dropout: 0.5 })
      const evaluate = compile((x: Tensor) => {
        model.eval()
        const sum = model.forward(x).logits.sum()
        model.train()
        return sum
      })
      const x = randint(0, 13, [2, 12])
      const values = Array.from({ length: 8 }, () => evaluate(x).itemSync())
      expect(new Set(values).size).toBe(1)
      expect(evaluate.plans.length).toBe(1)
      expect(model.training).toBe(true)
      evaluate.dispose()
    })
  })

  it('is freed with the function, if nobody says so', async () => {
    const before = memory().bytes
    withBackend(cpu, () => {
      const f = compile((x: Tensor) => x.exp().matmul(x).sum())
      scope(() => {
        const x = randint(0, 13, [64, 64]).to('float32')
        for (let i = 0; i < 4; i++) f(x)
      })
    })
    expect(memory().bytes).toBeGreaterThan(before)
    await collected()
    expect(memory().bytes).toBeLessThanOrEqual(before)
  })

  it('may be the first that an engine computes, whose checks of itself are no part of it', async () => {
    const fresh = createCpuBackend({ threads: 1 })
    await fresh.ready()
    const { level } = fresh
    withBackend(fresh, () => {
      const model = new GPT(sizes)
      const step = compile((x: Tensor) => {
        const { loss } = model.forward(x, x)
        loss.backward()
        for (const p of model.parameters()) p.grad = null
        return loss
      })
      const x = randint(0, 13, [2, 12])
      for (let i = 0; i < 4; i++) step(x).dispose()
      expect(step.plans.length).toBe(1)
    })
    expect(fresh.level).toBe(level)
    await fresh.close()
  })

  it('joins elementwise chains, what follows a product, and many updates', () => {
    withBackend(cpu, () => {
      const model = new GPT({ ...sizes, hiddenDim: 32, dropout: 0.2 })
      const optimizer = new AdamW(model.parameters())
      const step = compile((x: Tensor) => {
        const { loss } = model.forward(x, x)
        loss.backward()
        clipGradNorm(model.parameters(), 1)
        optimizer.step()
        optimizer.zeroGrad()
        return loss
      })
      const x = randint(0, 13, [2, 12])
      for (let i = 0; i < 4; i++) step(x).dispose()
      const text = String(step)
      expect(text).toMatch(/linear\+linear\.grad/)
      expect(text).toMatch(/clip_grad_norm\+adamw/)
      expect(text).toMatch(/dropout\+add/)
      expect(step.plans[0]?.fused).toBeGreaterThan(3)
      step.dispose()
    })
  })

  it('holds no more from step to step, and nothing when disposed of', () => {
    withBackend(cpu, () => {
      const model = new GPT(sizes)
      const optimizer = new AdamW(model.parameters())
      const step = compile((x: Tensor) => {
        const { loss } = model.forward(x, x)
        loss.backward()
        optimizer.step()
        optimizer.zeroGrad()
        return loss
      })
      const x = randint(0, 13, [2, 12])
      const before = memory()
      const run = (n: number): number => {
        for (let i = 0; i < n; i++) step(x).dispose()
        return memory().bytes
      }
      const after = run(6)
      expect(run(50)).toBe(after)
      step.dispose()
      const state = 2 * model.parameters().reduce((n, p) => n + 4 * p.numel, 0)
      expect(memory().bytes).toBe(before.bytes + state)
    })
  })
})
