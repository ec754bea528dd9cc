/** Calls that were made ready run again and again: the bits of the same calls one by one, whatever has changed meanwhile. */
import {
  applyProgramIntoEach,
  type Call,
  cat,
  crossEntropy,
  DeviceError,
  dropout,
  expr as e,
  embedding,
  gatedLinearAttention,
  grad,
  layerNorm,
  linear,
  matmul,
  type Prepared,
  program,
  rmsNorm,
  rotaryEmbedding,
  scaledDotProductAttention,
  softmax,
  sort,
  sum,
  type Tensor,
  tensor,
  totalNorm,
  ValueError,
  type View,
  withBackend,
  zeros,
} from '@tilegrad/core'
import { listen } from '@tilegrad/core/kernel'
import { afterAll, afterEach, describe, expect, test } from 'vitest'
import { random } from '../../../test/kernels/random.ts'
import type { GpuBuffer } from '../src/device/buffers.ts'
import { createWebGpuBackend, type WebGpuBackend } from '../src/index.ts'
import { sharedGpu } from './support/shared-gpu.ts'

const shared = await sharedGpu()
const gpus = [shared.full(), shared.plain()] as const
const [full, plain] = gpus
const unavailable = await createWebGpuBackend({ backend: 'null' })
afterAll(() => {
  for (const gpu of [full, unavailable]) gpu.close()
})

/** Puts everything back that a test holds or replaces. */
const ends: (() => void)[] = []
afterEach(() => {
  for (const end of ends.splice(0).reverse()) end()
})

/** From now on memory stays taken until the test ends: as calls that run again need it, and `compile` holds it. */
function hold(gpu: WebGpuBackend): void {
  const { free } = gpu
  const buffers: object[] = []
  gpu.free = (buffer) => void buffers.push(buffer)
  ends.push(() => {
    gpu.free = free
    for (const buffer of buffers) free(buffer)
  })
}

const viewOf = ({ buffer, dtype, shape, strides, offset }: View): View => ({
  buffer,
  dtype,
  shape,
  strides,
  offset,
})

/** What `fn` returns and the calls that it makes, with lists of numbers that may be changed. */
function recorded<T>(gpu: WebGpuBackend, fn: () => T): { result: T; calls: Call[] } {
  const calls: Call[] = []
  const before = listen({
    call(call, go) {
      const [outputs, inputs] = [call.outputs.map(viewOf), call.inputs.map(viewOf)]
      calls.push({ ...call, outputs, inputs, numbers: [...call.numbers] })
      go()
    },
    begin() {},
    composed() {},
  })
  try {
    return { result: withBackend(gpu, fn), calls }
  } finally {
    listen(before)
  }
}

function prepare(gpu: WebGpuBackend, calls: readonly Call[]): Prepared {
  if (!gpu.prepare) throw new Error('it makes nothing ready')
  const prepared = gpu.prepare(calls)
  ends.push(() => prepared.release())
  return prepared
}

const oneByOne = (calls: readonly Call[]): void => {
  for (const { kernel, outputs, inputs, attrs, numbers } of calls) kernel.run(outputs, inputs, attrs, numbers)
}

const floats = (count: number, seed: number): Float32Array => {
  const rnd = random(seed)
  return Float32Array.from({ length: count }, () => 2 * rnd() - 1)
}
const values = (shape: readonly number[], seed = 1): Tensor =>
  tensor(
    floats(
      shape.reduce((n, s) => n * s, 1),
      seed,
    ),
    shape,
  )
const param = (shape: readonly number[], seed = 1): Tensor => {
  const t = values(shape, seed)
  t.requiresGrad = true
  return t
}
const tokens = (count: number, below: number): Tensor =>
  tensor(Int32Array.from({ length: count }, (_, i) => (i * 7) % below))
const numbersOf = async (t: Tensor): Promise<number[]> => [...(await t.data())]

