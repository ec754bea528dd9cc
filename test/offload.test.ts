import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  AdamW,
  type CheckpointOptions,
  CompileError,
  type CpuBackend,
  checkpoint,
  clipGradNorm,
  compile,
  createCpuBackend,
  DeviceError,
  GPT,
  GradError,
  manualSeed,
  noGrad,
  OutOfMemoryError,
  offload,
  ones,
  profile,
  randint,
  randn,
  reference,
  scope,
  type Tensor,
  TilegradError,
  tensor,
  ValueError,
  withBackend,
} from 'tilegrad'
import { afterAll, beforeEach, describe, expect, it, vi } from 'vitest'

// Training in less memory than it takes, with the rest in the host's arrays or in a file: the same bits.

const MiB = 2 ** 20
const folder = mkdtempSync(join(tmpdir(), 'offload-'))
afterAll(() => rmSync(folder, { recursive: true }))
beforeEach(() => manualSeed(3))

/** Runs on an engine of its own, where nobody else's tensors are in memory. */
function onCpu<T>(fn: (cpu: CpuBackend) => T): T {
  const cpu = createCpuBackend({ threads: 2 })
  try {
    return withBackend(cpu, () => fn(cpu))
  } finally {
    void cpu.close()
  }
}

type Step = (x: Tensor, y: Tensor) => Tensor
const plain = (step: Step): Step => step

interface Run {
  losses: number[]
  weights: number[]
  /** The most bytes of the engine's memory. */
  peak: number
}

/** Trains a GPT with dropout, clipping and AdamW, and says what came out and how much memory it took. */
function train(wrap: (step: Step) => Step, onEnd = (): void => {}): Run {
  return onCpu((cpu) => {
    manualSeed(7)
    const sizes = { vocabSize: 31, blockSize: 64, numLayers: 4, numHeads: 4, embedDim: 64, dropout: 0.1 }
    const model = new GPT(sizes)
    const optimizer = new AdamW(model.parameters(), { lr: 1e-2 })
    const step = wrap((x, y) => {
      const { loss } = model.forward(x, y)
      loss.backward()
      clipGradNorm(model.parameters(), 1)
      optimizer.step()
      optimizer.zeroGrad()
      return loss
    })
    const losses = Array.from({ length: 6 }, () =>
      scope(() => step(randint(0, 31, [8, 64]), randint(0, 31, [8, 64])).itemSync()),
    )
    onEnd()
    const { peakBytes } = cpu.stats()
    return {
      losses,
      weights: model.parameters().flatMap((p) => [...p.dataSync().subarray(0, 50)]),
      peak: peakBytes,
    }
  })
}

