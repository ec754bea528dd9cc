/** Kernels that remember what they did: right with other buffers and numbers, and nothing worked out anew. */
import {
  add,
  layerNorm,
  matmul,
  mul,
  reference,
  scope,
  softmax,
  sum,
  type Tensor,
  tensor,
  withBackend,
} from '@tilegrad/core'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { Memory } from '../src/commands/replay.ts'
import type { GpuBuffer } from '../src/device/buffers.ts'
import { createWebGpuBackend, type WebGpuBackend } from '../src/index.ts'

/** Each test's own, which remembers nothing yet. */
let gpu: WebGpuBackend
let engine: WebGpuBackend['engine']
/** Kernels ask for a pipeline whenever they work something out. */
let asked = 0
beforeEach(async () => {
  gpu = await createWebGpuBackend()
  engine = gpu.engine
  const kernel = engine.kernel.bind(engine)
  engine.kernel = (...args) => {
    asked++
    return kernel(...args)
  }
})
afterEach(() => gpu.close())

/** Whole numbers, whose sums are exact. */
const numbers = (shape: readonly number[], seed: number): Tensor => {
  const count = shape.reduce((n, s) => n * s, 1)
  return tensor(
    Float32Array.from({ length: count }, (_, i) => ((i * 7919 + seed * 104729) % 17) - 8),
    shape,
  )
}

/** Runs `fn` on the GPU and on the reference; returns how often the GPU's kernels asked. */
async function agree(fn: (seed: number) => Tensor, seed: number, digits = 0): Promise<number> {
  const before = asked
  const got = await withBackend(gpu, () => fn(seed)).data()
  const calls = asked - before
  const want = await withBackend(reference, () => fn(seed)).data()
  expect(got.length).toBe(want.length)
  for (let i = 0; i < want.length; i++)
    if (digits === 0) expect(got[i]).toBe(want[i])
    else expect(got[i]).toBeCloseTo(want[i] as number, digits)
  return calls
}

describe('the second call works nothing out, and is right for other operands', () => {
  const cases: [name: string, fn: (seed: number) => Tensor, digits?: number][] = [
    ['elementwise', (seed) => add(numbers([5, 7], seed), numbers([7], seed + 1))],
    ['elementwise with a number', (seed) => mul(numbers([9], seed), seed + 0.5)],
    ['int32 with a number', (seed) => tensor([1, 2, 3], { dtype: 'int32' }).add(-seed)],
    ['a view', (seed) => mul(numbers([6, 10], seed).transpose(0, 1).narrow(0, 3, 5), numbers([6], seed))],
    ['a reduction in parts', (seed) => sum(numbers([300_000], seed))],
    ['a product with k split', (seed) => matmul(numbers([70, 4096], seed), numbers([4096, 70], seed))],
    ['softmax', (seed) => softmax(numbers([11, 13], seed), -1), 5],
    ['layer norm', (seed) => layerNorm(numbers([6, 12], seed), [12], numbers([12], seed)), 4],
  ]
  test.each(cases)('%s', async (_, fn, digits) => {
    expect(await agree(fn, 1, digits)).toBeGreaterThan(0)
    expect(await agree(fn, 2, digits)).toBe(0)
    expect(await agree(fn, 3, digits)).toBe(0)
  })
})

test('what differs is worked out: operands that share a buffer, offsets, strides, attributes', async () => {
  const x = (seed: number) => numbers([4, 6], seed)
  const pairs: ((seed: number) => Tensor)[] = [
    (seed) => add(x(seed), x(seed + 1)),
    (seed) => {
      const y = x(seed)
      return add(y, y)
    },
    (seed) => add(x(seed), x(seed + 1).narrow(0, 1, 1)),
    (seed) => add(x(seed), x(seed + 1).narrow(0, 2, 1)),
    (seed) => add(x(seed).transpose(0, 1), x(seed + 1).transpose(0, 1)),
    (seed) => add(x(seed), numbers([6, 4], seed).transpose(0, 1)),
    (seed) => sum(x(seed), 0),
    (seed) => sum(x(seed), 1),
    (seed) => sum(x(seed)),
  ]
  for (const seed of [1, 2])
    for (const fn of pairs) {
      const calls = await agree(fn, seed)
      if (seed === 1) expect(calls).toBeGreaterThan(0)
      else expect(calls).toBe(0)
    }
  for (const eps of [1e-5, 1, 1e-5, 1])
    await agree((seed) => layerNorm(numbers([6, 12], seed), [12], undefined, undefined, { eps }), 4, 4)
})