interface Work {
  /** Contiguous floats, written anew before each run. */
  readonly inputs: readonly Tensor[]
  /** The tensors that are compared; those of inputs are as well. */
  step(): readonly Tensor[]
}

/** Runs what was made ready and the same calls one by one, on the same contents and numbers, several times. */
async function agree(gpu: WebGpuBackend, make: () => Work): Promise<{ launches: number; calls: Call[] }> {
  hold(gpu)
  const { inputs, step } = withBackend(gpu, make)
  const { result, calls } = recorded(gpu, step)
  await gpu.finished()
  const { usedBuffers, usedBytes } = gpu.stats()
  const { dispatches } = gpu.engine.counts
  const prepared = prepare(gpu, calls)
  // Nothing has run.
  expect(gpu.engine.counts.dispatches).toBe(dispatches)
  expect(gpu.engine.listener).toBeNull()
  const { launches } = prepared
  const before = calls.map(({ numbers }) => [...numbers])
  const results = result.filter((t) => !inputs.some((x) => x.buffer === t.buffer))
  const compared = [...results, ...inputs]
  for (const round of [0, 1, 2, 3]) {
    calls.forEach(({ numbers }, c) => {
      ;(before[c] as number[]).forEach((v, i) => {
        ;(numbers as number[])[i] = Number.isInteger(v) ? v + round : v * (1 + round / 16)
      })
    })
    const outcome = async (run: () => void): Promise<number[][]> => {
      inputs.forEach((x, i) => {
        gpu.write(x, floats(x.numel, 100 * round + i))
      })
      for (const t of results) if (t.dtype === 'float32') gpu.write(t, new Float32Array(t.numel).fill(-12345))
      run()
      const read = await Promise.all(compared.map((t) => gpu.read(t)))
      // Bits, as NaN and −0 are to be told.
      return read.map((data) => [...new Uint32Array(Float32Array.from(data).buffer)])
    }
    const { bindGroups } = gpu.engine
    const got = await outcome(() => prepared.run())
    expect(gpu.engine.bindGroups).toBe(bindGroups)
    expect(got).toEqual(await outcome(() => oneByOne(calls)))
  }
  prepared.release()
  expect(gpu.stats()).toMatchObject({ usedBuffers, usedBytes })
  return { launches, calls }
}

/** The gradients of `fn` for all of its arguments, and its result. */
function gradients(inputs: readonly Tensor[], fn: () => Tensor): Work {
  const dy = values(fn().shape, 99)
  return {
    inputs: [...inputs, dy],
    step: () => {
      const y = fn()
      return [y, ...grad([y], [...inputs], { gradOutputs: [dy] })]
    },
  }
}

/** Two outputs, a scalar for all, numbers: like an optimiser's step. */
const STEP = program(
  'step',
  4,
  ([p, g, m, s], [lr, beta]) => {
    const next = e.add(e.mul(beta, m), e.mul(g, s))
    return [e.sub(p, e.div(e.mul(lr, next), e.add(e.sqrt(e.abs(next)), 1e-3))), next]
  },
  2,
)

