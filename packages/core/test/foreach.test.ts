import { describe, expect, test } from 'vitest'
import {
  applyProgramIntoEach,
  type Backend,
  dataSync,
  type ElementwiseAttrs,
  expr as e,
  type KernelOf,
  noGrad,
  profile,
  program,
  reference,
  type Tensor,
  tensor,
  withBackend,
} from '../src/index.ts'

const AXPY = program('axpy', 2, ([y, x], [a]) => e.add(y, e.mul(a, x)), 1)
const values = (t: Tensor): number[] => [...dataSync(t)]

/** The reference with a `foreach` that runs call by call and notes how many calls it got. */
const joints: number[] = []
const foreach: KernelOf<ElementwiseAttrs> = {
  supports: (views) => views.every((v) => v.strides.at(-1) !== 2),
  run(outputs, inputs, { kernel }, numbers) {
    const [o, n, m] = [kernel.exprs.length, kernel.inputs.length, kernel.program.params]
    const calls = outputs.length / o
    joints.push(calls)
    const part = <T>(list: readonly T[], each: number, c: number): T[] => list.slice(c * each, (c + 1) * each)
    for (let c = 0; c < calls; c++)
      reference.kernels.elementwise.run(
        part(outputs, o, c),
        part(inputs, n, c),
        { kernel },
        part(numbers, m, c),
      )
  },
}
const joining: Backend = {
  name: 'joining',
  alloc: (bytes, dtype) => reference.alloc(bytes, dtype),
  free: (buffer) => reference.free(buffer),
  write: (view, data) => reference.write(view, data),
  read: (view) => reference.read(view),
  readSync: (view) => reference.readSync?.(view) as never,
  kernels: { ...reference.kernels, foreach },
}
const call = (y: Tensor, x: Tensor, a: number) => ({ outputs: [y], inputs: [y, x], params: [a] })

