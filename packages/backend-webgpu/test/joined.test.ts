/** Two dispatches as one: where they go together and where they must not, and that results stay the same bit for bit. */
import {
  backward,
  expr,
  linear,
  matmul,
  program,
  scope,
  specialize,
  type Tensor,
  tensor,
  withBackend,
  zeros,
} from '@tilegrad/core'
import { afterAll, describe, expect, test, vi } from 'vitest'
import type { Engine } from '../src/commands/queue.ts'
import type { GpuBuffer } from '../src/device/buffers.ts'
import { createWebGpuBackend, type WebGpuBackend } from '../src/index.ts'
import { multiply } from '../src/kernels/matmul/matmul.ts'
import type { Plan } from '../src/kernels/matmul/plan.ts'
import { problemOf } from '../src/kernels/matmul/problem.ts'
import { block, u32, type ValuesOf } from '../src/wgsl/block.ts'
import type { Shader } from '../src/wgsl/shader.ts'
import { gpus, shared } from './support/gpus.ts'

// Only to end what hangs: a machine may be busy with other things.
const patience = { timeout: 60_000 }

const unavailable = await createWebGpuBackend({ backend: 'null' })
/** The same GPUs, on which nothing is joined: what is recorded is submitted before the next dispatch comes. */
const apart = shared ? [shared.full(), shared.plain()] : []
for (const { engine } of apart) {
  const [dispatch, runAgain] = [engine.dispatch.bind(engine), engine.runAgain.bind(engine)]
  engine.dispatch = (...args) => {
    engine.flush()
    dispatch(...args)
  }
  engine.runAgain = (...args) => {
    engine.flush()
    runAgain(...args)
  }
}
afterAll(() => {
  for (const gpu of [unavailable, ...apart, ...gpus.map((g) => g.gpu)]) gpu.close()
})

const values = (shape: readonly number[], seed: number): Tensor => {
  let state = seed
  const next = (): number => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0
    return state / 2 ** 31 - 1
  }
  return tensor(Float32Array.from({ length: shape.reduce((n, s) => n * s, 1) }, next)).reshape(shape)
}
const param = (shape: readonly number[], seed: number): Tensor => {
  const t = values(shape, seed)
  t.requiresGrad = true
  return t
}

/** Makes operands, which are on the GPU then, and what is done with them. */
type Work = (engine: Engine) => () => readonly Tensor[]

async function counted(gpu: WebGpuBackend, work: Work) {
  const ready = withBackend(gpu, () => work(gpu.engine))
  await gpu.finished()
  const before = gpu.engine.counts.dispatches
  const results = withBackend(gpu, ready)
  const dispatches = gpu.engine.counts.dispatches - before
  return { dispatches, data: await Promise.all(results.map((t) => t.data())) }
}

/** How many dispatches it takes where they may be joined, and where not. */
async function dispatches(i: number, work: Work): Promise<[joined: number, apart: number]> {
  const got = await counted((gpus[i] as (typeof gpus)[number]).gpu, work)
  const want = await counted(apart[i] as WebGpuBackend, work)
  expect(got.data.length).toBeGreaterThan(0)
  expect(got.data).toEqual(want.data)
  return [got.dispatches, want.dispatches]
}

const tiny: Plan = {
  tile: { bm: 16, bn: 16, bk: 16, tm: 4, tn: 4, slices: 4 },
  splits: 1,
}
/** out = a · b, from here and not from a kernel that checks its operands. */
const product = (engine: Engine, out: Tensor, a: Tensor, b: Tensor, plan = tiny): void =>
  multiply(engine, 'matmul', problemOf([out], a, b), undefined, () => plan)