describe('the same bits as one by one', () => {
  const cases: [name: string, make: () => Work][] = [
    [
      'elementwise, with numbers, views and a product of all',
      () => {
        const [x, y] = [values([6, 10], 1), values([6], 2)]
        return {
          inputs: [x, y],
          step: () => {
            const z = x.mul(0.75).add(3).transpose(0, 1).narrow(0, 3, 5).mul(y)
            return [z, z.tanh(), sum(z, 0), z.amax(), z.argmax(0), z.cumsum(1)]
          },
        }
      },
    ],
    [
      'linear with an activation and its gradients',
      () => {
        const [x, w, bias] = [param([10, 12], 1), param([8, 12], 2), param([8], 3)]
        return gradients([x, w, bias], () => linear(x, w, bias, { activation: 'gelu' }))
      },
    ],
    [
      'a product with k split, whose parts are temporaries',
      () => {
        const [a, b] = [values([70, 4096], 1), values([4096, 70], 2)]
        return { inputs: [a, b], step: () => [matmul(a, b), matmul(a, b.mul(2))] }
      },
    ],
    [
      'softmax',
      () => {
        const x = param([11, 13])
        return gradients([x], () => softmax(x, -1))
      },
    ],
    [
      'norms',
      () => {
        const [x, w, b] = [param([6, 12], 1), param([12], 2), param([12], 3)]
        return gradients([x, w, b], () => rmsNorm(layerNorm(x, [12], w, b), [12], w))
      },
    ],
    [
      'attention with dropout, and rotations',
      () => {
        const [q, k, v] = [1, 2, 3].map((seed) => param([1, 2, 33, 8], seed)) as [Tensor, Tensor, Tensor]
        return gradients([q, k, v], () => {
          const turned = rotaryEmbedding(q)
          return scaledDotProductAttention(turned, k, v, { isCausal: true, dropoutP: 0.25 })
        })
      },
    ],
    [
      'gated linear attention, whose gradients scan',
      () => {
        const [q, k, v] = [1, 2, 3].map((seed) => param([1, 2, 9, 4], seed)) as [Tensor, Tensor, Tensor]
        const gates = tensor(
          floats(72, 4).map((x) => -x * x),
          [1, 2, 9, 4],
        )
        return gradients([q, k, v], () => gatedLinearAttention(q, k, v, gates))
      },
    ],
    [
      'an optimiser over parameters of several sizes, in place',
      () => {
        const sizes = [1, 5, 1024, 3000, 7, 16, 64, 100]
        const groups = sizes.map((n, i) => [0, 1, 2].map((j) => values([n], 3 * i + j)))
        const scale = values([1], 50)
        return {
          inputs: [...groups.flat(), scale],
          step: () => {
            applyProgramIntoEach(
              STEP,
              groups.map(([p, g, m], i) => ({
                outputs: [p, m] as Tensor[],
                inputs: [p, g, m, scale] as Tensor[],
                params: [0.1 + i, 0.9],
              })),
            )
            return []
          },
        }
      },
    ],
    [
      'cat and sort',
      () => {
        const [x, y] = [values([4, 5], 1), values([4, 3], 2)]
        return { inputs: [x, y], step: () => sort(cat([x, y, x], 1), 1) }
      },
    ],
    [
      'an embedding and a cross-entropy',
      () => {
        const [w, out] = [param([40, 12], 1), param([40, 12], 2)]
        const [index, target] = [tokens(50, 40), tokens(50, 37)]
        return gradients([w, out], () =>
          crossEntropy(linear(embedding(index, w), out), target, { ignoreIndex: 3 }),
        )
      },
    ],
    [
      'random numbers',
      () => {
        const x = values([300])
        return { inputs: [x], step: () => [dropout(x, 0.5)] }
      },
    ],
    [
      'the norm of many',
      () => {
        const all = [3, 1000, 70_000, 5, 6, 7, 8, 9, 10].map((n, i) => values([n], i))
        return { inputs: all, step: () => [totalNorm(all)] }
      },
    ],
  ]
  test.each(cases)('%s', async (_, make) => {
    const { calls } = await agree(full, make)
    expect(calls.length).toBeGreaterThan(0)
  })

  test('where few buffers are bound at once', async () => {
    const [, work] = cases.find(([name]) => name.startsWith('an optimiser')) as (typeof cases)[number]
    const { launches, calls } = await agree(plain, work)
    expect(calls.length).toBe(1)
    expect(launches).toBeGreaterThan(2)
  })

  test('products side by side', async () => {
    const { launches, calls } = await agree(full, () => {
      const [x, w] = [param([50, 30], 1), param([30, 70], 2)]
      return gradients([x, w], () => matmul(x, w))
    })
    expect(calls.length).toBe(3)
    expect(launches).toBe(2)
  })
})