for (const backend of [reference, joining]) {
  describe(`a program over many groups of tensors on ${backend.name}`, () => {
    const run = <T>(fn: () => T): T => {
      joints.length = 0
      return withBackend(backend, fn)
    }
    const calls = (...counts: number[]): void => {
      if (backend === joining) expect(joints).toEqual(counts)
    }

    test('each with its params, whole numbers and fractions together', () =>
      run(() => {
        const ys = [tensor([1, 2]), tensor([[3], [4]]), tensor(5), tensor(new Float32Array(0))]
        applyProgramIntoEach(
          AXPY,
          ys.map((y, i) => call(y, tensor(2), [1, 0.5, -3, 1][i])),
        )
        expect(ys.map(values)).toEqual([[3, 4], [4, 5], [-1], []])
        calls(4)
      }))

    test('is as if in order where calls share memory', () =>
      run(() => {
        const y = tensor([1, 1, 1, 1])
        const [low, high] = [y.narrow(0, 0, 2), y.narrow(0, 2, 2)]
        const [a, b] = [tensor([0, 0]), tensor([0, 0])]
        // Reads what was written; writes what was read; writes what was written.
        applyProgramIntoEach(AXPY, [
          call(low, high, 1),
          call(a, low, 1),
          call(high, a, 1),
          call(a, b, 1),
          call(b, a, 3),
        ])
        expect(values(y)).toEqual([2, 2, 3, 3])
        expect([values(a), values(b)]).toEqual([
          [2, 2],
          [6, 6],
        ])
      }))

    test('parts of one tensor together where they come in order', () =>
      run(() => {
        const parts = (t: Tensor) => [0, 3, 4, 8].map((at, i) => t.narrow(0, at, [3, 1, 4, 2][i]))
        const [y, x] = [tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), tensor([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])]
        const [ys, xs] = [parts(y), parts(x)]
        applyProgramIntoEach(
          AXPY,
          ys.map((t, i) => call(t, xs[i], [1, 2, 3, 0.5][i])),
        )
        expect(values(y)).toEqual([9, 9, 9, 15, 19, 17, 15, 13, 8.5, 9])
        // What has no elements touches nothing.
        const [none, some] = [y.narrow(0, 5, 0), ys[3]]
        applyProgramIntoEach(AXPY, [call(some, xs[3], 0), call(none, none, 1), call(none, none, 1)])
        calls(4, 3)
        // The last one reads what the first one has written.
        applyProgramIntoEach(AXPY, [
          call(ys[0], ys[0], 1),
          call(ys[1], xs[1], 1),
          call(ys[3], ys[0].narrow(0, 1, 2), 1),
        ])
        calls(4, 3, 2)
        expect(values(y)).toEqual([18, 18, 18, 21, 19, 17, 15, 13, 26.5, 27])
      }))

    test('is as if in order wherever calls read and write in one tensor', () =>
      run(() => {
        let seed = 1
        const below = (n: number): number => {
          seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff
          return (seed >> 8) % n
        }
        for (let round = 0; round < 200; round++) {
          const data = Array.from({ length: 12 }, () => below(5))
          const [joint, apart] = [tensor(data), tensor(data)]
          const list = Array.from({ length: 6 }, () => {
            const n = 1 + below(3)
            const to = below(13 - n)
            let from = below(13 - n)
            // What a call reads and writes is the same or apart.
            while (from !== to && Math.abs(from - to) < n) from = below(13 - n)
            const backwards = from !== to && below(3) === 0
            return (t: Tensor) => {
              const [y, x] = [t.narrow(0, to, n), t.narrow(0, from, n)]
              return call(y, backwards ? x.flip(0) : x, 1 + below(2))
            }
          })
          const first = seed
          for (const f of list) applyProgramIntoEach(AXPY, [f(apart)])
          seed = first
          applyProgramIntoEach(
            AXPY,
            list.map((f) => f(joint)),
          )
          expect(values(joint), `round ${round}`).toEqual(values(apart))
        }
      }))

    test('one by one where the kernel declines, and where dtypes differ', () =>
      run(() => {
        const gaps = tensor([1, 9, 2, 9]).slice(0, 4, { step: 2 })
        const ys = [
          tensor([1]),
          tensor([2]),
          gaps,
          tensor(new Float64Array([1])),
          tensor(new Float64Array([2])),
        ]
        const { rows } = profile(() =>
          applyProgramIntoEach(
            AXPY,
            ys.map((y) => call(y, tensor(1, { dtype: y.dtype }), 1)),
          ),
        )
        expect(ys.map(values)).toEqual([[2], [3], [2, 3], [2], [3]])
        calls(2, 2)
        expect(rows.flatMap((r) => (r.op === 'axpy' ? [[r.path, r.calls]] : [])).sort()).toEqual(
          backend === joining
            ? [
                ['fused', 2],
                ['primitive', 1],
              ]
            : [['primitive', 5]],
        )
      }))

    test('a single one is an ordinary call; none is nothing', () =>
      run(() => {
        const y = tensor([1])
        applyProgramIntoEach(AXPY, [call(y, y, 2)])
        applyProgramIntoEach(AXPY, [])
        expect(values(y)).toEqual([3])
        calls()
      }))

    test('changes nothing if anything is wrong', () =>
      run(() => {
        const [good, leaf] = [tensor([1]), tensor([1], { requiresGrad: true })]
        const bad = (c: ReturnType<typeof call>, message: RegExp): void =>
          expect(() => applyProgramIntoEach(AXPY, [call(good, good, 1), c])).toThrow(message)
        bad(call(leaf, good, 1), /^axpy: a tensor that requires a gradient cannot be modified/)
        bad(call(tensor([2]), leaf, 1), /^axpy: writing in place is not recorded/)
        bad(call(tensor([2]), tensor([1, 2]), 1), /do not broadcast to the output's shape \[1\]/)
        bad(call(tensor([2]).expand([3]), good, 1), /expanded tensor cannot be modified/)
        expect(values(good)).toEqual([1])
        noGrad(() => applyProgramIntoEach(AXPY, [call(leaf, good, 1), call(good, tensor(0), 1)]))
        expect(values(leaf)).toEqual([2])
      }))

    test('the tape notices', () =>
      run(() => {
        const xs = [tensor([2], { requiresGrad: true }), tensor([3], { requiresGrad: true })]
        const y = xs[0].square().add(xs[1].square()).sum()
        noGrad(() =>
          applyProgramIntoEach(
            AXPY,
            xs.map((x) => call(x, tensor(1), 1)),
          ),
        )
        expect(() => y.backward()).toThrow(/^square: its input 0.*modified in place/)
      }))
  })
}