describe.each(gpus.map(({ name, gpu }, i) => ({ name, gpu, i })))('$name', ({ gpu, i }) => {
  test.each([
    [33, 20, 36],
    [40, 64, 24],
    [7, 5, 3],
  ])('the two products of a backward pass, %i × %i · … × %i', async (m, k, n) => {
    const work: Work = () => {
      const [x, w, dy] = [param([m, k], 1), param([k, n], 2), values([m, n], 3)]
      return () => {
        const y = matmul(x, w)
        backward(y, { gradient: dy })
        const grads = [y, x.grad, w.grad] as Tensor[]
        x.grad = w.grad = null
        return grads
      }
    }
    // Worked out, and then as recorded.
    for (const _ of [1, 2, 3]) expect(await dispatches(i, work)).toEqual([2, 3])
  })

  test('the same kernel twice; never three', async () => {
    const work: Work = () => {
      const [x, ...ws] = [
        [9, 8],
        [8, 12],
        [8, 12],
        [8, 12],
        [8, 12],
        [8, 12],
      ].map(values) as [Tensor]
      return () => ws.map((w) => matmul(x, w))
    }
    for (const _ of [1, 2]) expect(await dispatches(i, work)).toEqual([3, 5])
  })

  test('what follows products, with functions and structs of the same names', async () => {
    const work: Work = () => {
      const [x, w, bias] = [values([10, 12], 1), values([8, 12], 2), values([8], 3)]
      return () => [linear(x, w, bias, { activation: 'gelu' }), linear(x, w, bias, { activation: 'silu' })]
    }
    expect(await dispatches(i, work)).toEqual([1, 2])
  })

  test('not where they bind more buffers than a kernel may', async () => {
    const most = gpu.gpu.limits.maxStorageBuffersPerShaderStage
    const work =
      (residual: boolean): Work =>
      () => {
        const [x, w, bias, r] = [[10, 12], [8, 12], [8], [10, 8]].map(values) as [
          Tensor,
          Tensor,
          Tensor,
          Tensor,
        ]
        const options = { activation: 'relu', residual: residual ? r : null } as const
        return () => [linear(x, w, bias, options), linear(x, w, bias, options)]
      }
    expect(most).toBeGreaterThanOrEqual(8)
    expect(await dispatches(i, work(false))).toEqual([1, 2])
    expect(await dispatches(i, work(true))).toEqual([most >= 10 ? 1 : 2, 2])
  })

  test('several outputs, passed on through workgroup memory', async () => {
    const after = program('after', 2, ([y, b]) => [expr.mul(y, b), y])
    const kernel = specialize(after, ['float32', 'float32'], [])
    const plan: Plan = {
      tile: { bm: 32, bn: 32, bk: 8, tm: 8, tn: 4, slices: 1 },
      splits: 1,
    }
    const work: Work = (engine) => {
      const [a, b, c, scale] = [[35, 9], [9, 40], [35, 40], [40]].map(values) as [
        Tensor,
        Tensor,
        Tensor,
        Tensor,
      ]
      const outs = [zeros([35, 40]), zeros([35, 40])]
      const [da, db] = [zeros([35, 9]), zeros([9, 40])]
      return () => {
        multiply(engine, 'after', problemOf(outs, a, b, [scale]), kernel, () => plan)
        product(engine, da, c, b.T, plan)
        product(engine, db, a.T, c, plan)
        return [...outs, da, db]
      }
    }
    expect(await dispatches(i, work)).toEqual([2, 3])
  })

  test('with k split, batches and strides', async () => {
    const work: Work = (engine) => {
      const [a, b, c] = [values([2, 20, 70], 1), values([2, 70, 18], 2), values([70, 40], 3)]
      const [one, two] = [zeros([2, 20, 18]), zeros([20, 20])]
      return () => {
        product(engine, one, a, b)
        product(engine, two, c.narrow(1, 1, 20).T, c.narrow(1, 20, 20), { ...tiny, splits: 3 })
        return [one, two]
      }
    }
    // The sum of the parts comes by itself.
    expect(await dispatches(i, work)).toEqual([2, 3])
  })

  const separate: [string, (engine: Engine, t: readonly Tensor[]) => void][] = [
    [
      'one that reads what the first writes',
      (engine, [a, b, c, d]) => {
        product(engine, c as Tensor, a as Tensor, b as Tensor)
        product(engine, d as Tensor, c as Tensor, b as Tensor)
      },
    ],
    [
      'one that writes what the first reads',
      (engine, [a, b, c, d]) => {
        product(engine, c as Tensor, a as Tensor, b as Tensor)
        product(engine, a as Tensor, b as Tensor, d as Tensor)
      },
    ],
    [
      'one that writes the same buffer, elsewhere',
      (engine, [a, b, c]) => {
        product(engine, (c as Tensor).narrow(0, 0, 8), (a as Tensor).narrow(0, 0, 8), b as Tensor)
        product(engine, (c as Tensor).narrow(0, 8, 8), (b as Tensor).narrow(0, 8, 8), a as Tensor)
      },
    ],
    [
      'after a copy',
      (engine, [a, b, c, d]) => {
        product(engine, c as Tensor, a as Tensor, b as Tensor)
        engine.copy((c as Tensor).buffer as GpuBuffer, 0, (b as Tensor).buffer as GpuBuffer, 0, 1024)
        product(engine, d as Tensor, a as Tensor, b as Tensor)
      },
    ],
    [
      'after a write to what the first reads',
      (engine, [a, b, c, d]) => {
        product(engine, c as Tensor, a as Tensor, b as Tensor)
        engine.write((b as Tensor).buffer as GpuBuffer, 0, new Float32Array(256).fill(2))
        product(engine, d as Tensor, a as Tensor, b as Tensor)
      },
    ],
    [
      'workgroups of another size',
      (engine, [a, b, c, d]) => {
        product(engine, c as Tensor, a as Tensor, b as Tensor)
        product(engine, d as Tensor, a as Tensor, b as Tensor, {
          tile: { bm: 16, bn: 16, bk: 16, tm: 4, tn: 4, slices: 2 },
          splits: 1,
        })
      },
    ],
  ]
  test.each(separate)('apart: %s', async (_, run) => {
    const work: Work = (engine) => {
      const tensors = [1, 2, 3, 4].map((seed) => values([16, 16], seed))
      return () => {
        run(engine, tensors)
        return tensors
      }
    }
    expect(await dispatches(i, work)).toEqual([2, 2])
  })

  test('apart: float32 and int32', async () => {
    const work: Work = () => {
      const a = values([8, 8], 1)
      const b = tensor(Int32Array.from({ length: 64 }, (_, n) => n)).reshape([8, 8])
      return () => [matmul(a, a), matmul(b, b)]
    }
    expect(await dispatches(i, work)).toEqual([2, 2])
  })

  test('kernels see their own workgroups, parameters, memory and names', async () => {
    const params = block({ count: u32, scale: u32 })
    const shader = (count: number, value: string): Shader<ValuesOf<typeof params>> => ({
      params,
      bindings: [
        { name: 'x', item: 'u32' },
        { name: 'out', item: 'u32', write: true },
      ],
      workgroup: [4],
      shared: { name: 's', item: 'u32', count },
      joins: 'count',
      declarations: `struct Two { a: u32, b: u32 }\nfn twice(v: u32) -> Two { return Two(${value}, v); }`,
      body: `if (wg.x == 1) { return; }
        s[${count} - 4 + li] = x[li];
        workgroupBarrier();
        let two = twice(s[${count} - 1 - li]);
        out[wg.x * 4 + li] = two.a + two.b * p.scale + 1000 * wg.x + 100000 * groups.x;`,
    })
    const { engine } = gpu
    const kernels = [
      engine.kernel('test 4', 'one', () => shader(4, '2 * v')),
      engine.kernel('test 9', 'two', () => shader(9, '3 * v')),
    ]
    const x = tensor([1, 2, 3, 4], { dtype: 'int32', device: gpu })
    const outs = kernels.map(() => tensor(new Int32Array(12), { device: gpu }))
    await gpu.finished()
    const before = engine.counts.dispatches
    kernels.forEach((kernel, k) => {
      const buffers = [x, outs[k]].map((t) => (t as Tensor).buffer as GpuBuffer)
      engine.run(kernel, buffers, { count: 2 + k, scale: 10 + 10 * k }, [2 + k])
    })
    expect(engine.counts.dispatches - before).toBe(1)
    const row = (factor: number, at: number) => [4, 3, 2, 1].map((v) => v * factor + at)
    const none = [0, 0, 0, 0]
    expect([...(await (outs[0] as Tensor).data())]).toEqual([...row(12, 200_000), ...none, ...none])
    expect([...(await (outs[1] as Tensor).data())]).toEqual([
      ...row(23, 300_000),
      ...none,
      ...row(23, 302_000),
    ])
  })
})