describe('runs', () => {
  /** A tensor, and what adds a number to it. */
  function adding(gpu: WebGpuBackend, number: number, times = 1) {
    hold(gpu)
    const x = withBackend(gpu, () => zeros([4]))
    const { calls } = recorded(gpu, () => {
      for (let i = 0; i < times; i++) x.add_(number)
    })
    gpu.write(x, new Float32Array(4))
    return { x, calls, numbers: calls[0]?.numbers as number[], prepared: prepare(gpu, calls) }
  }
  const four = (value: number): number[] => [value, value, value, value]

  test('take numbers as they are when they begin, also several before anything is submitted', async () => {
    const { x, numbers, prepared } = adding(full, 1)
    for (const n of [1, 10, 10, 100, 1000]) {
      numbers[0] = n
      prepared.run()
    }
    numbers[0] = 5
    expect(await numbersOf(x)).toEqual(four(1121))
    prepared.run()
    expect(await numbersOf(x)).toEqual(four(1126))
  })

  test('tell −0 from 0, and NaN from what it was', async () => {
    hold(full)
    const x = withBackend(full, () => values([4]))
    const { result, calls } = recorded(full, () => x.mul(0).mul(0.5))
    const prepared = prepare(full, calls)
    for (const n of [Number.NaN, 0, -0, 0]) {
      for (const { numbers } of calls) (numbers as number[])[0] = n
      gpuFill(full, x, 1)
      prepared.run()
      expect(await numbersOf(result)).toEqual(four(n * n))
      ;(calls[0]?.numbers as number[])[0] = 1
      prepared.run()
      expect(await numbersOf(result)).toEqual(four(n))
    }
  })

  test('keep their order with what runs before, between and after them', async () => {
    const { x, prepared } = adding(full, 3)
    const seen: Tensor[] = []
    withBackend(full, () => {
      x.add_(1)
      prepared.run()
      seen.push(x.add(0))
      x.mul_(2)
      prepared.run()
      seen.push(x.add(0))
      // From the host: what ran before has seen what was there.
      full.write(x, new Float32Array(4).fill(50))
      prepared.run()
    })
    expect(await Promise.all(seen.map(numbersOf))).toEqual([four(4), four(11)])
    expect(await numbersOf(x)).toEqual(four(53))
  })

  test('of more dispatches than a batch has', async () => {
    const { x, prepared } = adding(full, 1, 700)
    // After a read batches begin small.
    await numbersOf(x)
    expect(prepared.launches).toBe(700)
    const { submits } = full.engine.counts
    prepared.run()
    expect(await numbersOf(x)).toEqual(four(700))
    // 32, 64, 128, 256 and the rest.
    expect(full.engine.counts.submits - submits).toBe(5)
    prepared.run()
    prepared.run()
    expect(await numbersOf(x)).toEqual(four(2100))
  })

  test('are timed dispatch by dispatch', async () => {
    const { x, prepared } = adding(full, 1, 300)
    expect(full.engine.startTiming()).toBe(true)
    withBackend(full, () => x.mul_(2))
    prepared.run()
    withBackend(full, () => x.mul_(2))
    expect(full.engine.timed()).toBe(302)
    const spans = await full.engine.stopTiming()
    expect(spans.map(({ label }) => label)).toEqual(['mul_', ...Array(300).fill('add_'), 'mul_'])
    for (const { ms, start } of spans) expect(Math.min(ms, start)).toBeGreaterThanOrEqual(0)
    expect(await numbersOf(x)).toEqual(four(600))
  })

  test('end when they are released, at any time', async () => {
    const { x, prepared } = adding(full, 1)
    prepared.run()
    prepared.release()
    prepared.release()
    expect(() => prepared.run()).toThrow(ValueError)
    expect(await numbersOf(x)).toEqual(four(1))
  })

  test('of nothing', () => {
    const prepared = prepare(full, [])
    prepared.run()
    expect(prepared.launches).toBe(0)
  })
})

