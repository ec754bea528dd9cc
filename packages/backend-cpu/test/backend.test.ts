/** The CPU backend as core sees it: memory, dtypes, threads, and whole computations against the reference backend. */

import { inspect } from 'node:util'
import {
  type Backend,
  crossEntropy,
  DeviceError,
  type DType,
  expr as e,
  full,
  gelu,
  matmul,
  mean,
  OutOfMemoryError,
  ones,
  program,
  reference,
  scope,
  specialize,
  type Tensor,
  type TypedArray,
  tensor,
  type View,
  withBackend,
  zeros,
} from '@tilegrad/core'
import { afterAll, describe, expect, it } from 'vitest'
import { mismatch } from '../../../test/kernels/operand.ts'
import { random } from '../../../test/kernels/random.ts'
import { type CpuBackend, type CpuOptions, createCpuBackend } from '../src/index.ts'
import { detectFeatures } from '../src/machine/features.ts'

const backends: CpuBackend[] = []
afterAll(() => Promise.all(backends.map((b) => b.close())))
function make(options: CpuOptions = {}): CpuBackend {
  const backend = createCpuBackend({ threads: 2, maxBytes: 2 ** 28, ...options })
  backends.push(backend)
  return backend
}

it('shows what it is, and no memory', () => {
  const backend = make()
  expect(inspect(backend)).toMatch(/^cpu\(threads=2, level=\w+, bytes in use=[\d,]+\)$/)
  expect(JSON.parse(JSON.stringify(backend))).toEqual({ name: 'cpu', threads: 2, level: backend.level })
})
const cpu = make()

const bytes = { bool: 1, int32: 4, float32: 4, float64: 8, float16: 2, bfloat16: 2 } as const
const viewOf = (backend: Backend, dtype: DType, shape: readonly number[], offset = 0): View => {
  const n = shape.reduce((p, d) => p * d, 1)
  const strides = shape.map((_, d) => shape.slice(d + 1).reduce((p, s) => p * s, 1))
  return { buffer: backend.alloc((offset + n) * bytes[dtype], dtype), dtype, shape, strides, offset }
}