describe('offload', () => {
  const whole = train(plain)

  it.each(['host', folder])('trains in less memory with the same bits: to %s', (to) => {
    for (const maxBytes of [12 * MiB, 8 * MiB]) {
      expect(maxBytes).toBeLessThan(whole.peak)
      const run = train(
        (step) =>
          (...args) =>
            offload(() => step(...args), { to, maxBytes }),
      )
      expect(run.losses).toEqual(whole.losses)
      expect(run.weights).toEqual(whole.weights)
      expect(run.peak).toBeLessThanOrEqual(maxBytes)
    }
    // The file has no name, so that whatever ends the process leaves nothing.
    if (to === folder && process.platform !== 'win32') expect(readdirSync(folder)).toEqual([])
  })

  it('moves parameters and the state of optimisers, too, and calls on all of them are split', () => {
    const build = (maxBytes: number): number[] =>
      onCpu((cpu) => {
        manualSeed(1)
        const weights = Array.from({ length: 12 }, () => randn([128, 128], { requiresGrad: true }))
        const optimizer = new AdamW(weights, { lr: 0.1 })
        for (let i = 0; i < 3; i++) {
          if (i === 2) cpu.resetPeak()
          offload(
            () => {
              for (const w of weights) w.grad = ones([128, 128]).mul(i)
              optimizer.step()
              optimizer.zeroGrad()
            },
            { to: 'host', maxBytes },
          )
        }
        expect(cpu.stats().peakBytes).toBeLessThanOrEqual(maxBytes)
        return weights.map((w) => w.sum().itemSync())
      })
    // Parameters and state alone are 2.25 MiB.
    expect(build(1.5 * MiB)).toEqual(build(2 ** 32))
  })

  it('leaves tensors that are read, printed, compared and freed as if they were there', () => {
    onCpu((cpu) => {
      const tensors = Array.from({ length: 8 }, (_, i) => ones([64, 1024]).mul(i))
      const view = (tensors[1] as Tensor).narrow(0, 3, 1)
      const { liveBytes } = cpu.stats()
      offload(() => tensors.forEach((t) => void t.add(1).dispose()), {
        to: folder,
        maxBytes: liveBytes - 1.5 * MiB,
      })
      expect(cpu.stats().liveBytes).toBeLessThanOrEqual(liveBytes - 1.5 * MiB)
      expect(view.dataSync()[7]).toBe(1)
      expect(String(tensors[2])).toContain('2')
      expect(JSON.stringify((tensors[3] as Tensor).narrow(1, 0, 1))).toContain('3')
      expect((tensors[0] as Tensor).sum().dataSync()[0]).toBe(0)
      for (const t of [...tensors, view]) t.dispose()
      expect(cpu.stats().liveBytes).toBeLessThan(liveBytes - 1.9 * MiB)
    })
  })

  it('moves what was made before, also if nothing has used it since', () => {
    onCpu((cpu) => {
      const weights = Array.from({ length: 8 }, (_, i) => ones([256, 256]).mul(i))
      const maxBytes = cpu.stats().liveBytes - MiB
      const sums = offload(() => weights.map((w) => w.sum().itemSync()), { to: 'host', maxBytes })
      expect(sums).toEqual(weights.map((_, i) => i * 65536))
      expect(cpu.stats().liveBytes).toBeLessThanOrEqual(maxBytes)
      scope(() => {
        const inside = ones([256, 1024])
        offload(() => ones([256, 256]).add(1), { to: 'host', maxBytes: cpu.stats().liveBytes - MiB / 2 })
        expect(inside.sum().itemSync()).toBe(262144)
      })
    })
  })

  it('holds to the smaller of two limits, one within the other', () => {
    onCpu((cpu) => {
      const work = (): number[] => {
        const all = Array.from({ length: 12 }, (_, i) => ones([256, 256]).mul(i))
        return all.map((t) => t.sum().itemSync())
      }
      const maxBytes = 2 * MiB
      offload(
        () => {
          expect(offload(work, { to: 'host' })).toEqual(Array.from({ length: 12 }, (_, i) => i * 65536))
        },
        { to: 'host', maxBytes },
      )
      expect(cpu.stats().peakBytes).toBeLessThanOrEqual(maxBytes)
    })
  })

  it('uses a file again, whatever sizes come', () => {
    const to = mkdtempSync(join(folder, 'sizes-'))
    const written = vi.spyOn(process.getBuiltinModule('node:fs'), 'writeSync')
    const before = written.mock.calls.length
    onCpu(() => {
      for (let i = 0; i < 60; i++) {
        const [a, b] = [ones([1000 + 37 * i, 16]), ones([900 + 11 * i, 8])]
        scope(() => offload(() => void ones([8192]).add(1), { to, maxBytes: 2 ** 17 }))
        expect(a.sum().itemSync() + b.sum().itemSync()).toBe((1000 + 37 * i) * 16 + (900 + 11 * i) * 8)
        for (const t of [a, b]) t.dispose()
      }
    })
    const calls = written.mock.calls.slice(before) as unknown as [
      number,
      Uint8Array,
      number,
      number,
      number,
    ][]
    expect(calls.length).toBeGreaterThan(60)
    // Never more than is outside at a time.
    expect(Math.max(...calls.map(([, , , length, at]) => at + length))).toBeLessThan(MiB / 2)
    written.mockRestore()
  })

  it('collects what nobody holds before it gives up', () => {
    onCpu((cpu) => {
      const maxBytes = cpu.stats().liveBytes + 2 * MiB
      offload(
        () => {
          for (let i = 0; i < 40; i++) randn([128, 1024])
        },
        { to: 'host', maxBytes },
      )
      expect(cpu.stats().liveBytes).toBeLessThanOrEqual(maxBytes)
    })
  })

  it('says what is wrong', () => {
    onCpu(() => {
      const big = (): unknown => randn([1024, 256]).add(1)
      expect(() => offload(big, { to: 'host', maxBytes: MiB / 2 })).toThrow(OutOfMemoryError)
      expect(() => offload(big, { to: 'host', maxBytes: MiB / 2 })).toThrow(/offload:.*raise maxBytes/)
      expect(() => offload(big, { to: join(folder, 'none') })).toThrow(ValueError)
      expect(() => offload(big, { to: join(folder, 'none') })).toThrow(/ENOENT/)
      expect(() => offload(big, { to: '' })).toThrow(
        /offload: to must be 'host' or the path of a folder, got ''/,
      )
      expect(() => offload(big, { to: 'host', maxBytes: '1e9' } as never)).toThrow(/got '1e9'/)
      expect(() => offload(big, { to: 'host', maxBytes: -1 })).toThrow(
        /maxBytes must be a number of bytes > 0/,
      )
      expect(() => offload(big, { to: 'host', max: 5 } as never)).toThrow(/maxBytes/)
      expect(() => offload(async () => {}, { to: 'host' })).toThrow(GradError)
      expect(() => compile(big, { maxBytes: 5 })).toThrow(/offload/)
      expect(() => compile(() => offload(big as () => Tensor, { to: 'host' }))()).toThrow(CompileError)
    })
    expect(() => withBackend(reference, () => offload(() => 1, { to: 'host' }))).toThrow(DeviceError)
  })

  it('loses nothing where the disk is full', () => {
    onCpu(() => {
      const fs = process.getBuiltinModule('node:fs')
      const kept = ones([512, 1024])
      offload(() => kept.add(1), { to: folder })
      const full = vi.spyOn(fs, 'writeSync').mockImplementation(() => {
        throw new Error('ENOSPC: no space left on device, write')
      })
      try {
        const run = (): void =>
          void offload(() => ones([256, 1024]).add(1), { to: folder, maxBytes: 2 * MiB })
        expect(run).toThrow(TilegradError)
        expect(run).toThrow(/no space left/)
      } finally {
        full.mockRestore()
      }
      expect(kept.sum().dataSync()[0]).toBe(512 * 1024)
      kept.dispose()
    })
  })
})