describe('temporaries', () => {
  test('are taken once for all kernels, and given back in the end', async () => {
    hold(unavailable)
    const { calls } = recorded(unavailable, () => {
      const x = values([300_000])
      return [1, 2, 3].map((n) => sum(x.mul(n)))
    })
    await unavailable.finished()
    const before = unavailable.stats()
    const prepared = prepare(unavailable, calls)
    expect(unavailable.stats().usedBuffers).toBe(before.usedBuffers + 1)
    prepared.run()
    prepared.release()
    expect(unavailable.stats()).toMatchObject({
      usedBuffers: before.usedBuffers,
      usedBytes: before.usedBytes,
    })
  })

  test('are given back where a kernel fails', () => {
    hold(unavailable)
    const { engine } = unavailable
    const { calls } = recorded(unavailable, () => sum(values([300_000])))
    const call = calls.at(-1) as Call
    const [first] = recorded(unavailable, () => values([4]).add(1)).calls as [Call]
    const { usedBuffers } = engine.pool.stats()
    const wrong: [what: string, run: Call['kernel']['run'], error: RegExp][] = [
      [
        'copies',
        ([out]) => engine.copy(bufferOf(out), 0, engine.pool.alloc(4, 'float32'), 0, 4),
        /^sum: its kernel copies bytes, which cannot be made ready/,
      ],
      [
        'writes',
        () => engine.write(engine.pool.alloc(4, 'float32'), 0, new Float32Array(4)),
        /^sum: its kernel writes bytes of the host/,
      ],
      [
        'hands on other numbers',
        (outputs, inputs, attrs, numbers) => {
          engine.pool.alloc(4, 'float32')
          first.kernel.run(first.outputs, first.inputs, first.attrs, [...first.numbers])
          call.kernel.run(outputs, inputs, attrs, numbers)
        },
        /^sum: its kernel takes numbers that are not its call's own list/,
      ],
    ]
    for (const [, run, error] of wrong) {
      const made = () => prepare(unavailable, [...calls, { ...call, kernel: { run } }])
      expect(made).toThrow(error)
      expect(made).toThrow(DeviceError)
      expect(engine.pool.stats().usedBuffers).toBe(usedBuffers)
      expect(engine.listener).toBeNull()
    }
  })
})

describe('errors', () => {
  test('a buffer of another backend', () => {
    hold(unavailable)
    const { calls } = recorded(unavailable, () => values([4]).add(1))
    const [call] = calls as [Call]
    const inputs = call.inputs.map((view) => ({ ...view, buffer: {} }))
    expect(() => prepare(unavailable, [{ ...call, inputs }])).toThrow(
      /^add: prepare got a buffer of another backend than webgpu/,
    )
  })

  test('what a run refuses is told with the operators', async () => {
    // Of its own: whoever takes the buffer next would be told as well.
    const broken = await createWebGpuBackend({ backend: 'null' })
    const { result, calls } = recorded(broken, () => values([4]).add(1))
    const prepared = prepare(broken, calls)
    bufferOf(result).gpu.destroy()
    prepared.run()
    await expect(broken.finished()).rejects.toThrow(/add.*: invalid on /)
    broken.close()
  })

  test('a lost device', async () => {
    const lost = await createWebGpuBackend({ backend: 'null' })
    const { calls } = recorded(lost, () => values([4]).add(1))
    const prepared = prepare(lost, calls)
    prepared.run()
    lost.close()
    expect(() => prepared.run()).toThrow(DeviceError)
    expect(() => prepared.run()).toThrow(/^compile: the GPU was closed/)
    expect(() => prepare(lost, calls)).toThrow(/the GPU was closed/)
    prepared.release()
  })
})

const bufferOf = (view: View | undefined): GpuBuffer => view?.buffer as GpuBuffer
const gpuFill = (gpu: WebGpuBackend, view: Tensor, value: number): void =>
  gpu.write(view, new Float32Array(view.numel).fill(value))