test('what is timed is not joined', async () => {
  const { gpu } = gpus[0] as (typeof gpus)[number]
  const { engine } = gpu
  const [a, b] = withBackend(gpu, () => [values([8, 8], 1), values([8, 8], 2)])
  const twice = () => [matmul(a, b), matmul(b, a)]
  expect(engine.startTiming()).toBe(true)
  twice()
  expect((await engine.stopTiming()).map(({ label }) => label)).toEqual(['matmul', 'matmul'])
  const before = engine.counts.dispatches
  twice()
  expect(engine.counts.dispatches - before).toBe(1)
})

describe('without a GPU', () => {
  const { engine } = unavailable
  const on = <T>(work: () => T): T => withBackend(unavailable, work)

  test('as many workgroups as gain by it', async () => {
    for (const [rows, count] of [
      [512, 1],
      [513, 2],
    ] as const) {
      const [a, b] = on(() => [zeros([rows, 64]), zeros([64, 512])])
      await unavailable.finished()
      const before = engine.counts.dispatches
      on(() => [matmul(a, b), matmul(a, b)])
      expect(engine.counts.dispatches - before).toBe(count)
    }
  })

  test('kernels that never run by themselves are not compiled, and a loop makes no new bind groups', async () => {
    const compile = vi.spyOn(engine.device, 'createComputePipeline')
    const step = on(() => {
      const [x, w, dy] = [param([50, 30], 1), param([30, 70], 2), values([50, 70], 3)]
      return () =>
        scope(() => {
          backward(matmul(x, w), { gradient: dy })
          for (const t of [x, w]) {
            t.grad?.dispose()
            t.grad = null
          }
        })
    })
    await unavailable.finished()
    compile.mockClear()
    const steps = async (): Promise<number> => {
      for (let i = 0; i < 20; i++) {
        on(step)
        await unavailable.finished()
      }
      return engine.bindGroups
    }
    const groups = await steps()
    expect(await steps()).toBe(groups)
    expect(compile).toHaveBeenCalledTimes(2)
  })

  test('errors name both', async () => {
    // A member called like a binding, against the rules.
    const params = block({ count: u32 })
    const shader: Shader<ValuesOf<typeof params>> = {
      params,
      bindings: [{ name: 'out', item: 'u32', write: true }],
      workgroup: [1],
      joins: 'count',
      declarations: 'struct One { out: u32 }',
      body: 'let one = One(1); out[0] = one.out;',
    }
    const [a, b] = on(() => [zeros([4]), zeros([4])])
    await unavailable.finished()
    for (const [label, t] of [
      ['left', a],
      ['right', b],
    ] as const)
      engine.run(
        engine.kernel(label, label, () => shader),
        [t.buffer as GpuBuffer],
        { count: 1 },
        [1],
      )
    engine.flush()
    await vi.waitFor(() => expect(() => engine.check('next')).toThrow(/^left and right: /), patience)
    await vi.waitFor(() => expect(() => engine.check('next')).not.toThrow(), patience)
  })
})