test('in place, again and again', async () => {
  const x = tensor([1, 2, 3], { device: gpu })
  for (let i = 0; i < 5; i++) x.mul_(i + 1)
  expect([...(await x.data())]).toEqual([120, 240, 360])
})

test('more recordings than there are slots for parameters: the oldest get new ones', async () => {
  const count = 4500
  const early = numbers([3, 5], 1)
  // A kernel of its own, whose recordings stay.
  const sums = () => withBackend(gpu, () => sum(early.to(gpu), 1))
  const first = [await sums().data(), await sums().data()]
  const source = Float32Array.from({ length: count }, (_, i) => i + 1)
  const [x, y] = [tensor(source, { device: gpu }), tensor(new Float32Array(count), { device: gpu })]
  // Every offset is recorded by itself; the second time it is done again.
  scope(() => {
    for (let i = 0; i < count; i++) for (const _ of [1, 2]) y.narrow(0, i, 1).add_(x.narrow(0, i, 1))
  })
  expect(await y.data()).toEqual(source.map((v) => 2 * v))
  expect([await sums().data(), await sums().data()]).toEqual(first)
})

describe('what a kernel does beyond its operands', () => {
  let x: Tensor
  beforeEach(() => {
    x = tensor([1, 2, 3, 4], { device: gpu })
  })

  test('bytes from the host or a buffer of its own: it is asked every time', async () => {
    const own = engine.pool.alloc(4, 'float32')
    const fill = (value: number): void => engine.write(own, 0, new Float32Array(4).fill(value))
    let runs = 0
    const copying = new Memory(engine).recorded('test', {
      run([out]) {
        fill(++runs)
        engine.copy(own, 0, (out as Tensor).buffer as GpuBuffer, 0, 16)
      },
    })
    for (const n of [1, 2, 3]) {
      copying.run([x], [], {}, [])
      expect([...(await x.data())]).toEqual([n, n, n, n])
    }
    expect(runs).toBe(3)
    engine.pool.free(own)
  })

  test('a kernel that threw is not remembered', () => {
    let runs = 0
    const failing = new Memory(engine).recorded('test', {
      run() {
        runs++
        throw new Error('no')
      },
    })
    for (const n of [1, 2]) {
      expect(() => failing.run([x], [], {}, [])).toThrow('no')
      expect(runs).toBe(n)
    }
    expect(engine.listener).toBeNull()
  })

  test('a workspace that no buffer has room for is told with its operator, and nothing stays taken', async () => {
    await collected()
    const before = engine.pool.stats()
    const greedy = new Memory(engine).recorded('greedy', {
      run() {
        engine.pool.alloc(1000, 'float32')
        engine.pool.alloc(2 ** 40, 'float32')
      },
    })
    for (const _ of [1, 2])
      expect(() => greedy.run([x], [], {}, [])).toThrow(
        /^greedy: its workspace of 1099511627776 elements takes 4398046511104 bytes; .* per buffer/,
      )
    expect(engine.pool.stats().usedBuffers).toBe(before.usedBuffers)
    expect(engine.listener).toBeNull()
  })

  test('what fails when done again leaves nothing taken either', async () => {
    const operand = withBackend(gpu, () => numbers([300_000], 1))
    sum(operand).dispose()
    await collected()
    const { usedBuffers } = engine.pool.stats()
    const broken = new Error('lost')
    const again = engine.runAgain.bind(engine)
    engine.runAgain = () => {
      throw broken
    }
    // The output is a tensor, which its owner disposes of.
    scope(() => expect(() => sum(operand)).toThrow(broken))
    engine.runAgain = again
    expect(engine.pool.stats().usedBuffers).toBe(usedBuffers)
    expect(await sum(operand).item()).toBe(
      await withBackend(reference, () => sum(numbers([300_000], 1))).item(),
    )
  })

  test('numbers in attributes: NaN is one, and −0 is not 0', () => {
    const seen: number[] = []
    const noting = new Memory(engine).recorded('test', {
      run: (_, __, attrs) => void seen.push((attrs as { value: number }).value),
    })
    for (const value of [Number.NaN, Number.NaN, 0, -0, 0, 1e-5, 1e-5]) noting.run([x], [], { value }, [])
    expect(seen).toEqual([Number.NaN, 0, -0, 1e-5])
  })

  test('attributes of other names or kinds', () => {
    let runs = 0
    const noting = new Memory(engine).recorded('test', { run: () => void runs++ })
    const all = [{}, { a: 1 }, { b: 1 }, { a: true }, { a: '1' }, { a: [1] }, { a: null }, { a: undefined }]
    for (const attrs of [...all, ...all]) noting.run([x], [], { ...attrs }, [])
    expect(runs).toBe(all.length)
  })
})