describe('compile with offload', () => {
  const whole = train((fn) => compile(fn))

  it.each(['host', folder])('moves by plan, with the same bits: to %s', (to) => {
    for (const maxBytes of [9 * MiB, 7.5 * MiB]) {
      let text = ''
      let moved = 0
      let compiled: ReturnType<typeof compile<Parameters<Step>, Tensor>> | undefined
      const run = train(
        (step) => {
          compiled = compile(step, { offload: to, maxBytes })
          return compiled
        },
        () => {
          text = String(compiled)
          moved = compiled?.plans[0]?.offloadedBytes ?? 0
        },
      )
      expect(run.losses).toEqual(whole.losses)
      expect(run.weights).toEqual(whole.weights)
      expect(run.peak).toBeLessThanOrEqual(maxBytes)
      expect(moved).toBeGreaterThan(MiB)
      expect(text).toContain(`moved to ${to} and back`)
    }
  })

  it('shows its moves in the plan and in profiles', () => {
    onCpu(() => {
      const w = randn([256, 256], { requiresGrad: true })
      const step = compile(
        (x: Tensor) => {
          let y = x
          for (let i = 0; i < 6; i++) y = y.matmul(w).tanh()
          y.sum().backward()
          noGrad(() => w.sub_((w.grad as Tensor).mul(0.01)))
          w.grad = null
        },
        { offload: 'host', maxBytes: 6 * MiB },
      )
      const x = randn([512, 256])
      for (let i = 0; i < 4; i++) step(x)
      expect(String(step)).toMatch(/host\[\d+\] = m\d+, /)
      expect(String(step)).toMatch(/m\d+ = host\[\d+\], /)
      const { rows } = profile(() => step(x))
      expect(rows.map(({ op }) => op)).toEqual(expect.arrayContaining(['offload', 'bring back']))
      step.dispose()
      for (const t of [w, x]) t.dispose()
    })
  })

  it('says which step needs more than there is', () => {
    onCpu(() => {
      const x = randn([256, 256])
      const step = compile((x: Tensor) => x.matmul(x).softmax(-1).matmul(x).sum(), {
        offload: 'host',
        maxBytes: 0.5 * MiB,
      })
      expect(() => step(x)).toThrow(OutOfMemoryError)
      step.dispose()
      x.dispose()
    })
  })
})

describe('checkpoint with offload', () => {
  it.each(['host', folder])('moves inputs out until backward: to %s', (to) => {
    const build = (options?: CheckpointOptions): { grads: number[][]; waiting: number } =>
      onCpu((cpu) => {
        manualSeed(2)
        const weights = Array.from({ length: 6 }, () => randn([64, 64], { requiresGrad: true }))
        let y = randn([1024, 64])
        const { liveBytes } = cpu.stats()
        const block = (w: Tensor) => (y: Tensor) => y.matmul(w).tanh().add(y)
        for (const w of weights) y = options ? checkpoint(block(w), y, options) : checkpoint(block(w), y)
        const waiting = cpu.stats().liveBytes - liveBytes
        y.square().mean().backward()
        return { grads: weights.map((w) => [...(w.grad as Tensor).dataSync()]), waiting }
      })
    const [kept, moved] = [build(), build({ offload: to })]
    expect(moved.grads).toEqual(kept.grads)
    // Six inputs of 256 KiB, and the last result; of which the first input was there before.
    expect(kept.waiting).toBeGreaterThan(5.9 * 2 ** 18)
    expect(moved.waiting).toBeLessThan(1.5 * 2 ** 18)
  })

  it('takes its options last, and knows them by name', () => {
    const x = tensor([1, 2], { requiresGrad: true })
    expect(() => checkpoint((x: Tensor) => x.exp(), x, { ofload: 'host' } as never)).toThrow(/offload/)
    expect(() => checkpoint((x: Tensor) => x.exp(), x, { offload: '' })).toThrow(ValueError)
    expect(noGrad(() => checkpoint((x: Tensor) => x.mul(2), x, { offload: 'host' })).dataSync()).toEqual(
      Float32Array.of(2, 4),
    )
  })
})