describe('memory', () => {
  const contents: [DType, TypedArray][] = [
    ['bool', Uint8Array.of(1, 0, 1, 1, 0, 0)],
    ['int32', Int32Array.of(-(2 ** 31), -1, 0, 1, 7, 2 ** 31 - 1)],
    ['float32', Float32Array.of(-0, 1.5, Infinity, -Infinity, 1e-45, 3.4e38)],
    ['float16', Float32Array.of(-0, 1.5, Infinity, -65504, 2 ** -24, 1 / 1024)],
    ['bfloat16', Float32Array.of(-0, 1.5, Infinity, -(2 ** 127), 2 ** -133, 1 / 128)],
    ['float64', Float64Array.of(-0, Math.PI, Infinity, -1e300, 5e-324, 2 ** 53)],
  ]

  it.each(contents)('%s comes back as it was written', async (dtype, data) => {
    for (const offset of [0, 5]) {
      const view = viewOf(cpu, dtype, [2, 3], offset)
      cpu.write(view, data)
      expect(cpu.readSync?.(view)).toEqual(data)
      expect(await cpu.read(view)).toEqual(data)
      cpu.free(view.buffer)
    }
  })

  it('writes as many elements as the view has, and no more', () => {
    const whole = viewOf(cpu, 'float32', [8])
    cpu.write(whole, Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8))
    cpu.write({ ...whole, shape: [2], offset: 3 }, Float32Array.of(-1, -2, -3, -4))
    expect(cpu.readSync?.(whole)).toEqual(Float32Array.of(1, 2, 3, -1, -2, 6, 7, 8))
    cpu.free(whole.buffer)
  })

  it('reads are copies, in memory that is not shared', async () => {
    const view = viewOf(cpu, 'float32', [4])
    cpu.write(view, Float32Array.of(1, 2, 3, 4))
    const before = await cpu.read(view)
    cpu.write(view, new Float32Array(4))
    expect(before).toEqual(Float32Array.of(1, 2, 3, 4))
    expect(before.buffer).toBeInstanceOf(ArrayBuffer)
    expect(before.buffer.byteLength).toBe(16)
    cpu.free(view.buffer)
  })

  it('takes scalars and empty tensors', () => {
    const scalar = viewOf(cpu, 'float32', [])
    cpu.write(scalar, Float32Array.of(7))
    expect(cpu.readSync?.(scalar)).toEqual(Float32Array.of(7))
    const empty = viewOf(cpu, 'int32', [3, 0])
    cpu.write(empty, new Int32Array(0))
    expect(cpu.readSync?.(empty)).toEqual(new Int32Array(0))
    cpu.free(scalar.buffer)
    cpu.free(empty.buffer)
  })

  it('reuses what is freed, and refuses what it did not give', () => {
    const { liveBytes } = cpu.stats()
    for (let i = 0; i < 100; i++) cpu.free(cpu.alloc(2 ** 20, 'float32'))
    const held = cpu.stats().heapBytes
    for (let i = 0; i < 100; i++) cpu.free(cpu.alloc(2 ** 20, 'float32'))
    expect(cpu.stats()).toMatchObject({ liveBytes, heapBytes: held })
    const buffer = cpu.alloc(16, 'float32')
    cpu.free(buffer)
    expect(() => cpu.free(buffer)).toThrow('not a live block')
    expect(() => cpu.free({})).toThrow(DeviceError)
  })

  it('tells the most memory that was in use since resetPeak', () => {
    cpu.free(cpu.alloc(2 ** 22, 'float32'))
    expect(cpu.stats().peakBytes).toBeGreaterThanOrEqual(cpu.stats().liveBytes + 2 ** 22)
    cpu.resetPeak()
    expect(cpu.stats().peakBytes).toBe(cpu.stats().liveBytes)
    cpu.free(cpu.alloc(2 ** 20, 'float32'))
    expect(cpu.stats().peakBytes).toBe(cpu.stats().liveBytes + 2 ** 20)
  })

  it('names the option that was meant', () => {
    const wrong: object = { thread: 2 }
    expect(() => createCpuBackend(wrong)).toThrow(
      "createCpuBackend: there is no option 'thread'; did you mean 'threads'?",
    )
    const text: object = { threads: '2' }
    expect(() => createCpuBackend(text)).toThrow("threads is '2'; expected an integer")
  })

  it('keeps contents when the memory grows', () => {
    const small = make({ threads: 1 })
    const first = viewOf(small, 'float32', [3])
    small.write(first, Float32Array.of(1, 2, 3))
    const before = small.stats().heapBytes
    const large = viewOf(small, 'float32', [2 ** 23])
    expect(small.stats().heapBytes).toBeGreaterThan(before)
    small.write(large, new Float32Array(2 ** 23).fill(5))
    expect(small.readSync?.(first)).toEqual(Float32Array.of(1, 2, 3))
    expect(small.readSync?.({ ...large, shape: [1], offset: 2 ** 23 - 1 })).toEqual(Float32Array.of(5))
  })

  it('says what is in use when there is no more, and goes on', () => {
    const small = make({ threads: 1, maxBytes: 2 ** 25 })
    expect(() => small.alloc(2 ** 26, 'float32')).toThrow(OutOfMemoryError)
    const view = viewOf(small, 'float32', [2])
    small.write(view, Float32Array.of(1, 2))
    expect(small.readSync?.(view)).toEqual(Float32Array.of(1, 2))
  })

  it('names the largest holders when a step needs too much, and goes on', () => {
    const small = make({ threads: 2, maxBytes: 2 ** 25 })
    const step = (layers: number) =>
      withBackend(small, () =>
        scope(() => {
          const w = zeros([512, 512], { requiresGrad: true })
          let x = zeros([1024, 512])
          for (let i = 0; i < layers; i++) x = x.matmul(w).add(1)
          const loss = x.sum()
          loss.backward()
          return loss.itemSync()
        }),
      )
    expect(step(2)).toBe(1024 * 512)
    const { liveBlocks, liveBytes } = small.stats()
    let message = ''
    try {
      step(50)
    } catch (error) {
      expect(error).toBeInstanceOf(OutOfMemoryError)
      message = (error as Error).message
    }
    expect(message).toMatch(
      /^float32 \[1024, 512\]: memory: 2.0 MiB asked for, but [\d.]+ MiB of at most 32.0 MiB/,
    )
    const holders = /hold, largest: (.*)$/.exec(message)?.[1]?.split('; ') ?? []
    const sorted = [...holders].sort()
    expect(sorted[0]).toMatch(/^1 × float32 \[512, 512\] of 1.0 MiB$|^1 × float32 \[1024, 512\] of 2.0 MiB$/)
    expect(holders[0]).toMatch(/^\d+ × float32 \[1024, 512\] of 2.0 MiB from (add|matmul)$/)
    expect(holders[1]).toMatch(/^\d+ × float32 \[1024, 512\] of 2.0 MiB from (add|matmul)$/)
    // Less than before, where garbage was collected to make room.
    const after = small.stats()
    expect(after.liveBlocks).toBeLessThanOrEqual(liveBlocks)
    expect(after.liveBytes).toBeLessThanOrEqual(liveBytes)
    expect(step(2)).toBe(1024 * 512)
  })

  it('names no more than it knows: what running scopes and their graphs hold', () => {
    const small = make({ threads: 1, maxBytes: 2 ** 24 })
    withBackend(small, () => {
      const weight = zeros([2 ** 20], { requiresGrad: true })
      const use = (fn: () => unknown) => () => {
        scope(() => {
          fn()
          return zeros([2 ** 22])
        })
      }
      expect(use(() => {})).toThrow(
        /16.0 MiB asked for, but 4.0 MiB of at most 16.0 MiB .*or use smaller batches$/,
      )
      const message = /largest: (1 × float32 \[1048576\] of 4.0 MiB(; | from \w+(; |$)|$)){2}/
      expect(use(() => weight.mul(2))).toThrow(message)
      // The graph, through which the weight was known, is gone; its gradient is new.
      expect(use(() => weight.mul(2).sum().backward())).toThrow(
        /8.0 MiB of at most .* largest: 1 × float32 \[1048576\] of 4.0 MiB; 1 × float32 \[\] /,
      )
      expect(weight.grad?.narrow(0, 5, 2).contiguous().dataSync()).toEqual(Float32Array.of(2, 2))
    })
  })

  it('leaves logits readable after backward(), however large they are', () => {
    const large = make({ threads: 1, maxBytes: 2 ** 31 })
    withBackend(large, () =>
      scope(() => {
        const w = full([2 ** 12, 8], 0.5, { requiresGrad: true })
        const logits = ones([2 ** 10, 8]).matmul(w.transpose(0, 1))
        crossEntropy(logits, zeros([2 ** 10], { dtype: 'int32' })).backward()
        // 16 MiB, twice of what stays of other intermediates.
        expect(logits.argmax(1).shape).toEqual([2 ** 10])
      }),
    )
  })
})

describe('set-up', () => {
  it('says what it runs on', () => {
    expect(cpu).toMatchObject({ name: 'cpu', threads: 2, level: detectFeatures().level })
    expect(make({ level: 'simd', threads: 3 })).toMatchObject({ level: 'simd', threads: 3 })
    expect(make({ shared: false, threads: 4 })).toMatchObject({ threads: 1 })
    expect(() => createCpuBackend({ threads: 0 })).toThrow('expected an integer in 1')
    expect(() => createCpuBackend({ maxBytes: 10 })).toThrow('64 KiB')
  })

  it('computes before its threads have started, while they run, and after close', async () => {
    const backend = make({ threads: 3 })
    const n = 300_000
    const x = viewOf(backend, 'float32', [n])
    const y = viewOf(backend, 'float32', [n])
    const double = specialize(
      program('double', 1, ([v]) => e.mul(v as e.Expr, 2)),
      ['float32'],
      [],
    )
    const run = (value: number): void => {
      backend.write(x, new Float32Array(n).fill(value))
      backend.kernels.elementwise.run([y], [x], { kernel: double }, [])
      const out = backend.readSync?.(y) as Float32Array
      expect(out.every((v) => v === 2 * value)).toBe(true)
    }
    run(1)
    await backend.ready()
    run(2)
    await backend.close()
    run(3)
    await backend.close()
  })

  it('two backends do not share anything', () => {
    const other = make({ threads: 1 })
    const view = viewOf(other, 'float32', [1])
    other.write(view, Float32Array.of(3))
    const mine = viewOf(cpu, 'float32', [1])
    cpu.write(mine, Float32Array.of(4))
    expect(other.readSync?.(view)[0]).toBe(3)
  })
})

describe('tensors', () => {
  const rnd = random(21)
  const values = (n: number): number[] => Array.from({ length: n }, () => rnd() * 2 - 1)
  const [xs, w1s, w2s] = [values(6 * 8), values(8 * 16), values(16 * 4)]

  /** Loss and gradients of a small network, by reading them from the backend. */
  function network(backend: Backend, dtype: DType): TypedArray[] {
    return withBackend(backend, () => {
      const of = (data: number[], shape: number[]): Tensor => {
        const t = tensor(data, { dtype }).reshape(shape).detach()
        t.requiresGrad = true
        return t
      }
      const [x, w1, w2] = [of(xs, [6, 8]), of(w1s, [8, 16]), of(w2s, [16, 4])]
      const out = matmul(gelu(matmul(x, w1)), w2)
        .transpose(0, 1)
        .exp()
      const loss = mean(out.mul(out.detach().sum(0, { keepdim: true })))
      expect(loss.backend).toBe(backend)
      loss.backward()
      return [loss, x.grad, w1.grad, w2.grad].map((t) => (t as Tensor).contiguous().dataSync())
    })
  }

  it('a network has the loss and gradients of the reference backend', () => {
    const want = network(reference, 'float64')
    // float32 sums of at most 16 products, and functions right to 7 units: 30 · 6e-8, relative to values of size 1.
    network(cpu, 'float32').forEach((got, i) => {
      expect(mismatch(got, want[i]!, 2e-6, 2e-5)).toBeNull()
    })
    // By the same JavaScript kernels.
    network(cpu, 'float64').forEach((got, i) => {
      expect(mismatch(got, want[i]!, 1e-14, 1e-12)).toBeNull()
    })
  })
})
